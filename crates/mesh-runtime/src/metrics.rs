//! Decides how metrics are registered and shown: one registry per program, in Prometheus' classic text or OpenMetrics.
//! Trusts the programs' label sets to be bounded; never puts a stranger's text into a label.
//!
//! ```
//! use mesh_runtime::metrics::{Counter, Family, Metrics};
//! let metrics = Metrics::new("ca_server");
//! let issued: Family<Vec<(String, String)>, Counter> = Family::default();
//! metrics.register("ca_server_svids_issued", "SVIDs issued", issued.clone());   // shown as …_issued_total
//! issued.get_or_create(&vec![("type".into(), "x509".into())]).inc();
//! assert!(metrics.classic_text().contains("ca_server_svids_issued_total{type=\"x509\"} 1"));
//! ```

use std::fmt::Write as _;
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Metric, Registry};

use crate::readiness::Readiness;

pub use prometheus_client;
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// The registry of one program. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    program: Arc<str>,
    registry: Arc<RwLock<Registry>>,
}

impl Metrics {
    /// A registry with the families that every program has: `<program>_build_info`, `<program>_panics_total`, `process_*`
    /// and `tokio_*`. `program` is the metric prefix, such as `ca_server`.
    pub fn new(program: &str) -> Self {
        let registry = Arc::new(RwLock::new(Registry::default()));
        let metrics = Self {
            program: program.into(),
            registry,
        };
        let build: Family<Vec<(&'static str, &'static str)>, Gauge> = Family::default();
        let labels = vec![
            ("version", env!("CARGO_PKG_VERSION")),
            ("rust", env!("CARGO_PKG_RUST_VERSION")),
        ];
        build.get_or_create(&labels).set(1);
        metrics.register(
            &format!("{program}_build_info"),
            "What was built, as labels",
            build,
        );
        metrics.register_counts(
            &format!("{program}_panics"),
            "Panics, each of which is a defect",
            crate::telemetry::panics,
        );
        metrics
            .locked()
            .register_collector(Box::new(process::Process));
        metrics
            .locked()
            .register_collector(Box::new(process::Tokio));
        metrics.locked().register_collector(Box::new(process::Otlp));
        metrics
    }

    /// Registers `<program>_ready`, which is 1 when every part is.
    pub fn readiness(&self, readiness: &Readiness) {
        let readiness = readiness.clone();
        self.register_gauge(
            &format!("{}_ready", self.program),
            "1 when every part is ready",
            move || u64::from(readiness.is_ready()),
        );
    }

    /// Registers a family under its whole name; a counter's name is given without `_total`.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.locked().register(name, help, metric);
    }

    /// A counter without labels.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        let counter: Counter = Counter::default();
        self.register(name, help, counter.clone());
        counter
    }

    /// A gauge without labels.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        let gauge: Gauge = Gauge::default();
        self.register(name, help, gauge.clone());
        gauge
    }

    /// A counter whose value somebody else keeps; it is read at each scrape.
    pub fn register_counts(
        &self,
        name: &str,
        help: &str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.register_value(name, help, MetricType::Counter, Box::new(read));
    }

    /// A gauge whose value somebody else keeps; it is read at each scrape.
    pub fn register_gauge(
        &self,
        name: &str,
        help: &str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.register_value(name, help, MetricType::Gauge, Box::new(read));
    }

    fn register_value(
        &self,
        name: &str,
        help: &str,
        kind: MetricType,
        read: Box<dyn Fn() -> u64 + Send + Sync>,
    ) {
        let value = process::Value {
            name: name.to_owned(),
            help: help.to_owned(),
            kind,
            read,
        };
        self.locked().register_collector(Box::new(value));
    }

    /// Everything in Prometheus' classic text format, version 0.0.4.
    pub fn classic_text(&self) -> String {
        classic(&self.open_metrics_text())
    }

    /// Everything in OpenMetrics text format, version 1.0.0.
    pub fn open_metrics_text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        // Writing into a String cannot fail; a collector that fails shows what came before it.
        if prometheus_client::encoding::text::encode(&mut text, &registry).is_err() {
            tracing::error!("a metric could not be written");
        }
        text
    }

    fn locked(&self) -> std::sync::RwLockWriteGuard<'_, Registry> {
        self.registry
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// OpenMetrics to classic: a counter family is named after its sample (`_total`), an info becomes a gauge,
/// units, exemplars and the end mark go.
fn classic(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let mut kinds: std::collections::HashMap<&str, &str> = std::collections::HashMap::new();
    for line in open.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ")
            && let Some((name, kind)) = rest.split_once(' ')
        {
            kinds.insert(name, kind);
        }
    }
    let shown = |name: &str| match kinds.get(name) {
        Some(&"counter") => format!("{name}_total"),
        Some(&"info") => format!("{name}_info"),
        _ => name.to_owned(),
    };
    for line in open.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            let sample = line.find(" # {").map_or(line, |at| &line[..at]);
            text.push_str(sample);
            text.push('\n');
            continue;
        };
        // Writing into a String cannot fail.
        let _written = match comment.split_once(' ') {
            Some(("HELP", rest)) => {
                let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
                writeln!(text, "# HELP {} {help}", shown(name))
            }
            Some(("TYPE", rest)) => {
                let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
                let kind = match kind {
                    "info" => "gauge",
                    "unknown" => "untyped",
                    other => other,
                };
                writeln!(text, "# TYPE {} {kind}", shown(name))
            }
            _ => Ok(()),
        };
    }
    text
}

mod process {
    //! `process_*`: what the kernel says about this process, read at each scrape.

    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
    use prometheus_client::metrics::MetricType;
    use prometheus_client::metrics::counter::ConstCounter;
    use prometheus_client::metrics::gauge::ConstGauge;

    use crate::telemetry::traces;

    #[derive(Debug)]
    pub(super) struct Process;

    /// A number that somebody else keeps.
    pub(super) struct Value {
        pub(super) name: String,
        pub(super) help: String,
        pub(super) kind: MetricType,
        pub(super) read: Box<dyn Fn() -> u64 + Send + Sync>,
    }

    impl std::fmt::Debug for Value {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Value")
                .field("name", &self.name)
                .finish_non_exhaustive()
        }
    }

    impl Collector for Value {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
            let metric = encoder.encode_descriptor(&self.name, &self.help, None, self.kind)?;
            match self.kind {
                MetricType::Counter => ConstCounter::new((self.read)()).encode(metric),
                _ => ConstGauge::new((self.read)() as f64).encode(metric),
            }
        }
    }

    /// `tokio_*`: the runtime that answers the scrape.
    #[derive(Debug)]
    pub(super) struct Tokio;

    impl Collector for Tokio {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
            let Ok(runtime) = tokio::runtime::Handle::try_current() else {
                return Ok(());
            };
            let runtime = runtime.metrics();
            let values = [
                ("tokio_workers", "Worker threads", runtime.num_workers()),
                (
                    "tokio_alive_tasks",
                    "Tasks that have not ended",
                    runtime.num_alive_tasks(),
                ),
                (
                    "tokio_global_queue_depth",
                    "Tasks that wait for a worker",
                    runtime.global_queue_depth(),
                ),
            ];
            for (name, help, value) in values {
                let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                ConstGauge::new(value as f64).encode(metric)?;
            }
            Ok(())
        }
    }

    /// `otlp_export_*`: what became of the spans.
    #[derive(Debug)]
    pub(super) struct Otlp;

    impl Collector for Otlp {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
            let (sent, failed) = traces::exported();
            let values = [
                (
                    "otlp_export_sent_spans",
                    "Spans that the collector took",
                    sent,
                ),
                (
                    "otlp_export_failed_spans",
                    "Spans that the collector did not take",
                    failed,
                ),
            ];
            for (name, help, value) in values {
                let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                ConstCounter::new(value).encode(metric)?;
            }
            Ok(())
        }
    }

    impl Collector for Process {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
            let Ok(procfs) = std::fs::read_to_string("/proc/self/stat") else {
                return Ok(());
            };
            // The command name is in parentheses and may hold spaces; fields 3.. follow the last parenthesis.
            let Some((_, rest)) = procfs.rsplit_once(')') else {
                return Ok(());
            };
            let field = |number: usize| {
                rest.split_ascii_whitespace()
                    .nth(number - 3)
                    .and_then(|f| f.parse::<f64>().ok())
            };
            // USER_HZ is 100 on every Linux that Rust's standard library runs on.
            let ticks = 100.0;
            if let (Some(user), Some(system)) = (field(14), field(15)) {
                let seconds = ConstCounter::new((user + system) / ticks);
                let metric = encoder.encode_descriptor(
                    "process_cpu_seconds",
                    "CPU time used, user and system",
                    None,
                    MetricType::Counter,
                )?;
                seconds.encode(metric)?;
            }
            let mut gauge =
                |name: &str, help: &str, value: Option<f64>| -> Result<(), std::fmt::Error> {
                    let Some(value) = value else { return Ok(()) };
                    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                    ConstGauge::new(value).encode(metric)
                };
            gauge(
                "process_resident_memory_bytes",
                "Resident memory",
                resident(),
            )?;
            gauge("process_threads", "Threads", field(20))?;
            gauge(
                "process_open_fds",
                "Open file descriptors",
                open_descriptors(),
            )?;
            let limit =
                nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).ok();
            gauge(
                "process_max_fds",
                "Limit of open file descriptors",
                limit.map(|(soft, _)| soft as f64),
            )?;
            let start = field(22)
                .zip(boot_time())
                .map(|(since_boot, boot)| boot + since_boot / ticks);
            gauge(
                "process_start_time_seconds",
                "Start of the process, seconds since 1970",
                start,
            )
        }
    }

    fn resident() -> Option<f64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
        line.split_ascii_whitespace()
            .next()?
            .parse::<f64>()
            .ok()
            .map(|kib| kib * 1024.0)
    }

    fn open_descriptors() -> Option<f64> {
        // One of them is the directory being read.
        std::fs::read_dir("/proc/self/fd")
            .ok()
            .map(|entries| entries.count().saturating_sub(1) as f64)
    }

    fn boot_time() -> Option<f64> {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        stat.lines()
            .find_map(|l| l.strip_prefix("btime "))?
            .trim()
            .parse()
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classic_text_names_counters_after_their_samples_and_has_no_end_mark() {
        let metrics = Metrics::new("demo");
        let counter = metrics.counter("demo_things", "Things done");
        counter.inc_by(3);
        let histogram = Histogram::new([0.1, 1.0]);
        metrics.register("demo_seconds", "Time", histogram.clone());
        histogram.observe(0.5);
        let text = metrics.classic_text();
        assert!(
            text.contains("# TYPE demo_things_total counter\ndemo_things_total 3\n"),
            "{text}"
        );
        assert!(
            text.contains("# HELP demo_things_total Things done"),
            "{text}"
        );
        assert!(
            text.contains("demo_seconds_bucket{le=\"1.0\"} 1\n"),
            "{text}"
        );
        assert!(
            !text.contains("# EOF") && !text.contains("# UNIT"),
            "{text}"
        );
        assert!(
            text.contains("demo_build_info{") && text.contains("process_open_fds "),
            "{text}"
        );
        assert!(text.contains("process_cpu_seconds_total "), "{text}");
        let readiness = Readiness::new();
        let part = readiness.part("store");
        metrics.readiness(&readiness);
        assert!(
            metrics
                .classic_text()
                .contains("# TYPE demo_ready gauge\ndemo_ready 0")
        );
        let _store = part.done();
        assert!(metrics.classic_text().contains("demo_ready 1"));
        assert!(text.contains("demo_panics_total 0"), "{text}");
        assert!(metrics.open_metrics_text().ends_with("# EOF\n"));
    }
}
