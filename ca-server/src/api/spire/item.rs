//! Items of a batch: each has its own record, and items of one thing are worked in their order.

use std::collections::BTreeSet;

use mesh_runtime::audit::{Action, Decision, Outcome, Record};

use super::super::{Call, Parts, Refusal};

/// Items that are worked on at a time: each waits for the disk, and one sync serves them all.
const AT_A_TIME: usize = 64;

/// How many items may be worked on at a time, by the names of what they change.
pub(super) fn at_a_time<K: Ord>(keys: impl Iterator<Item = K>) -> usize {
    let mut seen = BTreeSet::new();
    for key in keys {
        if !seen.insert(key) {
            return 1;
        }
    }
    AT_A_TIME
}

/// Begins the record of one item.
pub(super) fn begin(parts: &Parts, call: &Call, action: &'static str) -> Record {
    let mut record = parts.audit.begin(Action(action), call.who.actor.clone());
    record.origin(call.who.origin.clone());
    record
}

/// Ends it.
pub(super) async fn finish(mut record: Record, refused: Option<&Refusal>) -> Result<(), Refusal> {
    match refused {
        None => record.finish(Outcome::Success, None).await?,
        Some(refusal) => {
            record.decision(Decision::deny(refusal.why()));
            record.finish(refusal.outcome(), Some(refusal.code)).await?
        }
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_of_one_thing_go_one_by_one_and_others_together() {
        assert_eq!(at_a_time(["a", "b", "c"].into_iter()), AT_A_TIME);
        assert_eq!(at_a_time(["a", "b", "a"].into_iter()), 1);
    }
}
