//! Any bytes as messages of the feed: refused, or the same after another trip over the wire.
//! Trusts nothing; libFuzzer makes the bytes.
//! Never looks at the text of a refusal beyond printing it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_identity::TrustDomain;
use prost::Message as _;
use proto::{
    convert::feed::{Assembly, FromAgent},
    finial::feed::v1,
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(wire) = v1::FollowRequest::decode(bytes)
        && let Ok(message) = FromAgent::try_from(wire)
    {
        let again = v1::FollowRequest::from(message.clone());
        assert_eq!(
            FromAgent::try_from(again).expect("our own message is read"),
            message
        );
    }
    let own: TrustDomain = "dev.test".parse().expect("a trust domain");
    if let Ok(wire) = v1::FeedUpdate::decode(bytes) {
        match Assembly::default().add(wire, &own) {
            Err(refusal) => drop(refusal.to_string()),
            Ok(None) => {}
            Ok(Some(update)) => {
                let mut assembly = Assembly::default();
                let last = update
                    .to_wire()
                    .into_iter()
                    .try_fold(None, |_, part| assembly.add(part, &own));
                assert_eq!(last.expect("our own update is read"), Some(update));
            }
        }
    }
});
