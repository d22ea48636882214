//! From facts on the wire to a permit or a refusal. A `Permit` is what the upstream is opened with; only this file makes one.
//! Trusts the snapshot in force and the peer that the handshake proved.
//! Never answers from an old snapshot: the one in force now is asked, each time.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use http::HeaderMap;
use mesh_identity::SpiffeId;
use mesh_policy::{
    CanonicalPath, Effect, Explanation, Facts, Headers, HttpFacts, Reason, Token, Verdict, decide,
    explain,
};

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
    /// Whether it asked for headers.
    pub(crate) by_headers: bool,
    /// What the policies say that do not decide; mostly nothing.
    pub(crate) aside: Option<Arc<Aside>>,
}

/// What AUDIT policies and policies in shadow mode said about a decision.
#[derive(Clone, Debug)]
pub(crate) struct Aside {
    /// The policy and rule that want it recorded.
    pub(crate) audit: Option<(Arc<str>, Arc<str>)>,
    /// The other answer, and the policy and rule that would have given it.
    pub(crate) shadow: Option<(Effect, Arc<str>, Arc<str>)>,
}

impl Aside {
    fn of(verdict: &Verdict<'_>) -> Option<Arc<Self>> {
        if verdict.audit.is_none() && verdict.shadow.is_none() {
            return None;
        }
        let names = |hit: mesh_policy::Hit<'_>| (Arc::clone(hit.policy), Arc::clone(hit.rule));
        Some(Arc::new(Self {
            audit: verdict.audit.map(names),
            shadow: verdict.shadow.map(|shadow| {
                let (policy, rule) = names(shadow.by);
                (shadow.effect, policy, rule)
            }),
        }))
    }
}

/// Proof that the policy in force allowed it.
#[derive(Clone, Debug)]
pub(crate) struct Permit(Decided);

impl Permit {
    pub(crate) fn decided(&self) -> &Decided {
        &self.0
    }
}

/// It was not allowed, the sentence for the log, and the rules that came nearest.
#[derive(Clone, Debug)]
pub(crate) struct Denied {
    pub(crate) decided: Decided,
    pub(crate) why: String,
    pub(crate) nearest: Vec<Near>,
}

/// A rule that was tried for a denial.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Near {
    policy: String,
    rule: String,
    action: String,
    enforced: bool,
    /// The conditions that did not hold; none: it matched.
    failed: Vec<String>,
}

impl Near {
    /// Enough of them to see what was meant, and few enough to be kept for every denial.
    const MOST: usize = 5;

    fn of(explanation: &Explanation<'_>) -> Vec<Self> {
        explanation
            .closest(Self::MOST)
            .into_iter()
            .map(|tried| Self {
                policy: tried.policy.to_owned(),
                rule: tried.rule.to_owned(),
                action: tried.action.to_string(),
                enforced: tried.mode == mesh_policy::Mode::Enforce,
                failed: tried
                    .failed
                    .iter()
                    .map(|failed| failed.to_string().chars().take(300).collect())
                    .collect(),
            })
            .collect()
    }
}

/// What a connection says about everything that is asked on it.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Who it is, as proven by the handshake.
    pub(crate) peer: Option<SpiffeId>,
    /// From where.
    pub(crate) address: IpAddr,
    /// The workload that it wants.
    pub(crate) application: std::net::SocketAddr,
    /// The server name that it asked for.
    pub(crate) sni: Option<Arc<str>>,
    /// How many proxies in front of this one are believed in `X-Forwarded-For`.
    pub(crate) trusted_proxies: usize,
}

impl Caller {
    fn facts(&self) -> Facts<'_> {
        Facts {
            peer_address: Some(self.address),
            remote_address: Some(self.address),
            address: Some(self.application.ip()),
            sni: self.sni.as_deref(),
            ..Facts::new(self.peer.as_ref(), self.application.port())
        }
    }

    /// The address from which a request comes. Behind trusted proxies it is the one that the outermost of them wrote
    /// down; a header that does not have so many entries says nothing.
    fn remote(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let Some(back) = self.trusted_proxies.checked_sub(1) else {
            return Some(self.address);
        };
        let mut entries = Vec::new();
        for line in headers.get_all("x-forwarded-for") {
            entries.extend(line.to_str().ok()?.split(',').map(str::trim));
        }
        entries.iter().rev().nth(back)?.parse().ok()
    }
}

/// The facts of a request that can be asked about again while the request lives. Cloning copies no text.
#[derive(Clone, Debug)]
pub(crate) struct RequestFacts {
    pub(crate) method: http::Method,
    pub(crate) path: http::uri::PathAndQuery,
    pub(crate) host: Arc<str>,
    pub(crate) host_port: Option<u16>,
    /// Kept for as long as the request lives only where a policy asked for one, and for streams.
    pub(crate) headers: Option<Arc<HeaderMap>>,
    /// What its verified token says.
    pub(crate) token: Option<Arc<Token>>,
}

/// Headers as a policy asks for them.
#[derive(Debug)]
struct Sent<'a>(&'a HeaderMap);

impl Headers for Sent<'_> {
    fn each(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        for value in self.0.get_all(name) {
            each(value.as_bytes());
        }
    }
}

/// Decides about a connection: its peer and the port of the workload.
pub(crate) fn connection(policies: &Policies, caller: &Caller) -> Result<Permit, Denied> {
    ask(policies, &caller.facts())
}

/// Decides about a request. `facts.path` must have passed [`CanonicalPath::parse`]; one that has not is denied.
pub(crate) fn request(
    policies: &Policies,
    caller: &Caller,
    facts: &RequestFacts,
    headers: Option<&HeaderMap>,
) -> Result<Permit, Denied> {
    let Ok(path) = CanonicalPath::parse(facts.path.path()) else {
        let decided = Decided {
            reason: Reason::NoRule,
            policy: None,
            rule: None,
            revision: "none".into(),
            generation: 0,
            by_headers: false,
            aside: None,
        };
        return Err(Denied {
            decided,
            why: "the path is not canonical".to_owned(),
            nearest: Vec::new(),
        });
    };
    let sent = headers.map(Sent);
    let http = HttpFacts {
        host_port: facts.host_port,
        headers: sent.as_ref().map(|sent| sent as &dyn Headers),
        token: facts.token.as_deref(),
        ..HttpFacts::new(facts.method.as_str(), &facts.host, path)
    };
    let remote_address = match headers {
        Some(headers) => caller.remote(headers),
        None => (caller.trusted_proxies == 0).then_some(caller.address),
    };
    ask(
        policies,
        &Facts {
            remote_address,
            ..caller.facts().with(http)
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
        by_headers: snapshot.policy.needs_headers(),
        aside: Aside::of(&verdict),
    };
    if verdict.is_allowed() {
        return Ok(Permit(decided));
    }
    let explanation = explain(&snapshot.policy, facts);
    Err(Denied {
        decided,
        why: explanation.sentence(),
        nearest: Near::of(&explanation),
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

/// The word of an answer, for a label.
pub(crate) fn effect_label(effect: Effect) -> &'static str {
    match effect {
        Effect::Allow => "allow",
        Effect::Deny => "deny",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(trusted_proxies: usize, lines: &[&str]) -> Option<String> {
        let caller = Caller {
            peer: None,
            address: "192.0.2.1".parse().unwrap(),
            application: "127.0.0.1:8080".parse().unwrap(),
            sni: None,
            trusted_proxies,
        };
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        caller.remote(&headers).map(|address| address.to_string())
    }

    #[test]
    fn mesh_c1_21_only_as_many_entries_of_x_forwarded_for_are_believed_as_there_are_trusted_proxies()
     {
        let forged = ["10.9.9.9", "10.1.1.1, 10.2.2.2"];
        assert_eq!(remote(0, &forged).as_deref(), Some("192.0.2.1"));
        assert_eq!(remote(1, &forged).as_deref(), Some("10.2.2.2"));
        assert_eq!(remote(2, &forged).as_deref(), Some("10.1.1.1"));
        assert_eq!(remote(4, &forged), None);
        assert_eq!(remote(1, &["10.1.1.1, nonsense"]), None);
        assert_eq!(remote(1, &[]), None);
    }
}
