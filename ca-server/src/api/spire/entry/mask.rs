//! Which fields of an entry go out, and which of an update come in.

use mesh_identity::Entry;
use proto::convert::WireError;
use proto::spire::api::types;

/// An entry for the wire with the fields that a mask names; without one, all.
pub(super) fn masked(entry: &Entry, mask: Option<&types::EntryMask>) -> types::Entry {
    let full = types::Entry::from(entry);
    let Some(mask) = mask else { return full };
    types::Entry {
        id: full.id,
        spiffe_id: full.spiffe_id.filter(|_| mask.spiffe_id),
        parent_id: full.parent_id.filter(|_| mask.parent_id),
        selectors: kept(mask.selectors, full.selectors),
        x509_svid_ttl: kept(mask.x509_svid_ttl, full.x509_svid_ttl),
        jwt_svid_ttl: kept(mask.jwt_svid_ttl, full.jwt_svid_ttl),
        federates_with: kept(mask.federates_with, full.federates_with),
        admin: mask.admin && full.admin,
        downstream: mask.downstream && full.downstream,
        expires_at: kept(mask.expires_at, full.expires_at),
        dns_names: kept(mask.dns_names, full.dns_names),
        revision_number: kept(mask.revision_number, full.revision_number),
        store_svid: mask.store_svid && full.store_svid,
        hint: kept(mask.hint, full.hint),
        created_at: kept(mask.created_at, full.created_at),
        additional_attributes: full
            .additional_attributes
            .filter(|_| mask.additional_attributes),
    }
}

fn kept<T: Default>(keep: bool, value: T) -> T {
    if keep { value } else { T::default() }
}

/// The entry as an update leaves it: the fields that the mask names are the update's, the others stay. Id, revision and time
/// of creation are the server's in any case.
pub(in super::super) fn updated(
    old: &Entry,
    new: &types::Entry,
    mask: Option<&types::EntryMask>,
) -> Result<Entry, WireError> {
    let mut wire = types::Entry::from(old);
    match mask {
        None => wire = new.clone(),
        Some(mask) => take(&mut wire, new, mask),
    }
    wire.id = old.id.as_str().to_owned();
    wire.revision_number = 0;
    wire.created_at = 0;
    let mut entry = Entry::try_from(&wire)?;
    entry.revision = old.revision;
    entry.created_at = old.created_at;
    Ok(entry)
}

fn take(wire: &mut types::Entry, new: &types::Entry, mask: &types::EntryMask) {
    macro_rules! take {
        ($($field:ident),*) => { $(if mask.$field { wire.$field = new.$field.clone(); })* };
    }
    take!(
        spiffe_id,
        parent_id,
        selectors,
        x509_svid_ttl,
        jwt_svid_ttl,
        federates_with,
        admin,
        downstream,
        expires_at,
        dns_names,
        store_svid,
        hint,
        additional_attributes
    );
}
