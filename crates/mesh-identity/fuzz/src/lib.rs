//! What each fuzz target asserts: a parser refuses its input, or what it read writes back to what it was.
//! Trusts nothing: the input is arbitrary.
//! Never depends on the fuzzer, so that `cargo test` replays the seeds through the same functions.

use std::time::{Duration, SystemTime};

use mesh_identity::{
    Bundle, BundleSet, DnsName, Entry, EntryId, Selector, SpiffeId, TrustDomain, X509Svid,
    jwt::verify_jwt_svid, verify::verify_x509_svid,
};

/// One target: its name and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them, by the name of their folder in `seeds`.
pub const TARGETS: &[Target] = &[
    ("spiffe_id", spiffe_id),
    ("trust_domain", trust_domain),
    ("selector", selector),
    ("names", names),
    ("svid_leaf", svid_leaf),
    ("chain", chain),
    ("bundle_json", bundle_json),
    ("bundle_map", bundle_map),
    ("bundle_pem", bundle_pem),
    ("bundle_der", bundle_der),
    ("entry_record", entry_record),
    ("jwt", jwt),
];

/// An ID is the bytes it was read from, and the sum of its parts.
pub fn spiffe_id(data: &[u8]) {
    let Ok(id) = SpiffeId::from_bytes(data) else {
        let text = std::str::from_utf8(data);
        assert!(text.is_err() || text.is_ok_and(|text| text.parse::<SpiffeId>().is_err()));
        return;
    };
    assert_eq!(id.as_str().as_bytes(), data);
    assert_eq!(id.to_string().parse::<SpiffeId>().as_ref(), Ok(&id));
    assert_eq!(
        SpiffeId::from_parts(id.trust_domain(), id.path()).as_ref(),
        Ok(&id)
    );
    assert!(data.len() <= 2048 && !id.as_str().ends_with('/') && !id.path().contains("//"));
    assert!(data.is_ascii() && !data.contains(&b'%'));
    assert_eq!(
        id.trust_domain().as_str().parse::<TrustDomain>().as_ref(),
        Ok(id.trust_domain())
    );
}

/// A name is the bytes it was read from, and the trust domain of its own ID.
pub fn trust_domain(data: &[u8]) {
    let Some(domain) = parsed::<TrustDomain>(data) else {
        return;
    };
    assert_eq!(domain.as_str().as_bytes(), data);
    assert_eq!(domain.id().trust_domain(), &domain);
    assert!(domain.id().is_path_less());
}

/// A selector is the bytes it was read from, and the sum of its parts.
pub fn selector(data: &[u8]) {
    let Some(selector) = parsed::<Selector>(data) else {
        return;
    };
    assert_eq!(selector.as_str().as_bytes(), data);
    assert_eq!(
        Selector::new(selector.kind(), selector.value()).as_ref(),
        Ok(&selector)
    );
}

/// Entry IDs and DNS names are the bytes they were read from.
pub fn names(data: &[u8]) {
    if let Some(id) = parsed::<EntryId>(data) {
        assert_eq!(id.as_str().as_bytes(), data);
    }
    if let Some(name) = parsed::<DnsName>(data) {
        assert_eq!(name.as_str().as_bytes(), data);
    }
}

/// A chain that has the shape of an SVID keeps its bytes through both forms.
pub fn svid_leaf(data: &[u8]) {
    let Ok(svid) = X509Svid::from_der_concat(data) else {
        return;
    };
    assert_eq!(svid.to_der_concat(), data);
    assert!(!svid.id().is_path_less());
    assert!(svid.not_before() <= svid.not_after());
    assert_eq!(
        X509Svid::from_pem(svid.to_pem().as_bytes()).as_ref(),
        Ok(&svid)
    );
}

/// The first certificate is the only root; the others are a chain. Whatever is proven is what the leaf says.
pub fn chain(data: &[u8]) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_780_272_000);
    let Ok(domain) = "td".parse::<TrustDomain>() else {
        return;
    };
    let Ok(all) = split(data) else { return };
    let Some((root, rest)) = all.split_first() else {
        return;
    };
    let bundles: BundleSet = Bundle::from_der_concat(domain, root).into_iter().collect();
    let chain: Vec<_> = rest.iter().map(|der| der.as_slice().into()).collect();
    if let Ok(proven) = verify_x509_svid(&chain, &bundles, now) {
        assert_eq!(proven.id.trust_domain().as_str(), "td");
        assert!(proven.not_before <= now && now <= proven.valid_until);
        assert!(proven.valid_until <= proven.not_after);
    }
}

/// A document that was read publishes to one that reads the same.
pub fn bundle_json(data: &[u8]) {
    let Ok(bundle) = Bundle::from_spiffe_json(td(), data) else {
        return;
    };
    assert_eq!(
        Bundle::from_spiffe_json(td(), &bundle.to_spiffe_json()).as_ref(),
        Ok(&bundle)
    );
}

/// The same for a map.
pub fn bundle_map(data: &[u8]) {
    let Ok(set) = BundleSet::from_bundle_map_json(data) else {
        return;
    };
    assert_eq!(
        BundleSet::from_bundle_map_json(&set.to_bundle_map_json()).as_ref(),
        Ok(&set)
    );
}

/// The same for PEM, which never reads as a bundle without roots.
pub fn bundle_pem(data: &[u8]) {
    let Ok(bundle) = Bundle::from_pem(td(), data) else {
        return;
    };
    assert!(!bundle.x509_authorities().is_empty());
    assert_eq!(
        Bundle::from_pem(td(), bundle.to_pem().as_bytes()).as_ref(),
        Ok(&bundle)
    );
}

/// The same for concatenated DER.
pub fn bundle_der(data: &[u8]) {
    let Ok(bundle) = Bundle::from_der_concat(td(), data) else {
        return;
    };
    assert_eq!(
        Bundle::from_der_concat(td(), &bundle.to_der_concat()).as_ref(),
        Ok(&bundle)
    );
}

/// A stored entry that was read is stored as what it is; validating it never panics.
pub fn entry_record(data: &[u8]) {
    let Ok(entry) = postcard::from_bytes::<Entry>(data) else {
        return;
    };
    let _verdict = entry.validate(&td());
    if let Ok(bytes) = postcard::to_stdvec(&entry) {
        assert_eq!(postcard::from_bytes::<Entry>(&bytes).as_ref(), Ok(&entry));
    }
}

/// A token that is accepted says who, for whom and until when, and means the same when it is read again.
pub fn jwt(data: &[u8]) {
    let Ok(token) = std::str::from_utf8(data) else {
        return;
    };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_780_272_000);
    let document = include_bytes!("../seeds/bundle_json/jwt.json");
    let bundle = Bundle::from_spiffe_json(td(), document).expect("a bundle of JWT authorities");
    let bundles = BundleSet::from_iter([bundle]);
    let verdict = verify_jwt_svid(token, &bundles, &["bank"], now);
    assert_eq!(verdict, verify_jwt_svid(token, &bundles, &["bank"], now));
    if let Ok(proven) = verdict {
        assert_eq!(proven.id.trust_domain().as_str(), "td");
        assert!(!proven.id.is_path_less() && proven.audience.iter().any(|a| a == "bank"));
        assert!(proven.expires_at + mesh_identity::jwt::LEEWAY > now);
        assert!(verify_jwt_svid(token, &bundles, &["other"], now).is_err());
        assert!(verify_jwt_svid(&format!("{token}A"), &bundles, &["bank"], now).is_err());
    }
}

fn td() -> TrustDomain {
    "td".parse().expect("a trust domain")
}

fn parsed<T: std::str::FromStr>(data: &[u8]) -> Option<T> {
    std::str::from_utf8(data).ok()?.parse().ok()
}

/// Cuts at lengths of two bytes, so that the fuzzer can change one certificate without moving the others.
fn split(data: &[u8]) -> Result<Vec<Vec<u8>>, ()> {
    let (mut rest, mut parts) = (data, Vec::new());
    while let [high, low, tail @ ..] = rest {
        let len = usize::from(*high) << 8 | usize::from(*low);
        if len > tail.len() || parts.len() == 10 {
            return Err(());
        }
        let (part, tail) = tail.split_at(len);
        parts.push(part.to_vec());
        rest = tail;
    }
    Ok(parts)
}
