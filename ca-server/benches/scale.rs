//! What a full house costs the real program: attestations, entry writes, a list of 100 000 entries, a start on top of them,
//! and the feed to a thousand and to five thousand agents, beside the rate of `fdatasync` on the same disk in the same run.
//! `cargo bench -p ca-server --bench scale [FOLDER]`: the folder decides which disk is written (default: target/tmp).

mod support;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use hyper_util::rt::TokioIo;
use mesh_identity::SpiffeId;
use mesh_runtime::clock::Clock;
use proto::finial::feed::v1::feed_client::FeedClient;
use proto::finial::feed::v1::{Ack, FollowRequest, Hello, follow_request};
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::entry::v1::{BatchCreateEntryRequest, ListEntriesRequest};
use proto::spire::api::types;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use self::support::{Node, Nodes, Server};

/// Agents of the first and of the second house.
const AGENTS: usize = 1000;
const MANY_AGENTS: usize = 5000;

/// Entries of each agent.
const EACH: usize = 100;

/// Entries in one call.
const BATCH: usize = 50;

/// Entries that are created one by one while the agents listen.
const SAMPLES: usize = 500;

fn main() {
    mesh_tls::install_default_provider();
    let folder = support::folder();
    let (pair, _) = support::limits();
    println!(
        "limits: {pair:.0} verifications + signatures per CPU second of one core, {:.0} fdatasync of one page per second",
        syncs(folder.path())
    );
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let first = folder.path().join("first");
    std::fs::create_dir(&first).expect("a folder");
    runtime.block_on(async {
        let server = Server::start(&first);
        println!(
            "ca-server idle: {:.1} MB, {:.3} s of CPU",
            server.resident_mb(),
            server.cpu()
        );
        house(&server, AGENTS).await;
        list(&server).await;
        under_one_parent(&server).await;
    });
    let start = Clock::system().monotonic();
    let server = Server::start(&first);
    println!(
        "start with {} entries: {:.0} ms, {:.1} MB",
        AGENTS * EACH,
        start.elapsed().as_secs_f64() * 1e3,
        server.resident_mb()
    );
    drop(server);
    std::fs::remove_dir_all(&first).expect("removed");
    runtime.block_on(async {
        let second = folder.path().join("second");
        std::fs::create_dir(&second).expect("a folder");
        let server = Server::start(&second);
        house(&server, MANY_AGENTS).await;
    });
}

/// What an agent was told: the ID of an entry, and when.
type Heard = mpsc::UnboundedReceiver<(String, Instant)>;

/// Fills a server with agents that follow the feed, gives each its entries, and measures what one more entry takes.
async fn house(server: &Server, agents: usize) {
    let (nodes, mut heard) = follow(server, agents).await;
    println!(
        "{agents} agents follow: {:.1} MB of ca-server",
        server.resident_mb()
    );
    informed(server, &nodes, &mut heard, "none").await;
    entries(server, &nodes, &mut heard).await;
    println!(
        "{agents} agents follow, {EACH} entries each: {:.1} MB of ca-server",
        server.resident_mb()
    );
    informed(server, &nodes, &mut heard, "all").await;
}

/// Attests agents and lets each follow the feed.
async fn follow(server: &Server, count: usize) -> (Vec<Node>, Heard) {
    let nodes = Arc::new(Nodes::of(server).await);
    let tokens: Vec<String> = stream::iter(0..count)
        .map(|_| nodes.token())
        .buffered(16)
        .collect()
        .await;
    let (cpu, start) = (server.cpu(), Clock::system().monotonic());
    let attested: Vec<Node> = stream::iter(tokens)
        .map(|token| {
            let nodes = nodes.clone();
            async move { nodes.attest(token).await }
        })
        .buffered(16)
        .collect()
        .await;
    let took = start.elapsed().as_secs_f64();
    println!(
        "attestations by join token, a TLS connection each: {:.0}/s, {:.2} ms of CPU each",
        count as f64 / took,
        (server.cpu() - cpu) * 1e3 / count as f64
    );
    let (tell, mut heard) = mpsc::unbounded_channel();
    stream::iter(&attested)
        .map(|node| {
            let (nodes, tell) = (nodes.clone(), tell.clone());
            async move { listen(nodes.connect(node).await, tell).await }
        })
        .buffered(16)
        .collect::<Vec<()>>()
        .await;
    // Each was told the bundle and nothing else.
    assert!(heard.try_recv().is_err());
    (attested, heard)
}

/// Follows the feed as an agent does: it acknowledges each update, and tells of each entry. Returns after the first one.
async fn listen(channel: Channel, tell: mpsc::UnboundedSender<(String, Instant)>) {
    let (ask, asked) = mpsc::channel(4);
    let hello = follow_request::Message::Hello(Hello::default());
    ask.send(FollowRequest {
        message: Some(hello),
    })
    .await
    .expect("there is room");
    let requests = tokio_stream::wrappers::ReceiverStream::new(asked);
    let mut client = FeedClient::new(channel);
    let mut updates = client
        .follow(requests)
        .await
        .expect("followed")
        .into_inner();
    let (ready, first) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut ready, clock, _open) = (Some(ready), Clock::system(), client);
        while let Ok(Some(update)) = updates.message().await {
            let now = clock.monotonic();
            for entry in update.upserted_entries {
                tell.send((entry.id, now)).ok();
            }
            if update.more {
                continue;
            }
            let ack = follow_request::Message::Ack(Ack {
                revision: update.revision,
                refused_because: String::new(),
            });
            ask.send(FollowRequest { message: Some(ack) }).await.ok();
            ready.take().map(|ready| ready.send(()));
        }
    });
    first.await.expect("the first update came");
}

/// From the call that creates an entry to the agent that was told of it.
async fn informed(server: &Server, nodes: &[Node], heard: &mut Heard, there: &str) {
    let mut client = EntryClient::new(admin(server).await);
    let clock = Clock::system();
    let mut took = Vec::with_capacity(SAMPLES);
    for number in 0..SAMPLES {
        let node = &nodes[number * 7 % nodes.len()];
        let called = clock.monotonic();
        let made = create(
            &mut client,
            vec![entry(&node.id, &format!("{there}-{number}"))],
        )
        .await;
        let (id, at) = heard.recv().await.expect("an agent hears of it");
        assert_eq!(id, made[0]);
        took.push(at.duration_since(called));
    }
    took.sort();
    println!(
        "entry created to agent informed, {} agents, {there} of their entries there: p50 {:.2} ms, p99 {:.2} ms",
        nodes.len(),
        took[SAMPLES / 2].as_secs_f64() * 1e3,
        took[SAMPLES * 99 / 100].as_secs_f64() * 1e3
    );
}

/// Gives each agent its entries, in batches, and waits until all agents know.
async fn entries(server: &Server, nodes: &[Node], heard: &mut Heard) {
    let mut client = EntryClient::new(admin(server).await);
    let (cpu, start) = (server.cpu(), Clock::system().monotonic());
    for node in nodes {
        for batch in 0..EACH / BATCH {
            let names = (0..BATCH).map(|one| format!("w{batch}-{one}"));
            create(
                &mut client,
                names.map(|name| entry(&node.id, &name)).collect(),
            )
            .await;
        }
    }
    let (written, count) = (start.elapsed().as_secs_f64(), nodes.len() * EACH);
    for _ in 0..count {
        heard.recv().await.expect("an agent hears of it");
    }
    println!(
        "{count} entries in batches of {BATCH}, one caller, {} agents follow: {:.0}/s, {:.3} ms of CPU each; all told {:.0} ms after the last",
        nodes.len(),
        count as f64 / written,
        (server.cpu() - cpu) * 1e3 / count as f64,
        (start.elapsed().as_secs_f64() - written) * 1e3
    );
}

/// Ten thousand entries of one parent, and one by one: neither may grow with what is there.
async fn under_one_parent(server: &Server) {
    let mut client = EntryClient::new(admin(server).await);
    let parent: SpiffeId = "spiffe://bench.test/one".parse().expect("an ID");
    for (per_call, calls) in [(BATCH, 200), (1, 1000)] {
        let part = calls / 4;
        let mut costs = Vec::new();
        for quarter in 0..4 {
            let (cpu, start) = (server.cpu(), Clock::system().monotonic());
            for call in 0..part {
                let names = (0..per_call).map(|one| format!("p{per_call}-{quarter}-{call}-{one}"));
                create(
                    &mut client,
                    names.map(|name| entry(&parent, &name)).collect(),
                )
                .await;
            }
            let count = (part * per_call) as f64;
            costs.push((
                (server.cpu() - cpu) * 1e3 / count,
                count / start.elapsed().as_secs_f64(),
            ));
        }
        println!(
            "under one parent, {per_call} per call: {:.3} ms of CPU and {:.0}/s in the first quarter, {:.3} ms and {:.0}/s in the last",
            costs[0].0, costs[0].1, costs[3].0, costs[3].1
        );
    }
}

/// Everything there is, page by page, as SPIRE's command line asks.
async fn list(server: &Server) {
    let mut client =
        EntryClient::new(admin(server).await).max_decoding_message_size(64 * 1024 * 1024);
    let (cpu, start) = (server.cpu(), Clock::system().monotonic());
    let (mut count, mut pages, mut page_token) = (0, 0, String::new());
    loop {
        let ask = ListEntriesRequest {
            page_size: 1000,
            page_token,
            ..Default::default()
        };
        let page = client.list_entries(ask).await.expect("a page").into_inner();
        count += page.entries.len();
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    println!(
        "list of {count} entries: {:.0} ms, {pages} pages, {:.0} ms of CPU; {:.1} MB of ca-server after it",
        start.elapsed().as_secs_f64() * 1e3,
        (server.cpu() - cpu) * 1e3,
        server.resident_mb()
    );
}

/// A connection to the administrators' door.
async fn admin(server: &Server) -> Channel {
    let socket = server.socket.clone();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://ca-server")
        .connect_with_connector(connector)
        .await
        .expect("the socket answers")
}

fn entry(parent: &SpiffeId, name: &str) -> types::Entry {
    let (_, whose) = parent.path().rsplit_once('/').expect("a path");
    let id: SpiffeId = format!("spiffe://bench.test/w/{whose}/{name}")
        .parse()
        .expect("an ID");
    types::Entry {
        spiffe_id: Some((&id).into()),
        parent_id: Some(parent.into()),
        selectors: vec![types::Selector {
            r#type: "unix".into(),
            value: format!("path:/opt/{name}"),
        }],
        ..Default::default()
    }
}

async fn create(client: &mut EntryClient<Channel>, entries: Vec<types::Entry>) -> Vec<String> {
    let count = entries.len();
    let ask = BatchCreateEntryRequest {
        entries,
        output_mask: Some(types::EntryMask::default()),
    };
    let answer = client.batch_create_entry(ask).await.expect("an answer");
    let made: Vec<String> = answer
        .into_inner()
        .results
        .into_iter()
        .filter_map(|result| result.entry)
        .map(|entry| entry.id)
        .collect();
    assert_eq!(made.len(), count, "every entry is made");
    made
}

/// How often a page is on the disk within a second.
fn syncs(folder: &Path) -> f64 {
    let file = std::fs::File::create(folder.join("sync")).expect("a file");
    let (start, mut done) = (Clock::system().monotonic(), 0_u32);
    while start.elapsed() < Duration::from_secs(2) {
        file.write_all_at(&[7; 4096], 0).expect("written");
        file.sync_data().expect("on the disk");
        done += 1;
    }
    f64::from(done) / start.elapsed().as_secs_f64()
}
