//! The gate over its parts: what is signed is looked at again, remembered and recorded, or nothing leaves.

use std::time::{Duration, UNIX_EPOCH};

use mesh_identity::TrustDomain;
use mesh_runtime::audit::Memory;

use super::*;
use crate::authority::{AuthoritySettings, LeafTemplate};
use crate::registry::tests::{entry, id, node, own};
use crate::store::Stores;

const A: &str = "/spire/agent/join_token/a";

struct Setting {
    issuer: Issuer,
    audit: Memory,
    stores: Stores,
    clock: Clock,
    authority: Arc<Authority>,
    _directory: tempfile::TempDir,
}

async fn setting() -> Setting {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::frozen(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    let stores = Stores::memory(&own());
    stores.nodes.attest(node(A, &[])).await.unwrap();
    let settings = AuthoritySettings {
        lifetime: Duration::from_secs(3600),
        refresh_hint: Duration::from_secs(60),
        ..AuthoritySettings::new(own(), directory.path().join("key"))
    };
    let authority = Authority::open(settings, stores.journal.clone(), clock.now())
        .await
        .unwrap();
    let registry = Registry::open(stores.changes.clone()).await.unwrap();
    let (log, audit) = AuditLog::memory("ca-server", &clock);
    let lives = Lives {
        jwt_svid: Duration::from_secs(300),
        x509_svid: Duration::from_secs(300),
        agent_svid: Duration::from_secs(200),
    };
    let issuer = Issuer::new(
        authority.clone(),
        registry,
        stores.issued.clone(),
        log,
        lives,
        clock.clone(),
        Metrics::new(),
    )
    .unwrap();
    Setting {
        issuer,
        audit,
        stores,
        clock,
        authority,
        _directory: directory,
    }
}

fn csr() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::default()
        .serialize_request(&key)
        .unwrap()
        .der()
        .to_vec()
}

impl Setting {
    async fn ask(&self, entry_id: &str) -> Result<X509Svid, IssueError> {
        self.issuer.registry.refresh().await.unwrap();
        let ask = Ask {
            entry_id: entry_id.parse().unwrap(),
            csr: csr(),
        };
        let agent = node(A, &[]);
        self.issuer
            .issue(&agent, &Attribution::default(), vec![ask])
            .await
            .remove(0)
    }
}

#[tokio::test]
async fn an_entrys_ttl_and_names_are_what_the_certificate_says_and_the_default_where_it_is_silent()
{
    let setting = setting().await;
    let mut short = entry("short", "/short", A, &["unix:uid:1"]);
    short.x509_svid_ttl = Some(Duration::from_secs(60));
    short.dns_names = vec!["web.test".parse().unwrap()];
    setting.stores.entries.create(short).await.unwrap();
    setting
        .stores
        .entries
        .create(entry("plain", "/plain", A, &["unix:uid:1"]))
        .await
        .unwrap();
    let now = setting.clock.now();
    let short = setting.ask("short").await.unwrap();
    assert_eq!(short.not_after(), now + Duration::from_secs(60));
    assert_eq!(
        setting.ask("plain").await.unwrap().not_after(),
        now + Duration::from_secs(300)
    );
}

#[tokio::test]
async fn ca_22_a_ttl_beyond_the_authoritys_life_is_capped() {
    let setting = setting().await;
    let mut long = entry("long", "/long", A, &["unix:uid:1"]);
    long.x509_svid_ttl = Some(Duration::from_secs(100 * 365 * 86_400));
    setting.stores.entries.create(long).await.unwrap();
    let svid = setting.ask("long").await.unwrap();
    assert!(svid.not_after() <= setting.clock.now() + Duration::from_secs(3600));
}

#[tokio::test]
async fn a_serial_is_remembered_before_the_answer_and_never_repeated() {
    let setting = setting().await;
    setting
        .stores
        .entries
        .create(entry("web", "/web", A, &["unix:uid:1"]))
        .await
        .unwrap();
    let mut serials = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let svid = setting.ask("web").await.unwrap();
        assert!(
            setting
                .stores
                .issued
                .get(svid.serial())
                .await
                .unwrap()
                .is_some()
        );
        assert!(serials.insert(svid.serial().to_owned()));
    }
    assert_eq!(setting.audit.of("svid.issue").len(), 50);
}

#[tokio::test]
async fn ca_40_outside_the_authoritys_time_nothing_is_signed() {
    let setting = setting().await;
    setting
        .stores
        .entries
        .create(entry("web", "/web", A, &["unix:uid:1"]))
        .await
        .unwrap();
    for jump in [-90_i64, 40] {
        let days = Duration::from_secs(86_400 * jump.unsigned_abs());
        let now = setting.clock.now();
        setting
            .clock
            .set(if jump < 0 { now - days } else { now + days });
        assert!(matches!(setting.ask("web").await, Err(IssueError::Sign(_))));
        setting.clock.set(now);
    }
}

#[tokio::test]
async fn what_was_signed_for_another_template_does_not_pass_the_second_look() {
    let setting = setting().await;
    let csr = VerifiedCsr::parse(&csr()).unwrap();
    let now = setting.clock.now();
    let template = |path: &str, ttl| LeafTemplate {
        spiffe_id: id(path),
        dns_names: vec![],
        subject: Vec::new(),
        ttl: Duration::from_secs(ttl),
        not_before_backdate: Duration::from_secs(10),
    };
    let signed = setting
        .authority
        .sign_leaf(&template("/web", 60), csr.spki(), now)
        .unwrap();
    let bundles = setting.issuer.bundles().unwrap();
    let look = |template: &LeafTemplate, spki: &[u8]| {
        verify::as_peer_would(&signed, template, spki, &bundles, now)
    };
    assert!(look(&template("/web", 60), csr.spki()).is_ok());
    assert!(matches!(
        look(&template("/pay", 60), csr.spki()),
        Err(NotWhatWeMeant::Differs("SPIFFE ID"))
    ));
    assert!(matches!(
        look(&template("/web", 59), csr.spki()),
        Err(NotWhatWeMeant::Differs(_))
    ));
    assert!(matches!(
        look(&template("/web", 60), &[1]),
        Err(NotWhatWeMeant::Differs("public key"))
    ));
    let empty = BundleSet::new();
    assert!(matches!(
        verify::as_peer_would(&signed, &template("/web", 60), csr.spki(), &empty, now),
        Err(NotWhatWeMeant::Refused(_))
    ));
    let _own: TrustDomain = own();
}
