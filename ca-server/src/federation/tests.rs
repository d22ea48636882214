//! What is kept of an answer, what is told of it, and that one endpoint holds up no other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::BoxFuture;
use mesh_identity::test_util::Made;
use mesh_runtime::audit::Memory;
use mesh_runtime::tasks::Tasks;

use super::*;
use crate::store::Stores;

mod network;

/// Endpoints that answer what they are told to; `None` hangs.
#[derive(Default)]
struct Answers {
    documents: Mutex<BTreeMap<String, Option<Vec<u8>>>>,
    asked: AtomicUsize,
}

impl Answers {
    fn set(&self, url: &str, document: Option<Vec<u8>>) {
        self.documents
            .lock()
            .unwrap()
            .insert(url.to_owned(), document);
    }
}

impl Fetch for Answers {
    fn fetch<'a>(
        &'a self,
        url: &'a EndpointUrl,
        _: &'a Endpoint,
    ) -> BoxFuture<'a, Result<Vec<u8>, FetchError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let document = self.documents.lock().unwrap().get(url.as_str()).cloned();
        async move {
            match document {
                None => Err(FetchError::TimedOut),
                Some(Some(document)) => Ok(document),
                Some(None) => std::future::pending().await,
            }
        }
        .boxed()
    }
}

struct Setting {
    federation: Arc<Federation>,
    answers: Arc<Answers>,
    stores: Stores,
    audit: Memory,
    clock: Clock,
}

fn own() -> TrustDomain {
    "dev.test".parse().unwrap()
}

/// A federation that asks endpoints in this way, with its stores and records.
fn federation(fetch: Arc<dyn Fetch>, clock: &Clock) -> (Arc<Federation>, Stores, Memory) {
    let stores = Stores::memory(&own());
    let (log, audit) = AuditLog::memory("ca-server", clock);
    let federation = Federation::new(Around {
        own: own(),
        relationships: stores.relationships.clone(),
        bundles: stores.bundles.clone(),
        fetch,
        audit: log,
        metrics: Metrics::new(),
        clock: clock.clone(),
    });
    (Arc::new(federation), stores, audit)
}

fn setting() -> Setting {
    let clock = Clock::manual(UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    let answers = Arc::new(Answers::default());
    let (federation, stores, audit) = federation(answers.clone(), &clock);
    Setting {
        federation,
        answers,
        stores,
        audit,
        clock,
    }
}

fn url(domain: &str) -> String {
    format!("https://{domain}/")
}

impl Setting {
    async fn relate(&self, domain: &str) -> TrustDomain {
        let relationship = Relationship {
            trust_domain: domain.parse().unwrap(),
            bundle_endpoint_url: url(domain),
            profile: EndpointProfile::HttpsWeb,
            revision: 0,
        };
        let created = self.federation.create(relationship, None).await.unwrap();
        created.unwrap().trust_domain.clone()
    }

    async fn stored(&self, domain: &TrustDomain) -> Option<Arc<StoredBundle>> {
        self.stores.bundles.get(domain).await.unwrap()
    }
}

fn document(made: &Made, domain: &str, sequence: u64) -> Option<Vec<u8>> {
    Some(made.bundle(domain).with_sequence(sequence).to_spiffe_json())
}

#[tokio::test]
async fn g_17_fe_06_fe_07_an_answer_that_goes_back_or_contradicts_is_refused_and_on_record() {
    let setting = setting();
    let domain = setting.relate("other.test").await;
    let (one, other) = (Made::root("other.test"), Made::root("other.test"));
    let refresh = async |answer: Option<Vec<u8>>| {
        setting.answers.set(&url("other.test"), answer);
        setting.federation.refresh(&domain).await
    };
    let first = refresh(document(&one, "other.test", 7)).await.unwrap();
    assert_eq!(first, Some(Refreshed::Updated));
    let again = refresh(document(&one, "other.test", 7)).await.unwrap();
    assert_eq!(again, Some(Refreshed::Unchanged));
    let kept = setting.stored(&domain).await;
    let older = refresh(document(&other, "other.test", 6))
        .await
        .unwrap_err();
    assert_eq!(older.code(), "FNL1277");
    let contradicting = refresh(document(&other, "other.test", 7))
        .await
        .unwrap_err();
    assert_eq!(contradicting.code(), "FNL1278");
    assert_eq!(
        setting.stored(&domain).await,
        kept,
        "the last good one stays"
    );
    let codes: Vec<_> = setting
        .audit
        .of("bundle.refresh")
        .iter()
        .map(|record| (record["outcome"].clone(), record["code"].clone()))
        .collect();
    let codes: Vec<_> = codes
        .iter()
        .map(|(outcome, code)| (outcome.as_str().unwrap(), code.as_str()))
        .collect();
    assert_eq!(
        codes,
        [
            ("success", None),
            ("denied", Some("FNL1277")),
            ("denied", Some("FNL1278"))
        ]
    );
    let next = refresh(document(&other, "other.test", 8)).await.unwrap();
    assert_eq!(next, Some(Refreshed::Updated));
}

#[tokio::test]
async fn tdb_9_fe_05_an_empty_bundle_is_taken_and_leaves_nothing_to_trust() {
    let setting = setting();
    let domain = setting.relate("other.test").await;
    setting.answers.set(
        &url("other.test"),
        document(&Made::root("other.test"), "other.test", 1),
    );
    setting.federation.refresh(&domain).await.unwrap();
    let empty = br#"{"keys": [], "spiffe_sequence": 2}"#.to_vec();
    setting.answers.set(&url("other.test"), Some(empty));
    setting.federation.refresh(&domain).await.unwrap();
    let stored = setting.stored(&domain).await.unwrap();
    assert!(stored.x509_authorities.is_empty());
    let missing = br#"{"spiffe_sequence": 3}"#.to_vec();
    setting.answers.set(&url("other.test"), Some(missing));
    assert!(setting.federation.refresh(&domain).await.is_err(), "TDB-7");
    assert_eq!(setting.stored(&domain).await.unwrap(), stored);
}

#[tokio::test]
async fn fe_12_the_bundle_of_another_trust_domain_is_refused_by_its_roots() {
    let setting = setting();
    let domain = setting.relate("other.test").await;
    let third = Made::root("third.test");
    setting
        .answers
        .set(&url("other.test"), document(&third, "third.test", 1));
    let refused = setting.federation.refresh(&domain).await.unwrap_err();
    assert!(matches!(refused, RefreshError::NotABundle(_)));
    assert!(setting.stored(&domain).await.is_none());
}

#[tokio::test]
async fn fed_31_without_a_bundle_of_its_trust_domain_an_endpoint_is_not_even_asked() {
    let setting = setting();
    let domain: TrustDomain = "other.test".parse().unwrap();
    let relationship = Relationship {
        trust_domain: domain.clone(),
        bundle_endpoint_url: url("other.test"),
        profile: EndpointProfile::HttpsSpiffe {
            endpoint_id: "spiffe://third.test/endpoint".parse().unwrap(),
        },
        revision: 0,
    };
    setting.federation.create(relationship, None).await.unwrap();
    let refused = setting.federation.refresh(&domain).await.unwrap_err();
    assert_eq!(refused.code(), "FNL1276");
    assert_eq!(setting.answers.asked.load(Ordering::Relaxed), 0);
    // FED-28: the bundle of the endpoint's own trust domain may be known otherwise.
    let third = Made::root("third.test").bundle("third.test");
    setting
        .stores
        .bundles
        .put(StoredBundle::from(&third))
        .await
        .unwrap();
    setting.answers.set(
        &url("other.test"),
        document(&Made::root("other.test"), "other.test", 1),
    );
    let refreshed = setting.federation.refresh(&domain).await.unwrap();
    assert_eq!(refreshed, Some(Refreshed::Updated));
}

#[tokio::test]
async fn a_trust_domain_without_a_relationship_is_not_refreshed() {
    let setting = setting();
    let unknown = "other.test".parse().unwrap();
    assert_eq!(setting.federation.refresh(&unknown).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn f_24_one_endpoint_that_hangs_holds_up_no_other_and_each_is_asked_when_it_is_due() {
    let setting = setting();
    for number in 0..60 {
        let domain = format!("t{number}.test");
        setting.relate(&domain).await;
        let answer = match number {
            0 => None,
            _ => document(&Made::root(&domain), &domain, 1),
        };
        setting.answers.set(&url(&domain), answer);
    }
    let hanging: TrustDomain = "t0.test".parse().unwrap();
    let tasks = Tasks::new("test");
    let federation = setting.federation.clone();
    tasks.spawn("federation", |stop| run(federation, stop));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(setting.stores.bundles.list().await.unwrap().len(), 59);
    assert!(setting.federation.health(&hanging).is_none());
    // No hint: 75 s while all is well.
    let asked = setting.answers.asked.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(65)).await;
    assert_eq!(setting.answers.asked.load(Ordering::Relaxed), asked);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(setting.answers.asked.load(Ordering::Relaxed), asked + 59);
    tasks.stop();
    tasks.join().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn fed_33_health_tells_the_last_good_fetch_and_what_fails_since() {
    let setting = setting();
    let domain = setting.relate("other.test").await;
    setting.answers.set(
        &url("other.test"),
        document(&Made::root("other.test"), "other.test", 1),
    );
    setting.federation.refresh(&domain).await.unwrap();
    let good = setting.federation.health(&domain).unwrap();
    assert_eq!(
        (good.good_at, &good.failing),
        (Some(setting.clock.now()), &None)
    );
    setting.clock.advance(Duration::from_secs(3600));
    setting.answers.documents.lock().unwrap().clear();
    setting.federation.refresh(&domain).await.unwrap_err();
    let failing = setting.federation.health(&domain).unwrap();
    assert_eq!(failing.good_at, good.good_at);
    assert!(failing.failing.unwrap().contains("in time"));
    let pause = failing.due_at.duration_since(setting.clock.now()).unwrap();
    assert_eq!(
        pause,
        Duration::from_secs(300),
        "the whole interval, no hammering"
    );
}
