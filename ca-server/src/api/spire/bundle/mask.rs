//! Which fields of a bundle go out, and which of an update come in.

use proto::spire::api::types;

/// A bundle with the fields that a mask names; without one, all.
pub(super) fn masked(mut bundle: types::Bundle, mask: Option<&types::BundleMask>) -> types::Bundle {
    if let Some(mask) = mask {
        let nothing = types::Bundle::default();
        take(&mut bundle, &nothing, &inverse(mask));
    }
    bundle
}

/// A bundle as an update leaves it: the fields that the mask names are the update's, the others stay.
pub(super) fn updated(
    old: types::Bundle,
    new: &types::Bundle,
    mask: Option<&types::BundleMask>,
) -> types::Bundle {
    let mut bundle = old;
    take(&mut bundle, new, &mask.copied().unwrap_or(ALL));
    bundle
}

const ALL: types::BundleMask = types::BundleMask {
    x509_authorities: true,
    jwt_authorities: true,
    refresh_hint: true,
    sequence_number: true,
    wit_authorities: true,
};

fn inverse(mask: &types::BundleMask) -> types::BundleMask {
    types::BundleMask {
        x509_authorities: !mask.x509_authorities,
        jwt_authorities: !mask.jwt_authorities,
        refresh_hint: !mask.refresh_hint,
        sequence_number: !mask.sequence_number,
        wit_authorities: !mask.wit_authorities,
    }
}

fn take(bundle: &mut types::Bundle, new: &types::Bundle, mask: &types::BundleMask) {
    macro_rules! take {
        ($($field:ident),*) => { $(if mask.$field { bundle.$field = new.$field.clone(); })* };
    }
    take!(
        x509_authorities,
        jwt_authorities,
        refresh_hint,
        sequence_number,
        wit_authorities
    );
}
