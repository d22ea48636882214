//! Decides which spans leave the process and how: over OTLP/gRPC to a collector, or not at all.
//! Trusts the collector to take what it gets; a collector that is slow or away costs spans, never a request.
//! Never puts a secret into a span, and never believes a caller's trace for anything but its numbers.
//!
//! ```
//! use mesh_runtime::{span, telemetry::traces};
//! use tracing::Instrument;
//! # async fn work() {}
//! # async fn example(headers: &http::HeaderMap) {
//! let span = span!("sign x509-svid", kind = "server");  // costs nothing where no collector is configured
//! traces::continue_from(&span, headers);                 // the caller's trace goes on, if it brought one
//! work().instrument(span).await;
//! # }
//! ```

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tonic::transport::Endpoint;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::{Layer, Registry};

use super::{Repetition, TelemetryError};

/// The target of every span that may leave the process. Nothing else does, however verbose the log is.
pub const TARGET: &str = "finial::trace";

/// Begins a span of a trace: its name as the operator reads it, then fields. Disabled, and without cost, unless a collector is
/// configured.
#[macro_export]
macro_rules! span {
    ($name:literal $(, $($fields:tt)*)?) => {
        $crate::telemetry::traces::tracing::trace_span!(
            target: $crate::telemetry::traces::TARGET,
            $name
            $(, $($fields)*)?
        )
    };
}

#[doc(hidden)]
pub use tracing;

/// Spans that wait for the collector; more than that are lost, and the log says so.
const QUEUE: usize = 8192;

/// Spans in one message.
const BATCH: usize = 512;

/// How long one message may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the end of the program waits for the last spans.
const FAREWELL: Duration = Duration::from_secs(2);

/// The `telemetry.otlp` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OtlpOptions {
    /// The collector, as in `http://127.0.0.1:4317` (OTLP over gRPC, in the clear: it belongs on this machine). None: no traces.
    #[serde(deserialize_with = "an_endpoint")]
    pub endpoint: Option<String>,
    /// Which part of the traces that begin here is recorded, from 0 to 1. Those that a caller records are recorded here too.
    #[serde(deserialize_with = "a_ratio")]
    pub sample_ratio: f64,
}

// The ratio is a number: what is none is refused where it is read.
impl Eq for OtlpOptions {}

impl Default for OtlpOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            sample_ratio: 0.01,
        }
    }
}

fn an_endpoint<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)? else {
        return Ok(None);
    };
    let plain = text.parse::<Uri>().is_ok_and(|uri| {
        uri.scheme_str() == Some("http")
            && uri.port_u16().is_some()
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
    });
    match plain {
        true => Ok(Some(text)),
        false => Err(serde::de::Error::custom(
            "not a collector's address: it looks like http://127.0.0.1:4317",
        )),
    }
}

fn a_ratio<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let ratio = f64::deserialize(from)?;
    match (0.0..=1.0).contains(&ratio) {
        true => Ok(ratio),
        false => Err(serde::de::Error::custom("not between 0 and 1")),
    }
}

/// The way of the spans out of the process. Dropped, outside of any runtime, it sends what waits, for two seconds at most.
#[derive(Debug)]
#[must_use = "dropping it ends the export"]
pub struct Traces(Option<Export>);

#[derive(Debug)]
struct Export {
    provider: SdkTracerProvider,
    // The collector's connection lives here and not among the program's own work. Taken when it ends.
    runtime: Option<tokio::runtime::Runtime>,
    program: &'static str,
}

/// What takes the spans of a log's subscriber.
pub(super) type SpanLayer = Box<dyn Layer<Registry> + Send + Sync>;

impl Traces {
    /// Prepares the export; nothing is connected before the first span is sent.
    ///
    /// # Errors
    /// When the system gives no thread, or the endpoint is none.
    pub(super) fn start(
        program: &'static str,
        options: &OtlpOptions,
    ) -> Result<Self, TelemetryError> {
        let Some(endpoint) = &options.endpoint else {
            return Ok(Self(None));
        };
        let failed = |cause: Box<dyn std::error::Error + Send + Sync>| TelemetryError { cause };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("otlp")
            .enable_all()
            .build()
            .map_err(|cause| failed(cause.into()))?;
        let entered = runtime.enter();
        let channel = Endpoint::from_shared(endpoint.clone())
            .map_err(|cause| failed(cause.into()))?
            .timeout(PATIENCE)
            .connect_timeout(PATIENCE)
            .connect_lazy();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_channel(channel)
            .with_timeout(PATIENCE)
            .build()
            .map_err(|cause| failed(cause.into()))?;
        drop(entered);
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(Duration::from_secs(1))
            .build();
        let processor = BatchSpanProcessor::builder(Counted::new(exporter))
            .with_batch_config(batches)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                options.sample_ratio,
            ))))
            .with_resource(Resource::builder().with_service_name(program).build())
            .build();
        Ok(Self(Some(Export {
            provider,
            runtime: Some(runtime),
            program,
        })))
    }

    /// What a log's subscriber hands its spans to.
    pub(super) fn layer(&self) -> Option<SpanLayer> {
        let export = self.0.as_ref()?;
        let tracer = export.provider.tracer(export.program);
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            // Where in the source and on which thread is no news to an operator, and is paid for with each span.
            .with_location(false)
            .with_threads(false)
            .with_filter(filter_fn(|metadata| metadata.target() == TARGET));
        Some(layer.boxed())
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FAREWELL) {
            tracing::debug!(%error, "the last spans were not sent");
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

static SENT: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

/// Spans that the collector took, and spans that it did not take, since the start of the process.
pub fn exported() -> (u64, u64) {
    (SENT.load(Ordering::Relaxed), FAILED.load(Ordering::Relaxed))
}

/// An exporter that says how it fares: as numbers, and in the log when that changes.
struct Counted<E> {
    inner: E,
    quiet: Arc<Repetition>,
}

impl<E> Counted<E> {
    fn new(inner: E) -> Self {
        Self {
            inner,
            quiet: Arc::new(Repetition::new("otlp")),
        }
    }
}

impl<E> fmt::Debug for Counted<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted").finish_non_exhaustive()
    }
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len() as u64;
        let outcome = self.inner.export(batch).await;
        match &outcome {
            Ok(()) => {
                SENT.fetch_add(count, Ordering::Relaxed);
                self.quiet.succeeded();
            }
            Err(error) => {
                FAILED.fetch_add(count, Ordering::Relaxed);
                self.quiet.failed(error);
            }
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Makes a span a part of the trace that a caller's headers name, if they name one (W3C `traceparent`).
pub fn continue_from(span: &Span, headers: &HeaderMap) {
    if span.is_disabled() {
        return;
    }
    let parent = TraceContextPropagator::new().extract(&Incoming(headers));
    if parent.span().span_context().is_valid() {
        // It fails only once the span has begun to be used, and this is its beginning.
        span.set_parent(parent).ok();
    }
}

/// Writes the trace that this task is in into the headers of a call, for whoever answers it.
pub fn carry(headers: &mut HeaderMap) {
    let span = Span::current();
    if !span.is_disabled() {
        TraceContextPropagator::new().inject_context(&span.context(), &mut Outgoing(headers));
    }
}

/// The numbers of the trace and the span that this task is in.
pub fn current() -> Option<(String, String)> {
    let span = Span::current();
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| {
        (
            context.trace_id().to_string(),
            context.span_id().to_string(),
        )
    })
}

struct Incoming<'a>(&'a HeaderMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct Outgoing<'a>(&'a mut HeaderMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = HeaderName::from_bytes(key.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests;
