//! Why the last denials were denials, by their number: what `GET /explain/<id>` answers.
//! Trusts the decision that it is given; keeps texts that were made for an operator, no header and no body.
//! Never grows: the oldest explanation makes room for the newest.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::Serialize;

use crate::decide::{DecisionId, Denied, Near, reason_label};
use crate::record::Judged;

/// How many denials are kept.
pub(crate) const KEPT: usize = 512;

/// The last denials. Clones are handles.
#[derive(Clone, Debug, Default)]
pub(crate) struct Explanations {
    kept: Arc<Mutex<VecDeque<(DecisionId, Kept)>>>,
}

/// One denial, as an operator is told.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Kept {
    id: String,
    /// Seconds since 1970.
    time: u64,
    effect: &'static str,
    reason: &'static str,
    code: &'static str,
    policy: Option<String>,
    rule: Option<String>,
    policy_rev: String,
    source: String,
    peer: String,
    asked: String,
    why: String,
    nearest: Vec<Near>,
}

impl Explanations {
    pub(crate) fn keep(
        &self,
        judged: &Judged<'_>,
        asked: &str,
        code: &'static str,
        denied: &Denied,
        now: SystemTime,
    ) {
        let decided = judged.decided;
        let kept = Kept {
            id: judged.id.to_string(),
            time: now
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            effect: "deny",
            reason: reason_label(decided.reason),
            code,
            policy: decided.policy.as_deref().map(str::to_owned),
            rule: decided.rule.as_deref().map(str::to_owned),
            policy_rev: decided.revision.to_string(),
            source: judged.source.to_string(),
            peer: judged.peer.to_string(),
            asked: asked.to_owned(),
            why: denied.why.chars().take(1024).collect(),
            nearest: denied.nearest.clone(),
        };
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KEPT {
            all.pop_front();
        }
        all.push_back((judged.id, kept));
    }

    /// The denial of this number, if it is one of the last.
    pub(crate) fn find(&self, id: &str) -> Option<Kept> {
        let all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .rev()
            .find(|(own, _)| own.text() == id.as_bytes())
            .map(|(_, kept)| kept.clone())
    }
}
