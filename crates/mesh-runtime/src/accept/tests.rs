//! The accept loop under silence, floods and exhausted descriptors.

use super::*;
use crate::tasks::StopSource;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::StreamExt;

async fn listener() -> (TcpListener, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn over_the_cap_connections_wait_until_one_ends() {
    let (listener, address) = listener().await;
    let stop = StopSource::new();
    let limits = Limits {
        max_connections: 1,
        ..Limits::default()
    };
    tokio::spawn(run(
        listener,
        "test",
        limits,
        stop.stop(),
        |mut stream: TcpStream, permit| async move {
            stream.write_all(b"x").await.ok();
            let mut byte = [0];
            stream.read_exact(&mut byte).await.ok();
            drop(permit);
        },
    ));
    let mut byte = [0];
    let mut first = TcpStream::connect(address).await.unwrap();
    first.read_exact(&mut byte).await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    let early =
        tokio::time::timeout(Duration::from_millis(100), second.read_exact(&mut byte)).await;
    assert!(early.is_err(), "served over the cap");
    drop(first);
    tokio::time::timeout(Duration::from_secs(5), second.read_exact(&mut byte))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn m_4_a_silent_client_is_closed_at_the_handshake_timeout_and_others_are_served() {
    let (listener, address) = listener().await;
    let stop = StopSource::new();
    let limits = Limits {
        max_handshakes: 2,
        handshake_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let mut incoming = Incoming::new(
        listener,
        "test",
        limits,
        stop.stop(),
        |mut stream: TcpStream, permit| async move {
            let mut hello = [0];
            stream.read_exact(&mut hello).await?;
            Ok::<_, io::Error>((stream, permit))
        },
    );
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut honest = TcpStream::connect(address).await.unwrap();
    honest.write_all(b"h").await.unwrap();
    assert!(incoming.next().await.is_some());
    let mut byte = [0];
    let closed = tokio::time::timeout(Duration::from_secs(5), silent.read(&mut byte))
        .await
        .unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)));
}

#[tokio::test]
async fn the_stream_ends_when_stopped() {
    let (listener, _) = listener().await;
    let stop = StopSource::new();
    let mut incoming = Incoming::new(
        listener,
        "test",
        Limits::default(),
        stop.stop(),
        |s: TcpStream, p| async move { Ok::<_, io::Error>((s, p)) },
    );
    stop.trigger();
    assert!(incoming.next().await.is_none());
}

#[tokio::test]
async fn a_unix_listener_is_served_by_the_same_loop() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let stop = StopSource::new();
    tokio::spawn(run(
        listener,
        "test",
        Limits::default(),
        stop.stop(),
        |mut stream: UnixStream, permit| async move {
            stream.write_all(b"hello").await.ok();
            drop(permit);
        },
    ));
    let mut text = String::new();
    UnixStream::connect(&path)
        .await
        .unwrap()
        .read_to_string(&mut text)
        .await
        .unwrap();
    assert_eq!(text, "hello");
}

/// A listener whose first accepts fail as the kernel's do.
struct Failing(std::sync::Mutex<Vec<i32>>);

impl Listener for Failing {
    type Stream = ();

    async fn accept_one(&self) -> io::Result<()> {
        match self.0.lock().unwrap().pop() {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn m_5_emfile_enfile_and_enomem_are_waited_out_with_growing_pauses() {
    let errors = [
        nix::libc::EMFILE,
        nix::libc::ENFILE,
        nix::libc::ENOMEM,
        nix::libc::ENOBUFS,
    ]
    .repeat(5);
    let listener = Failing(std::sync::Mutex::new(errors));
    let stop = StopSource::new();
    let slots = Arc::new(Semaphore::new(1));
    let start = tokio::time::Instant::now();
    let got = next(&listener, &slots, &stop.stop(), &mut Trouble::new("test")).await;
    assert!(got.is_some());
    assert!(
        start.elapsed() > Duration::from_secs(5),
        "it spun: {:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn an_aborted_connection_costs_no_pause() {
    let listener = Failing(std::sync::Mutex::new(vec![nix::libc::ECONNABORTED; 100]));
    let stop = StopSource::new();
    let slots = Arc::new(Semaphore::new(1));
    let start = tokio::time::Instant::now();
    next(&listener, &slots, &stop.stop(), &mut Trouble::new("test"))
        .await
        .unwrap();
    assert!(start.elapsed() < Duration::from_millis(200));
}

#[test]
fn the_cap_goes_below_the_descriptor_limit() {
    let limits = Limits {
        max_connections: usize::MAX,
        ..Limits::default()
    }
    .below_descriptor_limit(2);
    let (soft, _) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    assert!((limits.max_connections as u64) * 2 < soft);
}

/// The child's part of the next test: this test binary again, told by its environment to be a server.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the parent test tells its child by the environment what to be"
)]
fn child_serving_with_few_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if std::env::var_os("MESH_RUNTIME_ACCEPT_CHILD").is_none() {
        return;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (listener, address) = listener().await;
        println!("ADDRESS {address}");
        let stop = StopSource::new();
        // The cap is far above the limit on purpose: the kernel must be what says no.
        run(
            listener,
            "test",
            Limits::default(),
            stop.stop(),
            |mut stream: TcpStream, permit| async move {
                if stream.write_all(b"x").await.is_ok() {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).await.ok();
                }
                drop(permit);
            },
        )
        .await;
    });
}

fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_ascii_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn m_5_ag_17_a_process_out_of_descriptors_idles_and_recovers_when_they_are_released() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "accept::tests::child_serving_with_few_descriptors",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("MESH_RUNTIME_ACCEPT_CHILD", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let address = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .find_map(|line| {
            line.unwrap()
                .split_once("ADDRESS ")
                .map(|(_, address)| address.to_owned())
        })
        .unwrap();
    let flood: Vec<_> = (0..150)
        .map(|_| std::net::TcpStream::connect(&address).unwrap())
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let before = cpu_ticks(child.id());
    std::thread::sleep(Duration::from_secs(2));
    let burnt = cpu_ticks(child.id()) - before;
    assert!(child.try_wait().unwrap().is_none(), "the process ended");
    assert!(burnt < 40, "{burnt} ticks of 200 burnt while exhausted");
    drop(flood);
    let released = std::time::Duration::from_secs(5);
    let mut after = std::net::TcpStream::connect(&address).unwrap();
    after.set_read_timeout(Some(released)).unwrap();
    let mut byte = [0];
    after
        .read_exact(&mut byte)
        .expect("served within 5 s of the release");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(start_paused = true)]
async fn m_4_a_half_preface_is_given_up_and_a_whole_one_may_then_be_silent() {
    let (mut client, server) = tokio::io::duplex(64);
    let mut patient = Patience::new(server, HTTP2_OPENING, Duration::from_secs(10));
    client.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let mut opening = [0; HTTP2_OPENING];
    let late = patient.read_exact(&mut opening).await.unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);

    let (mut client, server) = tokio::io::duplex(64);
    let mut patient = Patience::new(server, HTTP2_OPENING, Duration::from_secs(10));
    client.write_all(&[0; HTTP2_OPENING]).await.unwrap();
    patient.read_exact(&mut opening).await.unwrap();
    let mut byte = [0];
    let silent = tokio::time::timeout(Duration::from_secs(3600), patient.read(&mut byte)).await;
    assert!(silent.is_err(), "ended though the opening was complete");
}
