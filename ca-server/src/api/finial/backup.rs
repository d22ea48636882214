//! `finial.backup.v1`: the whole store as one stream.
//! Trusts the guard that a local administrator asks.
//! Never lets a slow reader hold up the store: the backup is put aside first, in a file without a name.

use std::fs::File;
use std::io::{Read, Seek};
use std::pin::Pin;

use futures::Stream;
use proto::finial::backup::v1 as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::super::{Call, Parts, Refusal};
use crate::store::StoreError;

/// How many bytes one message carries.
const PART: usize = 64 * 1024;

/// The service.
pub(crate) struct Service {
    parts: Parts,
}

impl Service {
    pub(super) fn new(parts: Parts) -> Self {
        Self { parts }
    }
}

type Content = Pin<Box<dyn Stream<Item = Result<wire::BackupPart, Status>> + Send>>;

#[tonic::async_trait]
impl wire::backup_server::Backup for Service {
    type CreateStream = Content;

    async fn create(
        &self,
        request: Request<wire::CreateBackupRequest>,
    ) -> Result<Response<Content>, Status> {
        let call = Call::of(&request)?;
        let spool = |cause: std::io::Error| {
            call.refuse(Refusal::from(StoreError::Spool {
                reason: cause.to_string(),
            }))
        };
        let mut file = tempfile::tempfile().map_err(spool)?;
        let into = file.try_clone().map_err(spool)?;
        self.parts
            .snapshots
            .snapshot(
                Box::new(std::io::BufWriter::new(into)),
                self.parts.clock.now(),
            )
            .await
            .map_err(|error| call.refuse(error))?;
        file.rewind().map_err(spool)?;
        self.parts.metrics.backup(self.parts.clock.now());
        let (parts, receiver) = mpsc::channel(2);
        tokio::task::spawn_blocking(move || send(file, &parts));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn send(mut file: File, parts: &mpsc::Sender<Result<wire::BackupPart, Status>>) {
    let mut next = || -> std::io::Result<Vec<u8>> {
        let mut content = Vec::with_capacity(PART);
        (&mut file).take(PART as u64).read_to_end(&mut content)?;
        Ok(content)
    };
    loop {
        let part = match next() {
            Ok(content) if content.is_empty() => return,
            Ok(content) => Ok(wire::BackupPart { content }),
            Err(cause) => Err(Status::internal(format!(
                "the backup cannot be read back: {cause}"
            ))),
        };
        let last = part.is_err();
        // Whoever asked may have gone away.
        if parts.blocking_send(part).is_err() || last {
            return;
        }
    }
}
