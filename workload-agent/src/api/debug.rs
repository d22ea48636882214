//! Decides what local administrators are told of the agent itself over SPIRE's debug service.
//! Trusts the admin door for who comes in. Never shows a key.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_identity::X509Svid;
use mesh_runtime::clock::Clock;
use proto::spire::api::agent::debug::v1::{
    self as wire,
    debug_server::{Debug, DebugServer},
    get_info_response::Cert,
};
use tokio::{sync::watch, time::Instant};
use tonic::{Request, Response, Status};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{LARGEST_REQUEST, admin::SelfView};
use crate::{tokens::Tokens, vault::Vault};

/// The service.
#[derive(Clone, Debug)]
pub struct DebugApi {
    vault: Arc<Vault>,
    tokens: Arc<Tokens>,
    own: watch::Receiver<SelfView>,
    clock: Clock,
    started: Instant,
}

impl DebugApi {
    /// Counts its uptime from now.
    pub fn new(
        vault: Arc<Vault>,
        tokens: Arc<Tokens>,
        own: watch::Receiver<SelfView>,
        clock: Clock,
    ) -> Self {
        let started = clock.monotonic();
        Self {
            vault,
            tokens,
            own,
            clock,
            started,
        }
    }

    /// As a tonic service.
    pub fn into_service(self) -> DebugServer<Self> {
        DebugServer::new(self).max_decoding_message_size(LARGEST_REQUEST)
    }
}

#[tonic::async_trait]
impl Debug for DebugApi {
    async fn get_info(
        &self,
        _: Request<wire::GetInfoRequest>,
    ) -> Result<Response<wire::GetInfoResponse>, Status> {
        let own = self.own.borrow().clone();
        let view = self.vault.view();
        let synced = match own.link.connected && view.roster().is_some() {
            true => Some(self.clock.now()),
            false => own.link.last_heard,
        };
        let uptime = self.clock.monotonic().duration_since(self.started);
        let x509 = count(view.svids().count());
        #[expect(deprecated, reason = "SPIRE's older tools read the old counter still")]
        Ok(Response::new(wire::GetInfoResponse {
            svid_chain: own.svid().as_ref().map(chain).unwrap_or_default(),
            uptime: i32::try_from(uptime.as_secs()).unwrap_or(i32::MAX),
            svids_count: x509,
            last_sync_success: synced.map(since_1970).unwrap_or_default(),
            cached_x509_svids_count: x509,
            cached_jwt_svids_count: count(self.tokens.len()),
            // SVIDs of `storeSvid` entries are not made here.
            cached_svidstore_x509_svids_count: 0,
        }))
    }
}

/// The own chain, leaf first.
fn chain(svid: &X509Svid) -> Vec<Cert> {
    let shown = svid.chain().iter().enumerate().filter_map(|(place, der)| {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(Cert {
            id: (place == 0).then(|| svid.id().into()),
            expires_at: certificate.validity().not_after.timestamp(),
            subject: certificate.subject().to_string(),
        })
    });
    shown.collect()
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn since_1970(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.as_ref().map(Duration::as_secs).unwrap_or_default();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
