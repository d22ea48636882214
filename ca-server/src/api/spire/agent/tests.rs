//! What SPIRE's tools write and read.

use std::time::UNIX_EPOCH;

use super::filter::moment;
use super::mask::decimal;

#[test]
fn a_serial_number_is_written_in_decimal() {
    assert_eq!(decimal("ff"), "255");
    assert_eq!(
        decimal("0100000000000000000000000000000000"),
        "340282366920938463463374607431768211456"
    );
    assert_eq!(decimal("00"), "0");
    assert_eq!(decimal(""), "", "a banned agent has none");
}

#[test]
fn a_moment_is_read_in_gos_form() {
    let read = moment("2026-01-02 15:04:05 +0100 +01").unwrap().unwrap();
    assert_eq!(
        read.duration_since(UNIX_EPOCH).unwrap().as_secs(),
        1_767_362_645
    );
    assert!(moment("").unwrap().is_none());
    for bad in [
        "2026-01-02",
        "tomorrow",
        "2026-13-02 15:04:05 +0100 +01",
        "2026-01-02 15:04:05 +0100 +02",
        "2026-01-02 15:04:05 +0100",
    ] {
        assert!(moment(bad).is_err(), "{bad}");
    }
}
