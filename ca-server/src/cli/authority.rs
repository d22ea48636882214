//! `ca-server authority`: which keys sign, and the turns that an operator takes by hand.

use clap::{Args, Subcommand};
use mesh_runtime::cli::{self, Exit, Output};
use serde_json::{Value, json};

use super::CommandError;
use super::args::Socket;
use super::show::{done, line, rfc3339, rows};
use crate::api::client::{
    AuthorityProgress, AuthorityTurn, ListedAuthorities, ListedAuthority, ListedTaint, SomeAgents,
    UpstreamTurn,
};
use crate::authority::AuthorityKind;

#[derive(Debug, Subcommand)]
pub(super) enum AuthorityVerb {
    /// Show the authorities of both kinds, for whom a turn waits, and who still holds what a tainted one signed
    Show {
        #[command(flatten)]
        socket: Socket,
    },
    /// The authorities that sign certificates
    X509 {
        #[command(subcommand)]
        verb: KindVerb,
    },
    /// The authorities that sign tokens
    Jwt {
        #[command(subcommand)]
        verb: KindVerb,
    },
    /// The roots above this server's authorities, where `upstreamAuthority` is configured
    Upstream {
        #[command(subcommand)]
        verb: UpstreamVerb,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum KindVerb {
    /// Show the authorities of this kind
    Show {
        #[command(flatten)]
        socket: Socket,
    },
    /// Make the next authority: it is in the bundle and does not sign yet
    Prepare {
        #[command(flatten)]
        socket: Socket,
    },
    /// Let the prepared authority sign, without waiting for agents that do not know it
    Activate(Which),
    /// Have all that an old authority signed replaced
    Taint(Which),
    /// Take a tainted authority out of the bundle: nothing that it signed counts any more
    Revoke(Which),
}

/// Turns of a root above; SPIRE's `upstreamauthority`.
#[derive(Debug, Subcommand)]
pub(super) enum UpstreamVerb {
    /// Have all that was signed below a root replaced; what signs now must be below another
    Taint(WhichRoot),
    /// Take a tainted root out of the bundle: nothing below it counts any more
    Revoke(WhichRoot),
}

/// Which root.
#[derive(Debug, Args)]
pub(super) struct WhichRoot {
    #[command(flatten)]
    socket: Socket,
    /// Its subject key id, as it is shown with the authorities below it
    #[arg(long, alias = "subjectKeyID", value_name = "ID")]
    subject_key_id: String,
}

/// Which authority.
#[derive(Debug, Args)]
pub(super) struct Which {
    #[command(flatten)]
    socket: Socket,
    /// Its id, as it is shown
    #[arg(long, alias = "authorityID", value_name = "ID")]
    authority_id: String,
}

pub(super) async fn run(verb: AuthorityVerb, output: Output) -> Result<Exit, CommandError> {
    match verb {
        AuthorityVerb::Show { socket } => {
            let client = socket.connect().await?;
            let mut shown = Vec::new();
            for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
                shown.push((kind, client.authorities(kind).await?));
            }
            let progress = client.authority_progress().await?;
            Ok(cli::print(&match output {
                Output::Json => {
                    let mut all = authorities_json(&shown);
                    all["waitsFor"] = agents_json(&progress.waits_for);
                    all["tainted"] = progress.tainted.iter().map(tainted_json).collect();
                    line(&all)
                }
                Output::Table => authorities(&shown, output) + &progress_text(&progress),
            }))
        }
        AuthorityVerb::X509 { verb } => of_kind(AuthorityKind::X509, verb, output).await,
        AuthorityVerb::Jwt { verb } => of_kind(AuthorityKind::Jwt, verb, output).await,
        AuthorityVerb::Upstream { verb } => upstream(verb, output).await,
    }
}

pub(super) async fn upstream(verb: UpstreamVerb, output: Output) -> Result<Exit, CommandError> {
    let (turn, past, which) = match verb {
        UpstreamVerb::Taint(which) => (UpstreamTurn::Taint, "tainted", which),
        UpstreamVerb::Revoke(which) => (UpstreamTurn::Revoke, "revoked", which),
    };
    let id = which.subject_key_id;
    let client = which.socket.connect().await?;
    client.turn_upstream_authority(turn, &id).await?;
    Ok(cli::print(&done(
        "upstream authority",
        past,
        &[&id],
        output,
    )))
}

async fn of_kind(
    kind: AuthorityKind,
    verb: KindVerb,
    output: Output,
) -> Result<Exit, CommandError> {
    let (
        turn,
        past,
        Which {
            socket,
            authority_id,
        },
    ) = match verb {
        KindVerb::Show { socket } => {
            let shown = socket.connect().await?.authorities(kind).await?;
            return Ok(cli::print(&authorities(&[(kind, shown)], output)));
        }
        KindVerb::Prepare { socket } => {
            let prepared = socket.connect().await?.prepare_authority(kind).await?;
            return Ok(cli::print(&turned(kind, "prepared", &prepared, output)));
        }
        KindVerb::Activate(which) => (AuthorityTurn::Activate, "activated", which),
        KindVerb::Taint(which) => (AuthorityTurn::Taint, "tainted", which),
        KindVerb::Revoke(which) => (AuthorityTurn::Revoke, "revoked", which),
    };
    let client = socket.connect().await?;
    let authority = client.turn_authority(kind, turn, &authority_id).await?;
    Ok(cli::print(&turned(kind, past, &authority, output)))
}

/// The kind for people, and its key in JSON.
fn names(kind: AuthorityKind) -> (&'static str, &'static str) {
    match kind {
        AuthorityKind::X509 => ("X.509", "x509"),
        AuthorityKind::Jwt => ("JWT", "jwt"),
    }
}

fn turned(kind: AuthorityKind, past: &str, authority: &ListedAuthority, output: Output) -> String {
    match output {
        Output::Json => line(&json!({ past: authority_json(authority) })),
        Output::Table => {
            let (kind, _) = names(kind);
            format!("{kind} authority {past}:\n{}", authority_text(authority))
        }
    }
}

fn authorities(kinds: &[(AuthorityKind, ListedAuthorities)], output: Output) -> String {
    match output {
        Output::Json => line(&authorities_json(kinds)),
        Output::Table => {
            let mut blocks = Vec::new();
            for (kind, all) in kinds {
                let (kind, _) = names(*kind);
                for (state, authority) in [
                    ("Active", &all.active),
                    ("Prepared", &all.prepared),
                    ("Old", &all.old),
                ] {
                    let text = authority
                        .as_ref()
                        .map_or("none\n".to_owned(), authority_text);
                    blocks.push(format!("{state} {kind} authority:\n{text}"));
                }
            }
            blocks.join("\n")
        }
    }
}

fn authorities_json(kinds: &[(AuthorityKind, ListedAuthorities)]) -> Value {
    let kinds: serde_json::Map<_, _> = kinds
        .iter()
        .map(|(kind, all)| {
            let states = json!({
                "active": all.active.as_ref().map(authority_json),
                "prepared": all.prepared.as_ref().map(authority_json),
                "old": all.old.as_ref().map(authority_json),
            });
            (names(*kind).1.to_owned(), states)
        })
        .collect();
    Value::Object(kinds)
}

fn agents_json(agents: &SomeAgents) -> Value {
    json!({ "count": agents.count, "agents": agents.ids })
}

fn tainted_json(tainted: &ListedTaint) -> Value {
    json!({
        "authorityId": tainted.authority_id,
        "svids": tainted.svids,
        "heldBy": agents_json(&tainted.agents),
    })
}

/// Nothing, if nothing is under way.
fn progress_text(progress: &AuthorityProgress) -> String {
    let named = |heading: &str, agents: &SomeAgents| {
        let mut text = rows(&[(heading, agents.count.to_string())]);
        for id in &agents.ids {
            text += &rows(&[("Agent", id.clone())]);
        }
        text
    };
    let mut text = String::new();
    if progress.waits_for.count > 0 {
        text += "\nThe next turn waits for agents:\n";
        text += &named("Agents", &progress.waits_for);
    }
    for tainted in &progress.tainted {
        text += "\nTainted X.509 authority:\n";
        text += &rows(&[
            ("Authority ID", tainted.authority_id.clone()),
            ("SVIDs left", tainted.svids.to_string()),
        ]);
        text += &named("Held by agents", &tainted.agents);
    }
    text
}

fn authority_json(authority: &ListedAuthority) -> Value {
    json!({
        "authorityId": authority.id,
        "expiresAt": rfc3339(authority.expires_at),
        "upstreamAuthorityId": authority.upstream,
    })
}

fn authority_text(authority: &ListedAuthority) -> String {
    let mut text = rows(&[
        ("Authority ID", authority.id.clone()),
        ("Expires", rfc3339(authority.expires_at)),
    ]);
    if let Some(upstream) = &authority.upstream {
        text += &rows(&[("Upstream ID", upstream.clone())]);
    }
    text
}
