//! Decides who calls: the verified certificate or the kernel's word about a local process → `Caller`.
//! Trusts the handshake for the identity, and the store for whether an agent's certificate is still the one in use.
//! Never takes a role from anything that the caller says.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use mesh_identity::{BundleSet, SpiffeId, TrustDomain};
use mesh_runtime::audit::{Actor, Origin};
use mesh_runtime::errors::Coded;
use mesh_tls::Peer;

use crate::fleet::Fleet;
use crate::issuance::Attribution;
use crate::registry::Registry;
use crate::store::{Bundles, Node, Nodes, StoreError};

/// What is known of the other end of a connection.
#[derive(Clone, Debug)]
pub enum Connection {
    /// Over TCP and TLS, with the identity that was proven, if one was shown.
    Tcp {
        /// Where from.
        address: SocketAddr,
        /// Who.
        peer: Option<Arc<Peer>>,
    },
    /// Over the admin socket.
    Unix {
        /// User id, by the kernel.
        uid: u32,
        /// Group id, by the kernel.
        gid: u32,
        /// Process id, by the kernel.
        pid: Option<i32>,
        /// Which socket.
        socket: Arc<PathBuf>,
    },
}

impl Connection {
    /// Who and from where, for the record.
    pub fn attribution(&self, caller: &Caller) -> Attribution {
        match self {
            Self::Tcp { address, peer } => {
                let id = peer.as_ref().map_or("", |peer| peer.id.as_str());
                let actor = match caller {
                    Caller::Agent(node) => Actor::agent(node.id.as_str()),
                    _ if id.contains("/spire/agent/") => Actor::agent(id),
                    _ => Actor::workload(id),
                };
                Attribution {
                    actor: match peer {
                        Some(_) => actor.authn("mtls"),
                        None => actor,
                    },
                    origin: Origin::tcp(*address),
                }
            }
            Self::Unix {
                uid, pid, socket, ..
            } => Attribution {
                actor: Actor::user(format!("uid:{uid}"))
                    .authn("uds")
                    .process(*uid, *pid),
                origin: Origin::unix(socket.as_path()),
            },
        }
    }
}

/// Who calls.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Nobody in particular: no certificate.
    Anonymous,
    /// A node's agent with the certificate that is in use.
    Agent(Arc<Node>),
    /// A workload whose entry, or the configuration, makes it an administrator.
    WorkloadAdmin(SpiffeId),
    /// A local process of an administrator.
    LocalAdmin,
    /// Somebody known, without any role.
    Other,
}

/// The kinds of callers that the permit table speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// No certificate.
    Anonymous,
    /// A live agent.
    Agent,
    /// The holder of an admin entry, or of an identity that the configuration names.
    WorkloadAdmin,
    /// A local administrator.
    LocalAdmin,
    /// Anybody else.
    Other,
}

impl Caller {
    /// Of which kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Anonymous => Kind::Anonymous,
            Self::Agent(_) => Kind::Agent,
            Self::WorkloadAdmin(_) => Kind::WorkloadAdmin,
            Self::LocalAdmin => Kind::LocalAdmin,
            Self::Other => Kind::Other,
        }
    }
}

/// Whom the configuration makes an administrator.
#[derive(Clone, Debug, Default)]
pub struct Admins {
    /// Users on the socket, besides root and this process's own.
    pub uids: BTreeSet<u32>,
    /// Groups on the socket.
    pub gids: BTreeSet<u32>,
    /// Identities, of other trust domains too.
    pub ids: BTreeSet<SpiffeId>,
}

/// Tells callers apart.
#[derive(Clone)]
pub struct Callers {
    own: TrustDomain,
    nodes: Arc<dyn Nodes>,
    bundles: Arc<dyn Bundles>,
    registry: Arc<Registry>,
    fleet: Fleet,
    admins: Arc<Admins>,
}

impl Callers {
    /// Root, this process's own user, and those that the configuration names are administrators on the socket.
    pub fn new(
        own: TrustDomain,
        nodes: Arc<dyn Nodes>,
        bundles: Arc<dyn Bundles>,
        registry: Arc<Registry>,
        fleet: Fleet,
        mut admins: Admins,
    ) -> Self {
        admins.uids.extend([0, nix::unistd::geteuid().as_raw()]);
        Self {
            own,
            nodes,
            bundles,
            registry,
            fleet,
            admins: Arc::new(admins),
        }
    }

    /// Who is at the other end of a connection, now.
    pub async fn identify(
        &self,
        connection: &Connection,
        now: SystemTime,
    ) -> Result<Caller, NotACaller> {
        let peer = match connection {
            Connection::Unix { uid, gid, .. } => {
                let admin = self.admins.uids.contains(uid) || self.admins.gids.contains(gid);
                return Ok(if admin {
                    Caller::LocalAdmin
                } else {
                    Caller::Other
                });
            }
            Connection::Tcp { peer: None, .. } => return Ok(Caller::Anonymous),
            Connection::Tcp {
                peer: Some(peer), ..
            } => peer,
        };
        if !peer.id.is_member_of(&self.own) {
            return Ok(match self.is_admin_of_another(peer, now).await? {
                true => Caller::WorkloadAdmin(peer.id.clone()),
                false => Caller::Other,
            });
        }
        if peer.id.path().starts_with("/spire/agent/") {
            let agent = self.agent(peer, now).await?;
            self.fleet.heard(&agent.id, now);
            return Ok(Caller::Agent(agent));
        }
        self.registry.refresh().await?;
        // The certificate was valid when the connection was made; connections live longer than that.
        let admin = self.admins.ids.contains(&peer.id) || self.registry.is_admin(&peer.id);
        if now <= peer.not_after && admin {
            return Ok(Caller::WorkloadAdmin(peer.id.clone()));
        }
        Ok(Caller::Other)
    }

    /// Whether it is one of another trust domain that the configuration names, and our present bundle of that trust domain still
    /// says so: the connection may be older than the end of a federation.
    async fn is_admin_of_another(&self, peer: &Peer, now: SystemTime) -> Result<bool, StoreError> {
        if !self.admins.ids.contains(&peer.id) {
            return Ok(false);
        }
        let stored = self.bundles.get(peer.id.trust_domain()).await?;
        let bundle = stored.and_then(|stored| stored.to_bundle().ok());
        let bundles: BundleSet = bundle.into_iter().collect();
        Ok(peer.verify_again(&bundles, now).is_ok())
    }

    /// The check that SPIRE makes on every call of an agent, in its order.
    pub async fn agent(&self, peer: &Peer, now: SystemTime) -> Result<Arc<Node>, NotACaller> {
        let id = || peer.id.clone();
        if now > peer.not_after {
            return Err(NotACaller::AgentExpired(id()));
        }
        let Some(node) = self.nodes.get(&peer.id).await? else {
            return Err(NotACaller::AgentNotAttested(id()));
        };
        if node.banned {
            return Err(NotACaller::AgentBanned(id()));
        }
        if node.serial == peer.serial {
            return Ok(node);
        }
        if node
            .renewed
            .as_ref()
            .is_some_and(|renewed| renewed.serial == peer.serial)
        {
            // The first use of a renewed certificate makes it the one in use.
            return match self.nodes.promote(&peer.id, &peer.serial).await? {
                Some(node) => Ok(node),
                None => Err(NotACaller::overtaken(&*self.nodes, &peer.id).await),
            };
        }
        Err(NotACaller::AgentNotActive(id()))
    }
}

/// Why somebody with an agent's identity is not a live agent. SPIRE's agents decide on the reason what to do next.
#[derive(Debug, thiserror::Error)]
pub enum NotACaller {
    /// Its certificate is over.
    #[error("agent \"{0}\" SVID has expired")]
    AgentExpired(SpiffeId),
    /// It was evicted, or never known.
    #[error("agent \"{0}\" is not attested")]
    AgentNotAttested(SpiffeId),
    /// Another certificate is in use.
    #[error("agent \"{0}\" SVID is not active")]
    AgentNotActive(SpiffeId),
    /// It cannot return.
    #[error("agent \"{0}\" is banned")]
    AgentBanned(SpiffeId),
    /// It has to prove itself again instead of renewing.
    #[error("agent must reattest instead of renew")]
    AgentMustReattest,
    /// The store did not answer.
    #[error("the caller could not be looked up")]
    Store(#[from] StoreError),
}

impl NotACaller {
    /// Why a change of an agent's record found it another than the guard did a moment before. A ban is told as such: on
    /// anything else SPIRE's agents try again.
    pub(super) async fn overtaken(nodes: &dyn Nodes, id: &SpiffeId) -> Self {
        match nodes.get(id).await {
            Err(error) => error.into(),
            Ok(None) => Self::AgentNotAttested(id.clone()),
            Ok(Some(node)) if node.banned => Self::AgentBanned(id.clone()),
            Ok(Some(_)) => Self::AgentNotActive(id.clone()),
        }
    }
}

impl Coded for NotACaller {
    fn code(&self) -> &'static str {
        match self {
            Self::AgentExpired(_) => "FNL1230",
            Self::AgentNotAttested(_) => "FNL1231",
            Self::AgentNotActive(_) => "FNL1232",
            Self::AgentBanned(_) => "FNL1233",
            Self::AgentMustReattest => "FNL1234",
            Self::Store(error) => error.code(),
        }
    }
}
