//! What an operator asks of a running agent: its health, its services, its log level. None of it wants the Workload API's header.

use std::path::Path;

use futures::stream;
use proto::{
    envoy::service::{
        discovery::v3::DiscoveryRequest,
        secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
    },
    grpc::health::v1::{
        HealthCheckRequest, HealthListRequest, health_check_response::ServingStatus,
        health_client::HealthClient,
    },
    spire::api::{
        agent::logger::v1::{self as wire, logger_client::LoggerClient},
        types::LogLevel,
    },
};
use tonic::Code;
use tonic_reflection::pb::{v1, v1alpha};

use crate::{
    ca::Ca,
    rig::{Agent, channel, eventually, my_uid, raw},
};

const ALWAYS: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

fn with_always(services: &[&str]) -> Vec<String> {
    let mut all: Vec<_> = services.iter().chain(&ALWAYS).map(|&s| s.into()).collect();
    all.sort();
    all
}

/// What the socket says it serves, each described.
async fn listed(socket: &Path) -> Vec<String> {
    use v1::{
        server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let mut client = ServerReflectionClient::new(channel(socket).await);
    let mut ask = async |request: MessageRequest| {
        let request = v1::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(request),
        };
        let answers = client.server_reflection_info(stream::iter([request])).await;
        let answer = raw(&mut answers.unwrap().into_inner()).await.unwrap();
        answer.message_response.unwrap()
    };
    let list = ask(MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(list) = list else {
        panic!("{list:?}");
    };
    let mut names: Vec<_> = list.service.into_iter().map(|one| one.name).collect();
    for name in &names {
        let described = ask(MessageRequest::FileContainingSymbol(name.clone())).await;
        assert!(
            matches!(&described, MessageResponse::FileDescriptorResponse(files) if !files.file_descriptor_proto.is_empty()),
            "{name}: {described:?}"
        );
    }
    names.sort();
    names
}

/// The same, as older clients ask.
async fn listed_for_older_clients(socket: &Path) -> Vec<String> {
    use v1alpha::{
        server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel(socket).await);
    let answers = client.server_reflection_info(stream::iter([request])).await;
    let answer = raw(&mut answers.unwrap().into_inner()).await.unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let mut names: Vec<_> = list.service.into_iter().map(|one| one.name).collect();
    names.sort();
    names
}

#[tokio::test]
async fn wep_22_wep_23_reflection_names_the_workload_api_and_what_else_each_socket_serves() {
    let ca = Ca::start().await;
    let agent = Agent::start(&ca).await;
    let public = with_always(&[
        "SpiffeWorkloadAPI",
        "envoy.service.secret.v3.SecretDiscoveryService",
    ]);
    let private = with_always(&[
        "finial.explain.v1.Explain",
        "spire.agent.debug.v1.Debug",
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
        "spire.api.agent.logger.v1.Logger",
    ]);
    for (socket, services) in [(agent.socket(), public), (agent.admin_socket(), private)] {
        assert_eq!(listed(&socket).await, services);
        assert_eq!(listed_for_older_clients(&socket).await, services);
    }
}

#[tokio::test]
async fn wep_22_what_is_switched_off_is_not_named_and_the_workload_api_always_is() {
    let ca = Ca::start().await;
    let agent = Agent::start_changed(&ca, |yaml| {
        yaml.replace(
            "public/api.sock\n",
            "public/api.sock\n  sds:\n    disabled: true\n",
        )
    })
    .await;
    assert_eq!(
        listed(&agent.socket()).await,
        with_always(&["SpiffeWorkloadAPI"])
    );
}

#[tokio::test]
async fn ag_11_health_reflection_and_sds_pass_without_the_header_of_the_workload_api() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    agent.fetch().await.unwrap();
    let socket = channel(&agent.socket()).await;
    let bare = agent
        .client()
        .await
        .fetch_x509svid(proto::spiffe::workload::X509svidRequest {})
        .await;
    assert_eq!(bare.unwrap_err().code(), Code::InvalidArgument);

    let mut health = HealthClient::new(socket.clone());
    health.check(HealthCheckRequest::default()).await.unwrap();
    assert!(!listed(&agent.socket()).await.is_empty());
    let ask = DiscoveryRequest {
        resource_names: vec!["default".into()],
        ..DiscoveryRequest::default()
    };
    let mut sds = SecretDiscoveryServiceClient::new(socket);
    let given = sds.fetch_secrets(ask).await.unwrap().into_inner();
    assert_eq!(given.resources.len(), 1);
}

#[tokio::test]
async fn health_is_told_when_asked_and_when_it_changes_on_both_sockets() {
    let ca = Ca::start().await;
    ca.down().await;
    let agent = Agent::start_unready(&ca).await;
    for socket in [agent.socket(), agent.admin_socket()] {
        let mut client = HealthClient::new(channel(&socket).await);
        let now = client.check(HealthCheckRequest::default()).await.unwrap();
        assert_eq!(now.into_inner().status(), ServingStatus::NotServing);
    }
    let mut client = HealthClient::new(channel(&agent.socket()).await);
    let of_one = HealthCheckRequest {
        service: "SpiffeWorkloadAPI".into(),
    };
    let refused = client.check(of_one.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(client.watch(of_one).await.is_err());
    let watched = client.watch(HealthCheckRequest::default()).await;
    let mut watched = watched.unwrap().into_inner();
    let first = raw(&mut watched).await.unwrap();
    assert_eq!(first.status(), ServingStatus::NotServing);
    ca.up().await;
    let second = raw(&mut watched).await.unwrap();
    assert_eq!(second.status(), ServingStatus::Serving);
    for socket in [agent.socket(), agent.admin_socket()] {
        let mut client = HealthClient::new(channel(&socket).await);
        let all = client.list(HealthListRequest {}).await.unwrap();
        let all = all.into_inner().statuses;
        assert_eq!((all.len(), all[""].status()), (1, ServingStatus::Serving));
    }
    eventually("the metric follows", async || {
        agent.metrics().await.contains("workload_agent_ready 1")
    })
    .await;
    agent.app.tasks().stop();
    assert!(
        watched.message().await.is_ok_and(|end| end.is_none()),
        "the stream ends with the agent"
    );
}

#[tokio::test]
async fn the_log_level_is_changed_and_taken_back_on_record() {
    let ca = Ca::start().await;
    let dir = crate::rig::directory();
    let audit = dir.path().join("audit");
    let agent = Agent::start_changed(&ca, |yaml| {
        format!("{yaml}audit: {{ dir: {} }}\n", audit.display())
    })
    .await;
    let mut client = LoggerClient::new(channel(&agent.admin_socket()).await);
    let set = |level: i32| wire::SetLogLevelRequest { new_level: level };
    for (level, message) in [
        (0, "newLevel value cannot be LogLevel_UNSPECIFIED"),
        (99, "unsupported log level"),
    ] {
        let refused = client.set_log_level(set(level)).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, message)
        );
    }
    let changed = client.set_log_level(set(LogLevel::Debug.into())).await;
    let changed = changed.unwrap().into_inner();
    assert_eq!(
        (changed.current_level(), changed.launch_level()),
        (LogLevel::Debug, LogLevel::Info)
    );
    let now = client.get_logger(wire::GetLoggerRequest {}).await.unwrap();
    assert_eq!(now.into_inner().current_level(), LogLevel::Debug);
    let back = client.reset_log_level(wire::ResetLogLevelRequest {}).await;
    assert_eq!(back.unwrap().into_inner().current_level(), LogLevel::Info);

    let text = std::fs::read_to_string(audit.join(mesh_runtime::audit::FILE_NAME)).unwrap();
    let records: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |action: &str| {
        let found: Vec<_> = records.iter().filter(|r| r["action"] == action).collect();
        assert_eq!(found.len(), 1, "{text}");
        (
            found[0]["object"]["name"].clone(),
            found[0]["outcome"].clone(),
        )
    };
    assert_eq!(of("log.set"), ("debug".into(), "success".into()));
    assert_eq!(of("log.reset"), ("info".into(), "success".into()));
}
