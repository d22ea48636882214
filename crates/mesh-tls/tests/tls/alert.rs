//! Decides whether a client that was refused after its handshake learns why, over real sockets.
//! Trusts the kernel to deliver what came before a reset.
//! Never sleeps.

use std::{error::Error as StdError, fmt, sync::Arc};

use mesh_tls::{
    AlertDescription, Authorizer, ClientPolicy, ServerConfig, accept, alert_in, connect,
    server_config,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::common::{PAY, World, clock, id, meet_well};

/// A server on a real socket that refuses one client.
async fn refusing(config: Arc<ServerConfig>) -> (TcpStream, JoinHandle<&'static str>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        accept(&config, socket).await.unwrap_err().code()
    });
    (TcpStream::connect(address).await.unwrap(), server)
}

fn only_pay(world: &World) -> Arc<ServerConfig> {
    let only = ClientPolicy::Required(Authorizer::exactly(id(PAY)));
    server_config(&world.cell(&world.pay), only, &[], clock())
}

#[tokio::test]
async fn a_refused_client_that_reads_learns_the_alert() {
    let world = World::new();
    let (socket, server) = refusing(only_pay(&world)).await;
    let (mut stream, _) = connect(&world.client(), socket).await.unwrap();
    let slot = stream.alert();
    assert!(slot.get().is_none());
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(alert_in(&error), Some(AlertDescription::AccessDenied));
    assert_eq!(slot.get().unwrap().0, AlertDescription::AccessDenied);
    assert_eq!(
        slot.get().unwrap().to_string(),
        "the other end refused the connection with the TLS alert access_denied"
    );
    assert_eq!(server.await.unwrap(), "FNL0410");
}

#[tokio::test]
async fn a_refused_client_that_only_writes_learns_the_alert() {
    let world = World::new();
    let (socket, server) = refusing(only_pay(&world)).await;
    let (mut stream, _) = connect(&world.client(), socket).await.unwrap();
    let slot = stream.alert();
    server.await.unwrap();
    let error = loop {
        let written = match stream.write_all(&[0; 16 * 1024]).await {
            Ok(()) => stream.flush().await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            break error;
        }
    };
    assert_eq!(
        alert_in(&error),
        Some(AlertDescription::AccessDenied),
        "{error:?}"
    );
    assert_eq!(slot.get().unwrap().0, AlertDescription::AccessDenied);
}

#[tokio::test]
async fn an_end_without_an_alert_is_not_called_a_refusal() {
    let world = World::new();
    let pair = meet_well(&world.server(), &world.client()).await;
    let (mut stream, _) = pair.client;
    drop(pair.server);
    let slot = stream.alert();
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(alert_in(&error), None);
    assert!(slot.get().is_none());
}

#[tokio::test]
async fn an_answer_that_came_before_the_end_is_still_readable_after_a_failed_write() {
    let world = World::new();
    let mut pair = meet_well(&world.server(), &world.client()).await;
    pair.server.0.write_all(b"too large").await.unwrap();
    pair.server.0.flush().await.unwrap();
    drop(pair.server);
    let (mut stream, _) = pair.client;
    let mut failed = false;
    for _ in 0..16 {
        failed |= stream.write_all(&[0; 16 * 1024]).await.is_err();
    }
    assert!(failed);
    let mut answer = [0; 9];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"too large");
}

#[test]
fn the_alert_is_found_below_the_errors_of_libraries() {
    #[derive(Debug)]
    struct Canceled(std::io::Error);
    impl fmt::Display for Canceled {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("operation was canceled")
        }
    }
    impl StdError for Canceled {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&self.0)
        }
    }
    let tls = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
    let error = Canceled(std::io::Error::other(std::io::Error::other(tls)));
    assert_eq!(alert_in(&error), Some(AlertDescription::UnknownCA));
    assert_eq!(alert_in(&Canceled(std::io::Error::other("no"))), None);
}
