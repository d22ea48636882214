//! Decides how the pushing road is followed: one stream of numbered updates, each acknowledged or refused with the reason.
//! Trusts the connection. Never goes on after an update that it refused, since the next would build on it.

use std::time::Duration;

use mesh_runtime::{errors::ErrorChain, telemetry::Repetition};
use proto::{
    convert::feed::{Assembly, FromAgent, PART_BYTES, Verdict as Reply},
    finial::feed::v1::feed_client::FeedClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};

use super::{
    RoadEnd, Upstream,
    heard::{Heard, UpdateError},
};

/// How long a refusal may take to reach the CA before the stream is closed.
const LAST_WORD: Duration = Duration::from_secs(1);

impl Upstream {
    /// Follows the stream until it ends, of itself or because an update was refused.
    pub(super) async fn stream(
        &self,
        channel: Channel,
        state: &mut Heard,
        quiet: &Repetition,
    ) -> RoadEnd {
        let broken = |status: Status| match status.code() {
            Code::Unimplemented => RoadEnd::NoPush,
            _ => RoadEnd::Broken(Box::new(status)),
        };
        let (replies, rest) = mpsc::channel(16);
        let hello = FromAgent::Hello {
            resume: state.position().cloned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        if replies.send(hello.into()).await.is_err() {
            return RoadEnd::Ended;
        }
        let mut client = FeedClient::new(channel).max_decoding_message_size(PART_BYTES * 8);
        let mut updates = match client.follow(ReceiverStream::new(rest)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return broken(status),
        };
        self.connected();
        let mut assembly = Assembly::default();
        loop {
            let part = match updates.message().await {
                Ok(Some(part)) => part,
                Ok(None) => return RoadEnd::Ended,
                Err(status) => return broken(status),
            };
            self.heard(true);
            let revision = part.revision;
            let applied = match assembly.add(part, &self.bootstrap.remote.trust_domain) {
                Ok(None) => continue,
                Ok(Some(update)) => state.apply(update).map(|()| self.publish(state)),
                Err(error) => Err(UpdateError::Unreadable(error)),
            };
            self.metrics
                .synced(self.bootstrap.clock.now(), applied.is_ok());
            let verdict = match &applied {
                Ok(()) => Reply::Applied,
                Err(error) => Reply::Refused(ErrorChain(error).to_string()),
            };
            if replies
                .send(FromAgent::Ack { revision, verdict }.into())
                .await
                .is_err()
            {
                return RoadEnd::Ended;
            }
            if applied.is_ok() {
                quiet.succeeded();
            }
            if let Err(error) = applied {
                // What follows would build on what we do not have. Let the refusal get through, then start again from here.
                drop(replies);
                drop(
                    tokio::time::timeout(LAST_WORD, async {
                        while let Ok(Some(_)) = updates.message().await {}
                    })
                    .await,
                );
                return RoadEnd::Refused(error);
            }
        }
    }
}
