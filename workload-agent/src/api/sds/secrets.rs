//! Decides which secret each name of a request means, for the state of one caller.
//! Trusts the state: it holds what this caller may have and nothing else. Never answers a request in part: one name that is not
//! the caller's refuses the whole of it.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use proto::envoy::{
    config::core::v3::{DataSource, Node, TypedExtensionConfig, node::UserAgentVersionType},
    extensions::transport_sockets::tls::v3 as tls,
};

use crate::{
    config::SdsOptions,
    vault::{Identity, IdentitySet, key_pem},
};

/// What the resources are, as the requests and answers name it.
pub(super) const SECRET: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const VALIDATOR: &str = "envoy.tls.cert_validator.spiffe";
const VALIDATOR_CONFIG: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
/// What an operator of Envoy writes into the node's metadata to get plain roots.
const NO_VALIDATOR: &str = "disable_spiffe_cert_validation";
/// The last Envoy without that validator.
const TOO_OLD: (u32, u32) = (1, 17);
/// Names that a refusal repeats, and bytes of each.
const NAMED: (usize, usize) = (8, 256);

/// What a stream asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// Everything under its own ID.
    pub(super) all: bool,
    pub(super) names: BTreeSet<String>,
}

/// How Envoy verifies its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validator {
    /// By the roots of the peer's own trust domain.
    Spiffe,
    /// By one list of roots.
    TrustedCa,
}

impl Validator {
    /// As the operators of the agent and of this Envoy want it, and as this Envoy is able to.
    pub(super) fn of(node: Option<&Node>, options: &SdsOptions) -> Self {
        let Some(node) = node.filter(|_| !options.disable_spiffe_cert_validation) else {
            return if options.disable_spiffe_cert_validation {
                Self::TrustedCa
            } else {
                Self::Spiffe
            };
        };
        let unwanted = node
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.fields.get(NO_VALIDATOR))
            .and_then(|value| value.kind.as_ref())
            .is_some_and(says_yes);
        let too_old = match &node.user_agent_version_type {
            Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build
                .version
                .as_ref()
                .is_some_and(|version| (version.major_number, version.minor_number) <= TOO_OLD),
            _ => false,
        };
        if unwanted || too_old {
            Self::TrustedCa
        } else {
            Self::Spiffe
        }
    }
}

/// A truth value, or one of the texts that Go's parser takes for true, as SPIRE reads them.
fn says_yes(value: &prost_types::value::Kind) -> bool {
    use prost_types::value::Kind;
    match value {
        Kind::BoolValue(yes) => *yes,
        Kind::StringValue(text) => ["1", "t", "T", "true", "True", "TRUE"].contains(&&**text),
        _ => false,
    }
}

/// One secret under the name that it was asked for.
pub(super) struct Secret {
    pub(super) name: String,
    /// The same for the same content, on every stream and after a restart.
    pub(super) version: String,
    /// ID and serial number, if it hands an identity out.
    pub(super) identity: Option<(String, String)>,
    pub(super) resource: prost_types::Any,
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotGiven {
    /// Names of secrets that this caller has not, or that nobody has.
    #[error("not authorized for the requested secrets: {}", .0.join(", "))]
    NotYours(Vec<String>),
    /// Several trust domains in one plain list would let each vouch for the others' identities.
    #[error(
        "{0} needs the SPIFFE certificate validator, which is disabled or not known to this Envoy"
    )]
    NeedsValidator(String),
}

/// Everything that was asked for, in the order of the names.
pub(super) fn secrets(
    state: &IdentitySet,
    asked: &Asked,
    options: &SdsOptions,
    validator: Validator,
) -> Result<Vec<Secret>, NotGiven> {
    let holdings = Holdings::of(state);
    let mut names: BTreeSet<&str> = asked.names.iter().map(String::as_str).collect();
    if asked.all {
        names.extend(holdings.identities.keys());
        names.extend(holdings.roots.keys().map(String::as_str));
    }
    let mut found = Vec::with_capacity(names.len().min(64));
    let mut strangers = Vec::new();
    for name in names {
        match holdings.secret(name, options, validator)? {
            Some(secret) => found.push(secret),
            None => strangers.push(name),
        }
    }
    if strangers.is_empty() {
        return Ok(found);
    }
    let (most, longest) = NAMED;
    let told = strangers.iter().take(most);
    Err(NotGiven::NotYours(
        told.map(|name| {
            name.chars()
                .take(longest)
                .collect::<String>()
                .escape_debug()
                .to_string()
        })
        .collect(),
    ))
}

/// The state by the IDs that name its parts.
struct Holdings<'a> {
    first: Option<&'a Identity>,
    identities: BTreeMap<&'a str, &'a Identity>,
    own: String,
    /// PEM by the ID of the trust domain; one without X.509 roots has nothing that Envoy could use.
    roots: BTreeMap<String, String>,
}

impl<'a> Holdings<'a> {
    fn of(state: &'a IdentitySet) -> Self {
        let mut identities = BTreeMap::new();
        for identity in &state.identities {
            // Of several with one ID, the first: the order is that of the entries.
            identities
                .entry(identity.held.svid.id().as_str())
                .or_insert(identity);
        }
        let bundles = state.federated.values().chain([&state.bundle]);
        let roots = bundles
            .filter(|bundle| !bundle.x509_authorities().is_empty())
            .map(|bundle| {
                (
                    bundle.trust_domain().id().as_str().to_owned(),
                    bundle.to_pem(),
                )
            });
        Self {
            first: state.identities.first(),
            identities,
            own: state.bundle.trust_domain().id().as_str().to_owned(),
            roots: roots.collect(),
        }
    }

    fn secret(
        &self,
        name: &str,
        options: &SdsOptions,
        validator: Validator,
    ) -> Result<Option<Secret>, NotGiven> {
        if name == options.default_all_bundles_name {
            return match validator {
                Validator::TrustedCa => Err(NotGiven::NeedsValidator(name.to_owned())),
                Validator::Spiffe => Ok(Some(roots(name, &self.roots, validator))),
            };
        }
        let identity = match name == options.default_svid_name {
            true => self.first,
            false => self.identities.get(name).copied(),
        };
        if let Some(identity) = identity {
            return Ok(Some(certificate(name, identity)));
        }
        let domain = match name == options.default_bundle_name {
            true => &self.own,
            false => name,
        };
        let found = self.roots.get_key_value(domain);
        Ok(found.map(|(id, pem)| {
            let one = BTreeMap::from([(id.clone(), pem.clone())]);
            roots(name, &one, validator)
        }))
    }
}

fn certificate(name: &str, identity: &Identity) -> Secret {
    let svid = &identity.held.svid;
    let certificate = tls::TlsCertificate {
        certificate_chain: Some(inline(svid.to_pem().into_bytes())),
        private_key: Some(inline(key_pem(identity.held.key.expose()).to_vec())),
    };
    Secret {
        name: name.to_owned(),
        // Each certificate has a key of its own, so the public half tells them apart.
        version: digest(&svid.to_der_concat()),
        identity: Some((svid.id().as_str().to_owned(), svid.serial().to_owned())),
        resource: packed(name, tls::secret::Type::TlsCertificate(certificate)),
    }
}

fn roots(name: &str, roots: &BTreeMap<String, String>, validator: Validator) -> Secret {
    let context = match validator {
        Validator::TrustedCa => tls::CertificateValidationContext {
            trusted_ca: Some(inline(
                roots
                    .values()
                    .map(String::as_str)
                    .collect::<String>()
                    .into(),
            )),
            custom_validator_config: None,
        },
        Validator::Spiffe => {
            let domains =
                roots
                    .iter()
                    .map(|(id, pem)| tls::spiffe_cert_validator_config::TrustDomain {
                        name: id.trim_start_matches("spiffe://").to_owned(),
                        trust_bundle: Some(inline(pem.clone().into_bytes())),
                    });
            let config = tls::SpiffeCertValidatorConfig {
                trust_domains: domains.collect(),
            };
            tls::CertificateValidationContext {
                trusted_ca: None,
                custom_validator_config: Some(TypedExtensionConfig {
                    name: VALIDATOR.to_owned(),
                    typed_config: Some(prost_types::Any {
                        type_url: VALIDATOR_CONFIG.to_owned(),
                        value: config.encode_to_vec(),
                    }),
                }),
            }
        }
    };
    let resource = packed(name, tls::secret::Type::ValidationContext(context));
    Secret {
        name: name.to_owned(),
        version: digest(&resource.value),
        identity: None,
        resource,
    }
}

fn packed(name: &str, secret: tls::secret::Type) -> prost_types::Any {
    let secret = tls::Secret {
        name: name.to_owned(),
        r#type: Some(secret),
    };
    prost_types::Any {
        type_url: SECRET.to_owned(),
        value: secret.encode_to_vec(),
    }
}

fn inline(bytes: Vec<u8>) -> DataSource {
    DataSource {
        inline_bytes: bytes,
    }
}

fn digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests;
