//! The admin port as a client on the wire sees it.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::tasks::Tasks;

async fn start(admin: Admin) -> (Tasks, SocketAddr) {
    let bound = admin.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = bound.address();
    let tasks = Tasks::new("test");
    tasks.spawn("admin", move |stop| bound.serve(stop));
    (tasks, address)
}

async fn ask(address: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

fn demo() -> (Readiness, Admin) {
    let readiness = Readiness::new();
    let admin =
        Admin::new(&readiness, &Metrics::new("demo")).route("/names", |_| Answer::json(&["a"]));
    (readiness, admin)
}

#[tokio::test]
async fn ready_says_what_it_waits_for_and_live_does_not_care() {
    let (readiness, admin) = demo();
    let part = readiness.part("feed");
    part.waiting_for("ca-server at 10.0.0.1:8443");
    let (_tasks, address) = start(admin).await;
    let answer = ask(address, "GET /ready HTTP/1.1\r\nHost: localhost").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(
        answer.ends_with("waiting for feed: ca-server at 10.0.0.1:8443\n"),
        "{answer}"
    );
    assert!(
        ask(address, "GET /live HTTP/1.1\r\nHost: localhost")
            .await
            .starts_with("HTTP/1.1 200")
    );
    let _feed = part.done();
    assert!(
        ask(address, "GET /ready HTTP/1.1\r\nHost: localhost")
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test(start_paused = true)]
async fn a_stuck_pulse_makes_the_program_not_live() {
    let (_, admin) = demo();
    let liveness = Liveness::new();
    let _pulse = liveness.pulse("rotation", Duration::from_millis(1));
    tokio::time::advance(Duration::from_millis(2)).await;
    let (_tasks, address) = start(admin.liveness(&liveness)).await;
    let answer = ask(address, "GET /live HTTP/1.1\r\nHost: localhost").await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.ends_with("stuck rotation\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn metrics_are_classic_text_unless_open_metrics_is_asked_for() {
    let (_, admin) = demo();
    let (_tasks, address) = start(admin).await;
    let classic = ask(address, "GET /metrics HTTP/1.1\r\nHost: localhost").await;
    assert!(
        classic.contains("text/plain; version=0.0.4") && classic.contains("demo_build_info"),
        "{classic}"
    );
    let open = ask(
        address,
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text",
    )
    .await;
    assert!(
        open.contains("application/openmetrics-text") && open.ends_with("# EOF\n"),
        "{open}"
    );
}

#[tokio::test]
async fn a_programs_route_refuses_a_foreign_host_name_and_unknown_paths_are_not_found() {
    let (_, admin) = demo();
    let (_tasks, address) = start(admin).await;
    assert!(
        ask(address, "GET /names HTTP/1.1\r\nHost: 127.0.0.1:9464")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        ask(address, "GET /names HTTP/1.1\r\nHost: [::1]:9464")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        ask(address, "GET /names HTTP/1.1\r\nHost: evil.example")
            .await
            .starts_with("HTTP/1.1 403")
    );
    assert!(
        ask(address, "GET /other HTTP/1.1\r\nHost: localhost")
            .await
            .starts_with("HTTP/1.1 404")
    );
    assert!(
        ask(
            address,
            "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0"
        )
        .await
        .starts_with("HTTP/1.1 405")
    );
}

#[tokio::test]
async fn m_4_a_client_that_sends_nothing_is_closed() {
    let (_, admin) = demo();
    let (_tasks, address) = start(admin).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    silent.write_all(b"GET /live HT").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    tokio::time::pause();
    // Paused time jumps to the header timeout; the server then closes.
    let mut rest = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(60), silent.read_to_end(&mut rest)).await;
    assert!(end.is_ok(), "still open after 60 s");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let (_, admin) = demo();
    let (_tasks, address) = start(admin.clone()).await;
    let error = admin.bind(address).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot bind the admin port {address}")
    );
}

#[tokio::test]
async fn a_probe_gets_status_and_reason_and_gives_up_on_silence() {
    let (readiness, admin) = demo();
    let _part = readiness.part("feed");
    let (_tasks, address) = start(admin).await;
    let (status, body) = probe(address, "/ready", Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(
        (status, body.as_str()),
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "waiting for feed: starting\n"
        )
    );
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = probe(
        silent.local_addr().unwrap(),
        "/ready",
        Duration::from_millis(50),
    )
    .await
    .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}
