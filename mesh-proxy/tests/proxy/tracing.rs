//! A request is one trace from the caller over both proxies to the application, and its headers say so with or without a collector.
//! Trusts real proxies; the collector is this test.
//! Never waits for a moment; each assertion says what it waits for.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::world::{Pair, SHOP_ANYTHING, allow, eventually};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    /// Starts it; the configuration that leads to it.
    async fn start(&self, ratio: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(self.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        format!("telemetry: {{ otlp: {{ endpoint: \"http://{address}\", sampleRatio: {ratio} }} }}")
    }

    fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans;
        let scopes = resources
            .into_iter()
            .flat_map(|resource| resource.scope_spans);
        self.0
            .lock()
            .unwrap()
            .extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

async fn traced(pair: &Pair, path: &str, headers: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: pay\r\n{headers}Connection: close\r\n\r\n");
    let answer = pair.send(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    let asked = format!("GET {path} ");
    let heads = pair.application.heads();
    heads
        .into_iter()
        .find(|head| head.contains(&asked) || head.contains(&format!("pay{path} ")))
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_on_over_both_proxies_and_each_has_its_span_in_it() {
    let collector = Collector::default();
    let telemetry = collector.start("0.0").await;
    let pair = Pair::with_config(&allow(SHOP_ANYTHING), Duration::from_secs(600), &telemetry).await;
    let b3 = format!("X-B3-TraceId: {TRACE}\r\nX-B3-SpanId: {SPAN}\r\nX-B3-Sampled: 1\r\n");
    let head = traced(&pair, "/traced?card=secret", &b3).await;
    let (outer, inner) = eventually("both spans are collected", || {
        let spans = collector.spans();
        let below = |parent: &str| {
            let mut spans = spans.iter();
            spans.find(|span| hex(&span.trace_id) == TRACE && hex(&span.parent_span_id) == parent)
        };
        let outer = below(SPAN)?.clone();
        let inner = below(&hex(&outer.span_id))?.clone();
        Some((outer, inner))
    })
    .await;
    assert_eq!(
        (outer.kind(), inner.kind()),
        (SpanKind::Client, SpanKind::Server)
    );
    assert_eq!(inner.name, "GET");
    let told = format!("{inner:?}");
    for word in [
        "http.response.status_code",
        "spiffe://dev.test/shop",
        "payments/allow-shop",
    ] {
        assert!(told.contains(word), "{word}: {told}");
    }
    assert!(
        !told.contains("secret") && !told.contains("/traced"),
        "{told}"
    );
    let parent = format!("00-{TRACE}-{}-01", hex(&inner.span_id));
    assert_eq!(header(&head, "traceparent"), Some(&*parent), "{head}");
    assert_eq!(header(&head, "x-b3-spanid"), Some(&*hex(&inner.span_id)));
    assert_eq!(header(&head, "x-b3-traceid"), Some(TRACE));
    let line = pair.pay.line(|l| l["path"] == "/traced").await;
    assert_eq!(line["trace_id"], TRACE);

    // Nobody records it, so nobody is told of a trace.
    let head = traced(&pair, "/untraced", "").await;
    assert!(head.contains("/untraced"), "{head}");
    assert_eq!(header(&head, "traceparent"), None, "{head}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_collector_a_trace_goes_on_as_it_came_and_as_traceparent() {
    let pair = Pair::start(&allow(SHOP_ANYTHING)).await;
    let b3 = format!("b3: {TRACE}-{SPAN}-0\r\nbaggage: a=b\r\n");
    let head = traced(&pair, "/b3", &b3).await;
    assert_eq!(
        header(&head, "traceparent"),
        Some(&*format!("00-{TRACE}-{SPAN}-00")),
        "{head}"
    );
    assert_eq!(header(&head, "b3"), Some(&*format!("{TRACE}-{SPAN}-0")));
    assert_eq!(header(&head, "baggage"), Some("a=b"));
    let head = traced(&pair, "/bad", "traceparent: 00-x\r\ntracestate: a=b\r\n").await;
    assert!(head.contains("/bad"), "{head}");
    assert_eq!(header(&head, "traceparent"), None, "{head}");
    assert_eq!(header(&head, "tracestate"), None, "{head}");
}
