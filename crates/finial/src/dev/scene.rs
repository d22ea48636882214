//! The scene: what a newcomer sees, each line asserted. The same lines are the smoke test of CI.
//! Trusts nothing that the proxies say of themselves where it can look from outside.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_runtime::audit;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, interval, sleep, timeout},
};

use super::{
    DevError,
    events::{Event, Events},
    files,
    http::{self, Answer},
    mesh::Mesh,
    process::Process,
};

/// An edit of the policy file must be in force within this time.
const EDIT_LIMIT: Duration = Duration::from_secs(1);
/// Both sides rotate within this time: a life of 20 s is renewed at half.
const ROTATION_LIMIT: Duration = Duration::from_secs(15);
/// Counts identities that a proxy took over, the first included.
const IDENTITIES: &str = "mesh_proxy_identity_updates_total";

/// Plays every line; the first that does not come true ends it.
pub(crate) async fn play(mesh: &mut Mesh<'_>, events: Events) -> Result<(), DevError> {
    let before = Rotations::seen(mesh).await?;
    let traffic = Traffic::start(mesh.shop.address("outbound.pay"));
    allowed(mesh, events).await?;
    denied(mesh, events).await?;
    wrong_caller(mesh, events).await?;
    plaintext(mesh, events).await?;
    edited_policy(mesh, events).await?;
    rotated(mesh, events, &before, traffic).await?;
    audited(mesh, events)
}

/// Keeps the traffic going and tells what changes, until the caller drops it.
pub(crate) async fn stay(mesh: &mut Mesh<'_>, events: Events) {
    let text = format!(
        "edit {policy}: a change is in force within a second\n\
         curl -X POST http://{shop}/charge     as shop, allowed\n\
         curl -X POST http://{guest}/charge    as guest, denied\n\
         Ctrl-C stops everything and leaves nothing behind",
        policy = mesh.place.file("policy.yaml"),
        shop = mesh.shop.address("outbound.pay"),
        guest = mesh.guest.address("outbound.pay"),
    );
    events.say(&Event {
        event: "dev.try",
        who: "try",
        what: "",
        text,
    });
    let traffic = Traffic::start(mesh.shop.address("outbound.pay"));
    let mut last = Rotations::seen(mesh).await.ok();
    let mut guest = None;
    let mut tick = interval(Duration::from_millis(200));
    loop {
        tick.tick().await;
        let answer = charge(&mesh.guest).await.ok().map(|answer| answer.status);
        if guest.is_some() && answer.is_some() && answer != guest {
            let text = format!(
                "guest -> pay POST /charge is now {}",
                answer.unwrap_or_default()
            );
            events.say(&Event {
                event: "policy.changed",
                who: "pay-proxy",
                what: "policy",
                text,
            });
        }
        guest = answer.or(guest);
        let seen = Rotations::seen(mesh).await.ok();
        if let (Some(now), Some(before)) = (&seen, &last)
            && now != before
        {
            let text = format!(
                "{} requests so far, {} failed",
                traffic.sent(),
                traffic.failed()
            );
            let who = if now.shop > before.shop {
                "shop-proxy"
            } else {
                "pay-proxy"
            };
            events.say(&Event {
                event: "proxy.rotated",
                who,
                what: "rotated",
                text,
            });
        }
        last = seen.or(last);
    }
}

async fn allowed(mesh: &Mesh<'_>, events: Events) -> Result<(), DevError> {
    const LINE: &str = "shop may charge, under mutual TLS, by a rule that is on record";
    let began = Instant::now();
    let answer = charge(&mesh.shop).await.map_err(|e| fail(LINE, e))?;
    let took = began.elapsed();
    expect(LINE, answer.status == 200, || {
        format!("status {}", answer.status)
    })?;
    let by_rule = json!({
        "effect": "allow", "policy": "allow-shop", "rule": "charge", "path": "/charge",
        "source": id("shop"), "destination": id("pay"),
    });
    let record = recorded(mesh, LINE, &by_rule).await?;
    let text = format!(
        "200  {:.1} ms  [mTLS] {} {}\nclient {} serial {}   server {}\nallowed by policy {} rule {}",
        took.as_secs_f64() * 1000.0,
        word(&record, "tls_group"),
        word(&record, "tls_cipher"),
        word(&record, "source"),
        word(&record, "peer_serial"),
        word(&record, "destination"),
        word(&record, "policy"),
        word(&record, "rule"),
    );
    events.say(&Event {
        event: "request.allowed",
        who: "shop -> pay",
        what: "POST /charge",
        text,
    });
    Ok(())
}

async fn denied(mesh: &Mesh<'_>, events: Events) -> Result<(), DevError> {
    const LINE: &str = "shop may not read keys";
    let answer = http::get(mesh.shop.address("outbound.pay"), "/admin/keys").await;
    let answer = answer.map_err(|e| fail(LINE, e))?;
    let text = refused(mesh, LINE, &answer, "shop").await?;
    events.say(&Event {
        event: "request.denied",
        who: "shop -> pay",
        what: "GET /admin/keys",
        text,
    });
    Ok(())
}

async fn wrong_caller(mesh: &Mesh<'_>, events: Events) -> Result<(), DevError> {
    const LINE: &str = "guest, with an identity and without permission, is refused with the reason";
    let answer = charge(&mesh.guest).await.map_err(|e| fail(LINE, e))?;
    let text = refused(mesh, LINE, &answer, "guest").await?;
    events.say(&Event {
        event: "request.denied",
        who: "guest -> pay",
        what: "POST /charge",
        text,
    });
    Ok(())
}

async fn plaintext(mesh: &Mesh<'_>, events: Events) -> Result<(), DevError> {
    const LINE: &str = "plaintext is refused";
    let address = mesh.pay.address("inbound");
    let mut stream = TcpStream::connect(address)
        .await
        .map_err(|e| fail(LINE, e))?;
    stream
        .write_all(b"POST /charge HTTP/1.1\r\nhost: pay\r\ncontent-length: 0\r\n\r\n")
        .await
        .map_err(|e| fail(LINE, e))?;
    let mut answer = Vec::new();
    // The proxy closes; whether that is seen as an end or as a reset does not matter.
    let closed = timeout(Duration::from_secs(3), stream.read_to_end(&mut answer))
        .await
        .is_ok();
    expect(LINE, closed && !answer.starts_with(b"HTTP/"), || {
        format!(
            "closed: {closed}, answer: {}",
            String::from_utf8_lossy(&answer)
        )
    })?;
    let text = "refused  pay accepts only mutual TLS".into();
    events.say(&Event {
        event: "plaintext.refused",
        who: "curl -> pay",
        what: "plaintext",
        text,
    });
    Ok(())
}

async fn edited_policy(mesh: &Mesh<'_>, events: Events) -> Result<(), DevError> {
    const EDIT: &str = "an edit of the policy file is in force within a second";
    let took = edit(
        mesh,
        EDIT,
        &format!("{}{}", files::POLICY, files::POLICY_FOR_GUEST),
        200,
    )
    .await?;
    let text = format!(
        "policy.yaml now allows guest; in force after {} ms",
        took.as_millis()
    );
    events.say(&Event {
        event: "policy.applied",
        who: "pay-proxy",
        what: "policy",
        text,
    });

    const BAD: &str = "a bad policy file keeps the last good set and says so";
    mesh.place.write(
        "policy.yaml",
        "apiVersion: mesh.finial.dev/v1alpha1\nkind: AuthorisationPolicy\n",
    )?;
    let said = within(EDIT_LIMIT, || {
        let log = mesh.pay.log();
        async move { log.contains("FNL3051") }
    });
    expect(BAD, said.await, || {
        "its log does not mention the file".into()
    })?;
    let answer = charge(&mesh.guest).await.map_err(|e| fail(BAD, e))?;
    expect(BAD, answer.status == 200, || {
        format!("guest got {}", answer.status)
    })?;
    let text = "a broken policy.yaml is refused whole; the last good set stays in force".into();
    events.say(&Event {
        event: "policy.refused",
        who: "pay-proxy",
        what: "policy",
        text,
    });

    let took = edit(mesh, EDIT, files::POLICY, 403).await?;
    let text = format!(
        "policy.yaml as before; guest is refused again after {} ms",
        took.as_millis()
    );
    events.say(&Event {
        event: "policy.applied",
        who: "pay-proxy",
        what: "policy",
        text,
    });
    Ok(())
}

async fn edit(
    mesh: &Mesh<'_>,
    line: &'static str,
    policy: &str,
    status: u16,
) -> Result<Duration, DevError> {
    mesh.place.write("policy.yaml", policy)?;
    let began = Instant::now();
    let seen = within(EDIT_LIMIT, || async {
        charge(&mesh.guest)
            .await
            .is_ok_and(|answer| answer.status == status)
    });
    expect(line, seen.await, || format!("guest does not get {status}"))?;
    Ok(began.elapsed())
}

async fn rotated(
    mesh: &Mesh<'_>,
    events: Events,
    before: &Rotations,
    traffic: Traffic,
) -> Result<(), DevError> {
    const LINE: &str = "both certificates rotate under load without a failed request";
    let both = within(ROTATION_LIMIT, || async {
        Rotations::seen(mesh)
            .await
            .is_ok_and(|now| now.shop > before.shop && now.pay > before.pay)
    });
    expect(LINE, both.await, || {
        "shop and pay have not both rotated".into()
    })?;
    // Some traffic with the new certificates on both sides.
    sleep(Duration::from_millis(300)).await;
    let (sent, failed) = (traffic.sent(), traffic.failed());
    expect(LINE, sent > 0 && failed == 0, || {
        format!(
            "{failed} of {sent} requests failed, the first: {}",
            traffic.first_failure()
        )
    })?;
    let text = format!("shop and pay, under load: {sent} requests, {failed} failed");
    events.say(&Event {
        event: "proxy.rotated",
        who: "rotated",
        what: "",
        text,
    });
    Ok(())
}

fn audited(mesh: &Mesh<'_>, events: Events) -> Result<(), DevError> {
    const LINE: &str = "the audit log is whole";
    let mut records = 0;
    for writer in ["ca-server", "pay"] {
        let file = mesh
            .place
            .path()
            .join("audit")
            .join(writer)
            .join("audit.jsonl");
        let report = audit::verify(&[file]).map_err(|e| fail(LINE, e))?;
        expect(LINE, report.records > 0, || {
            format!("{writer} has recorded nothing")
        })?;
        records += report.records;
    }
    let text = format!("{records} records of ca-server and pay, hash chain verified");
    events.say(&Event {
        event: "audit.verified",
        who: "audit",
        what: "verified",
        text,
    });
    Ok(())
}

async fn charge(caller: &Process) -> std::io::Result<Answer> {
    http::send(caller.address("outbound.pay"), "POST", "/charge").await
}

/// Asserts a refusal that says what it is, and tells it with the reason that pay has on record.
async fn refused(
    mesh: &Mesh<'_>,
    line: &'static str,
    answer: &Answer,
    caller: &str,
) -> Result<String, DevError> {
    let told = answer
        .header("x-finial-error")
        .zip(answer.header("x-finial-decision"));
    let (403, Some((code, decision))) = (answer.status, told) else {
        let because = format!("status {} and headers {:?}", answer.status, answer.headers);
        return Err(fail(line, because));
    };
    let by_decision = json!({ "effect": "deny", "decision": decision, "source": id(caller) });
    let record = recorded(mesh, line, &by_decision).await?;
    let why = word(&record, "why");
    expect(line, !why.is_empty(), || format!("no reason in {record}"))?;
    Ok(format!("403  {code}  decision {decision}\n{why}"))
}

/// The line of pay's access log with these fields; it is written beside the answer, not before.
async fn recorded(mesh: &Mesh<'_>, line: &'static str, wanted: &Value) -> Result<Value, DevError> {
    let log = mesh.place.file("pay-access.jsonl");
    let deadline = Instant::now() + EDIT_LIMIT;
    loop {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let found = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|record| {
                let fields = wanted.as_object().into_iter().flatten();
                fields
                    .into_iter()
                    .all(|(name, value)| record[name] == *value)
            });
        match found {
            Some(record) => return Ok(record),
            None if Instant::now() < deadline => sleep(Duration::from_millis(20)).await,
            None => return Err(fail(line, format!("{log} has no record with {wanted}"))),
        }
    }
}

fn id(name: &str) -> String {
    format!("spiffe://{}/{name}", files::TRUST_DOMAIN)
}

fn word<'r>(record: &'r Value, field: &str) -> &'r str {
    record[field].as_str().unwrap_or_default()
}

fn fail(line: &'static str, because: impl ToString) -> DevError {
    DevError::Scene {
        line,
        because: because.to_string(),
    }
}

fn expect(
    line: &'static str,
    holds: bool,
    because: impl FnOnce() -> String,
) -> Result<(), DevError> {
    if holds {
        Ok(())
    } else {
        Err(DevError::Scene {
            line,
            because: because(),
        })
    }
}

async fn within<F: Future<Output = bool>>(
    limit: Duration,
    mut condition: impl FnMut() -> F,
) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition().await {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// How often each proxy has taken over an identity.
#[derive(PartialEq)]
struct Rotations {
    shop: u64,
    pay: u64,
}

impl Rotations {
    async fn seen(mesh: &Mesh<'_>) -> Result<Self, DevError> {
        const LINE: &str = "a proxy tells how often it rotated";
        let read = async |process: &Process| {
            let count = process.metric(IDENTITIES).await;
            count
                .map(|count| count as u64)
                .ok_or_else(|| fail(LINE, format!("{} has no {IDENTITIES}", process.name())))
        };
        Ok(Self {
            shop: read(&mesh.shop).await?,
            pay: read(&mesh.pay).await?,
        })
    }
}

/// 20 requests a second from shop to pay, half of them on a connection of their own.
struct Traffic {
    counters: Arc<Counters>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Counters {
    sent: AtomicU64,
    failed: AtomicU64,
    first: std::sync::Mutex<Option<String>>,
}

impl Traffic {
    fn start(address: &str) -> Self {
        let counters = Arc::new(Counters::default());
        let task = tokio::spawn(drive(address.to_owned(), counters.clone()));
        Self { counters, task }
    }

    fn sent(&self) -> u64 {
        self.counters.sent.load(Relaxed)
    }

    fn failed(&self) -> u64 {
        self.counters.failed.load(Relaxed)
    }

    fn first_failure(&self) -> String {
        self.counters
            .first
            .lock()
            .ok()
            .and_then(|first| first.clone())
            .unwrap_or_default()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn drive(address: String, counters: Arc<Counters>) {
    let mut kept = None;
    let mut tick = interval(Duration::from_millis(100));
    loop {
        tick.tick().await;
        let fresh = http::send(&address, "POST", "/charge").await;
        counters.count(fresh);
        if kept.is_none() {
            kept = http::Http1::connect(&address).await.ok();
        }
        let Some(connection) = &mut kept else {
            continue;
        };
        let answer = connection.send("POST", "/charge").await;
        if answer.is_err() {
            kept = None;
        }
        counters.count(answer);
    }
}

impl Counters {
    fn count(&self, answer: std::io::Result<Answer>) {
        self.sent.fetch_add(1, Relaxed);
        let failure = match answer {
            Ok(answer) if answer.status == 200 => return,
            Ok(answer) => format!("status {}", answer.status),
            Err(error) => error.to_string(),
        };
        self.failed.fetch_add(1, Relaxed);
        if let Ok(mut first) = self.first.lock() {
            first.get_or_insert(failure);
        }
    }
}
