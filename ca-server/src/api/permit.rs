//! Decides who may call what: one table, a row for every RPC of every service that this server knows, served or not.
//! Trusts `caller.rs` for the kind of the caller. An RPC without a row does not exist.

use super::caller::Kind;

/// What is written of a call to the audit record. A refused call is always written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// One record of the whole call.
    Call,
    /// The handler writes a record for each thing that it does.
    Each,
    /// Nothing: it changes and reveals nothing beyond what the caller serves anyway.
    Refusals,
}

/// Which budget a call is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// None.
    None,
    /// Attestations.
    Attest,
    /// Signatures.
    Sign,
    /// Status reports.
    Status,
}

impl Limit {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Attest => "attest",
            Self::Sign => "sign",
            Self::Status => "status",
        }
    }
}

/// One RPC.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// `/package.Service/Method`, as it is on the wire.
    pub path: &'static str,
    /// Who may call it; nobody: it is not served.
    pub callers: &'static [Kind],
    /// Its verb in the audit record.
    pub action: &'static str,
    /// What is written.
    pub audit: Audit,
    /// What it costs.
    pub limit: Limit,
}

const ANY: &[Kind] = &[
    Kind::Anonymous,
    Kind::Agent,
    Kind::WorkloadAdmin,
    Kind::LocalAdmin,
    Kind::Other,
];
const AGENT: &[Kind] = &[Kind::Agent];
const ADMIN: &[Kind] = &[Kind::WorkloadAdmin, Kind::LocalAdmin];
const ADMIN_OR_AGENT: &[Kind] = &[Kind::WorkloadAdmin, Kind::LocalAdmin, Kind::Agent];
const LOCAL: &[Kind] = &[Kind::LocalAdmin];

const fn row(
    path: &'static str,
    callers: &'static [Kind],
    action: &'static str,
    audit: Audit,
    limit: Limit,
) -> Row {
    Row {
        path,
        callers,
        action,
        audit,
        limit,
    }
}

/// An RPC of SPIRE's that this server does not serve yet: it answers Unimplemented to everybody.
const fn not_served(path: &'static str) -> Row {
    row(path, &[], "api.call", Audit::Refusals, Limit::None)
}

/// The table.
#[rustfmt::skip]
pub const TABLE: &[Row] = &[
    row("/spire.api.server.agent.v1.Agent/AttestAgent", ANY, "node.attest", Audit::Each, Limit::Attest),
    row("/spire.api.server.agent.v1.Agent/RenewAgent", AGENT, "agent.renew", Audit::Each, Limit::Sign),
    row("/spire.api.server.agent.v1.Agent/PostStatus", AGENT, "agent.status", Audit::Refusals, Limit::Status),
    row("/spire.api.server.agent.v1.Agent/CountAgents", ADMIN, "agent.count", Audit::Call, Limit::None),
    row("/spire.api.server.agent.v1.Agent/ListAgents", ADMIN, "agent.list", Audit::Call, Limit::None),
    row("/spire.api.server.agent.v1.Agent/GetAgent", ADMIN, "agent.read", Audit::Call, Limit::None),
    row("/spire.api.server.agent.v1.Agent/DeleteAgent", ADMIN, "agent.evict", Audit::Call, Limit::None),
    row("/spire.api.server.agent.v1.Agent/BanAgent", ADMIN, "agent.ban", Audit::Call, Limit::None),
    row("/spire.api.server.agent.v1.Agent/CreateJoinToken", ADMIN, "token.create", Audit::Call, Limit::None),
    row("/spire.api.server.entry.v1.Entry/CountEntries", ADMIN, "entry.count", Audit::Call, Limit::None),
    row("/spire.api.server.entry.v1.Entry/ListEntries", ADMIN, "entry.list", Audit::Call, Limit::None),
    row("/spire.api.server.entry.v1.Entry/GetEntry", ADMIN, "entry.read", Audit::Call, Limit::None),
    row("/spire.api.server.entry.v1.Entry/BatchCreateEntry", ADMIN, "entry.create", Audit::Each, Limit::None),
    row("/spire.api.server.entry.v1.Entry/BatchUpdateEntry", ADMIN, "entry.update", Audit::Each, Limit::None),
    row("/spire.api.server.entry.v1.Entry/BatchDeleteEntry", ADMIN, "entry.delete", Audit::Each, Limit::None),
    row("/spire.api.server.entry.v1.Entry/GetAuthorizedEntries", AGENT, "entry.sync", Audit::Refusals, Limit::None),
    row("/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries", AGENT, "entry.sync", Audit::Refusals, Limit::None),
    row("/spire.api.server.svid.v1.SVID/BatchNewX509SVID", AGENT, "svid.issue", Audit::Each, Limit::None),
    row("/spire.api.server.svid.v1.SVID/MintX509SVID", ADMIN, "svid.mint", Audit::Each, Limit::None),
    row("/spire.api.server.svid.v1.SVID/MintJWTSVID", ADMIN, "svid.mint", Audit::Each, Limit::None),
    not_served("/spire.api.server.svid.v1.SVID/MintWITSVID"),
    row("/spire.api.server.svid.v1.SVID/NewJWTSVID", AGENT, "svid.issue", Audit::Each, Limit::None),
    not_served("/spire.api.server.svid.v1.SVID/BatchNewWITSVID"),
    not_served("/spire.api.server.svid.v1.SVID/NewDownstreamX509CA"),
    row("/spire.api.server.bundle.v1.Bundle/GetBundle", ANY, "bundle.read", Audit::Refusals, Limit::None),
    row("/spire.api.server.bundle.v1.Bundle/CountBundles", ADMIN, "bundle.count", Audit::Call, Limit::None),
    row("/spire.api.server.bundle.v1.Bundle/AppendBundle", ADMIN, "bundle.append", Audit::Call, Limit::None),
    not_served("/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority"),
    not_served("/spire.api.server.bundle.v1.Bundle/PublishWITAuthority"),
    row("/spire.api.server.bundle.v1.Bundle/ListFederatedBundles", ADMIN, "bundle.list", Audit::Call, Limit::None),
    row("/spire.api.server.bundle.v1.Bundle/GetFederatedBundle", ADMIN_OR_AGENT, "bundle.read", Audit::Call, Limit::None),
    row("/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle", ADMIN, "bundle.create", Audit::Each, Limit::None),
    row("/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle", ADMIN, "bundle.update", Audit::Each, Limit::None),
    row("/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle", ADMIN, "bundle.set", Audit::Each, Limit::None),
    row("/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle", ADMIN, "bundle.delete", Audit::Each, Limit::None),
    row("/spire.api.server.trustdomain.v1.TrustDomain/ListFederationRelationships", ADMIN, "federation.list", Audit::Call, Limit::None),
    row("/spire.api.server.trustdomain.v1.TrustDomain/GetFederationRelationship", ADMIN, "federation.read", Audit::Call, Limit::None),
    row("/spire.api.server.trustdomain.v1.TrustDomain/BatchCreateFederationRelationship", ADMIN, "federation.create", Audit::Each, Limit::None),
    row("/spire.api.server.trustdomain.v1.TrustDomain/BatchUpdateFederationRelationship", ADMIN, "federation.update", Audit::Each, Limit::None),
    row("/spire.api.server.trustdomain.v1.TrustDomain/BatchDeleteFederationRelationship", ADMIN, "federation.delete", Audit::Each, Limit::None),
    row("/spire.api.server.trustdomain.v1.TrustDomain/RefreshBundle", ADMIN, "federation.refresh", Audit::Call, Limit::None),
    row("/finial.authority.v1.Authority/GetProgress", ADMIN, "authority.read", Audit::Call, Limit::None),
    row("/spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState", ADMIN, "authority.read", Audit::Call, Limit::None),
    row("/spire.api.server.localauthority.v1.LocalAuthority/PrepareJWTAuthority", ADMIN, "authority.prepare", Audit::Call, Limit::None),
    row("/spire.api.server.localauthority.v1.LocalAuthority/ActivateJWTAuthority", ADMIN, "authority.activate", Audit::Call, Limit::None),
    row("/spire.api.server.localauthority.v1.LocalAuthority/TaintJWTAuthority", ADMIN, "authority.taint", Audit::Call, Limit::None),
    row("/spire.api.server.localauthority.v1.LocalAuthority/RevokeJWTAuthority", ADMIN, "authority.revoke", Audit::Call, Limit::None),
    row("/spire.api.server.localauthority.v1.LocalAuthority/GetX509AuthorityState", ADMIN, "authority.read", Audit::Call, Limit::None),
    row("/spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority", ADMIN, "authority.prepare", Audit::Call, Limit::None),
    row("/spire.api.server.localauthority.v1.LocalAuthority/ActivateX509Authority", ADMIN, "authority.activate", Audit::Call, Limit::None),
    row("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509Authority", ADMIN, "authority.taint", Audit::Call, Limit::None),
    row("/spire.api.server.localauthority.v1.LocalAuthority/TaintX509UpstreamAuthority", ADMIN, "authority.taint", Audit::Call, Limit::None),
    row("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509Authority", ADMIN, "authority.revoke", Audit::Call, Limit::None),
    row("/spire.api.server.localauthority.v1.LocalAuthority/RevokeX509UpstreamAuthority", ADMIN, "authority.revoke", Audit::Call, Limit::None),
    not_served("/spire.api.server.localauthority.v1.LocalAuthority/GetWITAuthorityState"),
    not_served("/spire.api.server.localauthority.v1.LocalAuthority/PrepareWITAuthority"),
    not_served("/spire.api.server.localauthority.v1.LocalAuthority/ActivateWITAuthority"),
    not_served("/spire.api.server.localauthority.v1.LocalAuthority/TaintWITAuthority"),
    not_served("/spire.api.server.localauthority.v1.LocalAuthority/RevokeWITAuthority"),
    row("/spire.api.server.logger.v1.Logger/GetLogger", LOCAL, "log.read", Audit::Call, Limit::None),
    row("/spire.api.server.logger.v1.Logger/SetLogLevel", LOCAL, "log.set", Audit::Call, Limit::None),
    row("/spire.api.server.logger.v1.Logger/ResetLogLevel", LOCAL, "log.reset", Audit::Call, Limit::None),
    row("/spire.api.server.debug.v1.Debug/GetInfo", LOCAL, "debug.read", Audit::Call, Limit::None),
    row("/finial.feed.v1.Feed/Follow", AGENT, "feed.follow", Audit::Refusals, Limit::None),
    row("/finial.backup.v1.Backup/Create", LOCAL, "backup.create", Audit::Call, Limit::None),
    row("/grpc.health.v1.Health/Check", LOCAL, "health.read", Audit::Refusals, Limit::None),
    row("/grpc.health.v1.Health/List", LOCAL, "health.read", Audit::Refusals, Limit::None),
    row("/grpc.health.v1.Health/Watch", LOCAL, "health.read", Audit::Refusals, Limit::None),
    row("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", LOCAL, "api.describe", Audit::Refusals, Limit::None),
    row("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", LOCAL, "api.describe", Audit::Refusals, Limit::None),
];

/// The row of a path, byte for byte.
pub fn find(path: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.path == path)
}

/// The services of which at least one RPC is served to somebody, each once, in the order of the table.
pub fn services() -> Vec<&'static str> {
    let mut found: Vec<&'static str> = Vec::new();
    for row in TABLE.iter().filter(|row| !row.callers.is_empty()) {
        let service = row.path[1..].split('/').next().unwrap_or_default();
        if !found.contains(&service) {
            found.push(service);
        }
    }
    found
}

/// The path as it stands in the table: a stranger's text never becomes a metric label.
pub fn name_of(path: &str) -> &'static str {
    find(path).map_or("unknown", |row| row.path)
}

#[cfg(test)]
mod tests;
