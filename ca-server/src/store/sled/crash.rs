//! What survives: a process that writes and tells what was acknowledged, killed in the middle, again and again.
//! Killed alone, everything the kernel has is kept. In a power cut (the shim of tests/powercut) only what was synced is.
//! The writer is this test binary itself, started with `FINIAL_CRASH_STORE`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::join_all;
use tempfile::TempDir;

use super::*;
use crate::store::conformance::{at, certificate, domain, entry};
use crate::store::{CreatedEntry, NewToken, Spent, Stores, token_hash};

pub(super) const STORE: &str = "FINIAL_CRASH_STORE";
pub(super) const ROUND: &str = "FINIAL_CRASH_ROUND";
const WRITER: &str = "store::sled::crash::a_writer_for_the_tests_below";
const CLIENTS: u64 = 8;

#[expect(
    clippy::disallowed_methods,
    reason = "how a test tells its own child process what to do"
)]
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

pub(super) async fn open(path: &Path) -> Stores {
    Stores::open_sled(path, &domain(), SledSettings::default())
        .await
        .expect("opened")
}

/// Does nothing unless it was started by a test below.
#[tokio::test]
#[ignore = "the child process of the crash tests"]
async fn a_writer_for_the_tests_below() {
    let (Some(path), Some(round)) = (variable(STORE), variable(ROUND)) else {
        return;
    };
    let stores = open(Path::new(&path)).await;
    join_all((0..CLIENTS).map(|client| write(&stores, format!("{round}-{client}")))).await;
}

/// Writes until the store refuses, and says so line by line, each time after the acknowledgement.
async fn write(stores: &Stores, name: String) {
    for n in 0.. {
        let done = write_once(stores, &format!("{name}-{n}"), n).await;
        if let Err(error) = done {
            println!("say refused {error}");
            return;
        }
    }
}

async fn write_once(stores: &Stores, id: &str, n: u64) -> Result<(), StoreError> {
    if let CreatedEntry::New(made) = stores.entries.create(entry(id)).await? {
        println!("say created {id} {}", made.revision);
    }
    // Two rows that must live or die together.
    stores
        .issued
        .record(vec![
            certificate(&format!("{id}-a"), n),
            certificate(&format!("{id}-b"), n),
        ])
        .await?;
    println!("say issued {id}");
    let token = NewToken {
        hash: token_hash(id),
        expires_at: at(1),
        agent_id: None,
    };
    stores.tokens.create(token).await?;
    stores.tokens.spend(token_hash(id), at(0)).await?;
    println!("say spent {id}");
    if n.is_multiple_of(3) {
        println!("say deleting {id}");
        stores.entries.delete(&id.parse().expect("an id")).await?;
        println!("say deleted {id}");
    }
    Ok(())
}

/// Everything that was said, over all rounds.
#[derive(Default)]
struct Said {
    created: BTreeMap<String, u64>,
    deleting: BTreeSet<String>,
    deleted: BTreeSet<String>,
    issued: BTreeSet<String>,
    spent: BTreeSet<String>,
    refused: u64,
}

impl Said {
    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ').skip(1);
        let (Some(what), Some(id)) = (words.next(), words.next()) else {
            panic!("half a line: {line}")
        };
        assert!(
            self.refused == 0 || what == "refused",
            "acknowledged after a refusal: {line}"
        );
        match what {
            "created" => {
                let revision = words
                    .next()
                    .and_then(|word| word.parse().ok())
                    .expect("a revision");
                let others = self.created.values().max().copied();
                assert!(
                    !self.created.values().any(|other| *other == revision),
                    "revision {revision} was given twice (newest {others:?})"
                );
                self.created.insert(id.to_owned(), revision);
            }
            "deleting" => drop(self.deleting.insert(id.to_owned())),
            "deleted" => drop(self.deleted.insert(id.to_owned())),
            "issued" => drop(self.issued.insert(id.to_owned())),
            "spent" => drop(self.spent.insert(id.to_owned())),
            "refused" => self.refused += 1,
            other => panic!("unknown word {other}"),
        }
    }

    /// How many facts were acknowledged; a batch of certificates is two.
    fn count(&self) -> usize {
        self.created.len() + self.deleted.len() + 2 * self.issued.len() + self.spent.len()
    }

    /// What was acknowledged and is not there.
    async fn losses(&self, stores: &Stores) -> Vec<String> {
        let mut lost = Vec::new();
        let newest = *stores.changes.newest().borrow();
        for (id, revision) in &self.created {
            let found = stores
                .entries
                .get(&id.parse().expect("an id"))
                .await
                .expect("read");
            let may_be_gone = self.deleting.contains(id);
            if *revision > newest || (found.is_none() && !may_be_gone) {
                lost.push(format!("entry {id}"));
            }
            if found.is_some() && self.deleted.contains(id) {
                lost.push(format!("deletion of {id}"));
            }
        }
        let halves = self.issued.iter();
        let halves: BTreeSet<_> = halves
            .flat_map(|id| ["a", "b"].map(|half| format!("{id}-{half}")))
            .collect();
        let kept = remembered(stores, halves.clone()).await;
        lost.extend(
            halves
                .difference(&kept)
                .map(|id| format!("certificate {id}")),
        );
        for id in &self.spent {
            if stores
                .tokens
                .spend(token_hash(id), at(0))
                .await
                .expect("answered")
                != Spent::Used
            {
                lost.push(format!("use of token {id}"));
            }
        }
        lost
    }
}

async fn remembered(stores: &Stores, serials: BTreeSet<String>) -> BTreeSet<String> {
    let found = stores.issued.find(serials).await.expect("read");
    found.into_iter().map(|record| record.serial).collect()
}

/// Rows of one transaction are there together or not at all, acknowledged or not.
async fn no_half_transaction(stores: &Stores) {
    for entry in stores.entries.list().await.expect("read") {
        let again = mesh_identity::Entry {
            id: "again".parse().expect("an id"),
            ..(*entry).clone()
        };
        let answer = stores.entries.create(again).await.expect("answered");
        assert_eq!(answer, CreatedEntry::AlreadyExists(entry));
    }
    let batches = (0..100).flat_map(|round| {
        (0..CLIENTS).flat_map(move |client| (0..50).map(move |n| format!("{round}-{client}-{n}")))
    });
    let batches: Vec<_> = batches.collect();
    let both = batches
        .iter()
        .flat_map(|batch| ["a", "b"].map(|half| format!("{batch}-{half}")));
    let kept = remembered(stores, both.collect()).await;
    let there = |batch: &String, half| kept.contains(&format!("{batch}-{half}"));
    let halves = batches
        .iter()
        .filter(|batch| there(batch, "a") != there(batch, "b"))
        .count();
    assert_eq!(halves, 0, "half a batch of certificates");
}

/// A cheap number below another, different in every run.
pub(super) fn random(below: u64) -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(CALLS.fetch_add(1, Ordering::Relaxed)) % below
}

fn pause_below(milliseconds: u64) -> Duration {
    Duration::from_millis(random(milliseconds))
}

/// Runs the writer until it is killed after a random pause, or ends by itself; hears all it said.
fn run_writer(
    store: &Path,
    round: usize,
    said: &mut Said,
    surroundings: &[(&str, String)],
    longest_ms: u64,
) {
    let mut lines = lines_until_killed(WRITER, store, round, surroundings, longest_ms);
    // A line that the kill cut short was not heard.
    if lines.last().is_some_and(|line| line.split(' ').count() < 3) {
        lines.pop();
    }
    lines.iter().for_each(|line| said.hear(line));
}

/// Runs a test of this binary as a process until it is killed after a random pause, or ends by itself; the lines that it said.
pub(super) fn lines_until_killed(
    test: &str,
    store: &Path,
    round: usize,
    surroundings: &[(&str, String)],
    longest_ms: u64,
) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().expect("our own path"))
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env(STORE, store)
        .env(ROUND, round.to_string())
        .envs(surroundings.iter().map(|(name, value)| (*name, value)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let (first, heard_first) = std::sync::mpsc::channel();
    let listener = std::thread::spawn(move || {
        let mut lines = Vec::new();
        for line in output.lines().map_while(Result::ok) {
            // libtest writes before our first line without ending its own.
            if let Some(start) = line.find("say ") {
                lines.push(line[start..].to_owned());
                // Nobody listens for the second one.
                first.send(()).ok();
            }
        }
        lines
    });
    if heard_first.recv().is_ok() {
        std::thread::sleep(pause_below(longest_ms));
    }
    child.kill().expect("killed");
    let ended = child.wait_with_output().expect("ended");
    let lines = listener.join().expect("heard");
    assert!(
        !lines.is_empty(),
        "the writer said nothing: {}",
        String::from_utf8_lossy(&ended.stderr)
    );
    lines
}

#[tokio::test]
async fn st_01_fifty_kills_lose_no_acknowledged_write() {
    let folder = TempDir::new().expect("a folder");
    let store = folder.path().join("store");
    let mut said = Said::default();
    for round in 0..50 {
        run_writer(&store, round, &mut said, &[], 100);
    }
    let stores = open(&store).await;
    let lost = said.losses(&stores).await;
    no_half_transaction(&stores).await;
    println!(
        "50 kills: {} writes acknowledged, {} lost",
        said.count(),
        lost.len()
    );
    assert!(lost.is_empty(), "lost: {lost:?}");
}

/// The shim, built once; `None` (with the reason printed) where there is no C compiler. In CI that is a failure.
fn shim() -> Option<&'static Path> {
    static SHIM: OnceLock<Option<(TempDir, PathBuf)>> = OnceLock::new();
    let built = SHIM.get_or_init(|| {
        let folder = TempDir::new().expect("a folder");
        let library = folder.path().join("powercut.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/powercut/shim.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-o"])
            .args([&library, &source])
            .args(["-ldl", "-lpthread"])
            .output();
        match compiled {
            Ok(output) => {
                assert!(
                    output.status.success(),
                    "{}",
                    String::from_utf8_lossy(&output.stderr)
                );
                Some((folder, library))
            }
            Err(error) if variable("CI").is_none() => {
                println!(
                    "skipped: no C compiler `cc` ({error}); Debian: apt-get install gcc libc6-dev"
                );
                None
            }
            Err(error) => panic!("CI needs a C compiler `cc`: {error}"),
        }
    });
    built.as_ref().map(|(_, library)| library.as_path())
}

/// A store and its shadow, which holds what was synced.
struct Machine {
    folder: TempDir,
    store: PathBuf,
    shadow: PathBuf,
}

impl Machine {
    async fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let (store, shadow) = (folder.path().join("store"), folder.path().join("shadow"));
        drop(open(&store).await);
        let machine = Self {
            folder,
            store,
            shadow,
        };
        machine.switch_on();
        machine
    }

    /// What lies on the disk at start is durable.
    fn switch_on(&self) {
        drop(fs::remove_dir_all(&self.shadow));
        copy_folder(&self.store, &self.shadow);
    }

    fn surroundings(
        &self,
        shim: &Path,
        more: &[(&'static str, &str)],
    ) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        let mut all = vec![
            ("LD_PRELOAD", text(shim)),
            ("FINIAL_POWERCUT_ROOT", text(&self.store)),
            ("FINIAL_POWERCUT_SHADOW", text(&self.shadow)),
        ];
        all.extend(
            more.iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        all
    }

    /// Throws away what was not synced. With `torn`, each page that was written since may have got through or not.
    fn cut_power(&self, torn: bool) {
        let log = self.store.join("db");
        let written = fs::read(&log).expect("readable");
        fs::remove_dir_all(&self.store).expect("gone");
        copy_folder(&self.shadow, &self.store);
        if torn {
            let mut disk = fs::read(&log).expect("readable");
            disk.resize(written.len().max(disk.len()), 0);
            for (page, new) in disk.chunks_mut(4096).zip(written.chunks(4096)) {
                if pause_below(2).is_zero() {
                    page[..new.len()].copy_from_slice(new);
                }
            }
            fs::write(&log, disk).expect("written");
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for item in fs::read_dir(from).expect("readable") {
        let item = item.expect("readable");
        let target = to.join(item.file_name());
        if item.file_type().expect("known").is_dir() {
            copy_folder(&item.path(), &target);
        } else if !item.file_name().to_string_lossy().ends_with(".unfinished") {
            fs::copy(item.path(), target).expect("copied");
        }
    }
}

#[tokio::test]
async fn st_04_twenty_four_power_cuts_with_and_without_torn_pages_lose_no_acknowledged_write() {
    let Some(shim) = shim() else { return };
    let machine = Machine::new().await;
    let mut said = Said::default();
    for round in 0..24 {
        run_writer(
            &machine.store,
            round,
            &mut said,
            &machine.surroundings(shim, &[]),
            150,
        );
        machine.cut_power(round % 2 == 1);
        let stores = open(&machine.store).await;
        let lost = said.losses(&stores).await;
        assert!(
            lost.is_empty(),
            "round {round}: lost {} of {}: {lost:?}",
            lost.len(),
            said.count()
        );
        if round == 23 {
            no_half_transaction(&stores).await;
        }
        drop(stores);
        machine.switch_on();
    }
    println!(
        "24 power cuts: {} writes acknowledged, 0 lost",
        said.count()
    );
}

/// The control: the same cuts, but our own fdatasync does not count. If nothing were lost then, the test above would
/// prove nothing.
#[tokio::test]
async fn without_our_own_fdatasync_power_cuts_lose_acknowledged_writes() {
    let Some(shim) = shim() else { return };
    let mut losing = 0;
    for round in 0..5 {
        let machine = Machine::new().await;
        let mut said = Said::default();
        let deaf = machine.surroundings(shim, &[("FINIAL_POWERCUT_DEAF", "1")]);
        run_writer(&machine.store, round, &mut said, &deaf, 150);
        machine.cut_power(false);
        let lost = match Stores::open_sled(&machine.store, &domain(), SledSettings::default()).await
        {
            Ok(stores) => said.losses(&stores).await.len(),
            Err(_) => said.count(),
        };
        println!(
            "control round {round}: {lost} of {} acknowledged writes lost",
            said.count()
        );
        losing += usize::from(lost > 0);
    }
    assert!(
        losing > 0,
        "sled's flush alone lost nothing: the model is blind"
    );
}

#[tokio::test]
async fn st_06_after_a_failed_sync_nothing_is_acknowledged_and_no_sync_is_tried_again() {
    let Some(shim) = shim() else { return };
    let machine = Machine::new().await;
    let mut said = Said::default();
    run_to_the_end(&machine, shim, ("FINIAL_POWERCUT_FAIL", "20"), &mut said);
    assert_eq!(said.refused, CLIENTS);
    assert!(
        !machine.shadow.join("again").exists(),
        "fdatasync was tried again after it had failed"
    );
    let stores = open(&machine.store).await;
    let lost = said.losses(&stores).await;
    assert!(lost.is_empty(), "lost: {lost:?}");
    drop(machine.folder);
}

#[tokio::test]
async fn st_07_writes_that_are_interrupted_or_stop_halfway_are_finished_and_one_that_fails_loses_nothing()
 {
    let Some(shim) = shim() else { return };
    let machine = Machine::new().await;
    let mut said = Said::default();
    for round in 0..8 {
        let halved = machine.surroundings(shim, &[("FINIAL_POWERCUT_SHORT", "1")]);
        run_writer(&machine.store, round, &mut said, &halved, 150);
        assert!(
            machine.shadow.join("short.unfinished").exists(),
            "the shim halved nothing"
        );
        machine.cut_power(false);
        let stores = open(&machine.store).await;
        let lost = said.losses(&stores).await;
        assert!(lost.is_empty(), "round {round}: lost {lost:?}");
        drop(stores);
        machine.switch_on();
    }
    run_to_the_end(&machine, shim, ("FINIAL_POWERCUT_AGAIN", "40"), &mut said);
    assert_eq!(said.refused, CLIENTS, "nothing is acknowledged any more");
    let stores = open(&machine.store).await;
    let lost = said.losses(&stores).await;
    assert!(lost.is_empty(), "lost: {lost:?}");
    no_half_transaction(&stores).await;
    drop(machine.folder);
}

/// Runs the writer with a fault that the shim makes until it ends by itself.
fn run_to_the_end(machine: &Machine, shim: &Path, fault: (&'static str, &str), said: &mut Said) {
    let ended = Command::new(std::env::current_exe().expect("our own path"))
        .args([WRITER, "--exact", "--ignored", "--nocapture"])
        .env(STORE, &machine.store)
        .env(ROUND, "99")
        .envs(machine.surroundings(shim, &[fault]))
        .output()
        .expect("ran");
    for line in String::from_utf8_lossy(&ended.stdout).lines() {
        if let Some(start) = line.find("say ") {
            said.hear(&line[start..]);
        }
    }
}
