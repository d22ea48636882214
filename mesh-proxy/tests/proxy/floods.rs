//! Floods: one caller sends what costs him little and others much. He is sent away, memory stays where it was, and others are served.
//! Trusts the kernel for how much memory a process holds.
//! Never asserts a speed that a busy machine could not keep; counts and bounds only.

use std::time::Duration;

use crate::frames::{
    CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, field, frame, head, remembered,
};
use crate::world::{Pair, Proxy, SHOP_ANYTHING, allow};

/// HTTP/2's word for a peer that asks too much.
const ENHANCE_YOUR_CALM: u32 = 11;
/// What one flood may add to the memory of a proxy.
const MOST_MORE: u64 = 10 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(10);

async fn pair() -> Pair {
    Pair::start(&allow(SHOP_ANYTHING)).await
}

/// The memory of a proxy, in bytes.
fn memory(proxy: &Proxy) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.child.id())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes * 1024
}

/// What a caller who asks one thing after the other gets while a flood runs.
async fn others_are_served(pair: &Pair) {
    for _ in 0..10 {
        let answer = tokio::time::timeout(Duration::from_secs(5), pair.get("/others")).await;
        let answer = answer.expect("another caller waits no longer than this");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

/// Runs a flood beside somebody who wants to be served.
async fn beside(pair: &Pair, flood: impl Future<Output = Client>) -> Client {
    others_are_served(pair).await;
    let before = memory(&pair.pay);
    let (client, ()) = tokio::join!(flood, others_are_served(pair));
    let more = memory(&pair.pay).saturating_sub(before);
    assert!(more < MOST_MORE, "{more} bytes more than before");
    others_are_served(pair).await;
    client
}

fn request(stream: u32) -> Vec<u8> {
    frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        stream,
        &head("GET", "/slow", &[]),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_31_a_caller_that_resets_what_it_began_is_told_to_calm_down() {
    let pair = pair().await;
    let cancel = 8_u32.to_be_bytes();
    let mut client = beside(&pair, async {
        let mut client = connect(&pair).await;
        // As one who is in a hurry does it: many at once.
        for batch in 0..100 {
            let pairs: Vec<u8> = (0..100)
                .map(|number| 2 * (100 * batch + number) + 1)
                .flat_map(|stream| {
                    [request(stream), frame(RST_STREAM, 0, stream, &cancel)].concat()
                })
                .collect();
            if !client.write(&pairs).await {
                break;
            }
        }
        client
    })
    .await;
    let closed = client.is_closed(PATIENCE).await;
    assert!(closed, "it goes on: {:?}", client.seen);
    assert!(
        client.goaways().contains(&ENHANCE_YOUR_CALM),
        "{:?}",
        client.goaways()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_32_a_caller_that_makes_the_proxy_reset_is_told_to_calm_down() {
    let pair = pair().await;
    let mut client = beside(&pair, async {
        let mut client = connect(&pair).await;
        // A window that grows by nothing is an error of the stream (RFC 9113 6.9).
        let nothing = 0_u32.to_be_bytes();
        for batch in 0..100 {
            let pairs: Vec<u8> = (0..100)
                .map(|number| 2 * (100 * batch + number) + 1)
                .flat_map(|stream| {
                    [request(stream), frame(WINDOW_UPDATE, 0, stream, &nothing)].concat()
                })
                .collect();
            if !client.write(&pairs).await {
                break;
            }
        }
        client
    })
    .await;
    let closed = client.is_closed(PATIENCE).await;
    assert!(closed, "it goes on: {:?}", client.seen.last());
    assert!(!client.goaways().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_33_a_head_that_never_ends_is_cut_at_the_limit() {
    let pair = pair().await;
    let mut client = beside(&pair, async {
        let mut client = connect(&pair).await;
        assert!(
            client
                .send(HEADERS, END_STREAM, 1, &head("GET", "/a", &[]))
                .await
        );
        let piece = field("x-a", &"b".repeat(8000));
        for _ in 0..2000 {
            if !client.send(CONTINUATION, 0, 1, &piece).await {
                break;
            }
        }
        client
    })
    .await;
    let closed = client.is_closed(PATIENCE).await;
    assert!(closed, "it goes on: {:?}", client.seen.last());
    let heads = pair.application.heads();
    assert!(heads.iter().all(|head| !head.contains("/a ")), "{heads:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_34_a_head_counts_as_large_as_it_is_when_it_is_unpacked() {
    let pair = pair().await;
    let mut client = beside(&pair, async {
        let mut client = connect(&pair).await;
        // One field of 3 KiB, and then its number four thousand times: 12 MiB in four KiB.
        let bomb = [remembered("x-a", &"b".repeat(3000)), vec![0x80 | 62; 4000]].concat();
        let bomb = head("GET", "/bomb", &bomb);
        assert!(
            client
                .send(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)
                .await
        );
        client
    })
    .await;
    let answer = client.until(|frame| frame.stream == 1).await;
    assert!(
        answer
            .as_ref()
            .is_none_or(|frame| frame.status() != Some(200)),
        "{answer:?}"
    );
    // Many small ones: each of them counts with 32 bytes more (RFC 9113 6.5.2).
    let mut client = connect(&pair).await;
    let crumbs: Vec<u8> = (0..3000).flat_map(|_| field("cookie", "a=b")).collect();
    let crumbs = head("GET", "/crumbs", &crumbs);
    let (first, rest) = crumbs.split_at(16_000);
    client.send(HEADERS, END_STREAM, 1, first).await;
    for piece in rest.chunks(16_000).rev().skip(1).rev() {
        client.send(CONTINUATION, 0, 1, piece).await;
    }
    client
        .send(
            CONTINUATION,
            END_HEADERS,
            1,
            rest.chunks(16_000).last().unwrap(),
        )
        .await;
    let answer = client.until(|frame| frame.stream == 1).await;
    assert!(
        answer
            .as_ref()
            .is_none_or(|frame| frame.status() != Some(200)),
        "{answer:?}"
    );
    let heads = pair.application.heads();
    assert!(
        heads
            .iter()
            .all(|head| !head.contains("/bomb") && !head.contains("/crumbs")),
        "nothing of it reached the application"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mesh_c1_35_frames_that_say_nothing_end_the_connection() {
    let pair = pair().await;
    let eight = [0; 8];
    let one = 1_u32.to_be_bytes();
    let post = frame(HEADERS, END_HEADERS, 1, &head("POST", "/echo", &[]));
    let floods: [(&str, &[u8], Vec<u8>); 5] = [
        ("PING", &[], frame(PING, 0, 0, &eight)),
        ("SETTINGS", &[], frame(SETTINGS, 0, 0, &[])),
        ("PRIORITY", &[], frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("empty DATA", &post, frame(DATA, 0, 1, &[])),
        ("WINDOW_UPDATE", &post, frame(WINDOW_UPDATE, 0, 1, &one)),
    ];
    for (what, first, flood) in floods {
        let mut client = beside(&pair, async {
            let mut client = connect(&pair).await;
            assert!(client.write(first).await, "{what}");
            let many = flood.repeat(100);
            for _ in 0..1000 {
                if !client.write(&many).await {
                    break;
                }
            }
            client
        })
        .await;
        assert!(client.is_closed(PATIENCE).await, "{what} goes on");
    }
}

async fn connect(pair: &Pair) -> Client {
    Client::connect(&pair.world, "shop", pair.pay.door("inbound"), &[]).await
}
