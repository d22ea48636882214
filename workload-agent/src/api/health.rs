//! `grpc.health.v1` over the agent's readiness. Only the whole agent has a health, as in SPIRE.
//! Trusts the parts that say whether they are ready. Never wants the Workload API's header: health clients do not send it.

use std::pin::Pin;

use futures::{Stream, stream};
use mesh_runtime::{readiness::Readiness, tasks::Stop};
use proto::grpc::health::v1::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};
use tonic::{Request, Response, Status};

use super::LARGEST_REQUEST;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct HealthApi {
    readiness: Readiness,
    stop: Stop,
}

impl HealthApi {
    /// Tells this readiness. Streams end when `stop` comes.
    pub(crate) fn new(readiness: Readiness, stop: Stop) -> Self {
        Self { readiness, stop }
    }

    /// As a tonic service.
    pub(crate) fn into_service(self) -> HealthServer<Self> {
        HealthServer::new(self).max_decoding_message_size(LARGEST_REQUEST)
    }
}

fn answer(ready: bool) -> HealthCheckResponse {
    let status = match ready {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    HealthCheckResponse {
        status: status.into(),
    }
}

fn of_the_whole(request: &HealthCheckRequest) -> Result<(), Status> {
    match request.service.as_str() {
        "" => Ok(()),
        _ => Err(Status::invalid_argument(
            "per-service health is not supported",
        )),
    }
}

#[tonic::async_trait]
impl Health for HealthApi {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        of_the_whole(request.get_ref())?;
        Ok(Response::new(answer(self.readiness.is_ready())))
    }

    /// The whole agent under its empty name, and nothing else: no other name has a health.
    async fn list(
        &self,
        _: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        let whole = (String::new(), answer(self.readiness.is_ready()));
        Ok(Response::new(HealthListResponse {
            statuses: [whole].into(),
        }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// The health now, and again whenever it is another one.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        of_the_whole(request.get_ref())?;
        let told = stream::unfold((None, self.clone()), |(told, health)| async move {
            let now = match told {
                None => health.readiness.is_ready(),
                Some(ready) => {
                    let changed = health.readiness.changed_from(ready);
                    health.stop.unless_stopped(changed).await?
                }
            };
            Some((Ok(answer(now)), (Some(now), health)))
        });
        Ok(Response::new(Box::pin(told)))
    }
}
