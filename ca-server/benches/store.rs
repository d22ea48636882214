//! Durable changes and signatures per second, each beside the limit of this machine measured in the same run.
//! `cargo bench -p ca-server --bench store [FOLDER]`: the folder decides which disk is measured (default: target/tmp).

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use ca_server::authority::{Authority, AuthoritySettings, BACKDATE, LeafTemplate};
use ca_server::store::{IssuedRecord, SledSettings, Stores};
use futures::future::join_all;
use mesh_identity::{Entry, SpiffeId, TrustDomain};
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair};

const LOOK: Duration = Duration::from_secs(3);

fn main() {
    let folder = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"));
    let folder = folder.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let folder = tempfile::tempdir_in(folder).expect("a folder");
    println!("store in {}", folder.path().display());
    syncs(folder.path());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let before = resident();
        let stores = open(folder.path()).await;
        println!(
            "resident memory for an empty store: {:.1} MB",
            resident() - before
        );
        for clients in [1, 8, 32, 128, 256] {
            changes(&stores, clients).await;
        }
        records(&stores, 50).await;
        let count = stores.entries.list().await.expect("read").len();
        drop(stores);
        let opened = now();
        let stores = open(folder.path()).await;
        println!(
            "opening with {count} entries: {:.0} ms, {:.1} MB on disk, resident {:.1} MB in all",
            elapsed(opened).as_secs_f64() * 1e3,
            std::fs::metadata(folder.path().join("store/db"))
                .expect("there")
                .len() as f64
                / 1e6,
            resident()
        );
        drop(stores);
    });
    signatures(folder.path(), &runtime);
}

async fn open(folder: &Path) -> Stores {
    let opened = Stores::open_sled(&folder.join("store"), &domain(), SledSettings::default()).await;
    opened.expect("opened")
}

#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures with the real clock"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

fn elapsed(since: SystemTime) -> Duration {
    now().duration_since(since).unwrap_or_default()
}

/// How often `work` (which tells how much it did) fits into a second, and what CPU time of this process it took.
fn rate(what: &str, mut work: impl FnMut() -> u64) -> f64 {
    let (start, cpu) = (now(), cpu_time());
    let mut done = 0;
    while elapsed(start) < LOOK {
        done += work();
    }
    report(what, done, elapsed(start), cpu_time() - cpu)
}

fn report(what: &str, done: u64, wall: Duration, cpu: Duration) -> f64 {
    let per_second = done as f64 / wall.as_secs_f64();
    let per_cpu = done as f64 / cpu.as_secs_f64();
    println!("{what:<58} {per_second:>9.0}/s  {per_cpu:>9.0}/CPU-s");
    per_second
}

fn cpu_time() -> Duration {
    let usage =
        nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("known");
    let seconds = |time: nix::sys::time::TimeVal| {
        Duration::new(
            time.tv_sec().unsigned_abs(),
            u32::try_from(time.tv_usec()).unwrap_or(0) * 1000,
        )
    };
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// Resident memory of this process, in MB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("told");
    line.trim()
        .trim_end_matches(" kB")
        .parse::<f64>()
        .expect("a number")
        / 1e3
}

/// The limit: one page written in place and synced, nothing else.
fn syncs(folder: &Path) {
    let file = File::create(folder.join("limit")).expect("made");
    file.set_len(1 << 20).expect("sized");
    file.sync_all().expect("synced");
    let mut at = 0;
    rate("limit: write 4 KiB, fdatasync", || {
        file.write_all_at(&[7; 4096], at % (1 << 20))
            .expect("written");
        at += 4096;
        file.sync_data().expect("synced");
        1
    });
}

fn domain() -> TrustDomain {
    "bench.test".parse().expect("a trust domain")
}

fn entry(number: u64) -> Entry {
    Entry {
        id: format!("e{number}").parse().expect("an id"),
        spiffe_id: SpiffeId::from_parts(&domain(), &format!("/w{number}")).expect("an id"),
        parent_id: SpiffeId::from_parts(&domain(), "/spire/agent/x").expect("an id"),
        selectors: BTreeSet::from(["unix:uid:1000".parse().expect("a selector")]),
        x509_svid_ttl: None,
        jwt_svid_ttl: None,
        federates_with: BTreeSet::new(),
        admin: false,
        downstream: false,
        expires_at: None,
        dns_names: Vec::new(),
        revision: 0,
        store_svid: false,
        hint: String::new(),
        created_at: now(),
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

async fn changes(stores: &Stores, clients: usize) {
    let (start, cpu) = (now(), cpu_time());
    let client = async || {
        let mut done = 0_u64;
        while elapsed(start) < LOOK {
            stores
                .entries
                .create(entry(NUMBER.fetch_add(1, Ordering::Relaxed)))
                .await
                .expect("stored");
            done += 1;
        }
        done
    };
    let done = join_all((0..clients).map(|_| client())).await.iter().sum();
    report(
        &format!("entry created, durable, {clients} clients"),
        done,
        elapsed(start),
        cpu_time() - cpu,
    );
}

async fn records(stores: &Stores, batch: u64) {
    let (start, cpu) = (now(), cpu_time());
    let mut done = 0;
    while elapsed(start) < LOOK {
        let records = (0..batch).map(|_| IssuedRecord {
            serial: format!("01{:032x}", NUMBER.fetch_add(1, Ordering::Relaxed)),
            spiffe_id: SpiffeId::from_parts(&domain(), "/w").expect("an id"),
            entry_id: None,
            agent_id: None,
            authority_id: "ab".repeat(20),
            not_after: now(),
            issued_at: now(),
        });
        stores
            .issued
            .record(records.collect())
            .await
            .expect("stored");
        done += batch;
    }
    report(
        &format!("certificate recorded, durable, one client, {batch} at once"),
        done,
        elapsed(start),
        cpu_time() - cpu,
    );
}

fn signatures(folder: &Path, runtime: &tokio::runtime::Runtime) {
    let random = SystemRandom::new();
    let algorithm = &signature::ECDSA_P256_SHA256_ASN1_SIGNING;
    let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
    let key = EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).expect("a key");
    let message = [7; 500];
    let limit = rate("limit: ring, P-256 signature over 500 bytes", || {
        std::hint::black_box(key.sign(&random, &message).expect("signed"));
        1
    });
    let signature = key.sign(&random, &message).expect("signed");
    let public = signature::UnparsedPublicKey::new(
        &signature::ECDSA_P256_SHA256_ASN1,
        key.public_key().as_ref(),
    );
    rate("limit: ring, P-256 verification", || {
        public.verify(&message, signature.as_ref()).expect("good");
        1
    });

    let settings = AuthoritySettings {
        lifetime: Duration::from_secs(3600),
        refresh_hint: Duration::from_secs(5),
        ..AuthoritySettings::new(domain(), folder.join("sealing.key"))
    };
    let stores = Stores::memory(&domain());
    let authority: Arc<Authority> = runtime
        .block_on(Authority::open(settings, stores.journal.clone(), now()))
        .expect("opened");
    let template = LeafTemplate {
        spiffe_id: SpiffeId::from_parts(&domain(), "/ns/shop/sa/pay").expect("an id"),
        dns_names: Vec::new(),
        subject: Vec::new(),
        ttl: Duration::from_secs(60),
        not_before_backdate: BACKDATE,
    };
    // The SubjectPublicKeyInfo of a P-256 key: a fixed head and the point.
    let mut spki = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00".to_vec();
    spki.extend_from_slice(key.public_key().as_ref());
    let ours = rate("leaf signed by the authority", || {
        std::hint::black_box(
            authority
                .sign_leaf(&template, &spki, now())
                .expect("signed"),
        );
        1
    });
    println!(
        "a leaf costs {:.1} us, the bare signature {:.1} us: {:.0} % of the limit",
        1e6 / ours,
        1e6 / limit,
        100.0 * ours / limit
    );
}
