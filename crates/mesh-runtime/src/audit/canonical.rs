//! Decides the one way a record is written: JSON after RFC 8785, for texts, whole numbers, booleans, lists and objects.
//! Trusts no text: each is capped and escaped before it is written. Never writes a fraction, which we have no use for.

use serde_json::Value;

use crate::errors::untrusted_within;

/// The longest text in a record, in characters.
const LONGEST_TEXT: usize = 512;
/// The largest whole number that RFC 8785's readers keep exactly.
const LARGEST: u64 = (1 << 53) - 1;

/// The canonical form; `None` when the value holds something outside our range.
pub(super) fn canonical(value: &Value) -> Option<String> {
    let mut out = String::with_capacity(512);
    write(value, &mut out).then_some(out)
}

fn write(value: &Value, out: &mut String) -> bool {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(number) => {
            let small = number.as_u64().is_some_and(|n| n <= LARGEST)
                || number
                    .as_i64()
                    .is_some_and(|n| n < 0 && n.unsigned_abs() <= LARGEST);
            if !small {
                return false;
            }
            out.push_str(&number.to_string());
        }
        // serde_json escapes exactly as RFC 8785 3.2.2.2 asks: \b \t \n \f \r \" \\ and \u00xx in lower case, nothing else.
        Value::String(text) => out.push_str(&Value::from(text.as_str()).to_string()),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                if !write(item, out) {
                    return false;
                }
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            // RFC 8785 3.2.3: by UTF-16 code units.
            sorted.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            out.push('{');
            for (index, (name, field)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                if !write(field, out) {
                    return false;
                }
            }
            out.push('}');
        }
    }
    true
}

/// Caps and escapes every text in a value.
pub(super) fn tame(value: &mut Value) {
    match value {
        Value::String(text) => {
            let safe = untrusted_within(text, LONGEST_TEXT);
            if safe != *text {
                *text = safe;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tame),
        Value::Object(fields) => fields.values_mut().for_each(tame),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rfc_8785_3_2_3_keys_are_sorted_by_utf_16_code_units() {
        let value = json!({ "\u{20ac}": 1, "\r": 2, "\u{fb33}": 3, "1": 4, "\u{1f600}": 5, "\u{80}": 6, "\u{f6}": 7 });
        let wanted = "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"\u{f6}\":7,\"\u{20ac}\":1,\"\u{1f600}\":5,\"\u{fb33}\":3}";
        assert_eq!(canonical(&value).unwrap(), wanted);
    }

    #[test]
    fn rfc_8785_3_2_2_texts_are_escaped_as_little_as_possible() {
        let value = json!(["\u{20ac}$\u{f}\nA'B\"\\\\\"/", "\u{7f}\u{8}\u{c}\t"]);
        assert_eq!(
            canonical(&value).unwrap(),
            "[\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\",\"\u{7f}\\b\\f\\t\"]"
        );
    }

    #[test]
    fn fractions_and_numbers_that_lose_digits_are_refused() {
        assert!(canonical(&json!(1.5)).is_none());
        assert!(canonical(&json!(u64::MAX)).is_none());
        assert!(canonical(&json!(i64::MIN)).is_none());
        assert_eq!(
            canonical(&json!([0, -1, 9_007_199_254_740_991_u64])).unwrap(),
            "[0,-1,9007199254740991]"
        );
    }
}
