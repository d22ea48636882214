//! What can be seen from outside: every error an operator may meet has its page, and the fuzz seeds replay.

#[path = "../fuzz/src/lib.rs"]
#[expect(
    unreachable_pub,
    reason = "the same file is a library in the fuzz workspace"
)]
mod targets;

use std::{fs, path::Path};

use mesh_identity::{
    Bundle, BundleError, BundleSet, DnsName, EntryId, JwtAuthority, JwtAuthorityError, PemError,
    ProfileError, Selector, SpiffeId, TrustDomain, X509Svid,
    jwt::{JwtError, verify_jwt_svid},
    test_util::{Made, Spec, now},
    verify::{VerifyError, verify_x509_svid},
};

#[test]
fn every_error_has_a_page_that_is_titled_with_its_code() {
    let td: TrustDomain = "td".parse().unwrap();
    let id: SpiffeId = "spiffe://td/a".parse().unwrap();
    let profile = [
        ProfileError::NoUri,
        ProfileError::SigningLeaf(""),
        ProfileError::NoKeyUsage,
        ProfileError::ExtendedKeyUsage(""),
        ProfileError::UnknownCritical(String::new()),
        ProfileError::Serial,
        ProfileError::NotAuthority,
        ProfileError::AuthorityWithPath(id.clone()),
        ProfileError::UriConstraints,
    ];
    let verify = [
        VerifyError::Empty,
        verify_x509_svid(&[vec![].into()], &BundleSet::new(), now()).unwrap_err(),
        VerifyError::NotYetValid {
            id: id.clone(),
            not_before: now(),
        },
        VerifyError::Expired {
            id,
            not_after: now(),
        },
        VerifyError::NoBundle(td.clone()),
        VerifyError::NoRoot(td.clone()),
        VerifyError::UnknownAuthority,
        verify_x509_svid(
            &Made::root("td").leaf("spiffe://td/a").chain,
            &Made::root("td").bundles("td"),
            now(),
        )
        .unwrap_err(),
        VerifyError::TooDeep(9),
        VerifyError::PathLength,
    ];
    let mut codes = vec![
        "".parse::<SpiffeId>().unwrap_err().code(),
        "".parse::<TrustDomain>().unwrap_err().code(),
        "".parse::<Selector>().unwrap_err().code(),
        mesh_identity::EntryError::NoSelector.code(),
        PemError::Empty.code(),
        X509Svid::parse(Vec::new()).unwrap_err().code(),
        "".parse::<DnsName>().unwrap_err().code(),
        "".parse::<EntryId>().unwrap_err().code(),
        BundleError::TooMany.code(),
        Bundle::from_spiffe_json(td.clone(), b"")
            .unwrap_err()
            .code(),
        Bundle::from_der_concat(td, b"\x30\x00").unwrap_err().code(),
        BundleError::Key { position: 0 }.code(),
    ];
    let jwt = [
        JwtError::NotCompact,
        JwtError::Algorithm,
        JwtError::NoAudience,
        JwtError::Expired,
        JwtError::Audience,
        JwtError::NoBundle("td".parse().unwrap()),
        JwtError::Signature,
    ];
    codes.extend(jwt.iter().map(JwtError::code));
    codes.push(JwtAuthorityError::Key.code());
    codes.extend(profile.iter().map(ProfileError::code));
    codes.extend(verify.iter().map(VerifyError::code));
    let count = codes.len();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), count, "two of the errors above share a code");
    for code in codes {
        let page =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../docs/errors/{code}.md"));
        let text = fs::read_to_string(&page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        assert!(text.starts_with(&format!("# {code}: ")), "{code}");
        assert!(text.contains("**What to do.**"), "{code}");
    }
}

#[test]
fn x01_the_fuzz_seeds_replay() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (name, target) in targets::TARGETS {
        let files: Vec<_> = fs::read_dir(seeds.join(name))
            .unwrap_or_else(|e| panic!("seeds of {name}: {e}"))
            .map(|file| file.unwrap().path())
            .collect();
        assert!(!files.is_empty(), "{name} has no seeds");
        for file in files {
            target(&fs::read(file).unwrap());
        }
    }
}

#[test]
fn the_seeds_hold_inputs_that_are_accepted() {
    let seeds = |path: &str| {
        fs::read(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("fuzz/seeds")
                .join(path),
        )
        .unwrap()
    };
    let td: TrustDomain = "td".parse().unwrap();
    X509Svid::from_der_concat(&seeds("svid_leaf/chain.der")).unwrap();
    Bundle::from_der_concat(td.clone(), &seeds("bundle_der/roots.der")).unwrap();
    Bundle::from_pem(td.clone(), &seeds("bundle_pem/roots.pem")).unwrap();
    Bundle::from_spiffe_json(td, &seeds("bundle_json/roots.json")).unwrap();
    BundleSet::from_bundle_map_json(&seeds("bundle_map/map.json")).unwrap();
}

/// Certificates made by OpenSSL 3.0 in November 2026, valid for 24 years; how each was made stands in its name.
fn made_by_openssl(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/openssl")
        .join(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn rsa_chains_made_by_openssl_are_verified_and_published() {
    let td: TrustDomain = "td".parse().unwrap();
    let bundle = Bundle::from_pem(td.clone(), &made_by_openssl("rsa-root.pem")).unwrap();
    let json = bundle.to_spiffe_json();
    let document: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(
        (&document["keys"][0]["kty"], &document["keys"][0]["e"]),
        (&"RSA".into(), &"AQAB".into())
    );
    assert_eq!(Bundle::from_spiffe_json(td, &json).unwrap(), bundle);
    let bundles = BundleSet::from_iter([bundle]);
    let year = std::time::Duration::from_secs(366 * 86_400);
    for name in ["rsa-leaf.pem", "rsa-pss-leaf.pem"] {
        let svid = X509Svid::from_pem(&made_by_openssl(name)).unwrap();
        let proven = verify_x509_svid(svid.chain(), &bundles, now() + year).unwrap();
        assert_eq!(proven.id.as_str(), "spiffe://td/pay", "{name}");
        assert_eq!(proven.serial, svid.serial());
    }
    let weak = X509Svid::from_pem(&made_by_openssl("rsa-sha1-leaf.pem")).unwrap();
    let verdict = verify_x509_svid(weak.chain(), &bundles, now() + year);
    assert_eq!(verdict, Err(VerifyError::SignatureAlgorithm));
}

#[test]
fn roots_with_keys_that_we_cannot_verify_with_are_refused_by_name() {
    for name in ["rsa-1024-root.pem", "p521-root.pem", "explicit-root.pem"] {
        let refused = Bundle::from_pem("td".parse().unwrap(), &made_by_openssl(name));
        assert_eq!(refused, Err(BundleError::Key { position: 0 }), "{name}");
    }
}

/// Keys and tokens made by OpenSSL 3.0 in November 2026, the tokens valid until 2049.
fn jwt_by_openssl() -> serde_json::Value {
    serde_json::from_slice(&made_by_openssl("jwt.json")).expect("it is JSON")
}

#[test]
fn jwt_4_tokens_made_by_openssl_are_verified_by_every_algorithm_that_we_accept() {
    let made = jwt_by_openssl();
    let document = made["bundle"].to_string();
    let bundle = Bundle::from_spiffe_json("td".parse().unwrap(), document.as_bytes()).unwrap();
    let bundles = BundleSet::from_iter([bundle]);
    for (alg, token) in made["tokens"].as_object().unwrap() {
        let verdict = verify_jwt_svid(token.as_str().unwrap(), &bundles, &["bank"], now());
        if alg == "ES512" {
            assert_eq!(verdict, Err(JwtError::Algorithm));
        } else {
            assert_eq!(verdict.unwrap().id.as_str(), "spiffe://td/pay", "{alg}");
        }
        // The same signature under the name of another algorithm.
        for other in [
            "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384",
        ] {
            let header = |name: &str, kid: &str| {
                let text = format!(r#"{{"alg":"{name}","kid":"{kid}","typ":"JWT"}}"#);
                base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text)
            };
            let (_, rest) = token.as_str().unwrap().split_once('.').unwrap();
            for kid in ["rsa", "p256", "p384", "p521"] {
                let forged = format!("{}.{rest}", header(other, kid));
                if forged == *token {
                    continue;
                }
                let verdict = verify_jwt_svid(&forged, &bundles, &["bank"], now());
                assert!(
                    matches!(verdict, Err(JwtError::KeyKind | JwtError::Signature)),
                    "{alg} as {other} by {kid}: {verdict:?}"
                );
            }
        }
    }
}

#[test]
fn jwt_authorities_of_openssl_are_published_as_they_came_and_weak_ones_refused() {
    let made = jwt_by_openssl();
    let td: TrustDomain = "td".parse().unwrap();
    let bundle =
        Bundle::from_spiffe_json(td.clone(), made["bundle"].to_string().as_bytes()).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&bundle.to_spiffe_json()).unwrap();
    assert_eq!(document, made["bundle"]);
    for (kid, spki) in made["spki"].as_object().unwrap() {
        let spki = base64::Engine::decode(
            &base64::engine::general_purpose::STANDARD,
            spki.as_str().unwrap(),
        )
        .unwrap();
        let authority = JwtAuthority::from_spki(kid, &spki).unwrap();
        assert_eq!(bundle.jwt_authority(kid), Some(&authority), "{kid}");
        assert_eq!(authority.to_spki(), spki, "{kid}");
    }
    for (name, key) in made["unsupported"].as_object().unwrap() {
        let document = serde_json::json!({ "keys": [key] }).to_string();
        let refused = Bundle::from_spiffe_json(td.clone(), document.as_bytes());
        let source = JwtAuthorityError::Key;
        assert_eq!(
            refused,
            Err(BundleError::JwtKey {
                position: 0,
                source
            }),
            "{name}"
        );
    }
}

/// Writes the parts of the seeds that cannot be written by hand: `WRITE_SEEDS=1 cargo test -p mesh-identity seeds`.
#[test]
fn seeds_of_certificates_can_be_written_again() {
    if option_env!("WRITE_SEEDS").is_none() {
        return;
    }
    let root = Made::root("td");
    let other = Made::root_with(Spec {
        uris: Vec::new(),
        ..Spec::authority("td", "second root")
    });
    let leaf = root.intermediate("td", "ca 1").leaf("spiffe://td/pay");
    let mut framed = Vec::new();
    for der in [&root.der, &leaf.chain[0], &leaf.chain[1]] {
        framed.extend(u16::try_from(der.len()).unwrap().to_be_bytes());
        framed.extend_from_slice(der);
    }
    let bundle = Bundle::new("td".parse().unwrap(), [root.authority(), other.authority()])
        .unwrap()
        .with_sequence(7);
    let map = BundleSet::from_iter([bundle.clone(), Made::root("other").bundle("other")]);
    let made = jwt_by_openssl();
    let token = |alg: &str| made["tokens"][alg].as_str().unwrap().as_bytes().to_vec();
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (path, bytes) in [
        ("jwt/es256", token("ES256")),
        ("jwt/rs512", token("RS512")),
        ("jwt/es512", token("ES512")),
        (
            "bundle_json/jwt.json",
            made["bundle"].to_string().into_bytes(),
        ),
        ("svid_leaf/chain.der", leaf.svid().to_der_concat()),
        ("svid_leaf/leaf.der", leaf.der.to_vec()),
        ("chain/right", framed),
        ("bundle_der/roots.der", bundle.to_der_concat()),
        ("bundle_pem/roots.pem", bundle.to_pem().into_bytes()),
        ("bundle_json/roots.json", bundle.to_spiffe_json()),
        ("bundle_map/map.json", map.to_bundle_map_json()),
        ("entry_record/entry", postcard::to_stdvec(&entry()).unwrap()),
    ] {
        let path = seeds.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn entry() -> mesh_identity::Entry {
    mesh_identity::Entry {
        id: "web-1".parse().expect("it is well formed"),
        spiffe_id: "spiffe://td/web".parse().expect("it is well formed"),
        parent_id: "spiffe://td/spire/agent/join_token/x"
            .parse()
            .expect("it is well formed"),
        selectors: ["unix:uid:1000".parse().expect("it is well formed")].into(),
        x509_svid_ttl: Some(std::time::Duration::from_secs(20)),
        jwt_svid_ttl: None,
        federates_with: ["other".parse().expect("it is well formed")].into(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: vec!["web.example".parse().expect("it is well formed")],
        revision: 1,
        store_svid: false,
        hint: "main".into(),
        created_at: now(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}
