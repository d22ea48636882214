//! As many entries as the threat model's row asks for, on a real store: what starting, listing and a change cost.

use std::collections::BTreeSet;

use futures::future::try_join_all;
use tokio::time::Instant;

use super::tests::{entry, id, node, own};
use super::*;
use crate::store::{SledSettings, Stores};

const AGENTS: usize = 1_000;
const EACH: usize = 100;
const ALL: usize = AGENTS * EACH;

/// Entries that are written at a time: each waits for the disk with the others.
const AT_A_TIME: usize = 5_000;

fn agent(n: usize) -> String {
    format!("/spire/agent/{n}")
}

/// The memory of this process, in bytes, by the kernel.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let size = line.and_then(|line| line.split_whitespace().nth(1));
    size.unwrap().parse::<u64>().unwrap() * 1024
}

async fn open(path: &std::path::Path) -> Stores {
    let own = own();
    let stores = Stores::open_sled(path, &own, SledSettings::default());
    stores.await.unwrap()
}

#[tokio::test]
async fn ca_45_a_hundred_thousand_entries_start_within_thirty_seconds_are_listed_in_pages_and_change_one_by_one()
 {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let stores = open(&path).await;
    let agents = (0..AGENTS).map(|n| stores.nodes.attest(node(&agent(n), &[])));
    try_join_all(agents).await.unwrap();
    let numbers: Vec<usize> = (0..ALL).collect();
    for part in numbers.chunks(AT_A_TIME) {
        let new = part.iter().map(|n| {
            let parent = agent(n % AGENTS);
            let new = entry(
                &format!("e{n:06}"),
                &format!("/w/{n}"),
                &parent,
                &["unix:uid:1"],
            );
            stores.entries.create(new)
        });
        try_join_all(new).await.unwrap();
    }
    drop(stores);

    let begun = Instant::now();
    let stores = open(&path).await;
    let registry = Registry::open(stores.changes.clone()).await.unwrap();
    registry.refresh().await.unwrap();
    let took = begun.elapsed();
    println!(
        "{ALL} entries: started in {took:?}, {} MiB",
        resident() >> 20
    );
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert_eq!(registry.counts(), (ALL, AGENTS));
    for n in [0, AGENTS / 2, AGENTS - 1] {
        assert_eq!(registry.view(&id(&agent(n))).entries.len(), EACH);
    }

    let book = EntryBook::new(own(), stores.entries.clone(), stores.bundles.clone());
    let every = EntryFilter::default();
    let (mut listed, mut token, mut pages) = (BTreeSet::new(), String::new(), 0);
    loop {
        let page = Page::new(0, &token).unwrap();
        // About what such an entry takes on the wire.
        let shown = book.page(&every, &page, |one| (one.id.clone(), 150));
        let shown = shown.await.unwrap();
        pages += 1;
        listed.extend(shown.items);
        token = shown.next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(listed.len(), ALL);
    assert!(pages > ALL * 150 / (4 << 20), "no message holds them all");

    let (one, other) = (id(&agent(7)), id(&agent(8)));
    let view = registry.view(&one);
    let before = registry.refresh().await.unwrap();
    let new = entry("new", "/new", &agent(7), &["unix:uid:2"]);
    stores.entries.create(new).await.unwrap();
    registry.refresh().await.unwrap();
    let change = registry.changed_since(&view, before).await.unwrap();
    let change = change.expect("told from the change alone");
    assert_eq!((change.entries.len(), change.removed_entries.len()), (1, 0));
    let same = registry.view_after(&other, before).is_err();
    assert!(same, "the agent beside it has nothing to hear");
    let memory = resident();
    assert!(memory < 3 << 29, "{memory} bytes");
}
