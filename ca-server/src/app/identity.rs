//! The SVID that this server itself shows, made and renewed by its own issuer; the key is new each time and stays in memory.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use mesh_identity::verify::verify_x509_svid;
use mesh_identity::{SpiffeId, TrustDomain};
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::ErrorChain;
use mesh_runtime::readiness::ReadyPart;
use mesh_runtime::tasks::Stop;
use mesh_tls::{IdentityCell, PrivateKey, TlsIdentity};

use crate::authority::Authority;
use crate::issuance::{Issuer, VerifiedCsr};

/// How long to wait after an attempt that failed.
const TRY_AGAIN: Duration = Duration::from_secs(2);

pub(super) fn id(own: &TrustDomain) -> anyhow::Result<SpiffeId> {
    SpiffeId::from_parts(own, "/spire/server").context("this trust domain has no room for a server")
}

pub(super) async fn first(
    issuer: &Issuer,
    id: &SpiffeId,
    clock: &Clock,
) -> anyhow::Result<IdentityCell> {
    Ok(IdentityCell::new(make(issuer, id, clock).await?))
}

async fn make(issuer: &Issuer, id: &SpiffeId, clock: &Clock) -> anyhow::Result<TlsIdentity> {
    let key = rcgen::KeyPair::generate()?;
    let request = rcgen::CertificateParams::default().serialize_request(&key)?;
    let csr = VerifiedCsr::parse(request.der())?;
    let svid = issuer.issue_server(id, &csr).await?;
    let key = PrivateKey::from_pkcs8(key.serialize_der())?;
    Ok(TlsIdentity::new(svid, key, issuer.bundles()?, clock.now())?)
}

/// Renews at half life, and at once when its authority is tainted or gone; takes over each new state of the bundle at once.
pub(super) async fn keep(
    cell: IdentityCell,
    issuer: Arc<Issuer>,
    authority: Arc<Authority>,
    id: SpiffeId,
    clock: Clock,
    ready: ReadyPart,
    stop: Stop,
) -> anyhow::Result<()> {
    let mut bundle = authority.bundle();
    let mut due = half_life(&cell);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = clock.sleep_until(due) => {
                match make(&issuer, &id, &clock).await {
                    Ok(identity) => {
                        cell.publish(identity);
                        ready.ready_again();
                        due = half_life(&cell);
                    }
                    Err(error) => {
                        tracing::error!(error = %ErrorChain(error.as_ref()), "the server's own SVID could not be renewed");
                        if clock.now() > cell.current().not_after() {
                            ready.not_ready("the server's own SVID has expired");
                        }
                        due = clock.now() + TRY_AGAIN;
                    }
                }
            }
            changed = bundle.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                bundle.mark_unchanged();
                let bundles = issuer.bundles()?;
                let now = clock.now();
                let proven = verify_x509_svid(cell.current().svid().chain(), &bundles, now);
                cell.replace_bundles(bundles);
                // Agents that have heard of it refuse us from then on.
                if proven.map_or(true, |proven| proven.authority_tainted) {
                    due = now;
                }
            }
        }
    }
}

fn half_life(cell: &IdentityCell) -> SystemTime {
    let current = cell.current();
    let (start, end) = (current.svid().not_before(), current.not_after());
    start + end.duration_since(start).unwrap_or_default() / 2
}
