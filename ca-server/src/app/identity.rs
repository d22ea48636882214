//! The SVID that this server itself shows, made and renewed by its own issuer; the key is new each time and stays in memory.
//! With it goes whom the door of the agents believes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use mesh_identity::verify::verify_x509_svid;
use mesh_identity::{BundleSet, SpiffeId, TrustDomain};
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::ErrorChain;
use mesh_runtime::readiness::ReadyPart;
use mesh_runtime::tasks::Stop;
use mesh_tls::{IdentityCell, PrivateKey, TlsIdentity};
use tokio::sync::watch;

use crate::authority::Authority;
use crate::issuance::{IssueError, Issuer, VerifiedCsr};
use crate::store::{Bundles, Changes, StoredBundle};

/// How long to wait after an attempt that failed.
const TRY_AGAIN: Duration = Duration::from_secs(2);

pub(super) fn id(own: &TrustDomain) -> anyhow::Result<SpiffeId> {
    SpiffeId::from_parts(own, "/spire/server").context("this trust domain has no room for a server")
}

/// Whom the door of the agents believes: members of our trust domain, and of those where the configuration names administrators.
pub(super) struct Trust {
    issuer: Arc<Issuer>,
    bundles: Arc<dyn Bundles>,
    changes: Arc<dyn Changes>,
    others: BTreeSet<TrustDomain>,
}

impl Trust {
    /// Trust domains of others count by the bundles that we have of them.
    pub(super) fn new(
        issuer: Arc<Issuer>,
        bundles: Arc<dyn Bundles>,
        changes: Arc<dyn Changes>,
        admins: &[SpiffeId],
        own: &TrustDomain,
    ) -> Self {
        let others = admins.iter().map(SpiffeId::trust_domain);
        Self {
            issuer,
            bundles,
            changes,
            others: others.filter(|domain| *domain != own).cloned().collect(),
        }
    }

    /// What we have of the others. One that cannot be had is left out: nobody of it comes in.
    async fn of_others(&self) -> Vec<Arc<StoredBundle>> {
        let mut found = Vec::new();
        for domain in &self.others {
            found.extend(self.bundles.get(domain).await.ok().flatten());
        }
        found
    }

    fn with(&self, others: &[Arc<StoredBundle>]) -> Result<BundleSet, IssueError> {
        let mut all = self.issuer.bundles()?;
        for bundle in others.iter().filter_map(|stored| stored.to_bundle().ok()) {
            all.insert(bundle);
        }
        Ok(all)
    }

    /// Each change of the store, if one of them could be of a bundle that counts.
    async fn changed(&self, newest: &mut watch::Receiver<u64>) {
        if self.others.is_empty() || newest.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

pub(super) async fn first(
    trust: &Trust,
    id: &SpiffeId,
    clock: &Clock,
) -> anyhow::Result<IdentityCell> {
    let others = trust.of_others().await;
    Ok(IdentityCell::new(make(trust, &others, id, clock).await?))
}

async fn make(
    trust: &Trust,
    others: &[Arc<StoredBundle>],
    id: &SpiffeId,
    clock: &Clock,
) -> anyhow::Result<TlsIdentity> {
    let key = rcgen::KeyPair::generate()?;
    let request = rcgen::CertificateParams::default().serialize_request(&key)?;
    let csr = VerifiedCsr::parse(request.der())?;
    let svid = trust.issuer.issue_server(id, &csr).await?;
    let key = PrivateKey::from_pkcs8(key.serialize_der())?;
    Ok(TlsIdentity::new(
        svid,
        key,
        trust.with(others)?,
        clock.now(),
    )?)
}

/// Renews at half life, and at once when its authority is tainted or gone; takes over each new state of the bundles at once.
pub(super) async fn keep(
    cell: IdentityCell,
    trust: Trust,
    authority: Arc<Authority>,
    id: SpiffeId,
    clock: Clock,
    ready: ReadyPart,
    stop: Stop,
) -> anyhow::Result<()> {
    let mut bundle = authority.bundle();
    let mut newest = trust.changes.newest();
    let mut others = trust.of_others().await;
    cell.replace_bundles(trust.with(&others)?);
    let mut due = half_life(&cell);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = clock.sleep_until(due) => {
                match make(&trust, &others, &id, &clock).await {
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
                let bundles = trust.with(&others)?;
                let now = clock.now();
                let proven = verify_x509_svid(cell.current().svid().chain(), &bundles, now);
                cell.replace_bundles(bundles);
                // Agents that have heard of it refuse us from then on.
                if proven.map_or(true, |proven| proven.authority_tainted) {
                    due = now;
                }
            }
            () = trust.changed(&mut newest) => {
                let now = trust.of_others().await;
                if now != others {
                    others = now;
                    cell.replace_bundles(trust.with(&others)?);
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
