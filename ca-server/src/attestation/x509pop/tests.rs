//! An outside authority with each kind of key: what proves a node, and every way in which nothing is proven.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use mesh_runtime::clock::Clock;
use mesh_runtime::errors::Coded as _;
use mesh_tls::{Possession, WebIdentity};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use serde_json::{Value, json};

use super::*;
use crate::fleet::Fleet;
use crate::store::Stores;

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// 2027-01-15.
const NOW: u64 = 1_800_000_000;

fn authority(name: &str, above: Option<&Issuer>) -> Issuer {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2028, 1, 1);
    let key = KeyPair::generate().unwrap();
    match above {
        Some(above) => CertifiedIssuer::signed_by(params, key, above).unwrap(),
        None => CertifiedIssuer::self_signed(params, key).unwrap(),
    }
}

fn leaf_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "node-7");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x0a, 0x1b, 0x2c]));
    params.not_before = date_time_ymd(2026, 6, 1);
    params.not_after = date_time_ymd(2027, 6, 1);
    params
}

struct Device {
    chain: Vec<Vec<u8>>,
    key: String,
}

fn device(change: impl FnOnce(&mut CertificateParams), key: KeyPair, by: &[&Issuer]) -> Device {
    let mut params = leaf_params();
    change(&mut params);
    let leaf = params.signed_by(&key, by[0]).unwrap();
    let mut chain = vec![leaf.der().to_vec()];
    // The last is a root, which nobody needs to show.
    chain.extend(by[..by.len() - 1].iter().map(|ca| ca.der().to_vec()));
    Device {
        chain,
        key: key.serialize_pem(),
    }
}

impl Device {
    fn evidence(&self) -> Vec<u8> {
        let shown: Vec<_> = self.chain.iter().map(|der| STANDARD.encode(der)).collect();
        serde_json::to_vec(&json!({ "certificates": shown })).unwrap()
    }

    fn answer(&self, challenge: &Challenged, nonce: [u8; NONCE]) -> Value {
        let message = [&asked(challenge)[..], &nonce].concat();
        let pem = self.chain[0].as_slice();
        let pem = format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            STANDARD.encode(pem)
        );
        let identity = WebIdentity::from_pem(pem.as_bytes(), self.key.as_bytes()).unwrap();
        let text = |bytes: &[u8]| STANDARD.encode(bytes);
        match identity.prove(&message).unwrap() {
            Possession::Rsa(signature) => json!({ "rsa_signature":
                { "nonce": text(&nonce), "signature": text(&signature) }, "ecdsa_signature": null }),
            Possession::Ecdsa { r, s } => json!({ "rsa_signature": null, "ecdsa_signature":
                { "nonce": text(&nonce), "r": text(&r), "s": text(&s) } }),
        }
    }
}

/// The random number in a challenge, whichever kind it is of.
fn asked(challenge: &Challenged) -> Vec<u8> {
    let document: Value = serde_json::from_slice(&challenge.document()).unwrap();
    let part = ["rsa_signature", "ecdsa_signature"]
        .iter()
        .find_map(|kind| document[*kind]["nonce"].as_str())
        .unwrap();
    STANDARD.decode(part).unwrap()
}

fn trusting(roots: &[&Issuer]) -> X509Pop {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("roots.pem");
    let pem: String = roots.iter().map(|root| root.pem()).collect();
    std::fs::write(&path, pem).unwrap();
    X509Pop::open(&bundles(&path), around()).unwrap()
}

fn bundles(path: &Path) -> X509PopConfig {
    X509PopConfig {
        ca_bundles: vec![path.to_owned()],
    }
}

fn around() -> Surroundings {
    let own = "dev.test".parse().unwrap();
    let stores = Stores::memory(&own);
    Surroundings {
        trust_domain: own,
        tokens: Arc::clone(&stores.tokens),
        nodes: Arc::clone(&stores.nodes),
        fleet: Fleet::new(),
        clock: Clock::manual(SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)),
    }
}

fn p256() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
}

fn rsa() -> KeyPair {
    let output = Command::new("openssl")
        .args([
            "genpkey",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
        ])
        .output()
        .unwrap();
    KeyPair::from_pem(&String::from_utf8(output.stdout).unwrap()).unwrap()
}

fn prove(challenge: Challenged, answer: &Value) -> Result<AttestedNode, X509PopRefused> {
    challenge.prove(answer.to_string().as_bytes())
}

fn code(result: Result<impl Sized, X509PopRefused>) -> &'static str {
    result.err().expect("a refusal").code()
}

#[test]
fn a_node_proves_itself_with_an_rsa_or_an_ecdsa_key_and_gets_spires_id_and_selectors() {
    let (root, middle) = {
        let root = authority("root", None);
        let middle = authority("middle", Some(&root));
        (root, middle)
    };
    let attestor = trusting(&[&root]);
    for key in [p256(), rsa()] {
        let names = |params: &mut CertificateParams| {
            let uri = |text: &str| SanType::URI(text.try_into().unwrap());
            params.subject_alt_names = vec![
                uri("x509pop://dev.test/rack/12/b"),
                uri("x509pop://dev.test/lonely"),
                uri("x509pop://dev.test/odd/%20"),
                uri("x509pop://else.test/rack/13"),
                uri("https://dev.test/a/b"),
            ];
        };
        let device = device(names, key, &[&middle, &root]);
        let challenge = attestor.challenge(&device.evidence()).unwrap();
        let answer = device.answer(&challenge, [7; NONCE]);
        let node = prove(challenge, &answer).unwrap();
        let name = fingerprint(&device.chain[0]);
        assert_eq!(name.len(), 40);
        assert_eq!(
            node.id.as_str(),
            format!("spiffe://dev.test/spire/agent/x509pop/{name}")
        );
        assert!(node.can_reattest);
        let selectors: Vec<_> = node.selectors.iter().map(Selector::as_str).collect();
        let mut expected = vec![
            format!("x509pop:ca:fingerprint:{}", fingerprint(root.der())),
            format!("x509pop:ca:fingerprint:{}", fingerprint(middle.der())),
            "x509pop:san:rack:12/b".into(),
            "x509pop:serialnumber:0a1b2c".into(),
            "x509pop:subject:cn:node-7".into(),
        ];
        expected.sort();
        assert_eq!(selectors, expected);
    }
}

#[test]
fn each_root_that_leads_to_the_leaf_becomes_a_selector() {
    // The same authority, certified by two roots.
    let (one, two) = (authority("one", None), authority("two", None));
    let by_one = authority("middle", Some(&one));
    let again = {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "middle");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2028, 1, 1);
        params.signed_by(by_one.key(), &two).unwrap()
    };
    let mut device = device(|_| {}, p256(), &[&by_one, &one]);
    device.chain.push(again.der().to_vec());
    let challenge = trusting(&[&one, &two])
        .challenge(&device.evidence())
        .unwrap();
    let authorities = challenge.node.selectors.iter();
    let authorities = authorities.filter(|one| one.value().starts_with("ca:"));
    assert_eq!(authorities.count(), 4);
}

#[test]
fn a_chain_that_does_not_end_in_a_valid_root_proves_nothing() {
    let root = authority("root", None);
    let middle = authority("middle", Some(&root));
    let refused = |attestor: &X509Pop, device: &Device| {
        assert_eq!(code(attestor.challenge(&device.evidence())), "FNL1072");
    };
    let good = device(|_| {}, p256(), &[&middle, &root]);
    // Another root of the same name, a missing link, a leaf whose time is over, or has not come.
    refused(&trusting(&[&authority("root", None)]), &good);
    let mut without = device(|_| {}, p256(), &[&middle, &root]);
    without.chain.truncate(1);
    refused(&trusting(&[&root]), &without);
    let over = device(
        |p| p.not_after = date_time_ymd(2026, 7, 1),
        p256(),
        &[&root],
    );
    refused(&trusting(&[&root]), &over);
    let early = device(
        |p| p.not_before = date_time_ymd(2027, 3, 1),
        p256(),
        &[&root],
    );
    refused(&trusting(&[&root]), &early);
    // A leaf that may itself certify.
    let ca = |p: &mut CertificateParams| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    refused(&trusting(&[&root]), &device(ca, p256(), &[&root]));
    // A root whose own time is over.
    let attestor = trusting(&[&root]);
    attestor
        .around
        .clock
        .advance(Duration::from_secs(2 * 365 * 86_400));
    let late = device(
        |p| p.not_after = date_time_ymd(2040, 1, 1),
        p256(),
        &[&root],
    );
    refused(&attestor, &late);
}

#[test]
fn evidence_that_is_not_what_spire_sends_is_malformed() {
    let root = authority("root", None);
    let attestor = trusting(&[&root]);
    let leaf = device(|_| {}, p256(), &[&root]);
    let shown = |list: Vec<String>| json!({ "certificates": list }).to_string();
    let der = STANDARD.encode(&leaf.chain[0]);
    let trailing = STANDARD.encode([&leaf.chain[0][..], &[0]].concat());
    for evidence in [
        String::new(),
        "{}".into(),
        r#"{"certificates":null}"#.into(),
        shown(vec![]),
        shown(vec!["%".into()]),
        shown(vec![STANDARD.encode("no certificate")]),
        shown(vec![trailing]),
        shown(vec![der.clone(); 6]),
    ] {
        let refused = attestor.challenge(evidence.as_bytes()).err().unwrap();
        assert_eq!(refused.code(), "FNL1071", "{evidence}");
        assert!(refused.is_malformed());
    }
}

#[test]
fn a_leaf_must_be_for_signatures_and_its_key_of_a_kind_that_can_be_judged() {
    let root = authority("root", None);
    let attestor = trusting(&[&root]);
    for usages in [vec![], vec![KeyUsagePurpose::KeyEncipherment]] {
        let device = device(|p| p.key_usages = usages, p256(), &[&root]);
        assert_eq!(code(attestor.challenge(&device.evidence())), "FNL1073");
    }
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let device = device(|_| {}, ed25519, &[&root]);
    assert_eq!(code(attestor.challenge(&device.evidence())), "FNL1073");
}

#[test]
fn a_name_that_cannot_be_a_selector_is_refused() {
    let root = authority("root", None);
    let name = |p: &mut CertificateParams| {
        p.distinguished_name = rcgen::DistinguishedName::new();
        p.distinguished_name.push(DnType::CommonName, "a\0b");
    };
    let device = device(name, p256(), &[&root]);
    let refused = trusting(&[&root]).challenge(&device.evidence());
    assert_eq!(code(refused), "FNL1074");
}

#[test]
fn only_the_key_of_the_leaf_answers_and_only_this_challenge() {
    let root = authority("root", None);
    let attestor = trusting(&[&root]);
    for (ours, theirs) in [(p256(), p256()), (rsa(), rsa())] {
        let ours = device(|_| {}, ours, &[&root]);
        let thief = Device {
            chain: device(
                |_| {},
                KeyPair::from_pem(&theirs.serialize_pem()).unwrap(),
                &[&root],
            )
            .chain,
            key: theirs.serialize_pem(),
        };
        let challenge = || attestor.challenge(&ours.evidence()).unwrap();
        let asked = challenge();
        let answer = thief.answer(&asked, [1; NONCE]);
        assert_eq!(code(prove(asked, &answer)), "FNL1076");
        // An answer to an earlier challenge.
        let former = ours.answer(&challenge(), [1; NONCE]);
        assert_eq!(code(prove(challenge(), &former)), "FNL1076");
        // The node's own number changed afterwards, a bit of the signature, or all of it.
        for change in [0, 1, 2] {
            let asked = challenge();
            let mut answer = ours.answer(&asked, [1; NONCE]);
            let kind = match answer["rsa_signature"].is_null() {
                true => "ecdsa_signature",
                false => "rsa_signature",
            };
            let part = if kind == "rsa_signature" {
                "signature"
            } else {
                "s"
            };
            match change {
                0 => answer[kind]["nonce"] = STANDARD.encode([2; NONCE]).into(),
                1 => {
                    let text = answer[kind][part].as_str().unwrap();
                    let mut bytes = STANDARD.decode(text).unwrap();
                    bytes[9] ^= 1;
                    answer[kind][part] = STANDARD.encode(bytes).into();
                }
                _ => answer[kind][part] = "".into(),
            }
            assert_eq!(code(prove(asked, &answer)), "FNL1076", "{kind} {change}");
        }
    }
}

#[test]
fn an_answer_in_another_form_than_the_challenge_is_malformed() {
    let root = authority("root", None);
    let attestor = trusting(&[&root]);
    let ours = device(|_| {}, p256(), &[&root]);
    let good = |challenge: &Challenged| ours.answer(challenge, [1; NONCE]);
    let changes: [fn(&mut Value); 6] = [
        |answer| *answer = json!({}),
        |answer| *answer = json!([]),
        |answer| answer["rsa_signature"] = json!({ "nonce": "", "signature": "" }),
        |answer| answer["ecdsa_signature"]["nonce"] = STANDARD.encode([1; 31]).into(),
        |answer| answer["ecdsa_signature"]["r"] = "%".into(),
        |answer| answer["ecdsa_signature"]["s"] = Value::Null,
    ];
    for (number, change) in changes.iter().enumerate() {
        let challenge = attestor.challenge(&ours.evidence()).unwrap();
        let mut answer = good(&challenge);
        change(&mut answer);
        let refused = prove(challenge, &answer).err().unwrap();
        assert_eq!(refused.code(), "FNL1075", "{number}");
        assert!(refused.is_malformed());
    }
    // Numbers larger than the curve's are no signature, and no work.
    let challenge = attestor.challenge(&ours.evidence()).unwrap();
    let mut answer = good(&challenge);
    answer["ecdsa_signature"]["r"] = STANDARD.encode([255; 4000]).into();
    assert_eq!(code(prove(challenge, &answer)), "FNL1076");
}

#[test]
fn a_key_on_p_384_is_proven_with_sha_256_as_spire_signs_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = authority("root", None);
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let device = device(|_| {}, key, &[&root]);
    let challenge = trusting(&[&root]).challenge(&device.evidence()).unwrap();
    let nonce = [3; NONCE];
    std::fs::write(dir.path().join("key"), &device.key).unwrap();
    let message = [&asked(&challenge)[..], &nonce].concat();
    std::fs::write(dir.path().join("message"), message).unwrap();
    let output = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign", "key", "message"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let (_, numbers) = x509_parser::der_parser::parse_der(&output.stdout).unwrap();
    let numbers = numbers.as_sequence().unwrap();
    let number = |at: usize| STANDARD.encode(numbers[at].content.as_slice().unwrap());
    let answer = json!({ "ecdsa_signature":
        { "nonce": STANDARD.encode(nonce), "r": number(0), "s": number(1) } });
    assert!(prove(challenge, &answer).is_ok());
}

#[test]
fn roots_that_cannot_be_read_stop_the_start_and_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("roots.pem");
    let open = || X509Pop::open(&bundles(&path), around()).err().unwrap();
    let check = |error: RootsError| {
        assert_eq!((error.code(), error.path()), ("FNL1070", path.as_path()));
        assert!(error.to_string().contains("roots.pem"));
    };
    check(open());
    for text in [
        "",
        "nothing",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        std::fs::write(&path, text).unwrap();
        check(open());
    }
}

#[test]
fn serial_numbers_are_written_as_spire_writes_them() {
    for (raw, text) in [
        (&[0x00, 0x8a][..], "8a"),
        (&[0x01, 0x02], "0102"),
        (&[0x00], "00"),
        (&[0x00, 0x00, 0x05], "05"),
    ] {
        assert_eq!(serial(raw), text);
    }
}

/// Evidence that proves a node, and the attestor that it proves it to.
fn good() -> &'static (X509Pop, Device) {
    static GOOD: std::sync::LazyLock<(X509Pop, Device)> = std::sync::LazyLock::new(|| {
        let root = authority("root", None);
        let between = authority("between", Some(&root));
        let device = device(|_| {}, p256(), &[&between, &root]);
        (trusting(&[&root]), device)
    });
    &GOOD
}

proptest::proptest! {
    #[test]
    fn no_bytes_stop_the_reader_of_evidence(bytes: Vec<u8>, at: proptest::sample::Index, by in 1_u8..) {
        let own = "dev.test".parse().unwrap();
        read_for_fuzzing(&bytes, &own);
        let mut leaf = good().1.chain[0].clone();
        let at = at.index(leaf.len());
        leaf[at] ^= by;
        read_for_fuzzing(&leaf, &own);
    }

    #[test]
    fn evidence_with_any_byte_changed_is_no_evidence(at: proptest::sample::Index, by in 1_u8..) {
        let (attestor, device) = good();
        let mut evidence = device.evidence();
        proptest::prop_assert!(attestor.challenge(&evidence).is_ok());
        let at = at.index(evidence.len());
        evidence[at] ^= by;
        proptest::prop_assert!(attestor.challenge(&evidence).is_err());
    }
}
