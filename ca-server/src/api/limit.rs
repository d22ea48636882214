//! Decides how fast one address may ask: a budget per kind of work, refilled evenly. Over it a call waits; too far over it is refused.
//! Trusts the connection's address, never a header. Never holds more than a fixed number of budgets.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_runtime::clock::Clock;
use tokio::time::Instant;

use super::permit::Limit;
use crate::config::LimitsConfig;

/// The longest wait for a turn.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Budgets that are kept; beyond it, those that are full again are forgotten.
const MOST_BUDGETS: usize = 10_000;

/// All budgets. Cheap to clone.
#[derive(Clone)]
pub struct Limits {
    clock: Clock,
    attest: u32,
    sign: u32,
    status: u32,
    /// When each budget will be full again: one number says all (a generic cell rate).
    full_at: Arc<Mutex<HashMap<(Limit, IpAddr), Instant>>>,
}

impl Limits {
    /// Budgets of a configuration; zero is no limit.
    pub fn new(config: &LimitsConfig, clock: Clock) -> Self {
        Self {
            clock,
            attest: config.attestations_per_second,
            sign: config.signatures_per_second,
            status: config.statuses_per_second,
            full_at: Arc::default(),
        }
    }

    /// Waits for the turn of `count` pieces of work; false: too many, or too long a wait.
    pub async fn wait(&self, limit: Limit, from: IpAddr, count: u32) -> bool {
        match self.turn(limit, from, count) {
            None => false,
            Some(wait) => {
                if !wait.is_zero() {
                    self.clock.sleep(wait).await;
                }
                true
            }
        }
    }

    fn turn(&self, limit: Limit, from: IpAddr, count: u32) -> Option<Duration> {
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
        let mut budgets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if budgets.len() >= MOST_BUDGETS {
            budgets.retain(|_, full_at| *full_at > now);
        }
        let known = budgets.get(&(limit, from)).copied();
        if known.is_none() && budgets.len() >= MOST_BUDGETS {
            return None;
        }
        let full_at = known.map_or(now, |full_at| full_at.max(now)) + cost;
        let wait = (full_at - now).saturating_sub(burst);
        if wait > LONGEST_WAIT {
            return None;
        }
        budgets.insert((limit, from), full_at);
        Some(wait)
    }
}

#[cfg(test)]
mod tests;
