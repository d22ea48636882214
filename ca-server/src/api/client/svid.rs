//! Identities that an administrator asks for, as the server hands them out.

use std::time::SystemTime;

use mesh_identity::{SpiffeId, X509Svid};
use mesh_runtime::telemetry::Secret;
use proto::convert::IssuedX509Svid;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{MintJwtsvidRequest, MintX509svidRequest};

use super::{AdminClient, ClientError, moment};

/// A token as it was minted.
#[derive(Debug)]
pub struct MintedToken {
    /// The token in compact form. Whoever holds it is taken for the workload.
    pub token: Secret<String>,
    /// When it was made.
    pub issued_at: SystemTime,
    /// When it ends.
    pub expires_at: SystemTime,
}

impl AdminClient {
    /// Has a certificate signed for a request in DER; a life of zero seconds is the server's default.
    pub async fn mint_x509(&self, csr: Vec<u8>, ttl: i32) -> Result<X509Svid, ClientError> {
        let minted = SvidClient::new(self.channel.clone())
            .mint_x509svid(MintX509svidRequest { csr, ttl })
            .await?
            .into_inner();
        let missing = || ClientError::Unreadable("it has no SVID".into());
        IssuedX509Svid::try_from(minted.svid.ok_or_else(missing)?)
            .map(|issued| issued.svid)
            .map_err(|error| ClientError::Unreadable(error.to_string()))
    }

    /// Has a token signed; a life of zero seconds is the server's default.
    pub async fn mint_jwt(
        &self,
        id: &SpiffeId,
        audience: Vec<String>,
        ttl: i32,
    ) -> Result<MintedToken, ClientError> {
        let ask = MintJwtsvidRequest {
            id: Some(id.into()),
            audience,
            ttl,
        };
        let minted = SvidClient::new(self.channel.clone())
            .mint_jwtsvid(ask)
            .await?
            .into_inner();
        let missing = || ClientError::Unreadable("it has no token".into());
        let svid = minted.svid.filter(|svid| !svid.token.is_empty());
        let svid = svid.ok_or_else(missing)?;
        Ok(MintedToken {
            token: Secret::new(svid.token),
            issued_at: moment(svid.issued_at),
            expires_at: moment(svid.expires_at),
        })
    }
}
