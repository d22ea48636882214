//! Bytes both ways, with half-close and an idle limit; what they mean is nobody's business here.
//! Trusts that somebody decided before.
//! Never holds more than one buffer for each direction, and none while nothing flows.

use std::io;
use std::time::Duration;

use mesh_runtime::metrics::Counter;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::connections::Cut;
use crate::metrics::TcpCounters;

const BUFFER: usize = 16 * 1024;

/// How many bytes went which way, and how it ended.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    pub(crate) from_client: u64,
    pub(crate) to_client: u64,
    pub(crate) cut: Option<Cut>,
    pub(crate) failed: Option<io::Error>,
}

/// Carries until both sides have closed, one of them fails, nothing happens for `idle`, or `end` says so.
pub(crate) async fn carry<C, U>(
    client: C,
    upstream: U,
    counters: &TcpCounters,
    idle: Duration,
    end: impl Future<Output = Cut>,
) -> Carried
where
    C: AsyncRead + AsyncWrite,
    U: AsyncRead + AsyncWrite,
{
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_upstream, mut to_upstream) = tokio::io::split(upstream);
    let mut carried = Carried::default();
    let Carried {
        from_client: up,
        to_client: down,
        ..
    } = &mut carried;
    let (activity, quiet) = tokio::sync::watch::channel(());
    let both = async {
        let up = Passed {
            count: up,
            counter: &counters.received,
        };
        let down = Passed {
            count: down,
            counter: &counters.sent,
        };
        let up = one_way(&mut from_client, &mut to_upstream, up, &activity);
        let down = one_way(&mut from_upstream, &mut to_client, down, &activity);
        tokio::try_join!(up, down)
    };
    let (cut, failed) = tokio::select! {
        biased;
        done = both => (None, done.err()),
        cut = end => (Some(cut), None),
        () = silence(quiet, idle) => (Some(Cut::Idle), None),
    };
    carried.cut = cut;
    carried.failed = failed;
    carried
}

/// What went one way: for the record, and for whoever looks meanwhile.
struct Passed<'a> {
    count: &'a mut u64,
    counter: &'a Counter,
}

async fn one_way<R, W>(
    from: &mut R,
    to: &mut W,
    passed: Passed<'_>,
    activity: &tokio::sync::watch::Sender<()>,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        let read = from.read_buf(&mut buffer).await?;
        if read == 0 {
            // The end of one direction is passed on; the other one goes on.
            return to.shutdown().await;
        }
        to.write_all(&buffer).await?;
        to.flush().await?;
        *passed.count += read as u64;
        // While it lives, so that a long connection is seen when it carries something and not when it ends.
        passed.counter.inc_by(read as u64);
        activity.send_replace(());
    }
}

/// Ends when nothing was carried for `idle`.
async fn silence(mut activity: tokio::sync::watch::Receiver<()>, idle: Duration) {
    while timeout(idle, activity.changed())
        .await
        .is_ok_and(|changed| changed.is_ok())
    {}
}
