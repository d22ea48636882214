//! What an operator asks of a running server: its log level, its state, its health.

use proto::spire::api::server::debug::v1::GetInfoRequest;
use proto::spire::api::server::debug::v1::debug_client::DebugClient;
use proto::spire::api::server::logger::v1 as wire;
use proto::spire::api::server::logger::v1::logger_client::LoggerClient;
use proto::spire::api::types::LogLevel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

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
