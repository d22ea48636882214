//! Decides how fast one caller may ask: a budget per kind of work, refilled evenly. Over it a call waits; too far over it is refused.
//! Trusts the identity that the caller proved, else the connection's address, never a header. Never holds more than a fixed
//! number of budgets, and never lets strangers use up the room of those who proved who they are.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_identity::SpiffeId;
use mesh_runtime::clock::Clock;
use tokio::time::Instant;

use super::permit::Limit;
use crate::config::LimitsConfig;

/// The longest wait for a turn.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Budgets that are kept for addresses; beyond it, those that are full again are forgotten.
const MOST_ADDRESSES: usize = 10_000;

/// The same for identities, which nobody makes up: we issued each of them.
const MOST_IDENTITIES: usize = 100_000;

/// Whose budget it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Payer {
    /// Somebody who has proved an identity: agents behind one address do not pay for each other.
    Identity(SpiffeId),
    /// Anybody else from there.
    Address(IpAddr),
}

impl Payer {
    /// The payer at an address. A network of IPv6 is one of them, for whoever has one address there has 2^64.
    pub fn at(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::Address(address.into()),
            IpAddr::V6(address) => {
                let network = u128::from(address) & !u128::from(u64::MAX);
                Self::Address(Ipv6Addr::from(network).into())
            }
        }
    }
}

/// When each budget will be full again: one number says all (a generic cell rate).
type Budgets = HashMap<(Limit, Payer), Instant>;

/// All budgets. Cheap to clone.
#[derive(Clone)]
pub struct Limits {
    clock: Clock,
    attest: u32,
    sign: u32,
    status: u32,
    identities: Arc<Mutex<Budgets>>,
    addresses: Arc<Mutex<Budgets>>,
}

impl Limits {
    /// Budgets of a configuration; zero is no limit.
    pub fn new(config: &LimitsConfig, clock: Clock) -> Self {
        Self {
            clock,
            attest: config.attestations_per_second,
            sign: config.signatures_per_second,
            status: config.statuses_per_second,
            identities: Arc::default(),
            addresses: Arc::default(),
        }
    }

    /// Waits for the turn of `count` pieces of work; false: too many, or too long a wait.
    pub async fn wait(&self, limit: Limit, payer: Payer, count: u32) -> bool {
        match self.turn(limit, payer, count) {
            None => false,
            Some(wait) => {
                if !wait.is_zero() {
                    self.clock.sleep(wait).await;
                }
                true
            }
        }
    }

    fn turn(&self, limit: Limit, payer: Payer, count: u32) -> Option<Duration> {
        let rate = match limit {
            Limit::None => 0,
            Limit::Attest => self.attest,
            Limit::Sign => self.sign,
            Limit::Status => self.status,
        };
        if rate == 0 {
            return Some(Duration::ZERO);
        }
        // A burst is one second's worth; more than that at once can never be granted.
        if count > rate {
            return None;
        }
        let burst = Duration::from_secs(1);
        let cost = burst * count / rate;
        let now = self.clock.monotonic();
        let (budgets, most) = match payer {
            Payer::Identity(_) => (&self.identities, MOST_IDENTITIES),
            Payer::Address(_) => (&self.addresses, MOST_ADDRESSES),
        };
        let mut budgets = budgets.lock().unwrap_or_else(PoisonError::into_inner);
        if budgets.len() >= most {
            budgets.retain(|_, full_at| *full_at > now);
        }
        let key = (limit, payer);
        let known = budgets.get(&key).copied();
        if known.is_none() && budgets.len() >= most {
            return None;
        }
        let full_at = known.map_or(now, |full_at| full_at.max(now)) + cost;
        let wait = (full_at - now).saturating_sub(burst);
        if wait > LONGEST_WAIT {
            return None;
        }
        budgets.insert(key, full_at);
        Some(wait)
    }
}

#[cfg(test)]
mod tests;
