//! Decides whether a projected service-account token proves a node: TokenReview, then the pod and the node as they are now.
//! Trusts the API server of the configured cluster over TLS; the numbers N1 to N16 are those of the checks in the specification.
//! Never sends a token to another cluster, never logs one, never falls back to a weaker check.

mod claims;
mod error;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, PostParams};
use mesh_identity::{Selector, SpiffeId};
use mesh_runtime::telemetry::Secret;

use self::claims::Claims;
use super::{AttestedNode, Surroundings, seconds};
use crate::config::K8sPsatConfig;
use crate::issuance::VerifiedCsr;
use crate::kubernetes::client;
use crate::store::{JtiUse, KubernetesFacts, SpentJti};

pub(super) use self::claims::{Evidence, read_for_fuzzing};
pub use self::error::K8sRefused;
pub use crate::kubernetes::ClusterError;

/// How long a used `jti` is remembered beyond the token's end: clocks differ.
const SKEW: Duration = Duration::from_secs(60);

/// An API server that does not answer must not gather an unbounded number of waiting nodes here.
const AT_THE_SAME_TIME: usize = 32;

/// Where Kubernetes puts the facts of a bound token.
const EXTRA: &str = "authentication.kubernetes.io/";

/// One cluster whose nodes may attest.
pub struct Cluster {
    settings: K8sPsatConfig,
    client: kube::Client,
    around: Surroundings,
    /// Attestations that ask the cluster at the same time; more wait their turn.
    turns: tokio::sync::Semaphore,
}

impl Cluster {
    /// Reads how to reach the cluster; it is not asked anything yet.
    pub async fn open(
        settings: &K8sPsatConfig,
        around: Surroundings,
    ) -> Result<Self, ClusterError> {
        let mut config = client::config(settings).await?;
        let limit = settings.timeout.get();
        config.read_timeout = Some(limit);
        config.write_timeout = Some(limit);
        let client = client::client(settings, config)?;
        Ok(Self::with_client(settings.clone(), client, around))
    }

    /// The same with a client that is already there.
    pub fn with_client(
        settings: K8sPsatConfig,
        client: kube::Client,
        around: Surroundings,
    ) -> Self {
        Self {
            settings,
            client,
            around,
            turns: tokio::sync::Semaphore::new(AT_THE_SAME_TIME),
        }
    }

    /// Judges a token. N1 (rate) and N2 (channel) are the door's; N4 has made the `VerifiedCsr`.
    pub(super) async fn attest(
        &self,
        evidence: Evidence,
        csr: &VerifiedCsr,
    ) -> Result<AttestedNode, K8sRefused> {
        let now = self.around.clock.now();
        let claims = self.pre_parse(&evidence, now)?; // N3
        let _turn = tokio::time::timeout(self.settings.timeout.get(), self.turns.acquire())
            .await
            .map_err(|_| K8sRefused::Busy)?;
        let status = match self.review(evidence.into_token()).await {
            Ok(status) => status, // N6
            Err(refused) => return Err(self.explain(refused, &claims).await),
        };
        self.check_user(&status, &claims)?; // N7, N8, N13
        let pod = self.pod(&claims).await?; // N9, N10, N14
        let node = self.node(&claims).await?; // N11
        let id = self.agent_id(&claims)?;
        self.check_former(&id, &claims).await?; // N12, N14
        self.spend(&id, &claims, csr).await?; // N5, N15
        Ok(AttestedNode {
            selectors: self.selectors(&claims, &pod, &node)?,
            id,
            kind: "k8s_psat",
            can_reattest: true,
            kubernetes: Some(KubernetesFacts {
                cluster: self.settings.cluster.clone(),
                namespace: claims.namespace,
                service_account: claims.service_account,
                pod_name: claims.pod_name,
                pod_uid: claims.pod_uid,
                node_name: claims.node_name,
                node_uid: claims.node_uid,
            }),
            alias: None,
            evidence_id: claims.jti, // N16
        })
    }

    /// N3: what the token says, unverified: refused here, it costs no call and reaches no other cluster.
    fn pre_parse(&self, evidence: &Evidence, now: SystemTime) -> Result<Claims, K8sRefused> {
        let claims = Claims::parse(evidence.token())?;
        if let Some(issuer) = &self.settings.issuer
            && claims.issuer != *issuer
        {
            return Err(K8sRefused::OtherIssuer);
        }
        if !self.is_ours(&claims.audiences) {
            return Err(K8sRefused::OtherAudience);
        }
        if claims.expires_at <= seconds(now) {
            return Err(K8sRefused::TokenExpired);
        }
        Ok(claims)
    }

    fn is_ours(&self, audiences: &[String]) -> bool {
        audiences
            .iter()
            .any(|one| self.settings.audiences.contains(one))
    }

    /// N6: there are three ways to fail, and a reply without audiences is the fourth.
    async fn review(&self, token: Secret<String>) -> Result<TokenReviewStatus, K8sRefused> {
        let ask = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(self.settings.audiences.clone()),
                token: Some(token.expose().clone()),
            },
            ..TokenReview::default()
        };
        drop(token);
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let mut answer = self
            .within(api.create(&PostParams::default(), &ask))
            .await
            .map_err(K8sRefused::ReviewUnavailable)?;
        // The answer repeats the token.
        answer.spec = TokenReviewSpec::default();
        let status = answer.status.ok_or(K8sRefused::NoVerdict)?;
        if status.error.as_deref().is_some_and(|text| !text.is_empty()) {
            return Err(K8sRefused::ReviewError);
        }
        if status.authenticated != Some(true) {
            return Err(K8sRefused::NotAuthenticated);
        }
        if !self.is_ours(status.audiences.as_deref().unwrap_or_default()) {
            return Err(K8sRefused::AudienceNotConfirmed);
        }
        Ok(status)
    }

    /// The API server says no in the same way to a forged token and to one of a pod that is gone. Which it was is asked
    /// for the record only; the claims are not verified, and nothing is decided by the answer.
    async fn explain(&self, refused: K8sRefused, claims: &Claims) -> K8sRefused {
        if !matches!(
            refused,
            K8sRefused::ReviewError | K8sRefused::NotAuthenticated
        ) {
            return refused;
        }
        match self.get_pod(&claims.namespace, &claims.pod_name).await {
            Ok(pod)
                if pod.as_ref().and_then(|pod| pod.metadata.uid.as_deref())
                    != Some(claims.pod_uid.as_str()) =>
            {
                K8sRefused::NotAuthenticatedPodGone
            }
            _ => refused,
        }
    }

    /// N7 and N8: who the API server says it is, and that its words are those of the token.
    fn check_user(&self, status: &TokenReviewStatus, claims: &Claims) -> Result<(), K8sRefused> {
        let user = status.user.as_ref().ok_or(K8sRefused::NotAServiceAccount)?;
        let name = user.username.as_deref().unwrap_or_default();
        let account = name
            .strip_prefix("system:serviceaccount:")
            .filter(|rest| rest.split(':').count() == 2 && !rest.split(':').any(str::is_empty))
            .ok_or(K8sRefused::NotAServiceAccount)?;
        let groups = user.groups.as_deref().unwrap_or_default();
        if !groups.iter().any(|group| group == "system:serviceaccounts") {
            return Err(K8sRefused::NotAServiceAccount);
        }
        if !self
            .settings
            .service_accounts
            .iter()
            .any(|one| one == account)
        {
            return Err(K8sRefused::AccountNotAllowed);
        }
        if account != format!("{}:{}", claims.namespace, claims.service_account) {
            return Err(K8sRefused::ClaimsDiffer("service account"));
        }
        let none = BTreeMap::new();
        let extra = user.extra.as_ref().unwrap_or(&none);
        let credential = format!("JTI={}", claims.jti);
        for (key, claimed) in [
            ("pod-name", &claims.pod_name),
            ("pod-uid", &claims.pod_uid),
            ("node-name", &claims.node_name),
            ("node-uid", &claims.node_uid),
            ("credential-id", &credential),
        ] {
            match extra.get(&format!("{EXTRA}{key}")).map(Vec::as_slice) {
                Some([one]) if one == claimed => {}
                Some([_]) => return Err(K8sRefused::ClaimsDiffer(key)),
                _ => return Err(K8sRefused::ExtraMissing(key)),
            }
        }
        Ok(())
    }

    /// N9, N10 and the kind of N14: the pod as it is now. TokenReview says yes to a pod that is long over.
    async fn pod(&self, claims: &Claims) -> Result<Pod, K8sRefused> {
        let pod = self
            .get_pod(&claims.namespace, &claims.pod_name)
            .await?
            .ok_or(K8sRefused::PodMissing)?;
        if pod.metadata.uid.as_deref() != Some(claims.pod_uid.as_str()) {
            return Err(K8sRefused::PodReplaced);
        }
        let spec = pod.spec.as_ref().ok_or(K8sRefused::PodMissing)?;
        let annotations = pod.metadata.annotations.as_ref();
        if annotations.is_some_and(|all| all.contains_key("kubernetes.io/config.mirror")) {
            return Err(K8sRefused::MirrorPod);
        }
        match spec.service_account_name.as_deref() {
            None | Some("") => return Err(K8sRefused::PodWithoutAccount),
            Some(account) if account != claims.service_account => {
                return Err(K8sRefused::PodOtherAccount);
            }
            Some(_) => {}
        }
        if spec.node_name.as_deref() != Some(claims.node_name.as_str()) {
            return Err(K8sRefused::PodOtherNode);
        }
        if pod.metadata.deletion_timestamp.is_some() {
            return Err(K8sRefused::PodTerminating);
        }
        if is_over(&pod) {
            return Err(K8sRefused::PodOver);
        }
        if let Some(wanted) = &self.settings.daemon_set {
            let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
            if !owners.iter().any(|owner| {
                owner.kind == "DaemonSet" && owner.name == *wanted && owner.controller == Some(true)
            }) {
                return Err(K8sRefused::NotOfTheDaemonSet);
            }
        }
        Ok(pod)
    }

    /// N11: the node as it is now. TokenReview says yes with the UID of a node that was replaced.
    async fn node(&self, claims: &Claims) -> Result<Node, K8sRefused> {
        let api: Api<Node> = Api::all(self.client.clone());
        let node = self
            .within(api.get_opt(&claims.node_name))
            .await
            .map_err(K8sRefused::LookupUnavailable)?
            .ok_or(K8sRefused::NodeMissing)?;
        if node.metadata.uid.as_deref() != Some(claims.node_uid.as_str()) {
            return Err(K8sRefused::NodeReplaced);
        }
        Ok(node)
    }

    /// N12 and N14: a ban wins, and two live pods cannot be the agent of one node.
    async fn check_former(&self, id: &SpiffeId, claims: &Claims) -> Result<(), K8sRefused> {
        let Some(former) = self.around.nodes.get(id).await? else {
            return Ok(());
        };
        if former.banned {
            return Err(K8sRefused::Banned);
        }
        let Some(facts) = &former.kubernetes else {
            return Ok(());
        };
        if facts.pod_uid == claims.pod_uid {
            return Ok(());
        }
        let still_there = self
            .get_pod(&facts.namespace, &facts.pod_name)
            .await?
            .is_some_and(|pod| {
                pod.metadata.uid.as_deref() == Some(facts.pod_uid.as_str())
                    && pod.metadata.deletion_timestamp.is_none()
                    && !is_over(&pod)
            });
        match still_there {
            true => Err(K8sRefused::SecondAgent),
            false => Ok(()),
        }
    }

    /// N5 and N15: the token is bound to the first key. The same agent, when no other one lives, may bring a new key:
    /// kubelet keeps one token for most of its life, and an agent that restarts has made a new key.
    async fn spend(
        &self,
        id: &SpiffeId,
        claims: &Claims,
        csr: &VerifiedCsr,
    ) -> Result<(), K8sRefused> {
        let use_ = JtiUse {
            jti: format!("{}/{}", self.settings.cluster, claims.jti),
            spki_hash: csr.spki_hash(),
            expires_at: SystemTime::UNIX_EPOCH + Duration::from_secs(claims.expires_at) + SKEW,
            holder: format!("{id} {} {}", claims.pod_uid, claims.node_uid),
        };
        match self.around.tokens.spend_jti(use_.clone()).await? {
            SpentJti::First | SpentJti::SameKeyAgain(_) => Ok(()),
            SpentJti::OtherKey(former) if former.holder != use_.holder => {
                Err(K8sRefused::ReplayedElsewhere)
            }
            SpentJti::OtherKey(_) if self.around.fleet.is_live(id, self.around.clock.now()) => {
                Err(K8sRefused::ReplayedBesideLiveAgent)
            }
            SpentJti::OtherKey(former) => {
                let jti = use_.jti.clone();
                match self
                    .around
                    .tokens
                    .rebind_jti(&jti, former.spki_hash, use_)
                    .await?
                {
                    true => Ok(()),
                    false => Err(K8sRefused::LostTheRace),
                }
            }
        }
    }

    fn agent_id(&self, claims: &Claims) -> Result<SpiffeId, K8sRefused> {
        let path = format!(
            "/spire/agent/k8s_psat/{}/{}",
            self.settings.cluster, claims.node_uid
        );
        SpiffeId::from_parts(&self.around.trust_domain, &path)
            .map_err(|_| K8sRefused::Claims("kubernetes.io.node.uid"))
    }

    fn selectors(
        &self,
        claims: &Claims,
        pod: &Pod,
        node: &Node,
    ) -> Result<BTreeSet<Selector>, K8sRefused> {
        let mut values = vec![
            format!("cluster:{}", self.settings.cluster),
            format!("agent_ns:{}", claims.namespace),
            format!("agent_sa:{}", claims.service_account),
            format!("agent_pod_name:{}", claims.pod_name),
            format!("agent_pod_uid:{}", claims.pod_uid),
            format!("agent_node_name:{}", claims.node_name),
            format!("agent_node_uid:{}", claims.node_uid),
        ];
        let host_ip = pod
            .status
            .as_ref()
            .and_then(|status| status.host_ip.as_ref());
        values.extend(host_ip.map(|ip| format!("agent_node_ip:{ip}")));
        let labels = |all: &Option<BTreeMap<String, String>>, wanted: &[String], kind: &str| {
            let all = all.as_ref();
            wanted
                .iter()
                .filter_map(|key| all?.get(key).map(|value| format!("{kind}:{key}:{value}")))
                .collect::<Vec<_>>()
        };
        values.extend(labels(
            &node.metadata.labels,
            &self.settings.node_labels,
            "agent_node_label",
        ));
        values.extend(labels(
            &pod.metadata.labels,
            &self.settings.pod_labels,
            "agent_pod_label",
        ));
        values
            .iter()
            .map(|value| Selector::new("k8s_psat", value).map_err(|_| K8sRefused::Selector))
            .collect()
    }

    async fn get_pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, K8sRefused> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        self.within(api.get_opt(name))
            .await
            .map_err(K8sRefused::LookupUnavailable)
    }

    /// One call, within the configured time whatever the server does.
    async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Box<dyn std::error::Error + Send + Sync>> {
        match tokio::time::timeout(self.settings.timeout.get(), call).await {
            Ok(answer) => answer.map_err(|error| Box::from(describe(&error))),
            Err(_) => Err(format!("no answer within {}", self.settings.timeout).into()),
        }
    }
}

/// What may be said of a failure: the API server's bodies can hold the token.
fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("status {} {}", status.code, status.reason),
        kube::Error::SerdeError(_) => "the answer is not what was asked for".to_owned(),
        other => {
            mesh_runtime::errors::untrusted(&mesh_runtime::errors::ErrorChain(other).to_string())
        }
    }
}

/// Whether a pod's containers will never run again.
fn is_over(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests;
