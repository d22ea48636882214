//! Nothing acknowledged is lost: the real ca-server is killed in a loop of acknowledged writes.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use mesh_tests::{admin, world::World};
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use tokio::time::sleep;

const KILLS: u32 = 50;
const WRITERS: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn ca_server_killed_fifty_times_in_acknowledged_writes_loses_none() {
    let mut world = World::with_ca(|config| config).await;
    let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
    let mut lost = 0;
    for round in 0..KILLS {
        let socket = world.path("ca-admin.sock");
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let name = format!("r{round}w{writer}");
                tokio::spawn(write_until_it_dies(
                    socket.clone(),
                    name,
                    acknowledged.clone(),
                ))
            })
            .collect();
        // From a few writes to some hundreds, so that kills meet every moment of a group commit.
        sleep(Duration::from_millis(20 + u64::from(round) * 7 % 150)).await;
        world.ca.take().expect("it runs").kill();
        for writer in writers {
            writer.await.expect("a writer does not panic");
        }
        world.start_ca().await;
        let entries = world.ca_json(&["entry", "show"]);
        let there: BTreeSet<_> = entries["entries"]
            .as_array()
            .expect("a list of entries")
            .iter()
            .filter_map(|entry| entry["id"].as_str().map(str::to_owned))
            .collect();
        lost += acknowledged
            .lock()
            .expect("no panic under this lock")
            .difference(&there)
            .count();
        assert_eq!(lost, 0, "acknowledged entries are gone after kill {round}");
    }
    let count = acknowledged.lock().expect("no panic under this lock").len();
    println!("{KILLS} kills, {count} acknowledged entries, {lost} lost");
    assert!(
        count > 500,
        "only {count} entries were acknowledged: the test shows little"
    );
}

async fn write_until_it_dies(
    socket: PathBuf,
    name: String,
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
) {
    let Ok(channel) = admin::connect(socket).await else {
        return;
    };
    let mut client = EntryClient::new(channel);
    for number in 0.. {
        let id = format!("{name}n{number}");
        let entry = admin::entry(
            &id,
            &format!("/crash/{id}"),
            "/spire/agent/join_token/crash",
            ("unix", "uid:4242"),
        );
        if admin::create(&mut client, entry).await.is_err() {
            return;
        }
        acknowledged
            .lock()
            .expect("no panic under this lock")
            .insert(id);
    }
}
