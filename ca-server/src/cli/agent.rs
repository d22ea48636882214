//! `ca-server agent`: who serves identities on the nodes, and who no longer may.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use mesh_identity::{Selector, SpiffeId};
use mesh_runtime::cli::{self, Exit, Output};
use mesh_runtime::clock::Clock;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::args::{MatchOn, Socket, duration, set};
use super::{CommandError, show};
use crate::api::client::ClientError;
use crate::registry::AgentFilter;

#[derive(Debug, Subcommand)]
pub(super) enum AgentVerb {
    /// List agents
    List {
        #[command(flatten)]
        socket: Socket,
        #[command(flatten)]
        filter: Filter,
    },
    /// Count agents
    Count {
        #[command(flatten)]
        socket: Socket,
        #[command(flatten)]
        filter: Filter,
    },
    /// Show one agent
    Show(Which),
    /// Shut an agent out for good
    Ban(Which),
    /// Forget an agent; it may attest again
    Evict(Which),
    /// Evict agents whose SVID ended long ago and that may attest again
    Purge {
        #[command(flatten)]
        socket: Socket,
        /// How long ago the SVID must have ended
        #[arg(long, alias = "expiredFor", value_name = "TIME", value_parser = duration, default_value = "720h")]
        expired_for: Duration,
        /// Only tell which
        #[arg(long, alias = "dryRun")]
        dry_run: bool,
    },
}

/// Which agent.
#[derive(Debug, Args)]
pub(super) struct Which {
    #[command(flatten)]
    socket: Socket,
    /// Its SPIFFE ID
    #[arg(long, alias = "spiffeID", value_name = "ID")]
    spiffe_id: SpiffeId,
}

/// Which agents.
#[derive(Debug, Args)]
pub(super) struct Filter {
    /// Only those that attested this way, such as join_token
    #[arg(long, alias = "attestationType", value_name = "TYPE")]
    attestation_type: Option<String>,
    /// Only those with this selector; repeatable
    #[arg(long, value_name = "TYPE:VALUE")]
    selector: Vec<Selector>,
    /// How the selectors are compared
    #[arg(long, alias = "matchSelectorsOn", value_enum, default_value_t)]
    match_selectors_on: MatchOn,
    /// Only those that are banned, or are not
    #[arg(long, value_name = "BOOL")]
    banned: Option<bool>,
    /// Only those that may attest again, or may not
    #[arg(long, alias = "canReattest", value_name = "BOOL")]
    can_reattest: Option<bool>,
    /// Only those whose SVID ends before this moment, as 2026-01-02T15:04:05Z or in the form of SPIRE's command
    #[arg(long, alias = "expiresBefore", value_name = "MOMENT", value_parser = moment)]
    expires_before: Option<SystemTime>,
}

impl Filter {
    fn value(self) -> AgentFilter {
        AgentFilter {
            attestation_type: self.attestation_type,
            selectors: set(self.selector, self.match_selectors_on),
            banned: self.banned,
            can_reattest: self.can_reattest,
            expires_before: self.expires_before,
        }
    }
}

/// RFC 3339, or as SPIRE's command wants it: `2006-01-02 15:04:05 -0700 -07`.
fn moment(text: &str) -> Result<SystemTime, String> {
    let parts: Vec<_> = text.split(' ').collect();
    let rfc3339 = match parts[..] {
        [date, time, offset, zone] if offset.get(..3) == Some(zone) => {
            format!(
                "{date}T{time}{zone}:{}",
                offset.get(3..).unwrap_or_default()
            )
        }
        _ => text.to_owned(),
    };
    OffsetDateTime::parse(&rfc3339, &Rfc3339)
        .map(SystemTime::from)
        .map_err(|_| "write 2026-01-02T15:04:05Z or 2026-01-02 15:04:05 +0000 +00".to_owned())
}

pub(super) async fn run(verb: AgentVerb, output: Output) -> Result<Exit, CommandError> {
    let text = match verb {
        AgentVerb::List { socket, filter } => {
            let agents = socket.connect().await?.agents_of(&filter.value()).await?;
            show::agents(&agents, output)
        }
        AgentVerb::Count { socket, filter } => {
            let count = socket
                .connect()
                .await?
                .count_agents(&filter.value())
                .await?;
            show::count(count, "attested agent", "attested agents", output)
        }
        AgentVerb::Show(Which { socket, spiffe_id }) => {
            show::agent(&socket.connect().await?.agent(&spiffe_id).await?, output)
        }
        AgentVerb::Ban(Which { socket, spiffe_id }) => {
            socket.connect().await?.ban_agent(&spiffe_id).await?;
            show::done("agent", "banned", &[spiffe_id.as_str()], output)
        }
        AgentVerb::Evict(Which { socket, spiffe_id }) => {
            socket.connect().await?.evict_agent(&spiffe_id).await?;
            show::done("agent", "evicted", &[spiffe_id.as_str()], output)
        }
        AgentVerb::Purge {
            socket,
            expired_for,
            dry_run,
        } => return purge(&socket, expired_for, dry_run, output).await,
    };
    Ok(cli::print(&text))
}

/// One that may not attest again would be lost for good, so such agents stay until somebody evicts them by name.
async fn purge(
    socket: &Socket,
    expired_for: Duration,
    dry_run: bool,
    output: Output,
) -> Result<Exit, CommandError> {
    let client = socket.connect().await?;
    let before = Clock::system()
        .now()
        .checked_sub(expired_for)
        .unwrap_or(SystemTime::UNIX_EPOCH);
    let filter = AgentFilter {
        can_reattest: Some(true),
        banned: Some(false),
        expires_before: Some(before),
        ..AgentFilter::default()
    };
    let found = client.agents_of(&filter).await?;
    let (mut gone, mut refused) = (Vec::new(), Vec::new());
    for agent in &found {
        let evicted = match (dry_run, agent.id.parse::<SpiffeId>()) {
            (true, _) => Ok(()),
            (false, Ok(id)) => client.evict_agent(&id).await,
            (false, Err(error)) => Err(ClientError::Unreadable(error.to_string())),
        };
        match evicted {
            Ok(()) => gone.push(agent.id.as_str()),
            Err(error) => refused.push((agent.id.clone(), error)),
        }
    }
    let word = if dry_run { "purgeable" } else { "purged" };
    let printed = cli::print(&show::done("agent", word, &gone, output));
    CommandError::of_items(refused).map_or(Ok(printed), Err)
}
