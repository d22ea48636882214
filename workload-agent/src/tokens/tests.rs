//! Tests of `tokens.rs`.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, UNIX_EPOCH},
};

use futures::FutureExt;
use mesh_identity::test_util::{
    jwt::{JwtSigner, claims},
    now,
};
use serde_json::json;

use super::*;

/// A CA that counts, and fails or lies when told to.
struct Maker {
    signer: JwtSigner,
    clock: Clock,
    made: AtomicUsize,
    id: Mutex<String>,
    away: Mutex<bool>,
}

impl MakeToken for Maker {
    fn make<'a>(
        &'a self,
        _: &'a EntryId,
        audience: &'a [String],
    ) -> BoxFuture<'a, Result<Secret<String>, TokenError>> {
        async move {
            if *self.away.lock().unwrap() {
                return Err(TokenError::NotMade("away".into()));
            }
            let iat = self
                .clock
                .now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs();
            let mut said = claims(&self.id.lock().unwrap(), "");
            said["aud"] = json!(audience);
            said["iat"] = json!(iat);
            said["exp"] = json!(iat + 300);
            said["jti"] = json!(self.made.fetch_add(1, Ordering::Relaxed).to_string());
            Ok(Secret::new(self.signer.sign(&self.signer.header(), &said)))
        }
        .boxed()
    }
}

struct Rig {
    maker: Arc<Maker>,
    tokens: Tokens,
    clock: Clock,
    bundles: BundleSet,
}

fn rig() -> Rig {
    let clock = Clock::frozen(now());
    let signer = JwtSigner::new("k1");
    let bundles = signer.bundles("td");
    let maker = Arc::new(Maker {
        signer,
        clock: clock.clone(),
        made: AtomicUsize::new(0),
        id: Mutex::new("spiffe://td/pay".into()),
        away: Mutex::new(false),
    });
    let tokens = Tokens::default();
    tokens.connect(maker.clone());
    Rig {
        maker,
        tokens,
        clock,
        bundles,
    }
}

fn entry() -> Entry {
    Entry {
        id: "pay".parse().unwrap(),
        spiffe_id: "spiffe://td/pay".parse().unwrap(),
        parent_id: "spiffe://td/spire/agent/x".parse().unwrap(),
        selectors: BTreeSet::from(["unix:uid:1".parse().unwrap()]),
        x509_svid_ttl: None,
        jwt_svid_ttl: None,
        federates_with: BTreeSet::new(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: Vec::new(),
        revision: 1,
        store_svid: false,
        hint: String::new(),
        created_at: now(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

impl Rig {
    async fn get(&self, entry: &Entry, audience: &[&str]) -> Result<Arc<Token>, TokenError> {
        let audience: Vec<String> = audience.iter().map(|&value| value.into()).collect();
        self.tokens
            .get(entry, &audience, &self.bundles, &self.clock)
            .await
    }

    async fn name(&self, entry: &Entry, audience: &[&str]) -> String {
        self.get(entry, audience).await.unwrap().name().to_owned()
    }
}

#[tokio::test]
async fn a_token_is_kept_until_half_of_its_life_and_renewed_then() {
    let rig = rig();
    assert_eq!(rig.name(&entry(), &["bank"]).await, "0");
    rig.clock.advance(Duration::from_secs(130));
    assert_eq!(rig.name(&entry(), &["bank"]).await, "0");
    rig.clock.advance(Duration::from_secs(40));
    assert_eq!(rig.name(&entry(), &["bank"]).await, "1");
}

#[tokio::test]
async fn t_25_a_token_is_for_one_entry_state_and_one_set_of_audiences() {
    let rig = rig();
    assert_eq!(rig.name(&entry(), &["bank", "shop"]).await, "0");
    assert_eq!(rig.name(&entry(), &["shop", "", "bank", "bank"]).await, "0");
    assert_eq!(rig.name(&entry(), &["bank"]).await, "1");
    assert_eq!(rig.name(&entry(), &["shop"]).await, "2");
    let changed = Entry {
        revision: 2,
        ..entry()
    };
    assert_eq!(rig.name(&changed, &["bank"]).await, "3");
    let other = Entry {
        id: "other".parse().unwrap(),
        ..entry()
    };
    assert_eq!(rig.name(&other, &["bank"]).await, "4");
}

#[tokio::test]
async fn when_the_ca_is_away_a_kept_token_goes_on_until_its_end_and_not_a_second_longer() {
    let rig = rig();
    rig.get(&entry(), &["bank"]).await.unwrap();
    *rig.maker.away.lock().unwrap() = true;
    assert!(rig.get(&entry(), &["shop"]).await.is_err());
    rig.clock.advance(Duration::from_secs(299));
    assert_eq!(rig.name(&entry(), &["bank"]).await, "0");
    rig.clock.advance(Duration::from_secs(1));
    let gone = rig.get(&entry(), &["bank"]).await;
    assert!(matches!(gone, Err(TokenError::NotMade(_))));
}

#[tokio::test]
async fn ca_52_a_token_by_a_tainted_authority_is_replaced_and_one_by_a_revoked_never_served() {
    let mut rig = rig();
    rig.get(&entry(), &["bank"]).await.unwrap();
    let bundle = rig.maker.signer.bundle("td");
    let tainted = rig.maker.signer.authority().with_tainted(true);
    let tainted = bundle.clone().with_jwt_authorities([tainted]).unwrap();
    rig.bundles = [tainted].into_iter().collect();
    assert_eq!(rig.name(&entry(), &["bank"]).await, "1", "asked for anew");
    *rig.maker.away.lock().unwrap() = true;
    assert_eq!(rig.name(&entry(), &["bank"]).await, "1", "still valid");
    rig.bundles = [bundle.with_jwt_authorities([]).unwrap()]
        .into_iter()
        .collect();
    assert!(rig.get(&entry(), &["bank"]).await.is_err());
}

#[tokio::test]
async fn ag_22_a_token_of_somebody_else_or_by_a_stranger_is_not_handed_on() {
    let mut rig = rig();
    *rig.maker.id.lock().unwrap() = "spiffe://td/admin".into();
    let refused = rig.get(&entry(), &["bank"]).await;
    assert!(matches!(refused, Err(TokenError::OtherId { .. })));
    *rig.maker.id.lock().unwrap() = "spiffe://td/pay".into();
    rig.bundles = JwtSigner::new("k1").bundles("td");
    let refused = rig.get(&entry(), &["bank"]).await;
    assert!(matches!(
        refused,
        Err(TokenError::Unverified(JwtError::Signature))
    ));
    let alone = Tokens::default();
    let (entry, audience) = (entry(), ["bank".to_owned()]);
    let refused = alone.get(&entry, &audience, &rig.bundles, &rig.clock).await;
    assert!(matches!(refused, Err(TokenError::NotConnected)));
}

#[tokio::test]
async fn no_more_tokens_are_kept_than_the_limit_and_the_one_not_used_for_longest_goes() {
    let rig = rig();
    for n in 0..MOST_KEPT {
        rig.get(&entry(), &[&format!("a{n}")]).await.unwrap();
    }
    assert_eq!(rig.name(&entry(), &["a0"]).await, "0", "used again");
    rig.get(&entry(), &["one more"]).await.unwrap();
    assert_eq!(rig.tokens.kept.lock().unwrap().len(), MOST_KEPT);
    assert_eq!(rig.name(&entry(), &["a0"]).await, "0");
    assert_ne!(rig.name(&entry(), &["a1"]).await, "1");
}
