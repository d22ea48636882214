//! Answers that nobody takes: whoever opens no window, or does not read, holds memory here and a connection behind us.
//! Trusts that a body which was taken is asked for more.
//! Never cuts a stream on which nothing comes from the application: that one is asked for more and has nothing.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use mesh_runtime::clock::Clock;

/// The unfinished answers of one connection.
#[derive(Debug, Default)]
pub(crate) struct Stalls {
    /// Half a limit each.
    beat: AtomicU32,
    open: Mutex<Vec<Weak<AtomicU32>>>,
}

/// One unfinished answer: the beat in which something was handed out, plus one; 0 when more is asked for.
#[derive(Debug)]
pub(crate) struct Handed(Arc<AtomicU32>);

impl Stalls {
    pub(crate) fn begin(&self) -> Handed {
        let handed = Arc::new(AtomicU32::new(0));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() == open.capacity() {
            open.retain(|other| other.strong_count() > 0);
        }
        open.push(Arc::downgrade(&handed));
        Handed(handed)
    }

    pub(crate) fn handed(&self, handed: &Handed) {
        let beat = self.beat.load(Ordering::Relaxed);
        handed.0.store(beat.wrapping_add(1), Ordering::Relaxed);
    }

    /// Ends when an answer was handed something and asked for nothing more during `limit`.
    pub(crate) async fn stalled(&self, limit: Duration, clock: &Clock) {
        loop {
            clock.sleep(limit / 2).await;
            if self.next_beat() {
                return;
            }
        }
    }

    /// Whether an answer was not asked for more since the beat before the last one.
    fn next_beat(&self) -> bool {
        let beat = self.beat.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|other| other.strong_count() > 0);
        open.iter().filter_map(Weak::upgrade).any(|handed| {
            let then = handed.load(Ordering::Relaxed);
            then != 0 && beat.wrapping_sub(then.wrapping_sub(1)) >= 2
        })
    }
}

impl Handed {
    /// More is asked for.
    pub(crate) fn asked(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_handed_out_and_not_asked_for_again_stalls() {
        let stalls = Stalls::default();
        let (taken, waiting, stuck) = (stalls.begin(), stalls.begin(), stalls.begin());
        stalls.handed(&stuck);
        for _ in 0..3 {
            stalls.handed(&taken);
            taken.asked();
        }
        waiting.asked();
        assert!(!stalls.next_beat(), "not for a whole limit yet");
        assert!(stalls.next_beat());
        stuck.asked();
        assert!(!stalls.next_beat() && !stalls.next_beat() && !stalls.next_beat());
        stalls.handed(&stuck);
        drop(stuck);
        assert!(!stalls.next_beat() && !stalls.next_beat(), "it has ended");
    }
}
