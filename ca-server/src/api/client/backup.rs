//! A backup over the admin socket, written where the caller says. Whether it is whole is for the reader of the file to say.

use std::io::{self, Write};

use proto::finial::backup::v1::CreateBackupRequest;
use proto::finial::backup::v1::backup_client::BackupClient;

use super::{AdminClient, ClientError};

/// Why no backup came.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server.
    #[error(transparent)]
    Server(#[from] ClientError),
    /// Our own disk.
    #[error("the backup cannot be written")]
    Write(#[from] io::Error),
}

impl AdminClient {
    /// Takes a backup of the running server.
    pub async fn backup(&self, into: &mut impl Write) -> Result<(), FetchError> {
        let mut parts = BackupClient::new(self.channel.clone())
            .create(CreateBackupRequest {})
            .await
            .map_err(ClientError::from)?
            .into_inner();
        while let Some(part) = parts.message().await.map_err(ClientError::from)? {
            into.write_all(&part.content)?;
        }
        into.flush()?;
        Ok(())
    }
}
