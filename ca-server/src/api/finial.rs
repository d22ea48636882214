//! What SPIRE's API lacks: the feed. Wire → values and back; what is told is decided in `crate::feed`.

mod feed;

use proto::finial::feed::v1::feed_server::FeedServer;

use super::Parts;

pub(super) fn feed(parts: &Parts) -> FeedServer<feed::Service> {
    // An agent's messages are small: a hello and acknowledgements.
    FeedServer::new(feed::Service::new(parts.clone())).max_decoding_message_size(64 * 1024)
}
