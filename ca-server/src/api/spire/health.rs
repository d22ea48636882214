//! `grpc.health.v1` over our own readiness. Only the whole server has a health, as in SPIRE.

use std::pin::Pin;

use futures::Stream;
use mesh_runtime::drain::DrainWatch;
use mesh_runtime::readiness::Readiness;
use proto::grpc::health::v1::health_server::Health;
use proto::grpc::health::v1::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
    health_check_response,
};
use tonic::{Code, Request, Response, Status};

use super::super::{Call, Parts, Refusal};

/// The service.
pub(crate) struct Service {
    readiness: Readiness,
    drain: DrainWatch,
}

impl Service {
    pub(super) fn new(parts: &Parts) -> Self {
        Self {
            readiness: parts.readiness.clone(),
            drain: parts.drain.clone(),
        }
    }
}

fn answer(ready: bool) -> HealthCheckResponse {
    let status = match ready {
        true => health_check_response::ServingStatus::Serving,
        false => health_check_response::ServingStatus::NotServing,
    };
    HealthCheckResponse {
        status: status.into(),
    }
}

fn of_the_whole(call: &Call, request: &HealthCheckRequest) -> Result<(), Status> {
    match request.service.as_str() {
        "" => Ok(()),
        _ => Err(call.refuse(Refusal::new(
            "FNL1275",
            Code::InvalidArgument,
            "per-service health is not supported",
        ))),
    }
}

type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Health for Service {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        of_the_whole(&Call::of(&request)?, request.get_ref())?;
        Ok(Response::new(answer(self.readiness.is_ready())))
    }

    /// The whole server under its empty name, and nothing else: no other name has a health.
    async fn list(
        &self,
        request: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        Call::of(&request)?;
        let whole = (String::new(), answer(self.readiness.is_ready()));
        Ok(Response::new(HealthListResponse {
            statuses: [whole].into(),
        }))
    }

    type WatchStream = WatchStream;

    /// The health now, and again whenever it is another one; the stream ends when the server begins to drain.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<WatchStream>, Status> {
        of_the_whole(&Call::of(&request)?, request.get_ref())?;
        let (readiness, drain) = (self.readiness.clone(), self.drain.clone());
        let told = futures::stream::unfold((None, readiness, drain), |state| async move {
            let (told, readiness, drain) = state;
            let now = match told {
                None => readiness.is_ready(),
                Some(ready) => tokio::select! {
                    now = readiness.changed_from(ready) => now,
                    () = drain.draining() => return None,
                },
            };
            Some((Ok(answer(now)), (Some(now), readiness, drain)))
        });
        Ok(Response::new(Box::pin(told)))
    }
}
