//! Decides how a stream of requests is read and answered: whole states with a version and a nonce, or differences.
//! Trusts nothing in a request but its form. Never answers what the client has already, and never takes the answer to an older
//! message for one to the newest.

use std::collections::BTreeMap;

use proto::envoy::{config::core::v3::Node, service::discovery::v3 as wire};
use tonic::Status;

use super::secrets::{Asked, SECRET, Secret};

/// Bytes of a client's complaint that are kept for the log.
const COMPLAINT: usize = 512;

/// One of the two ways to talk.
pub(super) trait Dialect: Default + Send + 'static {
    type Ask: Send + 'static;
    type Answer: Send + 'static;
    const METHOD: &'static str;

    /// Takes a request in.
    fn hear(&mut self, ask: Self::Ask) -> Result<Heard, Status>;
    /// What is asked for; nothing before the first request.
    fn asked(&self) -> Option<&Asked>;
    /// Who asks, as the first request says.
    fn node(&self) -> Option<&Node>;
    /// The answer, if the client has not got all of it, with the identities that it hands out.
    fn answer(&mut self, secrets: Vec<Secret>) -> Option<(Self::Answer, Given)>;
}

/// ID and serial number of identities.
pub(super) type Given = Vec<(String, String)>;

/// What a request said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Other secrets are wanted than before.
    pub(super) changed: bool,
    /// The last answer could not be used, and why.
    pub(super) refused: Option<String>,
}

/// StreamSecrets and FetchSecrets: each answer is everything that was asked for.
#[derive(Default)]
pub(super) struct Whole {
    asked: Option<Asked>,
    node: Option<Node>,
    count: u64,
    nonce: String,
    told: Vec<(String, String)>,
}

impl Dialect for Whole {
    type Ask = wire::DiscoveryRequest;
    type Answer = wire::DiscoveryResponse;
    const METHOD: &'static str = "StreamSecrets";

    fn hear(&mut self, ask: wire::DiscoveryRequest) -> Result<Heard, Status> {
        check_type(&ask.type_url)?;
        // Sent before the newest answer was seen: what it says is about something else.
        if self.asked.is_some() && ask.response_nonce != self.nonce {
            return Ok(Heard::default());
        }
        let asked = Asked {
            all: ask.resource_names.is_empty(),
            names: ask.resource_names.into_iter().collect(),
        };
        let changed = self.asked.as_ref() != Some(&asked);
        if self.asked.is_none() {
            self.node = ask.node;
        }
        if changed {
            self.asked = Some(asked);
            self.told.clear();
        }
        let refused = ask.error_detail.map(|status| complaint(&status.message));
        Ok(Heard { changed, refused })
    }

    fn asked(&self) -> Option<&Asked> {
        self.asked.as_ref()
    }

    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    fn answer(&mut self, secrets: Vec<Secret>) -> Option<(wire::DiscoveryResponse, Given)> {
        let versions: Vec<_> = secrets
            .iter()
            .map(|secret| (secret.name.clone(), secret.version.clone()))
            .collect();
        if self.count > 0 && versions == self.told {
            return None;
        }
        self.told = versions;
        self.count += 1;
        self.nonce = format!("{:08x}", self.count);
        let given = secrets.iter().filter_map(|secret| secret.identity.clone());
        let given = given.collect();
        let answer = wire::DiscoveryResponse {
            version_info: self.count.to_string(),
            type_url: SECRET.to_owned(),
            nonce: self.nonce.clone(),
            resources: secrets.into_iter().map(|secret| secret.resource).collect(),
        };
        Some((answer, given))
    }
}

/// DeltaSecrets: each answer is what changed.
#[derive(Default)]
pub(super) struct Difference {
    asked: Option<Asked>,
    node: Option<Node>,
    count: u64,
    nonce: String,
    /// What the client has: versions by name.
    known: BTreeMap<String, String>,
}

impl Dialect for Difference {
    type Ask = wire::DeltaDiscoveryRequest;
    type Answer = wire::DeltaDiscoveryResponse;
    const METHOD: &'static str = "DeltaSecrets";

    fn hear(&mut self, ask: wire::DeltaDiscoveryRequest) -> Result<Heard, Status> {
        check_type(&ask.type_url)?;
        let refused = ask
            .error_detail
            .filter(|_| ask.response_nonce == self.nonce)
            .map(|status| complaint(&status.message));
        let changed = self.asked.is_none()
            || !ask.resource_names_subscribe.is_empty()
            || !ask.resource_names_unsubscribe.is_empty();
        let asked = match &mut self.asked {
            Some(asked) => asked,
            None => {
                self.node = ask.node;
                self.known = ask.initial_resource_versions;
                self.asked.insert(Asked {
                    all: ask.resource_names_subscribe.is_empty(),
                    ..Asked::default()
                })
            }
        };
        for name in ask.resource_names_subscribe {
            if name == "*" {
                asked.all = true;
                continue;
            }
            // Whoever asks again has lost it. Not so in the first request, whose versions are what the client has.
            if !asked.names.insert(name.clone()) || self.count > 0 {
                self.known.remove(&name);
            }
        }
        for name in ask.resource_names_unsubscribe {
            if name == "*" {
                asked.all = false;
            } else {
                asked.names.remove(&name);
                self.known.remove(&name);
            }
        }
        if !asked.all {
            self.known.retain(|name, _| asked.names.contains(name));
        }
        Ok(Heard { changed, refused })
    }

    fn asked(&self) -> Option<&Asked> {
        self.asked.as_ref()
    }

    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    fn answer(&mut self, secrets: Vec<Secret>) -> Option<(wire::DeltaDiscoveryResponse, Given)> {
        let mut before = std::mem::take(&mut self.known);
        let (mut resources, mut given) = (Vec::new(), Given::new());
        for secret in secrets {
            let had = before.remove(&secret.name);
            self.known
                .insert(secret.name.clone(), secret.version.clone());
            if had.as_ref() == Some(&secret.version) {
                continue;
            }
            given.extend(secret.identity);
            resources.push(wire::Resource {
                name: secret.name,
                version: secret.version,
                resource: Some(secret.resource),
            });
        }
        // What is left was the client's and is its no more.
        let removed: Vec<_> = before.into_keys().collect();
        if resources.is_empty() && removed.is_empty() {
            return None;
        }
        self.count += 1;
        self.nonce = format!("{:08x}", self.count);
        let answer = wire::DeltaDiscoveryResponse {
            system_version_info: self.count.to_string(),
            type_url: SECRET.to_owned(),
            nonce: self.nonce.clone(),
            resources,
            removed_resources: removed,
        };
        Some((answer, given))
    }
}

fn check_type(type_url: &str) -> Result<(), Status> {
    if type_url.is_empty() || type_url == SECRET {
        return Ok(());
    }
    Err(Status::invalid_argument(
        "type_url is not that of a secret; this service has nothing else",
    ))
}

fn complaint(text: &str) -> String {
    text.chars().take(COMPLAINT).collect()
}

#[cfg(test)]
mod tests;
