//! Which connections are open: counted by who is at the other end, so that nobody takes all places, and listed for operators.
//! Trusts the doors to tell what they know, and the drop of an entry for the end.
//! Never holds more than there are connections, and never shows what was asked on one.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::Serialize;

use crate::metrics::{OpenGuard, ProxyMetrics};

/// As many connections as an operator is shown; the number of all is shown in any case.
const MOST_SHOWN: usize = 1000;

/// The open connections of a proxy. Clones are handles.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    state: Arc<Mutex<State>>,
    metrics: ProxyMetrics,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    open: BTreeMap<u64, Open>,
    by_peer: HashMap<Arc<str>, usize>,
}

#[derive(Debug)]
struct Open {
    door: Arc<str>,
    address: Option<SocketAddr>,
    since: SystemTime,
    peer: Option<Arc<str>>,
}

/// The connections at one moment.
#[derive(Debug, Serialize)]
pub(crate) struct Listed {
    pub(crate) open: usize,
    /// The oldest of them.
    pub(crate) connections: Vec<Shown>,
}

/// A connection, as an operator is shown it.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    door: String,
    address: Option<String>,
    /// Who is at the other end; none: nobody has proven anything yet.
    peer: Option<String>,
    /// Seconds since 1970.
    since: u64,
}

/// One more connection of this peer would be more than its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this peer has {0} open connections, which is its share")]
pub(crate) struct TooMany(pub(crate) usize);

impl Registry {
    pub(crate) fn new(metrics: ProxyMetrics) -> Self {
        Self {
            state: Arc::default(),
            metrics,
        }
    }

    /// A connection that was accepted; it counts until the entry is dropped.
    pub(crate) fn open(
        &self,
        direction: &'static str,
        door: &Arc<str>,
        address: Option<SocketAddr>,
        now: SystemTime,
    ) -> Entry {
        let mut state = self.locked();
        let number = state.next;
        state.next += 1;
        state.open.insert(
            number,
            Open {
                door: Arc::clone(door),
                address,
                since: now,
                peer: None,
            },
        );
        drop(state);
        Entry {
            registry: self.clone(),
            number,
            _counted: self.metrics.open(direction),
        }
    }

    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        self.locked().open.len()
    }

    pub(crate) fn list(&self) -> Listed {
        let state = self.locked();
        let shown = state.open.values().take(MOST_SHOWN).map(|open| Shown {
            door: open.door.to_string(),
            address: open.address.map(|address| address.to_string()),
            peer: open.peer.as_deref().map(str::to_owned),
            since: open
                .since
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
        });
        Listed {
            open: state.open.len(),
            connections: shown.collect(),
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open connection.
#[derive(Debug)]
pub(crate) struct Entry {
    registry: Registry,
    number: u64,
    _counted: OpenGuard,
}

impl Entry {
    /// This peer has proven itself on it; refused when he has `most` already.
    pub(crate) fn belongs_to(&self, peer: &Arc<str>, most: usize) -> Result<(), TooMany> {
        let mut state = self.registry.locked();
        let count = state.by_peer.get(peer).copied().unwrap_or_default();
        if count >= most {
            return Err(TooMany(count));
        }
        if let Some(open) = state.open.get_mut(&self.number)
            && open.peer.is_none()
        {
            open.peer = Some(Arc::clone(peer));
            *state.by_peer.entry(Arc::clone(peer)).or_default() += 1;
        }
        Ok(())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut state = self.registry.locked();
        let Some(peer) = state.open.remove(&self.number).and_then(|open| open.peer) else {
            return;
        };
        if let Some(count) = state.by_peer.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                state.by_peer.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_runtime::metrics::Metrics;

    use super::*;

    #[test]
    fn a_peer_has_its_share_and_gets_it_back_when_a_connection_ends() {
        let registry = Registry::new(ProxyMetrics::new(&Metrics::new("mesh_proxy"), None));
        let door: Arc<str> = "inbound".into();
        let open = || registry.open("inbound", &door, None, SystemTime::UNIX_EPOCH);
        let (greedy, other): (Arc<str>, Arc<str>) =
            ("spiffe://td/a".into(), "spiffe://td/b".into());
        let held: Vec<_> = (0..3).map(|_| open()).collect();
        for entry in &held {
            entry.belongs_to(&greedy, 3).unwrap();
        }
        let more = open();
        assert_eq!(more.belongs_to(&greedy, 3), Err(TooMany(3)));
        more.belongs_to(&other, 3).unwrap();
        assert_eq!(registry.list().open, 4);
        assert_eq!(
            registry.list().connections[3].peer.as_deref(),
            Some("spiffe://td/b")
        );
        drop(held);
        open().belongs_to(&greedy, 1).unwrap();
        drop(more);
        assert_eq!(registry.list().open, 0);
        assert!(registry.locked().by_peer.is_empty(), "nothing is kept");
    }
}
