//! What a line of the access log looks like, whatever a stranger puts into it.
//! Trusts nothing that is quoted.
//! Never writes a file.

use super::*;

#[test]
fn days_become_dates() {
    for (days, date) in [
        (0, (1970, 1, 1)),
        (59, (1970, 3, 1)),
        (789, (1972, 2, 29)),
        (11_016, (2000, 2, 29)),
        (20_782, (2026, 11, 25)),
    ] {
        assert_eq!(civil(days), date, "{days}");
    }
}

#[test]
fn mesh_c1_38_outside_text_cannot_break_a_line() {
    let mut bytes = Vec::new();
    let mut line = Line {
        bytes: &mut bytes,
        first: true,
    };
    line.text("a", "x\r\n\u{1b}[31m\"\\é\u{202e}");
    line.text("b", &"y".repeat(2 * LONGEST_TEXT));
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.bytes().all(|b| (0x20..0x7f).contains(&b)), "{text}");
    assert!(
        text.starts_with(r#""a":"x\u000d\u000a\u001b[31m\"\\\u00e9\u202e","b":"yyy"#),
        "{text}"
    );
    assert!(text.len() < LONGEST_TEXT + 100);
    let value: serde_json::Value = serde_json::from_str(&format!("{{{text}}}")).unwrap();
    assert_eq!(value["a"], "x\r\n\u{1b}[31m\"\\é\u{202e}");
}
