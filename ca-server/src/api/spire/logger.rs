//! `spire.api.server.logger.v1`: how verbose the log is, for local administrators.

use mesh_runtime::audit::Object;
use mesh_runtime::errors::{Coded, ErrorChain};
use mesh_runtime::telemetry::LogControl;
use proto::convert::{log_level_from_wire, log_level_to_wire};
use proto::spire::api::server::logger::v1 as wire;
use proto::spire::api::types;
use proto::spire::api::types::LogLevel;
use tonic::{Code, Request, Response, Status};
use tracing::level_filters::LevelFilter;

use super::super::{Call, Parts, Refusal};

/// The parts of this program.
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
            current_level: log_level_to_wire(self.log.level()).into(),
            launch_level: log_level_to_wire(self.log.launch_level()).into(),
        })
    }
}

fn read(level: i32) -> Result<LevelFilter, Refusal> {
    let level = LogLevel::try_from(level).map_err(|_| bad_level("unsupported log level"))?;
    log_level_from_wire(level)
        .ok_or_else(|| bad_level("newLevel value cannot be LogLevel_UNSPECIFIED"))
}

fn bad_level(why: &str) -> Refusal {
    Refusal::new("FNL1274", Code::InvalidArgument, why)
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
            .set_level(level, &OURS)
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
