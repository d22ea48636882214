//! Decides how things that happen are numbered for people: ULIDs, which sort by time and cannot be guessed.
//! Trusts the kernel's random numbers; never carries meaning besides the time.
//!
//! ```
//! use mesh_runtime::{clock::Clock, ids};
//! let id = ids::ulid(&Clock::system());
//! assert!(ids::is_ulid(&id) && id.len() == 26);
//! let later = ids::ulid(&Clock::system());
//! assert_ne!(id, later);
//! ```

use std::time::UNIX_EPOCH;

use ring::rand::{SecureRandom, SystemRandom};

use crate::clock::Clock;

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// A new ULID: 48 bits of milliseconds, 80 random bits.
pub fn ulid(clock: &Clock) -> String {
    let since_1970 = clock.now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut random = [0_u8; 16];
    SystemRandom::new()
        .fill(&mut random[6..])
        .expect("the kernel always has random bytes once it has booted");
    let millis = u128::from(since_1970.as_millis() as u64 & 0xffff_ffff_ffff);
    let number = (millis << 80) | (u128::from_be_bytes(random) & ((1 << 80) - 1));
    (0..26)
        .rev()
        .map(|place| char::from(CROCKFORD[((number >> (place * 5)) & 31) as usize]))
        .collect()
}

/// Whether a text has the form of a ULID.
pub fn is_ulid(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(|b| CROCKFORD.contains(&b)) && text.as_bytes()[0] <= b'7'
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ids_sort_by_time_and_differ_within_a_millisecond() {
        let clock = Clock::frozen(UNIX_EPOCH + Duration::from_millis(1_469_922_850_259));
        let (first, second) = (ulid(&clock), ulid(&clock));
        assert_ne!(first, second);
        // The time part of the specification's own example instant.
        assert!(first.starts_with("01ARZ3NDEK"), "{first}");
        clock.advance(Duration::from_millis(1));
        assert!(ulid(&clock) > first.max(second));
        assert!(!is_ulid("81ARZ3NDEKTSV4RRFFQ69G5FAV") && !is_ulid("01arz3ndektsv4rrffq69g5fav"));
    }
}
