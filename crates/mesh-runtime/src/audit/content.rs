//! Decides what a record says: who did what to what, from where, how it ended and why (ux F.2).
//! Trusts no text in it, which is tamed when it is written. Never holds a key, a usable token or a body.

use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;

use crate::clock::Clock;

/// A stable dotted verb: `svid.issue`, `entry.create`, `authz.deny`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Action(pub &'static str);

/// How an act ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was done.
    Success,
    /// It was allowed and could not be done.
    Failure,
    /// It was not allowed.
    Denied,
}

/// Who acted.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Actor {
    /// `user`, `workload`, `agent` or `system`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The SPIFFE ID when there is one.
    pub id: String,
    /// `oidc`, `mtls`, `uds`, `token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authn: Option<&'static str>,
    /// Whether a second factor was shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfa: Option<bool>,
    /// A session's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// User id by the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Process id by the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Path of the executable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
}

impl Actor {
    /// A person.
    pub fn user(id: impl Into<String>) -> Self {
        Self {
            kind: "user",
            id: id.into(),
            ..Self::default()
        }
    }

    /// A workload.
    pub fn workload(id: impl Into<String>) -> Self {
        Self {
            kind: "workload",
            id: id.into(),
            ..Self::default()
        }
    }

    /// An agent.
    pub fn agent(id: impl Into<String>) -> Self {
        Self {
            kind: "agent",
            id: id.into(),
            ..Self::default()
        }
    }

    /// The program itself, or a task of it.
    pub fn system(id: impl Into<String>) -> Self {
        Self {
            kind: "system",
            id: id.into(),
            ..Self::default()
        }
    }

    /// How it proved itself.
    #[must_use]
    pub fn authn(mut self, how: &'static str) -> Self {
        self.authn = Some(how);
        self
    }

    /// What the kernel says about a local caller.
    #[must_use]
    pub fn process(mut self, uid: u32, pid: Option<i32>) -> Self {
        (self.uid, self.pid) = (Some(uid), pid);
        self
    }

    /// The executable of a local caller.
    #[must_use]
    pub fn exe(mut self, path: impl Into<String>) -> Self {
        self.exe = Some(path.into());
        self
    }
}

macro_rules! text_fields {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Serialize)]
        pub struct $name {
            $($(#[$field_doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<String>,)*
        }

        impl $name {
            $($(#[$field_doc])* #[must_use] pub fn $field(mut self, value: impl Into<String>) -> Self {
                self.$field = Some(value.into());
                self
            })*
        }
    };
}

text_fields! {
    /// Where the call came from.
    Origin {
        /// Address of the peer.
        ip,
        /// Port of the peer.
        port,
        /// Node it came through.
        node,
        /// Unix socket it came to.
        socket,
        /// Program that passed it on.
        via,
    }
}

impl Origin {
    /// A peer on the network.
    pub fn tcp(peer: SocketAddr) -> Self {
        Self::default()
            .ip(peer.ip().to_canonical().to_string())
            .port(peer.port().to_string())
    }

    /// A caller at a local socket.
    pub fn unix(socket: impl AsRef<Path>) -> Self {
        Self::default().socket(socket.as_ref().display().to_string())
    }
}

text_fields! {
    /// What was acted on.
    Object {
        /// Kind: `entry`, `svid`, `bundle`, `agent`, `token`, `policy`, `config`.
        kind,
        /// Name, or SPIFFE ID.
        name,
        /// Kubernetes namespace.
        namespace,
        /// Id.
        id,
        /// Serial number of a certificate.
        serial,
        /// Hash of the object before.
        before,
        /// Hash of the object after.
        after,
    }
}

impl Object {
    /// An object of a kind.
    pub fn new(kind: impl Into<String>) -> Self {
        Self::default().kind(kind)
    }
}

text_fields! {
    /// Why it was decided so.
    Decision {
        /// `allow` or `deny`.
        effect,
        /// Policy's name.
        policy,
        /// Policy's revision.
        policy_rev,
        /// Rule in the policy.
        rule,
        /// The reason in words.
        reason,
        /// `enforce`, `shadow`, `permissive`.
        mode,
        /// Digest of what was decided on.
        inputs_digest,
    }
}

impl Decision {
    /// It was allowed.
    pub fn allow() -> Self {
        Self::default().effect("allow")
    }

    /// It was denied, and why.
    pub fn deny(reason: impl Into<String>) -> Self {
        Self::default().effect("deny").reason(reason)
    }
}

/// A record's content, before its place in the chain is known.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Entry {
    pub(super) v: u32,
    pub(super) id: String,
    #[serde(serialize_with = "as_rfc3339")]
    pub(super) time: SystemTime,
    pub(super) actor: Actor,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) origin: Option<Origin>,
    pub(super) action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) object: Option<Object>,
    pub(super) outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) decision: Option<Decision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) trace: Option<Trace>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) parent_id: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Trace {
    pub(super) trace_id: String,
    pub(super) span_id: String,
}

impl Entry {
    pub(super) fn new(clock: &Clock, action: Action, actor: Actor) -> Self {
        Self {
            v: 1,
            id: crate::ids::ulid(clock),
            time: clock.now(),
            actor,
            origin: None,
            action: action.0,
            object: None,
            // Failure until somebody says otherwise (architecture B10, C12).
            outcome: Outcome::Failure,
            code: Some("aborted"),
            decision: None,
            trace: None,
            request_id: None,
            parent_id: None,
        }
    }
}

fn as_rfc3339<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time))
}

/// The one form of times in the log: UTC with microseconds.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let t = time::OffsetDateTime::from(time);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        t.year(),
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second(),
        t.microsecond()
    )
}
