//! Decides how verbose the log is, when an administrator asks for it over SPIRE's logger service, until the agent starts again.
//! Trusts the admin door for who comes in. Never says that a change was made without a record of it, when records are kept.

use mesh_runtime::{
    audit::{Action, Actor, AuditLog, Decision, Object, Outcome},
    errors::{Coded, ErrorChain},
    telemetry::{LogControl, TelemetryError},
};
use proto::{
    convert::{log_level_from_wire, log_level_to_wire},
    spire::api::{
        agent::logger::v1::{
            self as wire,
            logger_server::{Logger, LoggerServer},
        },
        types::{self, LogLevel},
    },
};
use tonic::{Request, Response, Status};
use tracing::level_filters::LevelFilter;

use super::{LARGEST_REQUEST, peer::Peer};

/// The parts of this program.
const OURS: [&str; 5] = [
    "workload_agent",
    "mesh_runtime",
    "mesh_identity",
    "mesh_tls",
    "proto",
];

/// The service.
#[derive(Clone, Debug)]
pub struct LoggerApi {
    log: LogControl,
    audit: Option<AuditLog>,
}

impl LoggerApi {
    /// Changes this log. With an audit log, each change is recorded there.
    pub fn new(log: LogControl, audit: Option<AuditLog>) -> Self {
        Self { log, audit }
    }

    /// As a tonic service.
    pub fn into_service(self) -> LoggerServer<Self> {
        LoggerServer::new(self).max_decoding_message_size(LARGEST_REQUEST)
    }

    fn answer(&self) -> Response<types::Logger> {
        Response::new(types::Logger {
            current_level: log_level_to_wire(self.log.level()).into(),
            launch_level: log_level_to_wire(self.log.launch_level()).into(),
        })
    }

    async fn change<Q>(
        &self,
        request: &Request<Q>,
        action: Action,
        level: LevelFilter,
        change: impl FnOnce(&LogControl) -> Result<(), TelemetryError>,
    ) -> Result<Response<types::Logger>, Status> {
        let peer = request.extensions().get::<Peer>();
        let peer = peer.ok_or_else(|| Status::internal("the connection has no peer"))?;
        let record = self.audit.as_ref().map(|log| {
            let actor = Actor::user(format!("uid:{}", peer.uid())).authn("uds");
            let actor = actor.process(peer.uid(), Some(peer.process().pid()));
            let mut record = log.begin(action, actor);
            record.object(Object::new("log").name(level.to_string()));
            record.decision(Decision::allow());
            record
        });
        if let Err(error) = change(&self.log) {
            if let Some(record) = record {
                record.finish_later(Outcome::Failure, Some(error.code()));
            }
            return Err(Status::internal(ErrorChain(&error).to_string()));
        }
        if let Some(record) = record {
            record.finish(Outcome::Success, None).await.map_err(|error| {
                tracing::error!(error = %ErrorChain(&error), "a change of the log level is not on record");
                Status::unavailable("the agent cannot write its audit record")
            })?;
        }
        tracing::info!(%level, uid = peer.uid(), "the log level is changed");
        Ok(self.answer())
    }
}

fn read(level: i32) -> Result<LevelFilter, Status> {
    let level =
        LogLevel::try_from(level).map_err(|_| Status::invalid_argument("unsupported log level"))?;
    log_level_from_wire(level)
        .ok_or_else(|| Status::invalid_argument("newLevel value cannot be LogLevel_UNSPECIFIED"))
}

#[tonic::async_trait]
impl Logger for LoggerApi {
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
        let level = read(request.get_ref().new_level)?;
        self.change(&request, Action("log.set"), level, |log| {
            log.set_level(level, &OURS)
        })
        .await
    }

    async fn reset_log_level(
        &self,
        request: Request<wire::ResetLogLevelRequest>,
    ) -> Result<Response<types::Logger>, Status> {
        let level = self.log.launch_level();
        self.change(&request, Action("log.reset"), level, LogControl::reset)
            .await
    }
}
