//! Decides what an answer of an endpoint is worth beside the bundle that we have, and when to ask again. Pure.

use std::time::Duration;

use mesh_identity::Bundle;

use crate::store::StoredBundle;

/// How often a bundle without a hint is asked for (FED-4).
const UNHINTED: Duration = Duration::from_secs(300);

/// A hint below this counts as this, and one above the other as that: a peer decides neither how we hammer nor how we sleep.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What an answer is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// To be stored.
    Newer,
    /// The one that we have.
    Same,
    /// Of a lower sequence number: no rollback (FED-6).
    Older { have: u64, got: u64 },
    /// Of the same sequence number, and yet another one.
    OtherContent(u64),
}

/// Compares an answer with what we have. Without a sequence number, which is also what 0 means, the last fetch wins.
pub(super) fn judge(have: Option<&StoredBundle>, got: &Bundle) -> Verdict {
    let Some(have) = have else {
        return Verdict::Newer;
    };
    // A document does not say everything that a stored bundle may: the end of a JWT key set by hand, for one. What it says counts.
    let said = have.to_bundle().map(|have| have.to_spiffe_json());
    if said.is_ok_and(|said| said == got.to_spiffe_json()) {
        return Verdict::Same;
    }
    match (have.sequence, got.sequence()) {
        (0, _) | (_, 0) => Verdict::Newer,
        (have, got) if got < have => Verdict::Older { have, got },
        (have, got) if got == have => Verdict::OtherContent(got),
        _ => Verdict::Newer,
    }
}

/// How long to wait after an attempt: a quarter of the hint while all is well, the whole of it after a failure (FED-33).
pub(super) fn interval(bundle: Option<&StoredBundle>, good: bool) -> Duration {
    let Some(bundle) = bundle else {
        return SHORTEST;
    };
    let hint = bundle.refresh_hint.unwrap_or(UNHINTED);
    let whole = hint.clamp(SHORTEST, LONGEST);
    if good { whole / 4 } else { whole }
}

#[cfg(test)]
mod tests {
    use mesh_identity::test_util::Made;

    use super::*;

    fn bundle(made: &Made, sequence: u64) -> Bundle {
        let bundle = made.bundle("other.test");
        if sequence == 0 {
            bundle
        } else {
            bundle.with_sequence(sequence)
        }
    }

    #[test]
    fn fed_6_fe_06_fe_07_the_sequence_number_decides_what_is_newer() {
        let (one, other) = (Made::root("other.test"), Made::root("other.test"));
        let have = StoredBundle::from(&bundle(&one, 7));
        let verdict = |made: &Made, sequence| judge(Some(&have), &bundle(made, sequence));
        assert_eq!(judge(None, &bundle(&one, 1)), Verdict::Newer);
        assert_eq!(verdict(&one, 7), Verdict::Same);
        assert_eq!(verdict(&other, 8), Verdict::Newer);
        assert_eq!(verdict(&other, 7), Verdict::OtherContent(7));
        for made in [&one, &other] {
            assert_eq!(verdict(made, 5), Verdict::Older { have: 7, got: 5 });
        }
        assert_eq!(verdict(&other, 0), Verdict::Newer, "the last fetch wins");
        let unnumbered = StoredBundle::from(&bundle(&one, 0));
        assert_eq!(judge(Some(&unnumbered), &bundle(&other, 0)), Verdict::Newer);
    }

    #[test]
    fn fe_08_fed_4_33_no_hint_makes_us_hammer_or_sleep() {
        let with = |hint: Option<u64>| StoredBundle {
            refresh_hint: hint.map(Duration::from_secs),
            ..StoredBundle::from(&bundle(&Made::root("other.test"), 1))
        };
        let seconds = |hint, good| interval(Some(&with(hint)), good).as_secs();
        assert_eq!(seconds(None, true), 75);
        assert_eq!(seconds(None, false), 300);
        assert_eq!(seconds(Some(0), false), 60);
        assert_eq!(seconds(Some(0), true), 15);
        assert_eq!(seconds(Some(1_000_000_000_000), true), 6 * 3600);
        assert_eq!(interval(None, false), SHORTEST);
    }
}
