//! The authority's admin socket and the agent's workload socket, as programs use them: gRPC over a Unix socket.

use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use proto::spire::api::{
    server::entry::v1::{BatchCreateEntryRequest, entry_client::EntryClient},
    types::{Entry, Selector, Spiffeid},
};
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Error, Uri},
};

/// A channel to the server behind `socket`.
pub async fn connect(socket: PathBuf) -> Result<Channel, Error> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://socket.invalid")
        .connect_with_connector(connector)
        .await
}

/// A SPIFFE ID of the trust domain of dev mode, on the wire.
pub fn id(path: &str) -> Option<Spiffeid> {
    Some(Spiffeid {
        trust_domain: finial::dev::files::TRUST_DOMAIN.into(),
        path: path.into(),
    })
}

/// An entry on the wire.
pub fn entry(id: &str, path: &str, parent: &str, selector: (&str, &str)) -> Entry {
    Entry {
        id: id.to_owned(),
        spiffe_id: self::id(path),
        parent_id: self::id(parent),
        selectors: vec![Selector {
            r#type: selector.0.into(),
            value: selector.1.into(),
        }],
        ..Entry::default()
    }
}

/// Creates one entry and returns when it is acknowledged. `Err` if the call failed; a refusal is a panic.
pub async fn create(client: &mut EntryClient<Channel>, entry: Entry) -> Result<(), Status> {
    let id = entry.id.clone();
    let request = BatchCreateEntryRequest {
        entries: vec![entry],
        output_mask: None,
    };
    let answer = client.batch_create_entry(request).await?.into_inner();
    let status = answer
        .results
        .first()
        .and_then(|result| result.status.as_ref());
    assert!(
        status.is_some_and(|status| status.code == 0),
        "entry {id} was refused: {status:?}"
    );
    Ok(())
}
