//! Decides which TLS is spoken: version, key exchange, what the first message says, and that nothing is ever resumed.
//! Trusts rustls's own reader of a ClientHello.
//! Never looks at a private setting: only at what a peer can see.

use std::sync::{Arc, Mutex};

use mesh_tls::{
    Authorizer, ClientPolicy, HandshakeError, accept, client_config, connect, server_config,
    server_name,
};
use rustls::{
    ClientConnection, HandshakeKind, NamedGroup, ServerConnection, SignatureScheme,
    client::{
        ClientSessionStore, ResolvesClientCert, Resumption, Tls12ClientSessionValue,
        Tls13ClientSessionValue,
    },
    server::Acceptor,
    sign::CertifiedKey,
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use crate::common::{PAY, Pair, Raw, WEB, World, clock, id, meet, meet_well};

/// What is preferred, and what a test of preference may offer.
#[cfg(not(feature = "ring-only"))]
const GROUPS: &[&str] = &["X25519MLKEM768", "X25519", "secp256r1"];
#[cfg(feature = "ring-only")]
const GROUPS: &[&str] = &["X25519", "secp256r1"];

#[track_caller]
fn assert_full_handshake(pair: &Pair) {
    assert_eq!(
        pair.server.0.get_ref().1.handshake_kind(),
        Some(HandshakeKind::Full)
    );
    assert_eq!(
        pair.client.0.get_ref().1.handshake_kind(),
        Some(HandshakeKind::Full)
    );
}

#[tokio::test]
async fn the_first_choice_is_the_post_quantum_hybrid() {
    let world = World::new();
    let pair = meet_well(&world.server(), &world.client()).await;
    assert_full_handshake(&pair);
    let session = &pair.client.1.session;
    assert_eq!(session.key_exchange, GROUPS[0]);
    assert_eq!(session.cipher, "TLS13_AES_256_GCM_SHA384");
    assert_eq!(session.is_post_quantum(), cfg!(not(feature = "ring-only")));
    assert_eq!(&pair.server.1.unwrap().session, session);
}

#[tokio::test]
async fn each_accepted_key_exchange_is_a_fallback_on_both_sides() {
    let world = World::new();
    for group in GROUPS {
        let client = Raw::new(&world.web).only_groups(&[group]).client();
        let (accepted, _) = meet(&world.server(), &client.into()).await;
        assert_eq!(accepted.unwrap().1.unwrap().session.key_exchange, *group);

        let server = Raw::new(&world.pay).only_groups(&[group]).server();
        let (_, connected) = meet(&server.into(), &world.client()).await;
        assert_eq!(connected.unwrap().1.session.key_exchange, *group);
    }
}

#[cfg(not(feature = "ring-only"))]
#[tokio::test]
async fn x25519_alone_costs_no_extra_round_trip() {
    let world = World::new();
    let server = Raw::new(&world.pay).only_groups(&["X25519"]).server();
    let pair = meet_well(&server.into(), &world.client()).await;
    assert_full_handshake(&pair); // and not FullWithHelloRetryRequest
}

/// Reads the first message of a client with our configuration.
fn first_message(client: &Arc<mesh_tls::ClientConfig>) -> rustls::server::Accepted {
    let mut connection = ClientConnection::new(Arc::clone(client), server_name()).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut bytes.as_slice()).unwrap();
    acceptor.accept().unwrap().expect("a whole ClientHello")
}

#[test]
fn the_first_message_names_no_server_and_offers_the_groups_in_order() {
    let world = World::new();
    let exactly = Authorizer::exactly(id(PAY));
    let client = client_config(
        &world.cell(&world.web),
        exactly,
        &[b"h2", b"http/1.1"],
        clock(),
    );
    let accepted = first_message(&client);
    let hello = accepted.client_hello();
    assert_eq!(hello.server_name(), None);
    let groups: Vec<_> = hello
        .named_groups()
        .unwrap()
        .iter()
        .map(|g| g.as_str().unwrap())
        .collect();
    assert_eq!(groups, GROUPS);
    let alpn: Vec<_> = hello.alpn().unwrap().collect();
    assert_eq!(alpn, [b"h2".as_slice(), b"http/1.1"]);
    assert!(hello.cipher_suites().iter().all(|suite| {
        let name = suite.as_str().unwrap();
        name.starts_with("TLS13_") || name == "TLS_EMPTY_RENEGOTIATION_INFO_SCSV"
    }));
    assert!(
        !hello
            .signature_schemes()
            .contains(&SignatureScheme::RSA_PKCS1_SHA1)
    );
    assert!(
        !hello
            .signature_schemes()
            .contains(&SignatureScheme::ECDSA_SHA1_Legacy)
    );
    assert!(
        hello.certificate_authorities().is_none(),
        "our roots are nobody's business"
    );
}

#[tokio::test]
async fn the_application_protocol_is_the_servers_choice_and_a_mismatch_is_refused() {
    let world = World::new();
    let server = |alpn: &[&[u8]]| {
        let anyone = ClientPolicy::Required(Authorizer::any_verified());
        server_config(&world.cell(&world.pay), anyone, alpn, clock())
    };
    let client = |alpn: &[&[u8]]| {
        client_config(
            &world.cell(&world.web),
            Authorizer::exactly(id(PAY)),
            alpn,
            clock(),
        )
    };
    let pair = meet_well(
        &server(&[b"h2", b"http/1.1"]),
        &client(&[b"http/1.1", b"h2"]),
    )
    .await;
    assert_eq!(
        pair.client.1.session.alpn.as_deref(),
        Some(b"h2".as_slice())
    );
    let pair = meet_well(&server(&[b"h2"]), &client(&[])).await;
    assert_eq!(pair.client.1.session.alpn, None);
    let (refused, _) = meet(&server(&[b"h2"]), &client(&[b"http/1.1"])).await;
    assert_eq!(refused.unwrap_err().code(), "FNL0414");
}

/// A TLS 1.2 ClientHello, written by hand: no supported_versions, ECDHE-ECDSA with AES-128-GCM, P-256.
fn tls12_hello() -> Vec<u8> {
    let extensions: &[u8] = &[
        0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x17, // supported_groups: secp256r1
        0x00, 0x0b, 0x00, 0x02, 0x01, 0x00, // ec_point_formats: uncompressed
        0x00, 0x0d, 0x00, 0x04, 0x00, 0x02, 0x04,
        0x03, // signature_algorithms: ecdsa_secp256r1_sha256
    ];
    let mut body = vec![0x03, 0x03];
    body.extend([7; 32]); // random
    body.push(0); // no session id
    body.extend([0x00, 0x02, 0xc0, 0x2b]); // one suite
    body.extend([0x01, 0x00]); // no compression
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut message = vec![0x01, 0x00];
    message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    message.extend(body);
    let mut record = vec![0x16, 0x03, 0x01];
    record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    record.extend(message);
    record
}

#[tokio::test]
async fn a_tls_1_2_client_is_refused_with_protocol_version() {
    let world = World::new();
    let (here, mut there) = duplex(4096);
    there.write_all(&tls12_hello()).await.unwrap();
    let error = accept(&world.server(), here).await.unwrap_err();
    assert!(
        matches!(error, HandshakeError::Incompatible(_)),
        "{error:?}"
    );
    let mut answer = Vec::new();
    there.read_to_end(&mut answer).await.unwrap();
    assert_eq!(
        answer,
        [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 70],
        "a fatal alert, protocol_version"
    );
}

#[tokio::test]
async fn a_tls_1_2_server_is_refused() {
    let world = World::new();
    let (here, mut there) = duplex(64 * 1024);
    let client = world.client();
    let server = async {
        let mut hello = [0; 5];
        there.read_exact(&mut hello).await.unwrap();
        // ServerHello 1.2: version, random, no session id, ECDHE-ECDSA-AES128-GCM, no compression, no extensions.
        let mut body = vec![0x03, 0x03];
        body.extend([9; 32]);
        body.extend([0x00, 0xc0, 0x2b, 0x00]);
        let mut message = vec![0x02, 0x00, 0x00, u8::try_from(body.len()).unwrap()];
        message.extend(body);
        let mut record = vec![0x16, 0x03, 0x03, 0x00, u8::try_from(message.len()).unwrap()];
        record.extend(message);
        there.write_all(&record).await.unwrap();
        there
    };
    let (error, _open) = tokio::join!(connect(&client, here), server);
    let error = error.unwrap_err();
    assert!(
        matches!(
            error,
            HandshakeError::Incompatible(_) | HandshakeError::NotTls(_)
        ),
        "{error:?}"
    );
}

/// Counts the tickets that a server sends and offers none.
#[derive(Debug, Default)]
struct Tickets(Mutex<usize>);

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {
        unreachable!("TLS 1.3 only");
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, _: Tls13ClientSessionValue) {
        *self.0.lock().unwrap() += 1;
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        None
    }
}

#[tokio::test]
async fn no_ticket_is_sent() {
    let world = World::new();
    let count = async |server: &Arc<mesh_tls::ServerConfig>| {
        let tickets = Arc::new(Tickets::default());
        let mut client = Raw::new(&world.web).client();
        client.resumption = Resumption::store(tickets.clone());
        meet_well(server, &Arc::new(client)).await.talk().await;
        *tickets.0.lock().unwrap()
    };
    assert_eq!(count(&world.server()).await, 0);
    let default = Arc::new(Raw::new(&world.pay).server());
    assert!(count(&default).await > 0, "the counter counts");
}

#[tokio::test]
async fn neither_side_resumes_although_the_other_would() {
    let world = World::new();
    let eager_client = Arc::new(Raw::new(&world.web).client());
    let eager_server = Arc::new(Raw::new(&world.pay).server());
    for (server, client) in [
        (&world.server(), &eager_client),
        (&eager_server, &world.client()),
    ] {
        for _ in 0..3 {
            let mut pair = meet_well(server, client).await;
            pair.talk().await;
            assert_full_handshake(&pair);
        }
    }
    // Two eager ends do resume: the test would see it.
    meet_well(&eager_server, &eager_client).await.talk().await;
    let pair = meet_well(&eager_server, &eager_client).await;
    assert_eq!(
        pair.server.0.get_ref().1.handshake_kind(),
        Some(HandshakeKind::Resumed)
    );
}

#[test]
fn early_data_is_neither_offered_nor_accepted() {
    let world = World::new();
    let (server, client) = (world.server(), world.client());
    assert_eq!(server.max_early_data_size, 0);
    assert!(!client.enable_early_data);
    let mut connection = ClientConnection::new(client, server_name()).unwrap();
    assert!(connection.early_data().is_none());
    let mut connection = ServerConnection::new(server).unwrap();
    assert!(connection.early_data().is_none());
}

#[test]
fn session_secrets_are_not_logged() {
    let world = World::new();
    // px_05: SSLKEYLOGFILE in the environment has no effect.
    assert!(!world.server().key_log.will_log("CLIENT_RANDOM"));
    assert!(!world.client().key_log.will_log("CLIENT_RANDOM"));
}

/// Notes which authorities a server asks for.
#[derive(Debug, Default)]
struct Hints(Mutex<Option<usize>>);

impl ResolvesClientCert for Hints {
    fn resolve(&self, hints: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        *self.0.lock().unwrap() = Some(hints.len());
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_stranger_is_not_told_which_authorities_are_trusted() {
    let world = World::new();
    let hints = Arc::new(Hints::default());
    let mut client = Raw::nobody().client();
    client.client_auth_cert_resolver = hints.clone();
    drop(meet(&world.server(), &Arc::new(client)).await);
    assert_eq!(*hints.0.lock().unwrap(), Some(0));
}

#[test]
fn a_peer_is_not_known_before_the_handshake_is_finished() {
    let world = World::new();
    let mut client = ClientConnection::new(world.client(), server_name()).unwrap();
    let mut server = ServerConnection::new(world.server()).unwrap();
    assert!(mesh_tls::Peer::from_server_conn(&server).is_none());
    let mut early = false;
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().unwrap();
            if server.is_handshaking() {
                early |= mesh_tls::Peer::from_server_conn(&server).is_some();
            }
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    assert!(!early);
    assert_eq!(
        mesh_tls::Peer::from_server_conn(&server).unwrap().id,
        id(WEB)
    );
    assert_eq!(
        mesh_tls::Peer::from_client_conn(&client).unwrap().id,
        id(PAY)
    );
}
