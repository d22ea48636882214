//! One federated bundle of a batch: created, changed, set or removed, with its record.

use mesh_identity::TrustDomain;
use mesh_runtime::audit::Object;
use mesh_runtime::errors::untrusted;
use proto::convert::{CarriedBundle, trust_domain_from_wire};
use proto::spire::api::types;
use tonic::Code;

use super::super::super::{Call, Parts, Refusal};
use super::super::item::{begin, finish};
use super::mask::updated;
use crate::store::{DeletedBundle, Replaced, StoredBundle, Users};

/// What is to be done with a bundle.
#[derive(Clone, Copy)]
pub(super) enum Write {
    /// It must not be there.
    Create,
    /// It must be there; the fields that the mask names change.
    Update(Option<types::BundleMask>),
    /// Either.
    Set,
}

impl Write {
    fn action(self) -> &'static str {
        match self {
            Self::Create => "bundle.create",
            Self::Update(_) => "bundle.update",
            Self::Set => "bundle.set",
        }
    }

    /// SPIRE's word in its refusals.
    fn verb(self) -> &'static str {
        match self {
            Self::Create => "creating",
            Self::Update(_) => "updating",
            Self::Set => "setting",
        }
    }
}

/// Writes one bundle, with its record.
pub(super) async fn write(
    parts: &Parts,
    call: &Call,
    wire: types::Bundle,
    how: Write,
) -> Result<types::Bundle, Refusal> {
    let mut record = begin(parts, call, how.action());
    record.object(Object::new("bundle").name(untrusted(&wire.trust_domain)));
    let outcome = store(parts, wire, how).await;
    finish(record, outcome.as_ref().err()).await?;
    outcome
}

async fn store(parts: &Parts, wire: types::Bundle, how: Write) -> Result<types::Bundle, Refusal> {
    let domain = foreign(parts, &wire.trust_domain, || {
        format!(
            "{} a federated bundle for the server's own trust domain is not allowed",
            how.verb()
        )
    })?;
    // Read whole even where a mask takes only a part of it.
    let new = read(wire.clone())?;
    let stored = match how {
        Write::Set => parts.bundles.put(new).await?,
        Write::Create => match parts.bundles.replace(new, None).await? {
            Replaced::Done(stored) => stored,
            Replaced::Other(_) => return Err(already_exists()),
        },
        Write::Update(mask) => {
            let mut old = parts.bundles.get(&domain).await?;
            loop {
                let present = old.ok_or_else(not_found)?;
                let new = read(updated(shown(&present)?, &wire, mask.as_ref()))?;
                match parts.bundles.replace(new, Some(present.revision)).await? {
                    Replaced::Done(stored) => break stored,
                    // Whoever was faster has made progress, so this ends.
                    Replaced::Other(now) => old = now,
                }
            }
        }
    };
    shown(&stored)
}

/// Removes one bundle, with its record, and those of the entries that go or change with it.
pub(super) async fn delete(
    parts: &Parts,
    call: &Call,
    name: &str,
    users: Users,
) -> Result<(), Refusal> {
    let mut record = begin(parts, call, "bundle.delete");
    record.object(Object::new("bundle").name(untrusted(name)));
    let outcome = remove(parts, call, name, users).await;
    finish(record, outcome.as_ref().err()).await?;
    outcome
}

async fn remove(parts: &Parts, call: &Call, name: &str, users: Users) -> Result<(), Refusal> {
    let domain = foreign(parts, name, || {
        "removing the bundle for the server trust domain is not allowed".into()
    })?;
    let with_it = match parts.bundles.delete(&domain, users).await? {
        DeletedBundle::Done { users, .. } => users,
        DeletedBundle::NotFound => return Err(not_found()),
        DeletedBundle::InUse(count) => {
            return Err(Refusal::new(
                "FNL1264",
                Code::FailedPrecondition,
                format!(
                    "failed to delete federated bundle: cannot delete bundle; federated with {count} registration entries"
                ),
            ));
        }
    };
    let action = match users {
        Users::Delete => "entry.delete",
        Users::Dissociate | Users::Restrict => "entry.update",
    };
    for entry in with_it {
        let mut record = begin(parts, call, action);
        record.object(
            Object::new("entry")
                .id(entry.id.as_str())
                .name(entry.spiffe_id.as_str()),
        );
        finish(record, None).await?;
    }
    Ok(())
}

/// The name of another trust domain than ours.
pub(super) fn foreign(
    parts: &Parts,
    name: &str,
    ours: impl Fn() -> String,
) -> Result<TrustDomain, Refusal> {
    let domain = trust_domain_from_wire("trust_domain", name)
        .map_err(|error| Refusal::from(error).within("trust domain argument is not valid"))?;
    match domain == parts.trust_domain {
        true => Err(Refusal::new("FNL1265", Code::InvalidArgument, ours())),
        false => Ok(domain),
    }
}

fn read(wire: types::Bundle) -> Result<StoredBundle, Refusal> {
    let carried = CarriedBundle::try_from(wire)
        .map_err(|error| Refusal::from(error).within("failed to convert bundle"))?;
    Ok(StoredBundle::from(&carried.bundle))
}

/// A stored bundle for the wire.
pub(in super::super) fn shown(stored: &StoredBundle) -> Result<types::Bundle, Refusal> {
    let bundle = stored
        .to_bundle()
        .map_err(crate::issuance::IssueError::from)?;
    Ok(types::Bundle::from(&bundle))
}

pub(super) fn not_found() -> Refusal {
    Refusal::new("FNL1266", Code::NotFound, "bundle not found")
}

fn already_exists() -> Refusal {
    Refusal::new("FNL1267", Code::AlreadyExists, "bundle already exists")
}
