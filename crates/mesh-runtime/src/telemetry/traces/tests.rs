//! What is a span of a trace and what is not, and how a trace crosses from one program to the next.

use std::sync::{Mutex, PoisonError};

use tracing::Instrument;
use tracing_subscriber::layer::SubscriberExt;

use super::*;

/// Keeps what it is told to export.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl Kept {
    fn spans(&self) -> Vec<SpanData> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(batch);
        Ok(())
    }
}

/// A subscriber whose spans are kept in memory, with a log beside it that is as verbose as can be.
fn kept(sampler: Sampler) -> (impl tracing::Subscriber + Send + Sync, Kept) {
    let exporter = Kept::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .with_sampler(sampler)
        .build();
    let traces = Traces(Some(Export {
        provider,
        runtime: None,
        program: "test",
    }));
    let layer = traces.layer();
    // The test reads the spans after the export has ended.
    std::mem::forget(traces);
    (Registry::default().with(layer), exporter)
}

fn headers(traceparent: &str) -> HeaderMap {
    let value = HeaderValue::from_str(traceparent).unwrap();
    [(HeaderName::from_static("traceparent"), value)]
        .into_iter()
        .collect()
}

const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const NOT_SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

#[test]
fn a_callers_trace_goes_on_and_is_carried_to_the_next_program() {
    let (subscriber, exporter) = kept(Sampler::AlwaysOff);
    // Only what the caller records is recorded.
    let sampler = Sampler::ParentBased(Box::new(Sampler::AlwaysOff));
    let (recording, recorded) = kept(sampler);
    for (subscriber, kept, count) in [
        (
            Box::new(subscriber) as Box<dyn tracing::Subscriber + Send + Sync>,
            exporter,
            0,
        ),
        (Box::new(recording), recorded, 2),
    ] {
        let mut onwards = HeaderMap::new();
        let mut numbers = None;
        tracing::subscriber::with_default(subscriber, || {
            let outer = span!("call", otel.kind = "server");
            continue_from(&outer, &headers(SAMPLED));
            outer.in_scope(|| {
                let _inner = span!("sign x509-svid").entered();
                tracing::info!("an event of the log is none of the trace");
                carry(&mut onwards);
                numbers = current();
            });
        });
        let spans = kept.spans();
        assert_eq!(spans.len(), count, "{spans:?}");
        let (trace, span) = numbers.unwrap();
        assert_eq!(trace, "4bf92f3577b34da6a3ce929d0e0e4736");
        let sent = onwards["traceparent"].to_str().unwrap().to_owned();
        let flag = if count == 0 { "00" } else { "01" };
        assert_eq!(sent, format!("00-{trace}-{span}-{flag}"));
        if let [inner, outer] = spans.as_slice() {
            assert_eq!((&*inner.name, &*outer.name), ("sign x509-svid", "call"));
            assert_eq!(inner.parent_span_id, outer.span_context.span_id());
            assert_eq!(outer.parent_span_id.to_string(), "00f067aa0ba902b7");
            assert!(outer.parent_span_is_remote);
            assert_eq!(inner.events.len(), 0);
        }
    }
}

#[test]
fn what_a_caller_does_not_record_is_not_recorded_and_a_header_that_is_none_begins_a_new_trace() {
    let sampler = Sampler::ParentBased(Box::new(Sampler::AlwaysOn));
    let (subscriber, kept) = kept(sampler);
    tracing::subscriber::with_default(subscriber, || {
        for header in [NOT_SAMPLED, "00-0-0-01", "garbage", ""] {
            let span = span!("call");
            continue_from(&span, &headers(header));
            span.in_scope(|| assert!(current().is_some()));
        }
        let other = tracing::info_span!("of the log");
        other.in_scope(|| assert!(current().is_none(), "no span of the log is one of a trace"));
    });
    let spans = kept.spans();
    assert_eq!(spans.len(), 3, "{spans:?}");
    for span in spans {
        assert_ne!(
            span.span_context.trace_id().to_string(),
            "4bf92f3577b34da6a3ce929d0e0e4736"
        );
    }
}

#[tokio::test]
async fn without_a_collector_there_is_no_span_and_no_header() {
    let span = span!("call");
    assert!(span.is_disabled());
    continue_from(&span, &headers(SAMPLED));
    async {
        let mut onwards = HeaderMap::new();
        carry(&mut onwards);
        assert_eq!((onwards.len(), current()), (0, None));
    }
    .instrument(span)
    .await;
}

#[test]
fn an_endpoint_that_is_none_and_a_ratio_that_is_none_are_refused() {
    let read = |text: &str| serde_json::from_str::<OtlpOptions>(text);
    assert_eq!(read("{}").unwrap(), OtlpOptions::default());
    let given = read(r#"{"endpoint": "http://127.0.0.1:4317", "sampleRatio": 1}"#).unwrap();
    assert_eq!(given.endpoint.as_deref(), Some("http://127.0.0.1:4317"));
    for bad in [
        r#"{"endpoint": "127.0.0.1:4317"}"#,
        r#"{"endpoint": "https://collector:4317"}"#,
        r#"{"endpoint": "http://collector"}"#,
        r#"{"endpoint": "http://collector:4317/v1/traces"}"#,
        r#"{"endpoint": ""}"#,
        r#"{"sampleRatio": 1.1}"#,
        r#"{"sampleRatio": -0.1}"#,
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_collector_that_is_away_costs_spans_and_not_the_end_of_the_program() {
    let options = OtlpOptions {
        // Port 1 on loopback: nobody listens there.
        endpoint: Some("http://127.0.0.1:1".to_owned()),
        sample_ratio: 1.0,
    };
    let traces = Traces::start("test", &options).unwrap();
    let (_, failed_before) = exported();
    let subscriber = Registry::default().with(traces.layer());
    tracing::subscriber::with_default(subscriber, || drop(span!("call")));
    let began = tokio::time::Instant::now();
    drop(traces);
    assert!(began.elapsed() < FAREWELL + Duration::from_secs(3));
    assert!(exported().1 > failed_before, "it is counted");
}
