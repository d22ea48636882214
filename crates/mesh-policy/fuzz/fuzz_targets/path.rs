//! Any text as a path: refused, or a text that no decoder reads as another accepted path or as a way upwards.
//! Trusts nothing; libFuzzer makes the text.
//! Never looks at why a path is refused beyond printing it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_policy::CanonicalPath;

/// What a lenient program makes of a path: every percent-encoding decoded, once.
fn decoded(path: &str) -> Vec<u8> {
    let (mut bytes, mut out) = (path.bytes(), Vec::new());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| {
            b.and_then(|b| char::from(b).to_digit(16))
                .expect("an accepted path has whole encodings")
        };
        let value = digit(bytes.next()) << 4 | digit(bytes.next());
        out.push(u8::try_from(value).expect("two digits are a byte"));
    }
    out
}

fuzz_target!(|text: &str| {
    let path = match CanonicalPath::parse(text) {
        Err(refusal) => {
            assert!(!refusal.to_string().is_empty());
            return;
        }
        Ok(path) => path,
    };
    assert_eq!(path.as_str(), text, "what was decided is what is forwarded");
    assert!(text.is_ascii());
    let plain = decoded(text);
    for segment in plain.split(|byte| *byte == b'/') {
        assert!(segment != b"." && segment != b"..", "{text}");
    }
    assert_eq!(
        plain.iter().filter(|byte| **byte == b'/').count(),
        text.bytes().filter(|byte| *byte == b'/').count(),
        "a slash is hidden in an encoding: {text}"
    );
    // Decoded once it is the same text or no path that would be accepted: there is one spelling of each. A percent sign that is
    // itself encoded stays what it is, text.
    if let Ok(again) = std::str::from_utf8(&plain)
        && again != text
        && !text.contains("%25")
    {
        assert!(CanonicalPath::parse(again).is_err(), "{text} and {again}");
    }
});
