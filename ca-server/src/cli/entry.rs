//! `ca-server entry`: what may be whom. The flags are SPIRE's under our spelling, and so is what they mean.

mod file;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use mesh_identity::{DnsName, Entry, EntryId, Selector, SpiffeId, TrustDomain};
use mesh_runtime::cli::{self, Exit, Output};

use super::args::{MatchOn, Socket, set, trust_domain};
use super::{CommandError, show};
use crate::api::client::{AdminClient, ClientError, NewEntry};
use crate::registry::EntryFilter;

#[derive(Debug, Subcommand)]
pub(super) enum EntryVerb {
    /// Create entries
    Create(Create),
    /// Replace an entry, or those of a file
    Update(Update),
    /// Delete entries
    Delete(Delete),
    /// Show entries
    #[command(visible_alias = "list")]
    Show {
        #[command(flatten)]
        socket: Socket,
        /// Only the one with this id
        #[arg(long, alias = "entryID", value_name = "ENTRY", conflicts_with_all = ["spiffe_id", "parent_id", "selector"])]
        entry_id: Option<String>,
        #[command(flatten)]
        filter: Filter,
    },
    /// Count entries
    Count {
        #[command(flatten)]
        socket: Socket,
        #[command(flatten)]
        filter: Filter,
    },
}

/// What a created and an updated entry have in common.
#[derive(Debug, Args)]
pub(super) struct Fields {
    /// The identity
    #[arg(
        long,
        alias = "spiffeID",
        value_name = "ID",
        required_unless_present = "data"
    )]
    spiffe_id: Option<SpiffeId>,
    /// What a process must have; repeatable, all are needed
    #[arg(long, value_name = "TYPE:VALUE", required_unless_present = "data")]
    selector: Vec<Selector>,
    /// Life of X509-SVIDs in seconds; 0: the server's default
    #[arg(long, aliases = ["x509SVIDTTL", "ttl"], value_name = "SECONDS", default_value_t = 0)]
    x509_svid_ttl: i32,
    /// Life of JWT-SVIDs in seconds; 0: the server's default
    #[arg(
        long,
        alias = "jwtSVIDTTL",
        value_name = "SECONDS",
        default_value_t = 0
    )]
    jwt_svid_ttl: i32,
    /// A foreign trust domain whose bundle the workload sees; repeatable
    #[arg(long, alias = "federatesWith", value_name = "DOMAIN", value_parser = trust_domain)]
    federates_with: Vec<TrustDomain>,
    /// A DNS name for the certificate; repeatable
    #[arg(long, value_name = "NAME")]
    dns: Vec<DnsName>,
    /// Told to the workload, so that it can tell its identities apart
    #[arg(long, value_name = "TEXT", default_value = "")]
    hint: String,
    /// The holder is an administrator of this server
    #[arg(long)]
    admin: bool,
    /// The holder may ask for an intermediate certificate authority
    #[arg(long)]
    downstream: bool,
    /// The SVID goes to a store, not to the Workload API
    #[arg(long, alias = "storeSVID")]
    store_svid: bool,
    /// When the entry may be pruned, in seconds since 1970; 0: never
    #[arg(
        long,
        alias = "entryExpiry",
        value_name = "SECONDS",
        default_value_t = 0
    )]
    entry_expiry: i64,
    /// Agents make the X509-SVID when it is asked for, not ahead
    #[arg(long, alias = "disableX509SVIDPrefetch")]
    disable_x509_svid_prefetch: bool,
    /// JWT-SVIDs get a `jti` of their own
    #[arg(long, alias = "jwtSVIDIncludeJTI")]
    jwt_svid_include_jti: bool,
    /// Entries as JSON in SPIRE's form instead of flags; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["spiffe_id", "parent_id", "selector", "entry_id"])]
    data: Option<PathBuf>,
}

impl Fields {
    fn entry(self, id: String, parent_id: SpiffeId) -> Option<NewEntry> {
        Some(NewEntry {
            id,
            selectors: self.selector,
            x509_svid_ttl: self.x509_svid_ttl,
            jwt_svid_ttl: self.jwt_svid_ttl,
            federates_with: self.federates_with,
            dns_names: self.dns,
            hint: self.hint,
            admin: self.admin,
            downstream: self.downstream,
            store_svid: self.store_svid,
            expires_at: self.entry_expiry,
            disable_x509_svid_prefetch: self.disable_x509_svid_prefetch,
            jwt_svid_include_jti: self.jwt_svid_include_jti,
            ..NewEntry::new(self.spiffe_id?, parent_id)
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct Create {
    #[command(flatten)]
    socket: Socket,
    /// Its id; the server chooses one if absent
    #[arg(long, alias = "entryID", value_name = "ENTRY")]
    entry_id: Option<EntryId>,
    /// The agent, node alias or workload below which it applies
    #[arg(long, alias = "parentID", value_name = "ID", required_unless_present_any = ["data", "node"])]
    parent_id: Option<SpiffeId>,
    /// It names nodes: its parent is the server, its selectors are those of agents
    #[arg(long, conflicts_with_all = ["parent_id", "federates_with"])]
    node: bool,
    #[command(flatten)]
    fields: Fields,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    #[command(flatten)]
    socket: Socket,
    /// Which; everything that is not named is reset, but for the prefetch and `jti` switches, which stay
    #[arg(
        long,
        alias = "entryID",
        value_name = "ENTRY",
        required_unless_present = "data"
    )]
    entry_id: Option<EntryId>,
    /// The agent, node alias or workload below which it applies
    #[arg(
        long,
        alias = "parentID",
        value_name = "ID",
        required_unless_present = "data"
    )]
    parent_id: Option<SpiffeId>,
    #[command(flatten)]
    fields: Fields,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    #[command(flatten)]
    socket: Socket,
    /// Which
    #[arg(
        long,
        alias = "entryID",
        value_name = "ENTRY",
        required_unless_present = "file"
    )]
    entry_id: Option<String>,
    /// Ids as JSON, {"ids":["…"]}, instead of one; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "entry_id")]
    file: Option<PathBuf>,
}

/// Which entries.
#[derive(Debug, Args)]
pub(super) struct Filter {
    /// Only those with this SPIFFE ID
    #[arg(long, alias = "spiffeID", value_name = "ID")]
    spiffe_id: Option<SpiffeId>,
    /// Only those below this parent
    #[arg(long, alias = "parentID", value_name = "ID")]
    parent_id: Option<SpiffeId>,
    /// Only those with this selector; repeatable
    #[arg(long, value_name = "TYPE:VALUE")]
    selector: Vec<Selector>,
    /// How the selectors are compared
    #[arg(long, alias = "matchSelectorsOn", value_enum, default_value_t)]
    match_selectors_on: MatchOn,
    /// Only those that federate with this trust domain; repeatable
    #[arg(long, alias = "federatesWith", value_name = "DOMAIN", value_parser = trust_domain)]
    federates_with: Vec<TrustDomain>,
    /// How the trust domains are compared
    #[arg(long, alias = "matchFederatesWithOn", value_enum, default_value_t)]
    match_federates_with_on: MatchOn,
    /// Only those with this hint
    #[arg(long, value_name = "TEXT")]
    hint: Option<String>,
    /// Only those whose holders may ask for an intermediate certificate authority
    #[arg(long)]
    downstream: bool,
}

impl Filter {
    fn value(self) -> EntryFilter {
        EntryFilter {
            spiffe_id: self.spiffe_id,
            parent_id: self.parent_id,
            selectors: set(self.selector, self.match_selectors_on),
            federates_with: set(self.federates_with, self.match_federates_with_on),
            hint: self.hint,
            downstream: self.downstream.then_some(true),
        }
    }
}

pub(super) async fn run(verb: EntryVerb, output: Output) -> Result<Exit, CommandError> {
    match verb {
        EntryVerb::Create(create) => self::create(create, output).await,
        EntryVerb::Update(update) => self::update(update, output).await,
        EntryVerb::Delete(delete) => self::delete(delete, output).await,
        EntryVerb::Show {
            socket,
            entry_id,
            filter,
        } => {
            let client = socket.connect().await?;
            let entries = match entry_id {
                Some(id) => vec![client.entry(&id).await?],
                None => client.entries(&filter.value()).await?,
            };
            Ok(cli::print(&show::entries(&entries, output)))
        }
        EntryVerb::Count { socket, filter } => {
            let count = socket
                .connect()
                .await?
                .count_entries(&filter.value())
                .await?;
            Ok(cli::print(&show::count(count, "entry", "entries", output)))
        }
    }
}

async fn create(create: Create, output: Output) -> Result<Exit, CommandError> {
    if let Some(path) = &create.fields.data {
        let new = file::entries(path)?;
        let client = create.socket.connect().await?;
        let fates = client.create_entries(&new).await?;
        return several(&new, fates, output);
    }
    let client = create.socket.connect().await?;
    let parent_id = match (create.parent_id, &create.fields.spiffe_id) {
        (Some(parent), _) => parent,
        (None, Some(id)) => server_of(id),
        (None, None) => return Ok(Exit::Usage),
    };
    let id = create.entry_id.map(|id| id.to_string()).unwrap_or_default();
    let Some(new) = create.fields.entry(id, parent_id) else {
        return Ok(Exit::Usage);
    };
    let entry = client.create_entry(&new).await?;
    Ok(cli::print(&show::entry(&entry, output)))
}

/// The parent of node aliases.
fn server_of(id: &SpiffeId) -> SpiffeId {
    SpiffeId::from_parts(id.trust_domain(), "/spire/server")
        .expect("the server's ID is well formed")
}

async fn update(update: Update, output: Output) -> Result<Exit, CommandError> {
    if let Some(path) = &update.fields.data {
        let new = file::entries(path)?;
        let client = update.socket.connect().await?;
        let fates = client.update_entries(&new).await?;
        return several(&new, fates, output);
    }
    let (Some(id), Some(parent)) = (update.entry_id, update.parent_id) else {
        return Ok(Exit::Usage);
    };
    let client = update.socket.connect().await?;
    let Some(mut new) = update.fields.entry(id.to_string(), parent) else {
        return Ok(Exit::Usage);
    };
    keep_switches(&client, &mut new).await?;
    let mut fates = client.update_entries(std::slice::from_ref(&new)).await?;
    let entry = fates.pop().expect("one result for one item")?;
    Ok(cli::print(&show::entry(&entry, output)))
}

/// As SPIRE's command does it: these two are never reset by leaving them out.
async fn keep_switches(client: &AdminClient, new: &mut NewEntry) -> Result<(), ClientError> {
    let old = client.entry(&new.id).await?;
    new.disable_x509_svid_prefetch |= old.disable_x509_svid_prefetch;
    new.jwt_svid_include_jti |= old.jwt_svid_include_jti;
    Ok(())
}

async fn delete(delete: Delete, output: Output) -> Result<Exit, CommandError> {
    let ids = match (&delete.file, delete.entry_id) {
        (Some(path), _) => file::ids(path)?,
        (None, Some(id)) => vec![id],
        (None, None) => return Ok(Exit::Usage),
    };
    let client = delete.socket.connect().await?;
    if let [id] = &ids[..] {
        client.delete_entry(id).await?;
        return Ok(cli::print(&show::deleted(id, output)));
    }
    let fates = client.delete_entries(&ids).await?;
    let mut gone = Vec::new();
    let mut refused = Vec::new();
    for (id, fate) in ids.iter().zip(fates) {
        match fate {
            Ok(()) => gone.push(id.as_str()),
            Err(error) => refused.push((id.clone(), error)),
        }
    }
    let printed = cli::print(&show::all_deleted(&gone, output));
    CommandError::of_items(refused).map_or(Ok(printed), Err)
}

/// Prints those that went well; the others are the error.
fn several(
    new: &[NewEntry],
    fates: Vec<Result<Entry, ClientError>>,
    output: Output,
) -> Result<Exit, CommandError> {
    let mut done = Vec::new();
    let mut refused = Vec::new();
    for (new, fate) in new.iter().zip(fates) {
        match fate {
            Ok(entry) => done.push(entry),
            Err(error) => refused.push((new.spiffe_id.to_string(), error)),
        }
    }
    let printed = cli::print(&show::entries(&done, output));
    CommandError::of_items(refused).map_or(Ok(printed), Err)
}
