//! Decides how a new agent takes the place of a running one: the listening sockets pass from hand to hand, so that a caller who comes in
//! between waits in the kernel's queue and is refused by neither. Trusts root and its own user, nobody else. Never ends the old agent
//! before the new one has said that it will go on, and never lets two of them write the same state.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_runtime::{
    errors::{Coded, ErrorChain},
    tasks::{Stop, Tasks},
};
use nix::{
    sys::socket::{getsockopt, sockopt},
    unistd::geteuid,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::UnixStream,
};

use crate::{
    api::socket::{BoundSocket, Inherited, Lent, SocketError},
    config::AgentConfig,
};

/// The form of [`Offer`]. Agents that do not share one do not hand over.
const VERSION: u32 = 1;
/// No offer is longer: it names a directory and a few sockets.
const LONGEST_OFFER: usize = 16 * 1024;
/// Descriptors in one offer.
const MOST_SOCKETS: usize = 8;
/// How long the other side may take to say its part.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long the old agent may take to end: longer than it gives its own tasks.
const END_WITHIN: Duration = Duration::from_secs(20);
/// What the new agent says when it takes the place.
const TAKEN: &[u8] = b"taken\n";

/// Why no place was taken or given.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The door of the running agent cannot be used.
    #[error("the running agent cannot be asked at {}", path.display())]
    Door {
        /// The door.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Somebody else listens at that door.
    #[error("uid {uid} answers at {}, and neither root nor this user", path.display())]
    Stranger {
        /// The door.
        path: PathBuf,
        /// Whose process it is.
        uid: u32,
    },
    /// What it says cannot be read.
    #[error("the running agent's offer cannot be read")]
    Offer(#[source] serde_json::Error),
    /// It is of another kind.
    #[error("the running agent hands over in form {theirs}, and this one takes form {VERSION}")]
    Version {
        /// Its form.
        theirs: u32,
    },
    /// It is not the agent that this configuration describes.
    #[error("the running agent has {what} {theirs}, and this one {ours}")]
    Another {
        /// What differs.
        what: &'static str,
        /// There.
        theirs: String,
        /// Here.
        ours: String,
    },
    /// It went on too long, or said nothing.
    #[error("the running agent did not {what} within {within:?}")]
    Late {
        /// What it did not do.
        what: &'static str,
        /// The limit.
        within: Duration,
    },
}

impl Coded for HandoverError {
    fn code(&self) -> &'static str {
        "FNL2037"
    }
}

/// What the running agent says of itself; the listening sockets come with it, in this order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Offer {
    version: u32,
    trust_domain: String,
    data_dir: PathBuf,
    sockets: Vec<OfferedSocket>,
}

#[derive(Debug, Serialize, Deserialize)]
struct OfferedSocket {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Where a running agent is asked for its place: beside its admin socket.
fn door(config: &AgentConfig) -> PathBuf {
    let mut path = config.admin_socket().into_os_string();
    path.push(".handover");
    path.into()
}

/// The listening sockets of the agent that ran before, by path.
#[derive(Debug, Default)]
pub struct Inheritance(BTreeMap<PathBuf, Inherited>);

impl Inheritance {
    /// Takes the socket of that path out, if it was handed over.
    pub(crate) fn socket(&mut self, path: &Path) -> Option<Inherited> {
        self.0.remove(path)
    }
}

/// Asks the running agent for its place and waits until it has ended. Without a running agent there is nothing to inherit.
///
/// # Errors
/// When one runs and is not this one's predecessor, or does not give way. Until it is told that its place is taken it goes on.
pub async fn take(config: &AgentConfig) -> Result<Inheritance, HandoverError> {
    let path = door(config);
    let at_door = |cause| HandoverError::Door {
        path: path.clone(),
        cause,
    };
    let mut stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            tracing::info!("no agent runs here: nothing is taken over");
            return Ok(Inheritance::default());
        }
        Err(error) => return Err(at_door(error)),
    };
    if let Err(uid) = check_peer(&stream).map_err(at_door)? {
        return Err(HandoverError::Stranger { path, uid });
    }
    let received = within("make an offer", ANSWER_WITHIN, receive(&stream)).await?;
    let (text, listeners) = received.map_err(at_door)?;
    let offer: Offer = serde_json::from_slice(&text).map_err(HandoverError::Offer)?;
    check(&offer, config)?;

    stream.write_all(TAKEN).await.map_err(at_door)?;
    tracing::info!("taking the place of the agent that runs here");
    // Its end closes the connection; only then is its state ours to write.
    let ended = within("end", END_WITHIN, async {
        let mut nothing = [0; 1];
        while matches!(stream.read(&mut nothing).await, Ok(1..)) {}
    });
    ended.await?;
    let sockets = offer.sockets.into_iter().zip(listeners);
    let inherited = sockets.map(|(of, listener)| {
        let inode = (of.device, of.inode);
        (of.path, Inherited::new(inode, listener))
    });
    Ok(Inheritance(inherited.collect()))
}

fn check(offer: &Offer, config: &AgentConfig) -> Result<(), HandoverError> {
    if offer.version != VERSION {
        return Err(HandoverError::Version {
            theirs: offer.version,
        });
    }
    let (theirs, ours) = (
        offer.data_dir.display().to_string(),
        config.data_dir.display().to_string(),
    );
    for (what, theirs, ours) in [
        (
            "the trust domain",
            &offer.trust_domain,
            &config.trust_domain,
        ),
        ("the data directory", &theirs, &ours),
    ] {
        if theirs != ours {
            return Err(HandoverError::Another {
                what,
                theirs: theirs.clone(),
                ours: ours.clone(),
            });
        }
    }
    Ok(())
}

/// What a running agent has to give away, with the door at which it is asked for it.
#[derive(Debug)]
pub(crate) struct Estate {
    door: BoundSocket,
    offer: Offer,
    sockets: Vec<Lent>,
}

/// Holds the connection to the new agent for as long as this one lives: its closing says that all is over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Successor(Arc<Mutex<Option<UnixStream>>>);

impl Successor {
    /// Lets the new agent go on.
    pub(crate) fn release(&self) {
        self.slot().take();
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<UnixStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Estate {
    /// Opens the door and lists the sockets.
    ///
    /// # Errors
    /// When the door cannot be made.
    pub(crate) fn new(config: &AgentConfig, sockets: Vec<Lent>) -> Result<Self, SocketError> {
        let listed = sockets.iter().map(|lent| {
            let (device, inode) = lent.inode();
            OfferedSocket {
                path: lent.path().to_owned(),
                device,
                inode,
            }
        });
        Ok(Self {
            door: BoundSocket::bind(&door(config), 0o600)?,
            offer: Offer {
                version: VERSION,
                trust_domain: config.trust_domain.clone(),
                data_dir: config.data_dir.clone(),
                sockets: listed.collect(),
            },
            sockets,
        })
    }

    /// Waits for a successor. Once it has taken the place, all tasks are stopped and the sockets stay where they are.
    pub(crate) async fn await_successor(
        self,
        successor: Successor,
        tasks: Tasks,
        stop: Stop,
    ) -> Result<(), serde_json::Error> {
        let mut text = serde_json::to_vec(&self.offer)?;
        text.push(b'\n');
        let (listener, _place) = self.door.into_parts();
        loop {
            let Some(accepted) = stop.unless_stopped(listener.accept()).await else {
                return Ok(());
            };
            let asked = async {
                let (stream, _) = accepted?;
                offer(stream, &text, &self.sockets).await
            };
            let limited = tokio::time::timeout(ANSWER_WITHIN, asked);
            let failure = match stop.unless_stopped(limited).await {
                None => return Ok(()),
                Some(Ok(Ok(stream))) => {
                    for lent in &self.sockets {
                        lent.leave_in_place();
                    }
                    *successor.slot() = Some(stream);
                    tracing::info!("another agent has taken this one's place; this one ends");
                    tasks.stop();
                    return Ok(());
                }
                Some(Ok(Err(error))) => error,
                Some(Err(late)) => late.into(),
            };
            tracing::warn!(error = %ErrorChain(&failure), "this agent was asked for its place and keeps it");
            // Whoever opens and closes the door must not keep this agent busy.
            if stop
                .unless_stopped(tokio::time::sleep(Duration::from_millis(100)))
                .await
                .is_none()
            {
                return Ok(());
            }
        }
    }
}

/// One who asks: offered everything, and asked whether it takes it.
async fn offer(mut stream: UnixStream, text: &[u8], sockets: &[Lent]) -> io::Result<UnixStream> {
    if let Err(uid) = check_peer(&stream)? {
        return Err(io::Error::other(format!("uid {uid} may not have it")));
    }
    let listeners: Vec<BorrowedFd<'_>> = sockets.iter().map(Lent::listener).collect();
    stream
        .async_io(Interest::WRITABLE, || {
            let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
            let mut control = SendAncillaryBuffer::new(&mut room);
            if !control.push(SendAncillaryMessage::ScmRights(&listeners)) {
                return Err(io::Error::other("more sockets than an offer can hold"));
            }
            let sent = rustix::net::sendmsg(
                stream.as_fd(),
                &[IoSlice::new(text)],
                &mut control,
                SendFlags::NOSIGNAL,
            )?;
            // So little is taken whole or not at all.
            (sent == text.len())
                .then_some(())
                .ok_or_else(|| io::ErrorKind::WriteZero.into())
        })
        .await?;
    let mut said = [0; TAKEN.len()];
    stream.read_exact(&mut said).await?;
    if said != TAKEN {
        return Err(io::Error::other("it did not say that it takes the place"));
    }
    Ok(stream)
}

/// The offer and what came with it.
async fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = vec![0; LONGEST_OFFER];
    let (read, listeners) = stream
        .async_io(Interest::READABLE, || {
            let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
            let mut control = RecvAncillaryBuffer::new(&mut room);
            let read = rustix::net::recvmsg(
                stream.as_fd(),
                &mut [IoSliceMut::new(&mut text)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )?;
            let listeners = control.drain().flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
                _ => Vec::new(),
            });
            Ok((read.bytes, listeners.collect::<Vec<_>>()))
        })
        .await?;
    text.truncate(read);
    if text.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((text, listeners))
}

/// Whether the other side is root or this very user; else who it is.
fn check_peer(stream: &UnixStream) -> io::Result<Result<(), u32>> {
    let uid = getsockopt(&stream.as_fd(), sockopt::PeerCredentials)?.uid();
    Ok(match uid == 0 || uid == geteuid().as_raw() {
        true => Ok(()),
        false => Err(uid),
    })
}

async fn within<T>(
    what: &'static str,
    within: Duration,
    work: impl Future<Output = T>,
) -> Result<T, HandoverError> {
    tokio::time::timeout(within, work)
        .await
        .map_err(|_| HandoverError::Late { what, within })
}
