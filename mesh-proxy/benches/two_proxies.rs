//! Measures CPU per HTTP/1.1 request over client -> outbound -> mutual TLS -> inbound -> application, with the real programs:
//! `cargo bench -p mesh-proxy`. Beside it, in the same run, two bare hyper relays over the same TLS: the floor.
//! Trusts /proc for the CPU time of the processes. Never runs in `cargo test`.

#[path = "../tests/proxy/world.rs"]
#[expect(
    dead_code,
    reason = "the world of the tests, of which a benchmark needs a part"
)]
#[allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on says where"
)]
mod world;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_identity::{Bundle, BundleSet, X509Svid};
use mesh_tls::{Authorizer, ClientPolicy, IdentityCell, PrivateKey, TlsIdentity};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use world::{DOMAIN, Proxy, SHOP_ANYTHING, World, allow, eventually, now, started};

const CONNECTIONS: usize = 16;
const WARM_UP: Duration = Duration::from_secs(2);
const ROUND: Duration = Duration::from_secs(6);
const ROUNDS: usize = 3;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--relay") {
        return runtime().block_on(relay(&args[at + 1..]));
    }
    if args.iter().any(|arg| arg == "--bench") {
        runtime().block_on(measure());
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

async fn measure() {
    let world = World::new();
    pin(std::process::id(), "1");
    let application = application().await;
    let (shop_agent, pay_agent) = (
        world.agent("shop", Duration::from_secs(3600)),
        world.agent("pay", Duration::from_secs(3600)),
    );
    let policy = world.write(
        "policy.yaml",
        &allow(&format!(
            "{SHOP_ANYTHING}\nto: [ {{ operation: {{ methods: [GET], paths: [\"/api/*\"] }} }} ]"
        )),
    );
    let doors = format!(
        "inbound: {{ listen: \"127.0.0.1:0\", application: \"{application}\" }}\npolicy: {{ file: \"{}\" }}",
        policy.display()
    );
    let pay = Proxy::start(&world, "pay", &pay_agent, &doors).await;
    let doors = format!(
        "outbound: [ {{ name: pay, listen: \"127.0.0.1:0\", to: \"{}\", serverId: \"spiffe://{DOMAIN}/pay\" }} ]",
        pay.door("inbound")
    );
    let shop = Proxy::start(&world, "shop", &shop_agent, &doors).await;
    pay.ready().await;
    shop.ready().await;
    println!(
        "idle RSS: outbound {} KiB, inbound {} KiB",
        rss(shop.child.id()),
        rss(pay.child.id())
    );
    let (server, server_at) = start_relay(&world, "server", "pay", application).await;
    let (client, client_at) = start_relay(&world, "client", "shop", server_at).await;
    let proxies = [shop.child.id(), pay.child.id()];
    let relays = [client.0.id(), server.0.id()];
    for pid in proxies.iter().chain(&relays) {
        pin(*pid, "0");
    }
    let paths = [
        (
            "two mesh-proxies, access log and policy on",
            proxies,
            shop.door("outbound.pay"),
        ),
        ("two bare hyper relays, same TLS", relays, client_at),
    ];
    for round in 1..=ROUNDS {
        for (what, pids, door) in &paths {
            load(*door, WARM_UP).await;
            let before = [cpu(pids[0]), cpu(pids[1])];
            let (requests, seconds) = load(*door, ROUND).await;
            let spent = [cpu(pids[0]) - before[0], cpu(pids[1]) - before[1]];
            let each = |micros: u64| micros as f64 / requests as f64;
            println!(
                "round {round}  {what}: {:.1} us of CPU per request (client side {:.1}, server side {:.1}), {:.0} requests/s, {requests} requests",
                each(spent[0] + spent[1]),
                each(spent[0]),
                each(spent[1]),
                requests as f64 / seconds
            );
        }
    }
    println!(
        "RSS after load: outbound {} KiB, inbound {} KiB",
        rss(proxies[0]),
        rss(proxies[1])
    );
}

/// Sends requests on kept connections, one after the other on each.
async fn load(door: SocketAddr, time: Duration) -> (u64, f64) {
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let began = started();
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        clients.push(tokio::spawn(async move {
            let mut stream = TcpStream::connect(door).await.expect("the door is open");
            stream.set_nodelay(true).expect("a socket");
            let mut buffer = vec![0; 8192];
            while !stop.load(Ordering::Relaxed) {
                stream.write_all(b"GET /api/v1/item HTTP/1.1\r\nHost: pay\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n").await.expect("it takes requests");
                let mut have = 0;
                loop {
                    let read = stream.read(&mut buffer[have..]).await.expect("it answers");
                    assert!(read > 0, "the connection was closed");
                    have += read;
                    if let Some(head) = buffer[..have].windows(4).position(|w| w == b"\r\n\r\n")
                        && have >= head + 4 + 1024
                    {
                        assert!(buffer.starts_with(b"HTTP/1.1 200"));
                        break;
                    }
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("no client failed");
    }
    (done.load(Ordering::Relaxed), began.elapsed().as_secs_f64())
}

/// Answers every request with one KiB, with as little work as possible.
async fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let answer = Arc::new(format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n{}",
        "x".repeat(1024)
    ));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                stream.set_nodelay(true).ok();
                let mut buffer = vec![0; 8192];
                let mut have = 0;
                while let Ok(read @ 1..) = stream.read(&mut buffer[have..]).await {
                    have += read;
                    if buffer[..have].ends_with(b"\r\n\r\n") {
                        have = 0;
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

/// CPU time of a process in microseconds: user and system, from /proc/PID/stat.
fn cpu(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .expect("a name in brackets")
        .split_whitespace()
        .collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number of ticks");
    // utime and stime are fields 14 and 15; the name ended with field 2. The kernel counts 100 ticks a second.
    (ticks(11) + ticks(12)) * 10_000
}

fn rss(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status
        .lines()
        .find(|l| l.starts_with("VmRSS:"))
        .expect("a line of RSS");
    line.split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

/// Without `taskset` the processes run where the kernel puts them.
fn pin(pid: u32, cores: &str) {
    let quiet = std::process::Stdio::null;
    Command::new("taskset")
        .args(["-a", "-p", "-c", cores, &pid.to_string()])
        .stdout(quiet())
        .stderr(quiet())
        .status()
        .ok();
}

/// A process that ends with the benchmark.
struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

async fn start_relay(world: &World, side: &str, name: &str, to: SocketAddr) -> (Relay, SocketAddr) {
    let leaf = world.issue(name, Duration::from_secs(3600));
    let dir = world.path(&format!("relay-{side}"));
    std::fs::create_dir(&dir).expect("a directory");
    let put = |file: &str, bytes: &[u8]| std::fs::write(dir.join(file), bytes).expect("a file");
    put("chain", &leaf.svid().to_der_concat());
    put("key", &leaf.key_pkcs8());
    put("bundle", &world.root.bundle(DOMAIN).to_der_concat());
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--relay", side, &to.to_string()])
        .arg(&dir)
        .spawn()
        .expect("this program starts again");
    let address = eventually("the relay listens", || {
        std::fs::read_to_string(dir.join("address"))
            .ok()?
            .parse()
            .ok()
    })
    .await;
    (Relay(child), address)
}

/// `--relay server|client TO DIR`: plain hyper at both ends, one connection upstream for each one downstream.
async fn relay(args: &[String]) {
    mesh_tls::install_default_provider();
    let (side, to, dir) = (
        args[0].as_str(),
        args[1].parse::<SocketAddr>().expect("an address"),
        Path::new(&args[2]),
    );
    let get = |file: &str| std::fs::read(dir.join(file)).expect("a file");
    let svid = X509Svid::from_der_concat(&get("chain")).expect("an SVID");
    let mut bundles = BundleSet::new();
    bundles.insert(
        Bundle::from_der_concat(svid.id().trust_domain().clone(), &get("bundle"))
            .expect("a bundle"),
    );
    let key = PrivateKey::from_pkcs8(get("key")).expect("a key");
    let cell = IdentityCell::new(TlsIdentity::new(svid, key, bundles, now()).expect("an identity"));
    let alpn: &[&[u8]] = &[b"http/1.1"];
    let server = mesh_tls::server_config(
        &cell,
        ClientPolicy::Required(Authorizer::any_verified()),
        alpn,
        Arc::new(now),
    );
    let client = mesh_tls::client_config(&cell, Authorizer::any_verified(), alpn, Arc::new(now));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let beside = dir.join("address.new");
    std::fs::write(
        &beside,
        listener.local_addr().expect("an address").to_string(),
    )
    .expect("a file");
    std::fs::rename(beside, dir.join("address")).expect("a file");
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).ok();
        let (server, client, is_server) =
            (Arc::clone(&server), Arc::clone(&client), side == "server");
        tokio::spawn(async move {
            let upstream = TcpStream::connect(to).await.expect("upstream is open");
            upstream.set_nodelay(true).ok();
            if is_server {
                let (stream, _) = mesh_tls::accept(&server, stream)
                    .await
                    .expect("a handshake");
                pass(TokioIo::new(stream), TokioIo::new(upstream)).await;
            } else {
                let (upstream, _) = mesh_tls::connect(&client, upstream)
                    .await
                    .expect("a handshake");
                pass(TokioIo::new(stream), TokioIo::new(upstream)).await;
            }
        });
    }
}

async fn pass<D, U>(downstream: D, upstream: U)
where
    D: hyper::rt::Read + hyper::rt::Write + Unpin,
    U: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, driver) =
        hyper::client::conn::http1::handshake::<_, hyper::body::Incoming>(upstream)
            .await
            .expect("HTTP begins");
    tokio::spawn(driver);
    let sender = Arc::new(Mutex::new(sender));
    let service = hyper::service::service_fn(move |request| {
        let sender = Arc::clone(&sender);
        async move { sender.lock().await.send_request(request).await }
    });
    // A benchmark's connection that breaks ends the benchmark by its client.
    hyper::server::conn::http1::Builder::new()
        .serve_connection(downstream, service)
        .await
        .ok();
}
