//! What a token says of itself, unverified: enough to refuse it without a call, and to compare with what the API server says.
//! Trusts nothing. Never prints the token.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_runtime::telemetry::Secret;
use serde::Deserialize;

use super::K8sRefused;

/// The longest token that is looked at.
const LONGEST_TOKEN: usize = 16 * 1024;

/// What an agent sends: `{"cluster": …, "token": …}`.
#[derive(Debug)]
pub(in crate::attestation) struct Evidence {
    cluster: String,
    token: Secret<String>,
}

impl Evidence {
    /// Reads the payload of SPIRE's `k8s_psat`.
    pub(in crate::attestation) fn parse(payload: &[u8]) -> Result<Self, K8sRefused> {
        #[derive(Deserialize)]
        struct Wire {
            cluster: String,
            token: Secret<String>,
        }
        let wire: Wire = serde_json::from_slice(payload).map_err(|_| K8sRefused::Payload)?;
        if wire.cluster.is_empty() || wire.token.expose().is_empty() {
            return Err(K8sRefused::Payload);
        }
        Ok(Self {
            cluster: wire.cluster,
            token: wire.token,
        })
    }

    pub(in crate::attestation) fn cluster(&self) -> &str {
        &self.cluster
    }

    pub(super) fn token(&self) -> &str {
        self.token.expose()
    }

    pub(super) fn into_token(self) -> Secret<String> {
        self.token
    }
}

/// What the token claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) issuer: String,
    pub(super) audiences: Vec<String>,
    pub(super) expires_at: u64,
    pub(super) jti: String,
    pub(super) namespace: String,
    pub(super) service_account: String,
    pub(super) pod_name: String,
    pub(super) pod_uid: String,
    pub(super) node_name: String,
    pub(super) node_uid: String,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    iss: String,
    #[serde(default)]
    aud: Audiences,
    exp: Option<u64>,
    #[serde(default)]
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

#[derive(Deserialize)]
struct Kubernetes {
    #[serde(default)]
    namespace: String,
    serviceaccount: Option<Bound>,
    pod: Option<Bound>,
    node: Option<Bound>,
}

/// Reads bytes as a payload and its token.
pub(in crate::attestation) fn read_for_fuzzing(bytes: &[u8]) {
    if let Ok(evidence) = Evidence::parse(bytes) {
        Claims::parse(evidence.token()).ok();
    }
}

#[derive(Deserialize)]
struct Bound {
    #[serde(default)]
    name: String,
    #[serde(default)]
    uid: String,
}

impl Claims {
    pub(super) fn parse(token: &str) -> Result<Self, K8sRefused> {
        if token.len() > LONGEST_TOKEN {
            return Err(K8sRefused::NotAJwt);
        }
        let mut parts = token.split('.');
        let (Some(_), Some(body), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(K8sRefused::NotAJwt);
        };
        let body = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| K8sRefused::NotAJwt)?;
        let body: Body = serde_json::from_slice(&body).map_err(|_| K8sRefused::NotAJwt)?;
        let missing = |what| Err(K8sRefused::Claims(what));
        let Some(kubernetes) = body.kubernetes else {
            return missing("kubernetes.io");
        };
        let Some(pod) = filled(kubernetes.pod) else {
            return Err(K8sRefused::NotBoundToAPod);
        };
        let Some(node) = filled(kubernetes.node) else {
            return Err(K8sRefused::NoNodeClaim);
        };
        let Some(account) = kubernetes
            .serviceaccount
            .filter(|account| !account.name.is_empty())
        else {
            return missing("kubernetes.io.serviceaccount");
        };
        if kubernetes.namespace.is_empty() {
            return missing("kubernetes.io.namespace");
        }
        for (what, name) in [
            ("kubernetes.io.namespace", &kubernetes.namespace),
            ("kubernetes.io.pod.name", &pod.name),
            ("kubernetes.io.node.name", &node.name),
        ] {
            if !is_name(name) {
                return missing(what);
            }
        }
        if body.jti.is_empty() || body.jti.len() > 255 {
            return missing("jti");
        }
        // A token without an end, or with one that no clock can express, is not one that kubelet asked for.
        let Some(expires_at) = body.exp.filter(|seconds| *seconds < 1 << 40) else {
            return missing("exp");
        };
        Ok(Self {
            issuer: body.iss,
            audiences: match body.aud {
                Audiences::One(one) => vec![one],
                Audiences::Many(many) => many,
            },
            expires_at,
            jti: body.jti,
            namespace: kubernetes.namespace,
            service_account: account.name,
            pod_name: pod.name,
            pod_uid: pod.uid,
            node_name: node.name,
            node_uid: node.uid,
        })
    }
}

/// Whether a text can be the name of an object: these become parts of paths that are asked of the API server.
fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.')
    };
    !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(allowed)
        && !text.starts_with('.')
        && !text.contains("..")
}

fn filled(bound: Option<Bound>) -> Option<Bound> {
    bound.filter(|bound| !bound.name.is_empty() && !bound.uid.is_empty())
}
