//! How verbose the log is.

use proto::convert::{log_level_from_wire, log_level_to_wire};
use proto::spire::api::server::logger::v1::logger_client::LoggerClient;
use proto::spire::api::server::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest,
};
use proto::spire::api::types;
use tonic::transport::Channel;
use tracing::level_filters::LevelFilter;

use super::{AdminClient, ClientError};

/// The level of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLevels {
    /// In force now.
    pub current: LevelFilter,
    /// As it was configured.
    pub launch: LevelFilter,
}

impl AdminClient {
    fn logger_client(&self) -> LoggerClient<Channel> {
        LoggerClient::new(self.channel.clone())
    }

    /// The level now.
    pub async fn log_level(&self) -> Result<LogLevels, ClientError> {
        let answer = self.logger_client().get_logger(GetLoggerRequest {}).await?;
        levels(answer.into_inner())
    }

    /// Sets it until the server starts again.
    pub async fn set_log_level(&self, level: LevelFilter) -> Result<LogLevels, ClientError> {
        let ask = SetLogLevelRequest {
            new_level: log_level_to_wire(level).into(),
        };
        levels(self.logger_client().set_log_level(ask).await?.into_inner())
    }

    /// Sets it back to what was configured.
    pub async fn reset_log_level(&self) -> Result<LogLevels, ClientError> {
        let ask = ResetLogLevelRequest {};
        levels(
            self.logger_client()
                .reset_log_level(ask)
                .await?
                .into_inner(),
        )
    }
}

fn levels(logger: types::Logger) -> Result<LogLevels, ClientError> {
    let read = |level| {
        let unknown = || ClientError::Unreadable("it has an unknown log level".into());
        log_level_from_wire(level).ok_or_else(unknown)
    };
    Ok(LogLevels {
        current: read(logger.current_level())?,
        launch: read(logger.launch_level())?,
    })
}
