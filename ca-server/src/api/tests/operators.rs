//! What an operator asks of a running server: its log level, its state, its health, its services.

use std::collections::{BTreeMap, BTreeSet};

use proto::grpc::health::v1::health_check_response::ServingStatus;
use proto::grpc::health::v1::health_client::HealthClient;
use proto::grpc::health::v1::{HealthCheckRequest, HealthListRequest};
use proto::spire::api::server::debug::v1::GetInfoRequest;
use proto::spire::api::server::debug::v1::debug_client::DebugClient;
use proto::spire::api::server::logger::v1 as wire;
use proto::spire::api::server::logger::v1::logger_client::LoggerClient;
use proto::spire::api::types::LogLevel;

use prost::Message;
use prost_types::FileDescriptorProto;
use tonic_reflection::pb::v1 as reflection;

use super::super::permit;
use super::*;

#[tokio::test]
async fn the_log_level_is_changed_and_taken_back_on_record() {
    let server = Server::start().await;
    let mut client = LoggerClient::new(admin_channel(&server).await);
    let mut set = async |level: i32| {
        let ask = wire::SetLogLevelRequest { new_level: level };
        client
            .set_log_level(ask)
            .await
            .map(tonic::Response::into_inner)
    };
    let changed = set(LogLevel::Debug.into()).await.unwrap();
    assert_eq!(
        (changed.current_level(), changed.launch_level()),
        (LogLevel::Debug, LogLevel::Info)
    );
    for (level, message) in [
        (0, "newLevel value cannot be LogLevel_UNSPECIFIED"),
        (99, "unsupported log level"),
    ] {
        let refused = set(level).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, message)
        );
    }
    let mut client = LoggerClient::new(admin_channel(&server).await);
    let now = client.get_logger(wire::GetLoggerRequest {}).await.unwrap();
    assert_eq!(now.into_inner().current_level(), LogLevel::Debug);
    let back = client.reset_log_level(wire::ResetLogLevelRequest {}).await;
    assert_eq!(back.unwrap().into_inner().current_level(), LogLevel::Info);
    let records = server.audit.of("log.set");
    assert_eq!(records[0]["object"]["name"], "debug");
    assert_eq!(records[0]["outcome"], "success");
}

#[tokio::test]
async fn debug_shows_the_own_chain_and_what_there_is() {
    let server = Server::start().await;
    let agent = server.join().await;
    server.entry("web", &agent.id).await;
    let mut client = DebugClient::new(admin_channel(&server).await);
    let info = client
        .get_info(GetInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!((info.agents_count, info.entries_count), (1, 1));
    assert_eq!(info.federated_bundles_count, 1);
    assert!((0..60).contains(&info.uptime), "{}", info.uptime);
    let ids: Vec<_> = info
        .svid_chain
        .iter()
        .map(|cert| cert.id.as_ref().map_or("", |id| id.path.as_str()))
        .collect();
    assert_eq!(ids, ["/spire/server", ""], "the leaf and who signed it");
    assert!(info.svid_chain[0].expires_at < info.svid_chain[1].expires_at);
}

#[tokio::test]
async fn health_is_told_when_asked_and_when_it_changes() {
    let server = Server::start().await;
    let mut client = HealthClient::new(admin_channel(&server).await);
    let of_one = HealthCheckRequest {
        service: "spire.api.server.svid.v1.SVID".into(),
    };
    let refused = client.check(of_one).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let now = client.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(now.into_inner().status(), ServingStatus::Serving);
    let all = client.list(HealthListRequest {}).await.unwrap();
    let all = all.into_inner().statuses;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[""].status(), ServingStatus::Serving);
    let watched = client.watch(HealthCheckRequest::default()).await;
    let mut watched = watched.unwrap().into_inner();
    let first = watched.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    server.tasks.stop();
    let then = tokio::time::timeout(Duration::from_secs(10), watched.message()).await;
    if let Some(told) = then.expect("it is told, or the stream ends").unwrap() {
        assert_eq!(told.status(), ServingStatus::NotServing);
        assert!(watched.message().await.unwrap().is_none());
    }
}

/// The services that an administrator is told of, and the file that describes each.
async fn described(server: &Server) -> BTreeMap<String, FileDescriptorProto> {
    use reflection::server_reflection_request::MessageRequest;
    use reflection::server_reflection_response::MessageResponse;
    let mut client = reflection::server_reflection_client::ServerReflectionClient::new(
        admin_channel(server).await,
    );
    let mut ask = async |request: MessageRequest| {
        let request = reflection::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(request),
        };
        let answers = client.server_reflection_info(futures::stream::iter([request]));
        let answer = answers.await.unwrap().into_inner().message().await;
        answer.unwrap().unwrap().message_response.unwrap()
    };
    let list = match ask(MessageRequest::ListServices(String::new())).await {
        MessageResponse::ListServicesResponse(list) => list.service,
        other => panic!("{other:?}"),
    };
    let mut found = BTreeMap::new();
    for service in list {
        let symbol = MessageRequest::FileContainingSymbol(service.name.clone());
        let MessageResponse::FileDescriptorResponse(files) = ask(symbol).await else {
            panic!("{} is not described", service.name);
        };
        let file = FileDescriptorProto::decode(&*files.file_descriptor_proto[0]).unwrap();
        found.insert(service.name, file);
    }
    found
}

#[tokio::test]
async fn reflection_names_and_describes_just_the_services_of_the_permit_table() {
    let server = Server::start().await;
    let described = described(&server).await;
    let mut rpcs = BTreeSet::new();
    for (name, file) in &described {
        let service = file
            .service
            .iter()
            .find(|service| format!("{}.{}", file.package(), service.name()) == *name)
            .unwrap();
        rpcs.extend(
            service
                .method
                .iter()
                .map(|rpc| format!("/{name}/{}", rpc.name())),
        );
    }
    let table: BTreeSet<String> = permit::TABLE
        .iter()
        .map(|row| row.path.to_owned())
        .collect();
    assert_eq!(
        rpcs, table,
        "every service of the table serves at least one RPC"
    );
}

#[tokio::test]
async fn reflection_is_for_local_administrators_only() {
    let server = Server::start().await;
    let agent = server.join().await;
    for channel in [server.anonymous().await, agent.channel] {
        let request = reflection::ServerReflectionRequest::default();
        let mut client = reflection::server_reflection_client::ServerReflectionClient::new(channel);
        let refused = client
            .server_reflection_info(futures::stream::iter([request]))
            .await;
        assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    }
}
