//! A true log with bytes put over it somewhere: found out and named at or before the next record, or only its unwitnessed end differs.
//! Trusts nothing; libFuzzer makes place and bytes.
//! Never takes a change before the last record for a whole log.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use mesh_runtime::audit::{Action, Actor, AuditLog, Outcome, verify};
use mesh_runtime::clock::Clock;

/// Six records as the writer makes them.
fn log() -> &'static str {
    static LOG: OnceLock<String> = OnceLock::new();
    LOG.get_or_init(|| {
        let (log, memory) = AuditLog::memory("fuzz", &Clock::system());
        for _ in 0..5 {
            log.begin(Action("svid.issue"), Actor::agent("spiffe://dev.test/a"))
                .finish_later(Outcome::Success, None);
        }
        while memory.records().len() < 6 {
            std::thread::yield_now();
        }
        memory.text()
    })
}

fuzz_target!(|input: (u16, &[u8])| {
    let (at, over) = input;
    let mut bytes = log().as_bytes().to_vec();
    let at = usize::from(at) % bytes.len();
    let end = (at + over.len()).min(bytes.len());
    let before = bytes.clone();
    bytes[at..end].copy_from_slice(&over[..end - at]);
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), &bytes).expect("it can be written");
    if let Ok(verified) = verify(&[file.path()]) {
        let last_line = before[..before.len() - 1]
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |n| n + 1);
        let untouched = bytes[..last_line] == before[..last_line];
        assert!(
            untouched || verified.torn.is_some(),
            "a change was not noticed"
        );
    }
});
