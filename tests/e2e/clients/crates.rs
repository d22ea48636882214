//! The crates `spiffe` and `spiffe-rustls`: this very process is the workload, which calls our proxy and is called by it.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use finial::dev::{files, http::send};
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, client, server, service::service_fn};
use hyper_util::rt::TokioIo;
use mesh_tests::echo::Echo;
use spiffe::{WorkloadApiClient, X509Source};
use spiffe_rustls::{exact, mtls_client, mtls_server};
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, rustls::ServerConfig};
use tokio_stream::StreamExt;

use super::*;

const SHOP: &str = "spiffe://dev.test/shop";
const PAY: &str = "spiffe://dev.test/pay";
const TILL: &str = "spiffe://dev.test/till";

#[tokio::test(flavor = "multi_thread")]
async fn ag_13_the_crates_for_rust_call_our_proxy_and_are_called_by_it_through_three_rotations() {
    let world = World::start(short).await;
    let own = std::env::current_exe().expect("the path of this test");
    world.entry("shop", &own.display().to_string());
    let app = Echo::start().await;
    let pay = world.pay(app.address()).await;

    let socket = format!("unix:{}", world.file("agent.sock"));
    tokens_and_bundles(&socket).await;
    let source = X509Source::builder().endpoint(&socket).build();
    let source = source.await.expect("an identity");
    assert_eq!(
        source.svid().expect("an SVID").spiffe_id().to_string(),
        SHOP
    );

    let server = mtls_server(source.clone())
        .authorize(exact([TILL]).expect("an ID"))
        .with_alpn_protocols([b"http/1.1"])
        .build()
        .expect("a server's configuration");
    let own = listen(server).await;
    let config = files::caller(&world.text(), "till", &own).replace(PAY, SHOP);
    let till = world.proxy("till", &config).await;
    let stranger = files::caller(&world.text(), "stranger", &own).replace(PAY, SHOP);
    let stranger = world.proxy("stranger", &stranger).await;

    let client = mtls_client(source.clone())
        .authorize(exact([PAY]).expect("an ID"))
        .build()
        .expect("a client's configuration");
    let client = TlsConnector::from(Arc::new(client));
    let mut seen = BTreeSet::new();
    let until = Instant::now() + Duration::from_secs(90);
    while seen.len() < CERTIFICATES {
        assert!(Instant::now() < until, "only {} certificates", seen.len());
        let svid = source.svid().expect("an SVID");
        seen.insert(svid.leaf().as_bytes().to_vec());
        let status = call(&client, pay.address("inbound")).await;
        assert_eq!(status.expect("an answer from our proxy"), 200);
        let answer = send(till.address("outbound.pay"), "POST", "/charge").await;
        assert_eq!(answer.expect("an answer through our proxy").status, 200);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    let nobody = mtls_client(source.clone())
        .authorize(exact([TILL]).expect("an ID"))
        .build()
        .expect("a client's configuration");
    let refused = call(
        &TlsConnector::from(Arc::new(nobody)),
        pay.address("inbound"),
    )
    .await;
    assert!(refused.is_err(), "the client took pay for the till");
    let answer = send(stranger.address("outbound.pay"), "POST", "/charge").await;
    let status = answer.expect("an answer of our proxy").status;
    assert!(
        [502, 503].contains(&status),
        "the server took a stranger: {status}"
    );
    source.shutdown().await;
}

async fn tokens_and_bundles(socket: &str) {
    let client = WorkloadApiClient::connect_to(socket);
    let client = client.await.expect("a connection");
    let domain = "dev.test".try_into().expect("a trust domain");
    let token = client.fetch_jwt_svid(["bank"], None).await;
    let token = token.expect("a token");
    assert_eq!(token.spiffe_id().to_string(), SHOP);
    let valid = client.validate_jwt_token("bank", token.token()).await;
    assert_eq!(valid.expect("a valid token").spiffe_id().to_string(), SHOP);
    let wrong = client.validate_jwt_token("somebody else", token.token());
    assert!(wrong.await.is_err());
    let keys = client.fetch_jwt_bundles().await.expect("JWT bundles");
    let keys = keys.get(&domain).expect("the own one");
    assert!(keys.find_jwt_authority(token.key_id()).is_some());
    let roots = client.fetch_x509_bundles().await.expect("X.509 bundles");
    let roots = roots.get(&domain).expect("the own one");
    let mut contexts = client.stream_x509_contexts().await.expect("a stream");
    let first = contexts.next().await.expect("a state").expect("in order");
    assert_eq!(
        first.default_svid().expect("one").spiffe_id().to_string(),
        SHOP
    );
    assert_eq!(first.bundle_set().get(&domain), Some(roots));
}

/// One request on a connection of its own; its status.
async fn call(connector: &TlsConnector, address: &str) -> io::Result<u16> {
    let stream = TcpStream::connect(address).await?;
    let name = "pay.test".try_into().expect("a name");
    let stream = connector.connect(name, stream).await?;
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(connection);
    let request = Request::post("/charge").header("host", "pay.test");
    let request = request.body(Full::new(Bytes::new())).expect("a request");
    let response = sender.send_request(request).await;
    Ok(response.map_err(io::Error::other)?.status().as_u16())
}

/// A server that answers every request with 200; where it listens.
async fn listen(config: ServerConfig) -> String {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let answer = service_fn(async |_: Request<Incoming>| {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
                });
                server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer)
                    .await
                    .ok();
            });
        }
    });
    address
}
