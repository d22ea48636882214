//! What a log line may show of the messages that carry a private key or a bearer token.
//! It trusts that `tests/current.rs` leaves these messages without a generated `Debug`, so that a missing one does not compile.
//! It never shows a secret, not even in part: only that there is one, and its length.

use std::fmt::{Debug, Formatter, Result};

use crate::{
    envoy::{config::core, service::discovery},
    spiffe::workload,
    spire::api::{agent::delegatedidentity, server::agent, types},
};

/// Stands in for a secret.
struct Hidden(usize);

impl Debug for Hidden {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self.0 {
            0 => f.write_str("(empty)"),
            n => write!(f, "(hidden, {n} bytes)"),
        }
    }
}

macro_rules! redacted {
    ($($message:ty: show [$($shown:ident),*], hide [$($secret:ident),*];)*) => {$(
        impl Debug for $message {
            fn fmt(&self, f: &mut Formatter<'_>) -> Result {
                f.debug_struct(stringify!($message))
                    $(.field(stringify!($shown), &self.$shown))*
                    $(.field(stringify!($secret), &Hidden(self.$secret.len())))*
                    .finish()
            }
        }
    )*};
}

redacted! {
    workload::X509svid: show [spiffe_id, hint], hide [x509_svid, x509_svid_key, bundle];
    workload::Jwtsvid: show [spiffe_id, hint], hide [svid];
    workload::Witsvid: show [spiffe_id, hint], hide [wit_svid, wit_svid_key];
    workload::ValidateJwtsvidRequest: show [audience], hide [svid];
    delegatedidentity::v1::X509svidWithKey: show [x509_svid], hide [x509_svid_key];
    agent::v1::CreateJoinTokenRequest: show [ttl, agent_id], hide [token];
    types::AttestationData: show [r#type], hide [payload];
    types::JoinToken: show [expires_at], hide [value];
    types::Jwtsvid: show [id, expires_at, issued_at, hint], hide [token];
    types::Witsvid: show [id, expires_at, issued_at, hint], hide [token];
}

redacted! {
    core::v3::DataSource: show [], hide [inline_bytes];
}

// Secrets, packed: only how many there are.
impl Debug for discovery::v3::DiscoveryResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("DiscoveryResponse")
            .field("version_info", &self.version_info)
            .field("nonce", &self.nonce)
            .field("resources", &self.resources.len())
            .finish()
    }
}

impl Debug for discovery::v3::Resource {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Resource")
            .field("name", &self.name)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_answer_to_envoy_shows_no_key() {
        let secret = prost_types::Any {
            type_url: "type.test/x".into(),
            value: b"secret-key".to_vec(),
        };
        let whole = discovery::v3::DiscoveryResponse {
            resources: vec![secret.clone()],
            ..Default::default()
        };
        let part = discovery::v3::DeltaDiscoveryResponse {
            resources: vec![discovery::v3::Resource {
                name: "default".into(),
                resource: Some(secret),
                ..Default::default()
            }],
            ..Default::default()
        };
        let source = core::v3::DataSource {
            inline_bytes: b"secret-key".to_vec(),
        };
        let printed = format!("{whole:?} {part:?} {source:?}");
        assert!(
            !printed.contains("secret") && !printed.contains(&format!("{}", b's')),
            "{printed}"
        );
        assert!(printed.contains("default"), "{printed}");
    }

    #[test]
    fn a_printed_message_shows_no_key_and_no_token() {
        let svid = workload::X509svid {
            spiffe_id: "spiffe://dev.test/pay".into(),
            x509_svid_key: b"secret-key".to_vec(),
            ..Default::default()
        };
        let data = types::AttestationData {
            r#type: "join_token".into(),
            payload: b"secret-token".to_vec(),
        };
        let params = agent::v1::attest_agent_request::Params {
            data: Some(data),
            params: None,
        };
        let ask = agent::v1::AttestAgentRequest {
            step: Some(agent::v1::attest_agent_request::Step::Params(params)),
        };
        let token = types::JoinToken {
            value: "secret-token".into(),
            expires_at: 7,
        };
        let printed = format!("{svid:?} {svid:#?} {ask:?} {token:?}");
        assert!(!printed.contains("secret"), "{printed}");
        assert!(
            !printed.contains(&format!("{}", b's')),
            "no bytes as numbers either: {printed}"
        );
        assert!(
            printed.contains("spiffe://dev.test/pay") && printed.contains("(hidden, 10 bytes)"),
            "{printed}"
        );
    }
}
