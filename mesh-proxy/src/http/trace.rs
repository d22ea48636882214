//! The trace that a request belongs to: read in each form that is in use, passed on in the one it came in and as W3C `traceparent`.
//! Trusts a caller for the numbers of his trace and for whether he records it, and for nothing else.
//! Never passes on a trace that cannot be read, and never begins one that nobody records.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_runtime::telemetry::traces;
use tracing::Span;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const BINARY: HeaderName = HeaderName::from_static("grpc-trace-bin");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// What W3C lets a `tracestate` have at least, and what is passed on at most.
const LONGEST_STATE: usize = 512;
/// The same of `baggage`.
const LONGEST_BAGGAGE: usize = 8192;

/// gRPC libraries write base64 with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The numbers of a trace and of the span that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    id: u128,
    span: u64,
    sampled: bool,
}

impl Trace {
    /// The trace of a request, if it has one that can be read; the forms in the order in which Linkerd's proxy asks for them.
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        only(headers, &TRACEPARENT)
            .and_then(w3c)
            .or_else(|| only(headers, &BINARY).and_then(binary))
            .or_else(|| b3_many(headers))
            .or_else(|| only(headers, &B3).and_then(b3_one))
    }

    /// The number of the trace, for a log.
    pub(crate) fn id(&self) -> u128 {
        self.id
    }

    /// Makes `span` a part of this trace.
    pub(crate) fn continued_by(&self, span: &Span, headers: &HeaderMap) {
        if span.is_disabled() {
            return;
        }
        let mut parent = HeaderMap::new();
        self.write_w3c(&mut parent);
        if let Some(state) = headers.get(&TRACESTATE) {
            parent.insert(TRACESTATE, state.clone());
        }
        traces::continue_from(span, &parent);
    }

    fn write_w3c(&self, headers: &mut HeaderMap) {
        let flags = u8::from(self.sampled);
        let text = format!("00-{:032x}-{:016x}-{flags:02x}", self.id, self.span);
        put(headers, TRACEPARENT, &text);
    }

    /// Writes the numbers of this one, a child of `parent`, in each form beside `traceparent` that is there.
    fn write_others(&self, parent: &Self, headers: &mut HeaderMap) {
        let sampled = if self.sampled { "1" } else { "0" };
        if headers.contains_key(&BINARY) {
            let mut bytes = vec![0, 0];
            bytes.extend_from_slice(&self.id.to_be_bytes());
            bytes.push(1);
            bytes.extend_from_slice(&self.span.to_be_bytes());
            bytes.extend_from_slice(&[2, u8::from(self.sampled)]);
            put(headers, BINARY, &BASE64.encode(bytes));
        }
        if headers.contains_key(&B3_TRACE) {
            put(headers, B3_TRACE, &format!("{:032x}", self.id));
            put(headers, B3_SPAN, &format!("{:016x}", self.span));
            put(headers, B3_PARENT, &format!("{:016x}", parent.span));
            if !headers.contains_key(&B3_FLAGS) {
                put(headers, B3_SAMPLED, sampled);
            }
        }
        if headers.contains_key(&B3) {
            let text = format!(
                "{:032x}-{:016x}-{sampled}-{:016x}",
                self.id, self.span, parent.span
            );
            put(headers, B3, &text);
        }
    }
}

/// What goes on with a request: the trace it came with as it came and as `traceparent`, or that of our own span below it.
pub(crate) fn pass_on(headers: &mut HeaderMap, came: Option<&Trace>, span: &Span) {
    shorten(headers);
    match came {
        Some(came) => came.write_w3c(headers),
        None => {
            // Malformed, or doubled: whoever comes next would begin with a trace that nobody can follow.
            headers.remove(TRACEPARENT);
            headers.remove(TRACESTATE);
            headers.remove(BINARY);
        }
    }
    if span.is_disabled() {
        return;
    }
    span.in_scope(|| traces::carry(headers));
    let ours = only(headers, &TRACEPARENT).and_then(w3c);
    match (came, ours) {
        (Some(came), Some(ours)) if ours.span != came.span => ours.write_others(came, headers),
        (None, Some(ours)) if !ours.sampled => {
            headers.remove(TRACEPARENT);
            headers.remove(TRACESTATE);
        }
        _ => {}
    }
}

/// Context that goes on unread goes on within bounds.
fn shorten(headers: &mut HeaderMap) {
    for (name, most) in [(TRACESTATE, LONGEST_STATE), (BAGGAGE, LONGEST_BAGGAGE)] {
        let length: usize = headers.get_all(&name).iter().map(HeaderValue::len).sum();
        if length > most {
            headers.remove(name);
        }
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

/// The value of a header that comes once.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    value.to_str().ok()
}

fn digits<const MOST: usize>(text: &str) -> Option<u128> {
    let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let plain = !text.is_empty() && text.len() <= MOST && text.bytes().all(lower);
    let number = u128::from_str_radix(text, 16).ok()?;
    // All zeros is no number of anything, in any of the forms.
    (plain && number != 0).then_some(number)
}

fn trace_id(text: &str) -> Option<u128> {
    digits::<32>(text).filter(|_| text.len() == 32)
}

fn span_id(text: &str) -> Option<u64> {
    digits::<16>(text)
        .filter(|_| text.len() == 16)
        .and_then(|number| u64::try_from(number).ok())
}

/// W3C Trace Context, 3.2.
fn w3c(text: &str) -> Option<Trace> {
    let mut parts = text.split('-');
    let version = parts.next().filter(|version| version.len() == 2)?;
    let version = u8::from_str_radix(version, 16).ok()?;
    let (id, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
    // Later versions may say more behind it; this one may not.
    if version == 0xff || (version == 0 && parts.next().is_some()) || flags.len() != 2 {
        return None;
    }
    let flags = u8::from_str_radix(flags, 16).ok()?;
    Some(Trace {
        id: trace_id(id)?,
        span: span_id(span)?,
        sampled: flags & 1 == 1,
    })
}

/// OpenCensus' binary form: version 0, then numbered fields of fixed length.
fn binary(text: &str) -> Option<Trace> {
    // 29 bytes are 40 characters; nothing longer is decoded.
    if text.len() > 40 {
        return None;
    }
    let bytes = BASE64.decode(text).ok()?;
    let [0, 0, rest @ ..] = &bytes[..] else {
        return None;
    };
    let (id, rest) = rest.split_first_chunk::<16>()?;
    let [1, rest @ ..] = rest else { return None };
    let (span, rest) = rest.split_first_chunk::<8>()?;
    let [2, flags] = rest else { return None };
    let (id, span) = (u128::from_be_bytes(*id), u64::from_be_bytes(*span));
    (id != 0 && span != 0).then_some(Trace {
        id,
        span,
        sampled: flags & 1 == 1,
    })
}

/// B3 knows numbers of half the length.
fn b3_trace_id(text: &str) -> Option<u128> {
    trace_id(text).or_else(|| span_id(text).map(u128::from))
}

fn b3_many(headers: &HeaderMap) -> Option<Trace> {
    let debug = only(headers, &B3_FLAGS) == Some("1");
    Some(Trace {
        id: only(headers, &B3_TRACE).and_then(b3_trace_id)?,
        span: only(headers, &B3_SPAN).and_then(span_id)?,
        sampled: debug || matches!(only(headers, &B3_SAMPLED), Some("1" | "true")),
    })
}

fn b3_one(text: &str) -> Option<Trace> {
    let mut parts = text.split('-');
    let (id, span) = (b3_trace_id(parts.next()?)?, span_id(parts.next()?)?);
    Some(Trace {
        id,
        span,
        sampled: matches!(parts.next(), Some("1" | "d")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const ID: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn each_form_is_read_and_passed_on_with_traceparent_beside_it() {
        let binary = {
            let mut bytes = vec![0, 0];
            bytes.extend(ID.to_be_bytes());
            bytes.push(1);
            bytes.extend(SPAN.to_be_bytes());
            bytes.extend([2, 1]);
            BASE64.encode(bytes)
        };
        for form in [
            vec![("traceparent", PARENT)],
            vec![("grpc-trace-bin", binary.as_str())],
            vec![
                ("x-b3-traceid", "4bf92f3577b34da6a3ce929d0e0e4736"),
                ("x-b3-spanid", "00f067aa0ba902b7"),
                ("x-b3-sampled", "1"),
            ],
            vec![(
                "b3",
                "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1-05e3ac9a4f6e3b90",
            )],
        ] {
            let mut sent = headers(&form);
            let came = Trace::read(&sent).unwrap_or_else(|| panic!("{form:?}"));
            assert_eq!(
                (came.id, came.span, came.sampled),
                (ID, SPAN, true),
                "{form:?}"
            );
            pass_on(&mut sent, Some(&came), &Span::none());
            assert_eq!(sent["traceparent"], PARENT);
            for (name, value) in form {
                assert_eq!(sent[name], value, "{name} goes on as it came");
            }
        }
    }

    #[test]
    fn our_own_span_takes_the_place_of_the_callers_in_each_form_that_came() {
        let came = Trace {
            id: ID,
            span: SPAN,
            sampled: true,
        };
        let ours = Trace { span: 7, ..came };
        for form in [
            &[("grpc-trace-bin", "AAAA")][..],
            &[("b3", "0")],
            &[("x-b3-traceid", "1"), ("x-b3-spanid", "2")],
        ] {
            let mut sent = headers(form);
            ours.write_others(&came, &mut sent);
            assert_eq!(Trace::read(&sent), Some(ours), "{form:?}");
        }
        let mut none = HeaderMap::new();
        ours.write_others(&came, &mut none);
        assert!(none.is_empty(), "{none:?}");
    }

    #[test]
    fn what_is_malformed_or_doubled_or_nothing_is_no_trace_and_goes_no_further() {
        for value in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        ] {
            let mut sent = headers(&[("traceparent", value), ("tracestate", "a=b")]);
            assert_eq!(Trace::read(&sent), None, "{value}");
            pass_on(&mut sent, None, &Span::none());
            assert!(sent.is_empty(), "{value}: {sent:?}");
        }
        assert_eq!(
            Trace::read(&headers(&[
                ("traceparent", PARENT),
                ("traceparent", PARENT)
            ])),
            None
        );
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more";
        let read = Trace::read(&headers(&[("traceparent", later)])).unwrap();
        assert!(!read.sampled);
        for (name, value) in [("b3", "0"), ("b3", "x-y"), ("grpc-trace-bin", "AAAA")] {
            assert_eq!(Trace::read(&headers(&[(name, value)])), None, "{value}");
        }
    }

    #[test]
    fn context_beyond_its_bounds_is_dropped_and_the_rest_goes_on_unread() {
        let long = "a".repeat(LONGEST_BAGGAGE + 1);
        let mut sent = headers(&[
            ("traceparent", PARENT),
            ("tracestate", "v=1"),
            ("baggage", &long),
        ]);
        let came = Trace::read(&sent).unwrap();
        pass_on(&mut sent, Some(&came), &Span::none());
        assert!(!sent.contains_key("baggage"));
        assert_eq!(sent["tracestate"], "v=1");
    }
}
