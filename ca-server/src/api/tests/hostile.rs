//! What a stranger on the network, and an agent that is not to be trusted, can call: what the permit table says, and not too much of it.

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic_prost::ProstCodec;

use super::super::caller::Kind;
use super::super::permit;
use super::*;

/// Calls an RPC with an empty message; any message means the same to the guard.
async fn call(channel: &Channel, path: &'static str) -> Code {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static(path);
    let codec = ProstCodec::<(), ()>::default();
    match grpc.unary(tonic::Request::new(()), path, codec).await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

#[tokio::test]
async fn ca_27_a_scan_from_the_network_finds_only_what_the_permit_table_opens() {
    let server = Server::start().await;
    let agent = server.join().await;
    let stranger = server.anonymous().await;
    for (kind, channel) in [(Kind::Anonymous, &stranger), (Kind::Agent, &agent.channel)] {
        for row in permit::TABLE {
            let code = call(channel, row.path).await;
            match () {
                () if row.callers.is_empty() => {
                    assert_eq!(code, Code::Unimplemented, "{}", row.path)
                }
                () if row.callers.contains(&kind) => {
                    assert!(
                        !matches!(code, Code::PermissionDenied | Code::Unimplemented),
                        "{}: {code:?}",
                        row.path
                    );
                }
                () => assert_eq!(code, Code::PermissionDenied, "{kind:?} {}", row.path),
            }
        }
        for path in [
            "/grpc.channelz.v1.Channelz/GetServers",
            "/debug/pprof/heap",
            "/metrics",
            "/spire.api.server.svid.v1.SVID/",
        ] {
            assert_eq!(call(channel, path).await, Code::Unimplemented, "{path}");
        }
    }
}

fn ask(payload: Vec<u8>, csr: Vec<u8>) -> agent_wire::AttestAgentRequest {
    let params = agent_wire::attest_agent_request::Params {
        data: Some(types::AttestationData {
            r#type: "join_token".into(),
            payload,
        }),
        params: Some(agent_wire::AgentX509svidParams { csr }),
    };
    agent_wire::AttestAgentRequest {
        step: Some(attest_agent_request::Step::Params(params)),
    }
}

#[tokio::test]
async fn ca_48_a_thousand_streams_and_what_is_too_large_are_refused_and_others_are_served() {
    let server = Server::with(|config| config.limits.streams_per_connection = 100).await;
    let stranger = server.anonymous().await;
    let attest = |request: tonic::Request<
        futures::stream::BoxStream<'static, agent_wire::AttestAgentRequest>,
    >| {
        let mut client = AgentClient::new(stranger.clone()).max_encoding_message_size(usize::MAX);
        async move { client.attest_agent(request).await.map(drop) }
    };
    let once = |payload: Vec<u8>| {
        tonic::Request::new(tokio_stream::once(ask(payload, key_and_csr().1)).boxed())
    };

    let too_large = attest(once(vec![b'x'; 4 * 1024 * 1024 + 1])).await;
    assert_eq!(too_large.unwrap_err().code(), Code::OutOfRange);

    let mut talkative = once(b"token".to_vec());
    let megabyte = MetadataValue::try_from("x".repeat(1024 * 1024)).unwrap();
    talkative.metadata_mut().insert("x-large", megabyte);
    assert!(attest(talkative).await.is_err());

    let mut packed = once(b"token".to_vec());
    packed
        .metadata_mut()
        .insert("grpc-encoding", MetadataValue::from_static("gzip"));
    assert_eq!(
        attest(packed).await.unwrap_err().code(),
        Code::Unimplemented
    );

    // A thousand calls on one connection that never send what they have announced: a hundred are taken, the others wait for them.
    let mut silent: FuturesUnordered<_> = (0..1000)
        .map(|_| {
            let mut client = AgentClient::new(stranger.clone());
            async move {
                client
                    .attest_agent(futures::stream::pending())
                    .await
                    .map(drop)
            }
        })
        .collect();
    let honest = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        tokio::time::timeout(Duration::from_secs(10), server.join()).await
    };
    let served = tokio::select! {
        served = honest => served,
        () = async { while silent.next().await.is_some() {} } => panic!("all thousand were answered"),
    };
    assert!(served.is_ok(), "an honest agent is served meanwhile");
}
