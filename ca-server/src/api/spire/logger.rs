//! `spire.api.server.logger.v1`: how verbose the log is, for local administrators.

use mesh_runtime::audit::Object;
use mesh_runtime::errors::{Coded, ErrorChain};
use mesh_runtime::telemetry::LogControl;
use proto::spire::api::server::logger::v1 as wire;
use proto::spire::api::types;
use proto::spire::api::types::LogLevel;
use tonic::{Code, Request, Response, Status};
use tracing::level_filters::LevelFilter;

use super::super::{Call, Parts, Refusal};

/// The parts of this program. What it is built from stays at `info` at most: its finer records are of use to nobody here.
const OURS: [&str; 5] = [
    "ca_server",
    "mesh_runtime",
    "mesh_identity",
    "mesh_tls",
    "proto",
];

/// The service.
pub(crate) struct Service {
    log: LogControl,
}

impl Service {
    pub(super) fn new(parts: &Parts) -> Self {
        Self {
            log: parts.log.clone(),
        }
    }

    fn answer(&self) -> Response<types::Logger> {
        Response::new(types::Logger {
            current_level: to_wire(self.log.level()).into(),
            launch_level: to_wire(self.log.launch_level()).into(),
        })
    }
}

pub(in crate::api) fn to_wire(level: LevelFilter) -> LogLevel {
    match level {
        // We have no record above an error.
        LevelFilter::OFF => LogLevel::Panic,
        LevelFilter::ERROR => LogLevel::Error,
        LevelFilter::WARN => LogLevel::Warn,
        LevelFilter::INFO => LogLevel::Info,
        LevelFilter::DEBUG => LogLevel::Debug,
        LevelFilter::TRACE => LogLevel::Trace,
    }
}

pub(in crate::api) fn from_wire(level: LogLevel) -> Option<LevelFilter> {
    match level {
        LogLevel::Panic | LogLevel::Fatal => Some(LevelFilter::OFF),
        LogLevel::Error => Some(LevelFilter::ERROR),
        LogLevel::Warn => Some(LevelFilter::WARN),
        LogLevel::Info => Some(LevelFilter::INFO),
        LogLevel::Debug => Some(LevelFilter::DEBUG),
        LogLevel::Trace => Some(LevelFilter::TRACE),
        LogLevel::Unspecified => None,
    }
}

fn read(level: i32) -> Result<LevelFilter, Refusal> {
    let level = LogLevel::try_from(level).map_err(|_| bad_level("unsupported log level"))?;
    from_wire(level).ok_or_else(|| bad_level("newLevel value cannot be LogLevel_UNSPECIFIED"))
}

fn bad_level(why: &str) -> Refusal {
    Refusal::new("FNL1274", Code::InvalidArgument, why)
}

fn filter(level: LevelFilter) -> String {
    let others = level.min(LevelFilter::INFO);
    let ours = OURS.map(|part| format!("{part}={level}"));
    format!("{others},{}", ours.join(","))
}

fn failed(call: &Call, error: &(impl std::error::Error + Coded)) -> Status {
    let why = ErrorChain(error).to_string();
    call.refuse(Refusal::new(error.code(), Code::Internal, why))
}

#[tonic::async_trait]
impl wire::logger_server::Logger for Service {
    async fn get_logger(
        &self,
        _: Request<wire::GetLoggerRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        Ok(self.answer())
    }

    async fn set_log_level(
        &self,
        request: Request<wire::SetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let call = Call::of(&request)?;
        let level = read(request.get_ref().new_level).map_err(|refusal| call.refuse(refusal))?;
        call.about(Object::new("log").name(level.to_string()));
        self.log
            .set(&filter(level))
            .map_err(|error| failed(&call, &error))?;
        Ok(self.answer())
    }

    async fn reset_log_level(
        &self,
        request: Request<wire::ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let call = Call::of(&request)?;
        self.log.reset().map_err(|error| failed(&call, &error))?;
        Ok(self.answer())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_parts_become_verbose_and_what_they_are_built_from_does_not() {
        assert!(filter(LevelFilter::TRACE).starts_with("info,ca_server=trace,"));
        assert!(filter(LevelFilter::ERROR).starts_with("error,ca_server=error,"));
    }
}
