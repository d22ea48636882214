//! Decides how SVIDs and tokens are asked for, and what each answer means for who asked.
//! Trusts nothing of an answer beyond its form: `rotation` and `tokens` look at it as a peer would.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};
use mesh_identity::EntryId;
use mesh_runtime::{
    span,
    telemetry::{Secret, traces},
};
use proto::{convert::IssuedX509Svid, spire::api::server::svid::v1 as svid_wire};
use tonic::{Status, metadata::MetadataMap};
use tracing::Instrument as _;

use super::{Upstream, Verdict, verdict};
use crate::{
    rotation::{Answer, Ask, Refusal, Sign, SignError, SvidFault},
    tokens::{MakeToken, TokenError},
};

/// How long the CA may take for a batch of SVIDs.
const SIGN_WITHIN: Duration = Duration::from_secs(20);

impl Sign for Upstream {
    async fn sign(&self, asks: Vec<Ask>) -> Result<Vec<Answer>, SignError> {
        let params = asks.into_iter().map(|ask| svid_wire::NewX509svidParams {
            entry_id: ask.entry.to_string(),
            csr: ask.csr,
        });
        let mut call = tonic::Request::new(svid_wire::BatchNewX509svidRequest {
            params: params.collect(),
        });
        call.set_timeout(SIGN_WITHIN);
        let channel = self.channel.borrow().clone();
        let mut client = svid_wire::svid_client::SvidClient::new(channel);
        let asked = span!(
            "rotate svid",
            otel.kind = "client",
            finial.svids = call.get_ref().params.len()
        );
        asked.in_scope(|| carry_trace(&mut call));
        let answer = client.batch_new_x509svid(call).instrument(asked);
        let status = match tokio::time::timeout(SIGN_WITHIN, answer).await {
            Ok(Ok(answer)) => {
                return Ok(answer
                    .into_inner()
                    .results
                    .into_iter()
                    .map(read_result)
                    .collect());
            }
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer within the time limit"),
        };
        Err(match verdict(&status) {
            Verdict::No => SignError::Refused(Box::new(status)),
            Verdict::Later => SignError::Unavailable(Box::new(status)),
            // The stream of updates or the next renewal meets the same answer and acts on it.
            Verdict::Banned | Verdict::AttestAgain => {
                self.attest_again.notify_one();
                SignError::Unavailable(Box::new(status))
            }
        })
    }
}

impl MakeToken for Upstream {
    fn make<'a>(
        &'a self,
        entry: &'a EntryId,
        audience: &'a [String],
    ) -> BoxFuture<'a, Result<Secret<String>, TokenError>> {
        async move {
            let mut call = tonic::Request::new(svid_wire::NewJwtsvidRequest {
                entry_id: entry.to_string(),
                audience: audience.to_vec(),
            });
            call.set_timeout(SIGN_WITHIN);
            let channel = self.channel.borrow().clone();
            let mut client = svid_wire::svid_client::SvidClient::new(channel);
            let asked = span!("fetch jwt-svid", otel.kind = "client");
            asked.in_scope(|| carry_trace(&mut call));
            let answer = client.new_jwtsvid(call).instrument(asked);
            let status = match tokio::time::timeout(SIGN_WITHIN, answer).await {
                Ok(Ok(answer)) => match answer.into_inner().svid {
                    Some(svid) => return Ok(Secret::new(svid.token)),
                    None => Status::internal("neither a token nor a reason"),
                },
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer within the time limit"),
            };
            if matches!(verdict(&status), Verdict::Banned | Verdict::AttestAgain) {
                self.attest_again.notify_one();
            }
            Err(TokenError::NotMade(Box::new(status)))
        }
        .boxed()
    }
}

/// The server's part of the work goes on in our trace.
fn carry_trace<T>(call: &mut tonic::Request<T>) {
    let mut headers = std::mem::take(call.metadata_mut()).into_headers();
    traces::carry(&mut headers);
    *call.metadata_mut() = MetadataMap::from_headers(headers);
}

fn read_result(result: svid_wire::batch_new_x509svid_response::Result) -> Answer {
    match (result.status, result.svid) {
        (Some(status), _) if status.code != 0 => Err(Refusal {
            code: status.code,
            message: status.message,
        }
        .into()),
        (_, Some(svid)) => IssuedX509Svid::try_from(svid)
            .map(|issued| issued.svid)
            .map_err(|error| SvidFault::Shape(Box::new(error))),
        (_, None) => Err(Refusal {
            code: 0,
            message: "neither an SVID nor a reason".into(),
        }
        .into()),
    }
}
