//! Any text as a duration or size: refused, or the same value when written and read again.
//! Trusts nothing; libFuzzer makes the text.
//! Never wraps: an overflow is a refusal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_runtime::config::{ByteSize, HumanDuration};

fuzz_target!(|text: &str| {
    if let Ok(duration) = text.parse::<HumanDuration>() {
        assert_eq!(duration.to_string().parse::<HumanDuration>(), Ok(duration));
    }
    if let Ok(size) = text.parse::<ByteSize>() {
        assert_eq!(size.to_string().parse::<ByteSize>(), Ok(size));
    }
});
