//! Decides the answers of the SPIFFE Workload API: what a caller's state looks like on the wire, and what is noted of it.
//! Trusts `session` for the state and for when it changes. Never answers a call without the security header, never sends a part
//! of the state.

mod jwt;

use std::{future::Future, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt, stream};
use proto::{
    convert::workload::{X509IdentityView, x509_bundles_response, x509_svid_response},
    spiffe::workload::{
        self as wire,
        spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
    },
};
use tonic::{Code, Request, Response, Status, service::interceptor::InterceptedService};

use super::{
    LARGEST_REQUEST,
    caller::{Caller, Parts},
    session::{Follow, JwtBundles, Session, X509Bundles, X509Svids},
};
use crate::vault::{BundleView, IdentitySet, View};

/// The security header (SPIFFE Workload Endpoint, section 6): a browser or a proxy tricked into a request does not send it.
const HEADER: &str = "workload.spiffe.io";

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service behind the header check.
pub type CheckedApi = InterceptedService<SpiffeWorkloadApiServer<WorkloadApi>, HeaderCheck>;
/// Runs before anything else of a call.
type HeaderCheck = fn(Request<()>) -> Result<Request<()>, Status>;

/// The service.
#[derive(Clone, Debug)]
pub struct WorkloadApi {
    parts: Arc<Parts>,
}

impl WorkloadApi {
    /// Serves with what every door has.
    pub fn new(parts: Arc<Parts>) -> Self {
        Self { parts }
    }

    /// With the header check before anything else.
    pub fn into_service(self) -> CheckedApi {
        let server = SpiffeWorkloadApiServer::new(self).max_decoding_message_size(LARGEST_REQUEST);
        InterceptedService::new(server, check_header)
    }

    /// Answers one question of a process that was looked at.
    async fn ask<Q, A, F: Future<Output = Result<A, Status>>>(
        &self,
        request: Request<Q>,
        answer: impl FnOnce(Caller, Arc<View>, Q) -> F,
    ) -> Result<A, Status> {
        let (mut caller, _place) = self.parts.caller(&request)?;
        let view = self.parts.vault.view();
        caller.look(view.wanted()).await?;
        answer(caller, view, request.into_inner()).await
    }

    fn answered<A>(
        &self,
        method: &'static str,
        answer: Result<A, Status>,
    ) -> Result<Response<A>, Status> {
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.parts.metrics.called(method, code);
        answer.map(Response::new)
    }

    async fn open<T: Tell>(
        &self,
        request: &Request<impl Sized>,
    ) -> Result<Response<Answers<T::Message>>, Status> {
        let outcome = async {
            let mut session = Session::<T>::open(&self.parts, request, T::METHOD, T::API)?;
            session.look().await?;
            // Before the response exists, so that a caller without identity gets its status at once and nothing else.
            let first = next(&mut session).await?;
            Ok((first, session))
        };
        let outcome = outcome.await;
        self.parts.metrics.called(
            T::METHOD,
            outcome.as_ref().map_or_else(Status::code, |_| Code::Ok),
        );
        let (first, session) = outcome?;
        let rest = stream::unfold(Some(session), |session| async {
            let mut session = session?;
            // Asked for only when the connection has room: a slow reader gets the newest state, not each one.
            match next(&mut session).await {
                Ok(message) => Some((Ok(message), Some(session))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(
            stream::once(std::future::ready(Ok(first))).chain(rest),
        )))
    }
}

/// Waits until there is something to tell that has not been told. Each identity that this process has not been given on this
/// stream before is recorded; renewals of one that it has are recorded where they are signed.
async fn next<T: Tell>(session: &mut Session<T>) -> Result<T::Message, Status> {
    let state = session.changed().await?;
    let before = session.told().map(T::identities).unwrap_or_default();
    let fresh = T::identities(&state)
        .into_iter()
        .filter(|(id, _)| before.iter().all(|(known, _)| known != id));
    session.caller.record_given(fresh).await?;
    let message = T::message(&state);
    session.tell(Some(state));
    Ok(message)
}

fn check_header(request: Request<()>) -> Result<Request<()>, Status> {
    let mut values = request.metadata().get_all(HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value.as_bytes() == b"true" => Ok(request),
        _ => Err(Status::invalid_argument(
            "the metadata workload.spiffe.io: true is missing",
        )),
    }
}

/// What one kind of stream tells.
trait Tell: Follow {
    /// The state on the wire.
    type Message: Send;
    const METHOD: &'static str;
    const API: &'static str;

    fn message(state: &Self::State) -> Self::Message;
    /// The identities that the state gives out, each with its serial number.
    fn identities(_: &Self::State) -> Vec<(&str, &str)> {
        Vec::new()
    }
}

impl Tell for X509Svids {
    type Message = wire::X509svidResponse;
    const METHOD: &'static str = "FetchX509SVID";
    const API: &'static str = "x509";

    fn message(state: &IdentitySet) -> wire::X509svidResponse {
        let identities = state.identities.iter().map(|identity| X509IdentityView {
            svid: &identity.held.svid,
            key: identity.held.key.expose(),
            hint: &identity.hint,
            bundle: &state.bundle,
        });
        x509_svid_response(identities, state.federated.values().map(|bundle| &**bundle))
    }

    fn identities(state: &IdentitySet) -> Vec<(&str, &str)> {
        let svids = state.identities.iter().map(|identity| &identity.held.svid);
        svids
            .map(|svid| (svid.id().as_str(), svid.serial()))
            .collect()
    }
}

impl Tell for X509Bundles {
    type Message = wire::X509BundlesResponse;
    const METHOD: &'static str = "FetchX509Bundles";
    const API: &'static str = "bundles";

    fn message(state: &BundleView) -> wire::X509BundlesResponse {
        x509_bundles_response(state.bundles.values().map(|bundle| &**bundle))
    }
}

impl Tell for JwtBundles {
    type Message = wire::JwtBundlesResponse;
    const METHOD: &'static str = "FetchJWTBundles";
    const API: &'static str = "jwt_bundles";

    fn message(state: &Self::State) -> wire::JwtBundlesResponse {
        wire::JwtBundlesResponse {
            bundles: state.clone(),
        }
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Answers<wire::X509svidResponse>;
    type FetchX509BundlesStream = Answers<wire::X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<wire::JwtBundlesResponse>;
    type FetchWITSVIDStream = Answers<wire::WitsvidResponse>;
    type FetchWITBundlesStream = Answers<wire::WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<wire::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.open::<X509Svids>(&request).await
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<wire::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.open::<X509Bundles>(&request).await
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<wire::JwtsvidRequest>,
    ) -> Result<Response<wire::JwtsvidResponse>, Status> {
        let answer = self.ask(request, jwt::fetch).await;
        self.answered("FetchJWTSVID", answer)
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<wire::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.open::<JwtBundles>(&request).await
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<wire::ValidateJwtsvidRequest>,
    ) -> Result<Response<wire::ValidateJwtsvidResponse>, Status> {
        let answer = self.ask(request, jwt::validate).await;
        self.answered("ValidateJWTSVID", answer)
    }

    async fn fetch_witsvid(
        &self,
        _: Request<wire::WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        self.answered("FetchWITSVID", Err(not_served()))
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<wire::WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        self.answered("FetchWITBundles", Err(not_served()))
    }
}

/// The WIT profile is switched off (WAPI-2).
fn not_served() -> Status {
    Status::unimplemented("this agent serves the X.509 and JWT profiles only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wep_07_only_exactly_one_exact_header_passes() {
        let with = |values: &[&'static str]| {
            let mut request = Request::new(());
            for value in values {
                request
                    .metadata_mut()
                    .append(HEADER, value.parse().unwrap());
            }
            check_header(request)
                .map(drop)
                .map_err(|status| status.code())
        };
        assert_eq!(with(&["true"]), Ok(()));
        for wrong in [
            &[][..],
            &["True"],
            &["TRUE"],
            &["1"],
            &["true", "true"],
            &["true", "false"],
            &["true,true"],
        ] {
            assert_eq!(with(wrong), Err(Code::InvalidArgument), "{wrong:?}");
        }
    }
}
