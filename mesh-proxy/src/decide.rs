//! From facts on the wire to a permit or a refusal. A `Permit` is what the upstream is opened with; only this file makes one.
//! Trusts the snapshot in force and the peer that the handshake proved.
//! Never answers from an old snapshot: the one in force now is asked, each time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use mesh_identity::SpiffeId;
use mesh_policy::{CanonicalPath, Facts, HttpFacts, Reason, decide, explain};

use crate::policy::Policies;

/// The number of a decision, as it stands in logs, in the audit record and in a refusal: 26 letters that sort by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DecisionId(u128);

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

impl DecisionId {
    /// The text, without allocation.
    pub(crate) fn text(self) -> [u8; 26] {
        const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
        let mut text = [0; 26];
        for (i, letter) in text.iter_mut().enumerate() {
            *letter = CROCKFORD[((self.0 >> (5 * (25 - i))) & 31) as usize];
        }
        text
    }
}

/// Numbers decisions: the time, a random number of this process, and a count. Unique, and cheap enough for each request.
#[derive(Debug)]
pub(crate) struct DecisionIds {
    process: u128,
    count: AtomicU64,
}

impl DecisionIds {
    pub(crate) fn new() -> Self {
        // 40 random bits above a count of 40 bits that begins anywhere.
        let random = uuid::Uuid::new_v4().as_u128();
        Self {
            process: (random >> 88) << 40,
            count: AtomicU64::new((random & 0xffff_ffff) as u64),
        }
    }

    pub(crate) fn next(&self, now: SystemTime) -> DecisionId {
        let millis = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis()
            & 0xffff_ffff_ffff;
        let count = u128::from(self.count.fetch_add(1, Ordering::Relaxed)) & 0xff_ffff_ffff;
        DecisionId((millis << 80) | self.process | count)
    }
}

/// What was decided, with everything that a record needs.
#[derive(Clone, Debug)]
pub(crate) struct Decided {
    pub(crate) reason: Reason,
    pub(crate) policy: Option<Arc<str>>,
    pub(crate) rule: Option<Arc<str>>,
    pub(crate) revision: Arc<str>,
    /// The snapshot that decided.
    pub(crate) generation: u64,
}

/// Proof that the policy in force allowed it.
#[derive(Clone, Debug)]
pub(crate) struct Permit(Decided);

impl Permit {
    pub(crate) fn decided(&self) -> &Decided {
        &self.0
    }
}

/// It was not allowed, and the sentence for the log.
#[derive(Clone, Debug)]
pub(crate) struct Denied {
    pub(crate) decided: Decided,
    pub(crate) why: String,
}

/// The facts of a request that can be asked about again while the request lives. Cloning copies no text.
#[derive(Clone, Debug)]
pub(crate) struct RequestFacts {
    pub(crate) method: http::Method,
    pub(crate) path: http::uri::PathAndQuery,
    pub(crate) host: Arc<str>,
}

/// Decides about a connection: its peer and the port of the workload.
pub(crate) fn connection(
    policies: &Policies,
    peer: &SpiffeId,
    port: u16,
) -> Result<Permit, Denied> {
    ask(
        policies,
        &Facts {
            peer: Some(peer),
            port,
            http: None,
        },
    )
}

/// Decides about a request. `facts.path` must have passed [`CanonicalPath::parse`]; one that has not is denied.
pub(crate) fn request(
    policies: &Policies,
    peer: &SpiffeId,
    port: u16,
    facts: &RequestFacts,
) -> Result<Permit, Denied> {
    let Ok(path) = CanonicalPath::parse(facts.path.path()) else {
        let decided = Decided {
            reason: Reason::NoRule,
            policy: None,
            rule: None,
            revision: "none".into(),
            generation: 0,
        };
        return Err(Denied {
            decided,
            why: "the path is not canonical".to_owned(),
        });
    };
    let http = HttpFacts {
        method: facts.method.as_str(),
        host: &facts.host,
        path,
    };
    ask(
        policies,
        &Facts {
            peer: Some(peer),
            port,
            http: Some(http),
        },
    )
}

fn ask(policies: &Policies, facts: &Facts<'_>) -> Result<Permit, Denied> {
    let snapshot = policies.current();
    let verdict = decide(&snapshot.policy, facts);
    let decided = Decided {
        reason: verdict.reason,
        policy: verdict.policy.map(Arc::clone),
        rule: verdict.rule.map(Arc::clone),
        revision: Arc::clone(&snapshot.revision),
        generation: snapshot.generation,
    };
    if verdict.is_allowed() {
        return Ok(Permit(decided));
    }
    Err(Denied {
        decided,
        why: explain(&snapshot.policy, facts).sentence(),
    })
}

/// The word of a reason, for a label.
pub(crate) fn reason_label(reason: Reason) -> &'static str {
    match reason {
        Reason::AllowRule => "allow_rule",
        Reason::DenyRule => "deny_rule",
        Reason::NoRule => "no_rule",
        Reason::NotReady => "not_ready",
    }
}
