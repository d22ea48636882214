//! When an authority begins and ends, and what is due in its life. Pure: time is an argument.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::BACKDATE;

/// However long an authority lives, the next one need not be prepared earlier than this before its end,
const EARLIEST_PREPARATION: Duration = Duration::from_secs(30 * 24 * 3600);
/// nor take over earlier than this.
const EARLIEST_ACTIVATION: Duration = Duration::from_secs(7 * 24 * 3600);

/// When an authority begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Start of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
}

impl Times {
    /// When its successor is to be prepared: half of its life, at most 30 days, before its end.
    pub fn prepare_at(&self) -> SystemTime {
        self.not_after - (self.life() / 2).min(EARLIEST_PREPARATION)
    }

    /// When its successor is to take over: a sixth of its life, at most 7 days, before its end.
    pub fn activate_at(&self) -> SystemTime {
        self.not_after - activation_margin(self.life())
    }

    /// When its successor takes over whoever still lacks it: halfway from [`Times::activate_at`] to the end.
    pub fn latest_turn(&self) -> SystemTime {
        self.not_after - activation_margin(self.life()) / 2
    }

    /// When this one, prepared, takes over from the active one: when its turn has come and it has been in the bundle
    /// long enough for everyone to hear of it. Prepared too late for both, it waits until the active one ends.
    pub(super) fn takes_over_at(&self, active: &Self) -> SystemTime {
        let known_to_all = self.not_before + BACKDATE + activation_margin(self.life()) / 2;
        active.activate_at().max(known_to_all).min(active.not_after)
    }

    /// The same, as certificates and tokens count.
    pub(super) fn in_whole_seconds(self) -> Self {
        Self {
            not_before: whole_seconds(self.not_before),
            not_after: whole_seconds(self.not_after),
        }
    }

    fn life(&self) -> Duration {
        self.not_after
            .duration_since(self.not_before)
            .unwrap_or_default()
    }

    pub(super) fn has_ended(&self, now: SystemTime) -> bool {
        self.not_after <= now
    }
}

/// What is left of an authority's life when its successor takes over.
pub(super) fn activation_margin(lifetime: Duration) -> Duration {
    (lifetime / 6).min(EARLIEST_ACTIVATION)
}

/// X.509 counts in seconds.
pub(super) fn whole_seconds(time: SystemTime) -> SystemTime {
    UNIX_EPOCH
        + Duration::from_secs(
            time.duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
        )
}
