//! `ca-server federation`: the trust domains whose bundles we keep up to date.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use mesh_identity::{Bundle, SpiffeId, TrustDomain};
use mesh_runtime::cli::{self, Exit, Output};
use serde::Deserialize;

use super::args::{Socket, read_json, trust_domain};
use super::bundle::{BundleFormat, from_file, parsed};
use super::{CommandError, show};
use crate::api::client::{ClientError, ListedRelationship, NewRelationship};

#[derive(Debug, Subcommand)]
pub(super) enum FederationVerb {
    /// Create relationships
    Create(Written),
    /// Replace a relationship, or those of a file
    Update(Written),
    /// End a relationship; the bundle stays
    Delete {
        #[command(flatten)]
        socket: Socket,
        /// With whom
        #[arg(long, value_name = "DOMAIN", value_parser = trust_domain)]
        id: TrustDomain,
    },
    /// List relationships
    List {
        #[command(flatten)]
        socket: Socket,
    },
    /// Show one relationship
    Show {
        #[command(flatten)]
        socket: Socket,
        /// With whom
        #[arg(long, alias = "trustDomain", value_name = "DOMAIN", value_parser = trust_domain)]
        trust_domain: TrustDomain,
    },
    /// Fetch a bundle now
    Refresh {
        #[command(flatten)]
        socket: Socket,
        /// Of whom
        #[arg(long, value_name = "DOMAIN", value_parser = trust_domain)]
        id: TrustDomain,
    },
}

/// A relationship in flags, or several in a file.
#[derive(Debug, Args)]
pub(super) struct Written {
    #[command(flatten)]
    socket: Socket,
    /// With whom
    #[arg(long, alias = "trustDomain", value_name = "DOMAIN", value_parser = trust_domain, required_unless_present = "data")]
    trust_domain: Option<TrustDomain>,
    /// Where their bundle is
    #[arg(
        long,
        alias = "bundleEndpointURL",
        value_name = "URL",
        required_unless_present = "data"
    )]
    bundle_endpoint_url: Option<String>,
    /// Who vouches for that endpoint
    #[arg(
        long,
        alias = "bundleEndpointProfile",
        value_enum,
        required_unless_present = "data"
    )]
    bundle_endpoint_profile: Option<Profile>,
    /// Who must answer there
    #[arg(
        long,
        alias = "endpointSpiffeID",
        value_name = "ID",
        required_if_eq("bundle_endpoint_profile", "https_spiffe")
    )]
    endpoint_spiffe_id: Option<SpiffeId>,
    /// The bundle to begin with
    #[arg(long, alias = "trustDomainBundlePath", value_name = "FILE")]
    trust_domain_bundle_path: Option<PathBuf>,
    /// In which form it is
    #[arg(long, alias = "trustDomainBundleFormat", value_enum, default_value_t)]
    trust_domain_bundle_format: BundleFormat,
    /// Relationships as JSON in SPIRE's form instead of flags; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["trust_domain", "bundle_endpoint_url", "bundle_endpoint_profile", "endpoint_spiffe_id", "trust_domain_bundle_path"])]
    data: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(super) enum Profile {
    /// The Web's certificate authorities
    #[value(name = "https_web")]
    HttpsWeb,
    /// A trust domain
    #[value(name = "https_spiffe")]
    HttpsSpiffe,
}

impl Written {
    fn relationships(&self) -> Result<Vec<NewRelationship>, CommandError> {
        if let Some(path) = &self.data {
            return from_json(path);
        }
        let (Some(trust_domain), Some(url)) = (&self.trust_domain, &self.bundle_endpoint_url)
        else {
            return Ok(Vec::new());
        };
        let endpoint = match self.bundle_endpoint_profile {
            Some(Profile::HttpsSpiffe) => self.endpoint_spiffe_id.as_ref(),
            Some(Profile::HttpsWeb) | None => None,
        };
        let bundle = self.trust_domain_bundle_path.as_ref().map(|path| {
            let domain = bundle_domain(trust_domain, endpoint);
            from_file(domain, path, self.trust_domain_bundle_format)
        });
        Ok(vec![NewRelationship {
            trust_domain: trust_domain.clone(),
            url: url.clone(),
            endpoint_id: endpoint.map(ToString::to_string),
            bundle: bundle.transpose()?,
        }])
    }
}

/// The first bundle is the one that proves the endpoint, so it is that of the endpoint's trust domain.
fn bundle_domain(trust_domain: &TrustDomain, endpoint: Option<&SpiffeId>) -> TrustDomain {
    endpoint
        .map_or(trust_domain, SpiffeId::trust_domain)
        .clone()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    federation_relationships: Vec<InFile>,
}

/// The names are those of SPIRE's command.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct InFile {
    trust_domain: String,
    #[serde(rename = "bundleEndpointURL")]
    bundle_endpoint_url: String,
    bundle_endpoint_profile: Profile,
    #[serde(rename = "endpointSPIFFEID")]
    endpoint_spiffe_id: Option<SpiffeId>,
    trust_domain_bundle: Option<serde_json::Value>,
    trust_domain_bundle_format: Option<String>,
}

fn from_json(path: &Path) -> Result<Vec<NewRelationship>, CommandError> {
    let file: File = read_json(path)?;
    let items = file.federation_relationships.into_iter().enumerate();
    items
        .map(|(at, written)| {
            new_relationship(written).map_err(|problem| {
                CommandError::in_file(path, format!("federationRelationships[{at}].{problem}"))
            })
        })
        .collect()
}

fn new_relationship(written: InFile) -> Result<NewRelationship, String> {
    let domain =
        trust_domain(&written.trust_domain).map_err(|error| format!("trustDomain: {error}"))?;
    let endpoint = match written.bundle_endpoint_profile {
        Profile::HttpsWeb => None,
        Profile::HttpsSpiffe => Some(
            written
                .endpoint_spiffe_id
                .ok_or("endpointSPIFFEID: https_spiffe needs it")?,
        ),
    };
    let bundle = match written.trust_domain_bundle {
        None => None,
        Some(value) => Some(bundle_in_json(
            bundle_domain(&domain, endpoint.as_ref()),
            &value,
            written.trust_domain_bundle_format.as_deref(),
        )?),
    };
    Ok(NewRelationship {
        trust_domain: domain,
        url: written.bundle_endpoint_url,
        endpoint_id: endpoint.map(|id| id.to_string()),
        bundle,
    })
}

/// PEM stands in a string, a SPIFFE bundle as it is.
fn bundle_in_json(
    domain: TrustDomain,
    value: &serde_json::Value,
    format: Option<&str>,
) -> Result<Bundle, String> {
    let (bytes, format) = match (format, value) {
        (Some("pem"), serde_json::Value::String(pem)) => {
            (pem.clone().into_bytes(), BundleFormat::Pem)
        }
        (Some("spiffe"), document) => (document.to_string().into_bytes(), BundleFormat::Spiffe),
        (Some("pem"), _) => return Err("trustDomainBundle: PEM is a string".to_owned()),
        _ => return Err("trustDomainBundleFormat: write pem or spiffe".to_owned()),
    };
    parsed(domain, &bytes, format).map_err(|error| format!("trustDomainBundle: {error}"))
}

pub(super) async fn run(verb: FederationVerb, output: Output) -> Result<Exit, CommandError> {
    let text = match verb {
        FederationVerb::Create(written) => {
            let new = written.relationships()?;
            let client = written.socket.connect().await?;
            let fates = client.create_relationships(&new).await?;
            return several(&new, fates, output);
        }
        FederationVerb::Update(written) => {
            let new = written.relationships()?;
            let client = written.socket.connect().await?;
            let fates = client.update_relationships(&new).await?;
            return several(&new, fates, output);
        }
        FederationVerb::Delete { socket, id } => {
            socket.connect().await?.delete_relationship(&id).await?;
            show::done("federation relationship", "deleted", &[id.as_str()], output)
        }
        FederationVerb::List { socket } => {
            show::relationships(&socket.connect().await?.relationships().await?, output)
        }
        FederationVerb::Show {
            socket,
            trust_domain,
        } => {
            let relationship = socket.connect().await?.relationship(&trust_domain).await?;
            show::relationships(&[relationship], output)
        }
        FederationVerb::Refresh { socket, id } => {
            socket.connect().await?.refresh_bundle(&id).await?;
            show::done("bundle", "refreshed", &[id.as_str()], output)
        }
    };
    Ok(cli::print(&text))
}

/// Prints those that went well; the others are the error.
fn several(
    new: &[NewRelationship],
    fates: Vec<Result<ListedRelationship, ClientError>>,
    output: Output,
) -> Result<Exit, CommandError> {
    let mut done = Vec::new();
    let mut refused = Vec::new();
    for (new, fate) in new.iter().zip(fates) {
        match fate {
            Ok(relationship) => done.push(relationship),
            Err(error) => refused.push((new.trust_domain.to_string(), error)),
        }
    }
    match (new, refused.pop()) {
        // One alone is its own error, with the server's words first.
        ([_], Some((_, error))) => Err(error.into()),
        (_, last) => {
            refused.extend(last);
            let printed = cli::print(&show::relationships(&done, output));
            CommandError::of_items(refused).map_or(Ok(printed), Err)
        }
    }
}
