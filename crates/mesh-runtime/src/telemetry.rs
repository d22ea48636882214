//! Decides how programs log: a form for people and one for machines, on stderr, filtered only by what the configuration says.
//! Trusts nothing it prints (one record is one line); never prints a `Secret`, never reads `RUST_LOG` itself.
//!
//! ```
//! use mesh_runtime::telemetry::{LogFormat, LogOptions, Repetition, Secret};
//! let options = LogOptions { level: "info".into(), format: LogFormat::Json };
//! mesh_runtime::telemetry::init(&options).unwrap();       // once, first thing in main
//! assert_eq!(format!("{:?}", Secret::new("hunter2".to_owned())), "[redacted]");
//! let quiet = Repetition::new("feed");                    // in a reconnect loop: quiet.failed(&error); quiet.succeeded();
//! quiet.failed(&std::io::Error::other("refused"));
//! ```

mod control;
pub mod traces;

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};
use zeroize::Zeroize;

use self::control::Apply;
pub use self::control::{LogControl, level_of};
use self::traces::SpanLayer;
pub use self::traces::{OtlpOptions, Traces};
use crate::errors::{Coded, ErrorChain, is_deceptive, untrusted};

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people: one line per event, coloured when stderr is a terminal.
    #[default]
    Pretty,
    /// For machines: one JSON object per line.
    Json,
}

/// The `log` section of every configuration file. Its level may come from `RUST_LOG` ([`crate::config::Sources::environment`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LogOptions {
    /// Level, or a filter such as `info,mesh_proxy=debug`.
    #[serde(deserialize_with = "a_filter")]
    pub level: String,
    /// `pretty` or `json`.
    pub format: LogFormat,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::default(),
        }
    }
}

impl LogOptions {
    /// Checks the filter without installing anything.
    ///
    /// # Errors
    /// When the level is not a filter.
    pub fn check(&self) -> Result<(), TelemetryError> {
        self.filter().map(drop)
    }

    fn filter(&self) -> Result<EnvFilter, TelemetryError> {
        control::parse(&self.level)
    }
}

/// Refuses a level that is no filter where it is written.
fn a_filter<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let level = String::deserialize(deserializer)?;
    match EnvFilter::builder().parse(&level) {
        Ok(_) => Ok(level),
        Err(error) => Err(serde::de::Error::custom(format_args!(
            "not a log filter: {}",
            ErrorChain(&error)
        ))),
    }
}

/// The log cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("the log cannot be set up")]
pub struct TelemetryError {
    #[source]
    cause: Box<dyn std::error::Error + Send + Sync>,
}

impl Coded for TelemetryError {
    fn code(&self) -> &'static str {
        "FNL0221"
    }
}

/// Installs the log for the whole process, and makes panics a part of it. Calling it again keeps the first one and is
/// no error (tests do).
///
/// # Errors
/// When the level is not a filter.
pub fn init(options: &LogOptions) -> Result<(), TelemetryError> {
    install(options, None)
}

/// As [`init`], and spans leave the process where a collector is configured. What is returned has to be kept until the end of
/// the program, and dropped outside of any runtime.
///
/// # Errors
/// When the level is not a filter, or the export cannot be prepared.
pub fn init_traced(
    program: &'static str,
    options: &LogOptions,
    otlp: &OtlpOptions,
) -> Result<Traces, TelemetryError> {
    let traces = Traces::start(program, otlp)?;
    install(options, traces.layer())?;
    Ok(traces)
}

fn install(options: &LogOptions, spans: Option<SpanLayer>) -> Result<(), TelemetryError> {
    let filter = options.filter()?;
    let colours = std::io::stderr().is_terminal();
    let (subscriber, apply) = subscriber(options.format, filter, std::io::stderr, colours, spans);
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        tracing::debug!("the log was already set up");
        return Ok(());
    }
    // Only one log is ever installed, so this is the first value.
    let _control = INSTALLED.set(LogControl::new(options, apply));
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let text = panic.payload_as_str().unwrap_or("without a message");
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        tracing::error!(thread, place, "panic: {}", untrusted(text));
    }));
    Ok(())
}

/// There is one log in a process, as there is one default of `tracing`.
static INSTALLED: OnceLock<LogControl> = OnceLock::new();

/// The control of the log that [`init`] installed; none before.
pub fn installed() -> Option<LogControl> {
    INSTALLED.get().cloned()
}

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Panics in this process since [`init`].
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    writer: W,
    colours: bool,
    spans: Option<SpanLayer>,
) -> (Box<dyn tracing::Subscriber + Send + Sync>, Arc<Apply>)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let (filter, handle) = reload::Layer::new(filter);
    let apply = move |filter| {
        handle.reload(filter).map_err(|cause| TelemetryError {
            cause: cause.into(),
        })
    };
    let subscriber = Registry::default().with(spans);
    match format {
        LogFormat::Pretty => {
            // A peer's text in a field must not look like a second record (X-06).
            let fields = debug_fn(|writer, field, value| match field.name() {
                "message" => write!(writer, "{}", OneLine(value)),
                name => write!(writer, "{name}={}", OneLine(value)),
            });
            let layer = layer.with_target(false).with_ansi(colours);
            let layer = layer.fmt_fields(fields.delimited(" "));
            (
                Box::new(subscriber.with(layer.with_filter(filter))),
                Arc::new(apply),
            )
        }
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true);
            let layer = layer.with_current_span(true).with_span_list(false);
            (
                Box::new(subscriber.with(layer.with_filter(filter))),
                Arc::new(apply),
            )
        }
    }
}

/// The longest field of a record for people, in characters.
const LONGEST_FIELD: usize = 4096;

/// A value on one line, whatever is in it.
struct OneLine<'a>(&'a dyn fmt::Debug);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:?}", self.0);
        for (count, c) in text.chars().enumerate() {
            if count == LONGEST_FIELD {
                return f.write_str("…");
            }
            // Backslashes stay: `{:?}` has doubled them where it matters.
            if is_deceptive(c) {
                write!(f, "\\u{{{:x}}}", u32::from(c))?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

/// A value that is never printed: `Debug` and serialisation show `[redacted]`, there is no `Display` and no `Clone`,
/// and the memory is wiped when it is dropped.
pub struct Secret<T: Zeroize>(T);

const REDACTED: &str = "[redacted]";

/// The name under which serde meets a secret, so that the configuration reader does not quote its line.
pub(crate) const SECRET_NEWTYPE: &str = "$finial::Secret";

impl<T: Zeroize> Secret<T> {
    /// Takes the value.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value, at the one place that needs it.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<T: Zeroize> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T: Zeroize + FromStr> FromStr for Secret<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl<T: Zeroize> Serialize for Secret<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

impl<'de, T: Zeroize + Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Inner<T>(std::marker::PhantomData<T>);
        impl<'de, T: Zeroize + Deserialize<'de>> serde::de::Visitor<'de> for Inner<T> {
            type Value = Secret<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a secret")
            }

            fn visit_newtype_struct<D: serde::Deserializer<'de>>(
                self,
                inner: D,
            ) -> Result<Secret<T>, D::Error> {
                T::deserialize(inner).map(Secret)
            }
        }
        deserializer.deserialize_newtype_struct(SECRET_NEWTYPE, Inner(std::marker::PhantomData))
    }
}

impl<T: Zeroize + JsonSchema> JsonSchema for Secret<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Secret_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut schema = T::json_schema(generator);
        schema.insert("writeOnly".to_owned(), true.into());
        schema
    }
}

/// Quiet repetition (architecture B35): a loop that fails again and again for the same reason logs the first time,
/// then when the count doubles but at most every minute, and once more when it works again.
#[derive(Debug)]
pub struct Repetition {
    name: &'static str,
    state: Mutex<Streak>,
}

#[derive(Debug, Default)]
struct Streak {
    reason: String,
    failures: u64,
    said_at: Option<(Instant, u64)>,
    since: Option<Instant>,
}

/// What [`Repetition`] did with one report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It was logged.
    Logged,
    /// It was only counted.
    Counted,
}

/// The least time between two lines about the same reason.
const QUIET: Duration = Duration::from_secs(60);

impl Repetition {
    /// A tracker whose lines carry `name`.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            state: Mutex::new(Streak::default()),
        }
    }

    /// The loop failed. A new reason is logged at once.
    pub fn failed(&self, error: &dyn std::error::Error) -> Said {
        let reason = ErrorChain(error).to_string();
        let now = Instant::now();
        let mut streak = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        streak.failures += 1;
        streak.since.get_or_insert(now);
        let same = streak.failures > 1 && streak.reason == reason;
        if same
            && let Some((at, count)) = streak.said_at
            && (now - at < QUIET || streak.failures < count * 2)
        {
            return Said::Counted;
        }
        streak.said_at = Some((now, streak.failures));
        tracing::warn!(part = self.name, error = %reason, failures = streak.failures, "failing; the same reason is only counted from now on");
        streak.reason = reason;
        Said::Logged
    }

    /// The loop works. Logged only after failures.
    pub fn succeeded(&self) -> Said {
        let mut streak = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = std::mem::take(&mut *streak);
        drop(streak);
        match ended.since {
            Some(since) => {
                tracing::info!(part = self.name, failures = ended.failures, after = ?since.elapsed(), "works again");
                Said::Logged
            }
            None => Said::Counted,
        }
    }

    /// Failures since it last worked.
    pub fn failures(&self) -> u64 {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed_or_serialised() {
        let secret: Secret<String> = serde_json::from_str("\"hunter2\"").unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(
            format!("{secret:?} {:#?}", Some(&secret))
                .matches("hunter2")
                .count(),
            0
        );
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"[redacted]\"");
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_reason_is_logged_once_then_counted_and_a_new_one_is_logged_at_once() {
        let quiet = Repetition::new("test");
        let refused = || std::io::Error::other("refused");
        assert_eq!(quiet.failed(&refused()), Said::Logged);
        for _ in 0..1000 {
            assert_eq!(quiet.failed(&refused()), Said::Counted);
        }
        tokio::time::advance(QUIET).await;
        assert_eq!(quiet.failed(&refused()), Said::Logged);
        assert_eq!(
            quiet.failed(&std::io::Error::other("no route")),
            Said::Logged
        );
        assert_eq!(quiet.failures(), 1003);
        assert_eq!(quiet.succeeded(), Said::Logged);
        assert_eq!(quiet.succeeded(), Said::Counted);
    }

    #[derive(Clone, Default)]
    struct Sink(std::sync::Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, act: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let filter = LogOptions::default().filter().unwrap();
        let (subscriber, _) = subscriber(format, filter, move || writer.clone(), false, None);
        tracing::subscriber::with_default(subscriber, act);
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_log_in_use_becomes_more_verbose_and_less() {
        for format in [LogFormat::Pretty, LogFormat::Json] {
            let sink = Sink::default();
            let writer = sink.clone();
            let options = LogOptions::default();
            let filter = options.filter().unwrap();
            let (subscriber, apply) =
                subscriber(format, filter, move || writer.clone(), false, None);
            let control = LogControl::new(&options, apply);
            tracing::subscriber::with_default(subscriber, || {
                tracing::debug!("before");
                control.set("debug").unwrap();
                tracing::debug!("meanwhile");
                control.reset().unwrap();
                tracing::debug!("after");
            });
            let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
            assert!(text.contains("meanwhile"), "{text}");
            assert!(
                !text.contains("before") && !text.contains("after"),
                "{text}"
            );
        }
    }

    #[test]
    fn x_06_one_record_is_one_line_whatever_a_peer_sends() {
        let evil = "a\r\n2026 INFO forged\u{1b}[31m\u{202e}\\";
        for format in [LogFormat::Pretty, LogFormat::Json] {
            let text = logged(format, || {
                let span = tracing::info_span!("call", peer = %evil);
                let _inside = span.enter();
                tracing::info!(path = %evil, quoted = ?evil, "got {evil}");
            });
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.contains('\u{1b}'), "{text}");
        }
        let pretty = logged(LogFormat::Pretty, || tracing::info!(n = 5, "plain message"));
        assert!(pretty.ends_with("INFO plain message n=5\n"), "{pretty}");
    }

    #[test]
    fn json_records_are_flat_objects() {
        let text = logged(LogFormat::Json, || {
            tracing::warn!(part = "feed", failures = 3, "failing")
        });
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&record["level"], &record["message"], &record["failures"]),
            (&"WARN".into(), &"failing".into(), &3.into())
        );
        assert!(record["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn a_level_that_is_no_filter_is_refused() {
        let options = LogOptions {
            level: "info,=,=".to_owned(),
            ..LogOptions::default()
        };
        assert_eq!(options.check().unwrap_err().code(), "FNL0221");
    }
}
