//! Every request conversion behind one door, for the fuzz targets: bytes → message → values, as a handler does it.
//! Trusts nothing; it never reaches a store. What is accepted has to mean the same after another trip over the wire.

use mesh_identity::{Entry, TrustDomain};
use prost::Message;
use proto::convert::CarriedBundle;
use proto::spire::api::server::agent::v1 as agent_wire;
use proto::spire::api::server::entry::v1 as entry_wire;
use proto::spire::api::server::trustdomain::v1 as domain_wire;
use proto::spire::api::types;

use super::{agent, entry, trustdomain};

/// The conversions, by the number that the first byte of a fuzz input has.
pub(crate) const READERS: &[fn(&[u8], &TrustDomain)] = &[
    |bytes, own| {
        let Ok(wire) = types::Entry::decode(bytes) else {
            return;
        };
        if let Ok(read) = entry::read_new(wire, 1) {
            let again = Entry::try_from(&types::Entry::from(&read));
            assert_eq!(
                again.ok().as_ref(),
                Some(&read),
                "an entry that was read is one"
            );
            read.validate(own).ok();
        }
    },
    |bytes, _| {
        if let Ok(wire) = entry_wire::BatchUpdateEntryRequest::decode(bytes) {
            for change in &wire.entries {
                let Ok(old) = entry::read_new(change.clone(), 1) else {
                    continue;
                };
                if let Ok(new) = entry::updated(&old, change, wire.input_mask.as_ref()) {
                    assert_eq!((new.id, new.created_at), (old.id, old.created_at));
                }
            }
        }
    },
    |bytes, own| {
        if let Ok(wire) = entry_wire::ListEntriesRequest::decode(bytes) {
            entry::filter::list(&wire, own).ok();
        }
    },
    |bytes, own| {
        if let Ok(wire) = entry_wire::CountEntriesRequest::decode(bytes) {
            entry::filter::count(&wire, own).ok();
        }
    },
    |bytes, _| {
        if let Ok(wire) = agent_wire::ListAgentsRequest::decode(bytes) {
            agent::filter::list(&wire).ok();
        }
    },
    |bytes, _| {
        if let Ok(wire) = types::FederationRelationship::decode(bytes) {
            trustdomain::convert::read(&wire).ok();
        }
    },
    |bytes, _| {
        let Ok(wire) = domain_wire::BatchUpdateFederationRelationshipRequest::decode(bytes) else {
            return;
        };
        for change in &wire.federation_relationships {
            if let Ok((old, _)) = trustdomain::convert::read(change) {
                trustdomain::convert::updated(&old, change, wire.input_mask.as_ref()).ok();
            }
        }
    },
    |bytes, _| {
        if let Ok(wire) = types::Bundle::decode(bytes)
            && let Ok(carried) = CarriedBundle::try_from(wire)
        {
            let shown = types::Bundle::from(&carried.bundle);
            assert!(
                CarriedBundle::try_from(shown).is_ok(),
                "a bundle that was read is one"
            );
        }
    },
];

/// Reads bytes as the request that their first byte chooses.
pub(crate) fn request(bytes: &[u8], own: &TrustDomain) {
    if let Some((choice, message)) = bytes.split_first() {
        READERS[usize::from(*choice) % READERS.len()](message, own);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn selectors() -> impl Strategy<Value = Vec<types::Selector>> {
        let text = "[a-z:]{0,6}|\\PC{0,4}";
        proptest::collection::vec(
            (text, text).prop_map(|(r#type, value)| types::Selector { r#type, value }),
            0..3,
        )
    }

    fn id() -> impl Strategy<Value = Option<types::Spiffeid>> {
        let domain = "dev\\.test|other\\.test|\\PC{0,5}";
        proptest::option::of(
            (domain, "(/[a-z.]{0,4}){0,3}|\\PC{0,5}")
                .prop_map(|(trust_domain, path)| types::Spiffeid { trust_domain, path }),
        )
    }

    prop_compose! {
        fn an_entry()(
            ids in (id(), id()),
            selectors in selectors(),
            id in "[a-z0-9.-]{0,8}|\\PC{0,4}",
            ttls in (any::<i32>(), any::<i32>()),
            times in (any::<i64>(), any::<i64>()),
            names in proptest::collection::vec("[a-z.*]{0,8}", 0..3),
            hint in "\\PC{0,8}",
        ) -> types::Entry {
            types::Entry {
                id,
                spiffe_id: ids.0,
                parent_id: ids.1,
                selectors,
                x509_svid_ttl: ttls.0,
                jwt_svid_ttl: ttls.1,
                expires_at: times.0,
                revision_number: times.1,
                federates_with: names.clone(),
                dns_names: names,
                hint,
                ..Default::default()
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_stop_a_reader(bytes: Vec<u8>) {
            let own = "dev.test".parse().unwrap();
            request(&bytes, &own);
            for reader in READERS {
                reader(&bytes, &own);
            }
        }

        #[test]
        fn an_entry_is_refused_or_means_the_same_after_another_trip(entry in an_entry()) {
            let own = "dev.test".parse().unwrap();
            READERS[0](&entry.encode_to_vec(), &own);
            let update = entry_wire::BatchUpdateEntryRequest {
                entries: vec![entry],
                ..Default::default()
            };
            READERS[1](&update.encode_to_vec(), &own);
        }
    }
}
