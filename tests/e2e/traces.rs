//! One trace spans the agent that renews, the authority that signs, its store and its audit log. The collector is this test.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_tests::{eventually, programs, world::World};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind},
};
use serde_json::Value as Json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// Keeps the spans that it is sent, each with the name of its program.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

impl Collector {
    /// Starts it; its endpoint.
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let service = TraceServiceServer::new(self.clone());
        let serving = Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        format!("http://{address}")
    }

    fn spans(&self) -> Vec<(String, Span)> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The first span with this name below a parent.
    fn below(&self, program: &str, name: &str, parent: &Span) -> Option<Span> {
        let spans = self.spans().into_iter();
        spans
            .filter(|(of, span)| of == program && span.name == name)
            .map(|(_, span)| span)
            .find(|span| span.trace_id == parent.trace_id && span.parent_span_id == parent.span_id)
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes.into_iter();
            let name = attributes
                .filter(|attribute| attribute.key == "service.name")
                .find_map(|attribute| match attribute.value?.value? {
                    Value::StringValue(name) => Some(name),
                    _ => None,
                })
                .unwrap_or_default();
            for scope in resource.scope_spans {
                spans.extend(scope.spans.into_iter().map(|span| (name.clone(), span)));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_spans_the_renewal_the_call_the_signature_the_store_and_the_audit_record() {
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let traced = |config: String| {
        let metrics = "  metrics: { address: 127.0.0.1:0 }\n";
        let otlp = format!("{metrics}  otlp: {{ endpoint: \"{endpoint}\", sampleRatio: 1.0 }}\n");
        assert!(config.contains(metrics), "{config}");
        config.replace(metrics, &otlp)
    };
    let mut world = World::start(&traced).await;
    world.agent.take().expect("it runs").kill();
    let config = fs::read_to_string(world.path("agent.yaml")).expect("its configuration");
    world.start_agent(&traced(config)).await;
    world.entry(
        "web",
        &programs::path("workload-agent").display().to_string(),
    );

    let call = "spire.api.server.svid.v1.SVID/BatchNewX509SVID";
    let mut found = None;
    let arrived = eventually::within(Duration::from_secs(20), async || {
        found = collector
            .spans()
            .into_iter()
            .filter(|(program, span)| program == "workload-agent" && span.name == "rotate svid")
            .find_map(|(_, asked)| {
                let answered = collector.below("ca-server", call, &asked)?;
                collector.below("ca-server", "sign x509-svid", &answered)?;
                collector.below("ca-server", "datastore write", &answered)?;
                let recorded = collector.below("ca-server", "audit append", &answered)?;
                Some((asked, answered, recorded))
            });
        tokio::time::sleep(Duration::from_millis(100)).await;
        found.is_some()
    });
    assert!(arrived.await, "{:#?}", collector.spans());
    let (asked, answered, recorded) = found.expect("it arrived");
    assert_eq!(asked.kind(), SpanKind::Client);
    assert_eq!(answered.kind(), SpanKind::Server);
    assert!(
        asked.parent_span_id.is_empty(),
        "a renewal begins its trace"
    );

    // The audit record names the trace, and the span names the record.
    let trace: String = answered
        .trace_id
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let audit_id = recorded
        .attributes
        .iter()
        .find(|attribute| attribute.key == "finial.audit.id")
        .and_then(|attribute| match attribute.value.clone()?.value? {
            Value::StringValue(id) => Some(id),
            _ => None,
        })
        .expect("the id of the record");
    let log = fs::read_to_string(world.path("audit/ca-server/audit.jsonl")).expect("the log");
    let record: Json = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("a record"))
        .find(|record: &Json| record["id"] == audit_id.as_str())
        .expect("the record is in the log");
    assert_eq!(record["trace"]["trace_id"], trace.as_str(), "{record}");
    assert_eq!(record["action"], "svid.issue", "{record}");
    for (_, span) in collector.spans() {
        let text = format!("{span:?}");
        assert!(!text.contains("PRIVATE") && !text.contains("eyJ"), "{text}");
    }
}
