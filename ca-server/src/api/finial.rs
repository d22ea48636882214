//! What SPIRE's API lacks: the feed, backups, and how a change of authorities goes on. Wire → values and back; what is told is decided in `crate::feed`.

mod authority;
mod backup;
mod feed;

use proto::finial::authority::v1::authority_server::AuthorityServer;
use proto::finial::backup::v1::backup_server::BackupServer;
use proto::finial::feed::v1::feed_server::FeedServer;

use super::Parts;

pub(super) fn feed(parts: &Parts) -> FeedServer<feed::Service> {
    // An agent's messages are small: a hello and acknowledgements.
    FeedServer::new(feed::Service::new(parts.clone())).max_decoding_message_size(64 * 1024)
}

pub(super) fn backup(parts: &Parts) -> BackupServer<backup::Service> {
    BackupServer::new(backup::Service::new(parts.clone())).max_decoding_message_size(1024)
}

pub(super) fn authority(parts: &Parts) -> AuthorityServer<authority::Service> {
    AuthorityServer::new(authority::Service::new(parts.clone())).max_decoding_message_size(1024)
}
