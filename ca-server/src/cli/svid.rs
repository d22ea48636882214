//! `ca-server svid mint`: identities for whom an administrator says. The key of a certificate is made here and never sent.
//! Trusts nothing in the answer: the certificate must be for our key and name, and verify with the server's own bundle.
//! Never leaves half of what it writes: each file gets its name when it is whole, and only its owner may read it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use mesh_identity::verify::verify_x509_svid;
use mesh_identity::{DnsName, SpiffeId};
use mesh_runtime::cli::{self, CommonArgs, Exit, Output};
use mesh_runtime::clock::Clock;
use mesh_runtime::files;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SanType};
use serde_json::json;
use zeroize::Zeroizing;

use super::CommandError;
use super::args::{Socket, duration};
use super::show::{line, rfc3339};
use crate::api::client::ClientError;

#[derive(Debug, Subcommand)]
pub(super) enum SvidVerb {
    /// Make an identity without an entry
    Mint {
        #[command(subcommand)]
        verb: MintVerb,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum MintVerb {
    /// An X509-SVID, with a key that is made here
    X509(X509Args),
    /// A JWT-SVID
    Jwt(JwtArgs),
}

/// SPIRE's `x509 mint`.
#[derive(Debug, Subcommand)]
pub(super) enum SpiresX509Verb {
    /// As `svid mint x509`
    Mint(X509Args),
}

/// SPIRE's `jwt mint`.
#[derive(Debug, Subcommand)]
pub(super) enum SpiresJwtVerb {
    /// As `svid mint jwt`
    Mint(JwtArgs),
}

#[derive(Debug, Args)]
pub(super) struct X509Args {
    #[command(flatten)]
    socket: Socket,
    /// Whom it names
    #[arg(long, alias = "spiffeID", value_name = "ID")]
    spiffe_id: SpiffeId,
    /// A DNS name in it; repeatable
    #[arg(long, value_name = "NAME")]
    dns: Vec<DnsName>,
    /// How long it lives; not given: the server's default
    #[arg(long, value_name = "TIME", value_parser = seconds, default_value = "0s", hide_default_value = true)]
    ttl: i32,
    /// Write svid.pem, key.pem and bundle.pem to this folder instead
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct JwtArgs {
    #[command(flatten)]
    socket: Socket,
    /// Whom it names
    #[arg(long, alias = "spiffeID", value_name = "ID")]
    spiffe_id: SpiffeId,
    /// For whom it is; repeatable
    #[arg(long, value_name = "NAME", required = true)]
    audience: Vec<String>,
    /// How long it lives; not given: the server's default
    #[arg(long, value_name = "TIME", value_parser = seconds, default_value = "0s", hide_default_value = true)]
    ttl: i32,
    /// Write it to this file instead
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// A length of time in seconds, as the wire has it; what is begun counts.
fn seconds(text: &str) -> Result<i32, String> {
    let time = duration(text)?;
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    i32::try_from(seconds).map_err(|_| "longer than any SVID lives".to_owned())
}

pub(super) async fn run(verb: SvidVerb, common: &CommonArgs) -> Result<Exit, CommandError> {
    let SvidVerb::Mint { verb } = verb;
    match verb {
        MintVerb::X509(args) => x509(args, common).await,
        MintVerb::Jwt(args) => jwt(args, common).await,
    }
}

impl From<SpiresX509Verb> for SvidVerb {
    fn from(SpiresX509Verb::Mint(args): SpiresX509Verb) -> Self {
        let verb = MintVerb::X509(args);
        Self::Mint { verb }
    }
}

impl From<SpiresJwtVerb> for SvidVerb {
    fn from(SpiresJwtVerb::Mint(args): SpiresJwtVerb) -> Self {
        let verb = MintVerb::Jwt(args);
        Self::Mint { verb }
    }
}

async fn x509(args: X509Args, common: &CommonArgs) -> Result<Exit, CommandError> {
    let (id, ttl) = (&args.spiffe_id, args.ttl);
    // Before anything is signed: a folder that cannot be written to must not cost a certificate.
    let files = args
        .write
        .map(|folder| ["svid.pem", "key.pem", "bundle.pem"].map(|name| folder.join(name)));
    if let Some([first, ..]) = &files {
        writable(first)?;
    }
    let (key, csr) =
        request(id, &args.dns).map_err(|error| CommandError::Key(error.to_string()))?;
    let client = args.socket.connect().await?;
    let now = Clock::system().now();
    let svid = client.mint_x509(csr, ttl).await?;
    let bundle = client.bundle().await?;
    let wrong = |what: &str| ClientError::Unreadable(format!("the X509-SVID {what}"));
    if svid.id() != id || svid.spki() != key.subject_public_key_info() {
        return Err(wrong("is for another name or key").into());
    }
    let bundles = std::iter::once(bundle.clone()).collect();
    verify_x509_svid(svid.chain(), &bundles, now.max(svid.not_before()))
        .map_err(|_| wrong("does not verify with the server's own bundle"))?;
    let (chain, roots) = (svid.to_pem(), bundle.to_pem());
    let key = Zeroizing::new(key.serialize_pem());
    warn_if_shorter(now, ttl, svid.not_after(), common);
    let Some([svid_file, key_file, bundle_file]) = files else {
        let text = Zeroizing::new(match common.output {
            Output::Json => line(&json!({
                "spiffeId": id.as_str(),
                "expiresAt": rfc3339(svid.not_after()),
                "x509Svid": chain,
                "privateKey": key.as_str(),
                "bundle": roots,
            })),
            Output::Table => {
                format!(
                    "X509-SVID:\n{chain}\nPrivate key:\n{}\nRoot CAs:\n{roots}",
                    *key
                )
            }
        });
        return Ok(cli::print(&text));
    };
    // The key first: a certificate beside a key that is not its own would be the worst of what an interruption can leave.
    write(&key_file, key.as_bytes())?;
    write(&svid_file, chain.as_bytes())?;
    write(&bundle_file, roots.as_bytes())?;
    Ok(cli::print(&match common.output {
        Output::Json => line(&json!({
            "spiffeId": id.as_str(),
            "expiresAt": rfc3339(svid.not_after()),
            "written": [svid_file, key_file, bundle_file],
        })),
        Output::Table => format!(
            "X509-SVID written to {}\nPrivate key written to {}\nRoot CAs written to {}\n",
            svid_file.display(),
            key_file.display(),
            bundle_file.display()
        ),
    }))
}

async fn jwt(args: JwtArgs, common: &CommonArgs) -> Result<Exit, CommandError> {
    let (id, ttl) = (&args.spiffe_id, args.ttl);
    if let Some(file) = &args.write {
        writable(file)?;
    }
    let client = args.socket.connect().await?;
    let now = Clock::system().now();
    let minted = client.mint_jwt(id, args.audience, ttl).await?;
    warn_if_shorter(now, ttl, minted.expires_at, common);
    let token = minted.token.expose();
    let mut facts = json!({
        "spiffeId": id.as_str(),
        "issuedAt": rfc3339(minted.issued_at),
        "expiresAt": rfc3339(minted.expires_at),
    });
    let text = Zeroizing::new(match (args.write, common.output) {
        (None, Output::Json) => {
            facts["token"] = json!(token);
            line(&facts)
        }
        (None, Output::Table) => format!("{token}\n"),
        (Some(file), output) => {
            write(&file, token.as_bytes())?;
            match output {
                Output::Json => {
                    facts["written"] = json!([file]);
                    line(&facts)
                }
                Output::Table => format!("JWT-SVID written to {}\n", file.display()),
            }
        }
    });
    Ok(cli::print(&text))
}

/// A new key, and the request that proves its possession and says what the certificate shall name.
fn request(id: &SpiffeId, dns: &[DnsName]) -> Result<(KeyPair, Vec<u8>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().to_owned().try_into()?)];
    for name in dns {
        let name = name.as_str().to_owned().try_into()?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    let csr = params.serialize_request(&key)?.der().to_vec();
    Ok((key, csr))
}

/// The server shortens a life that outlasts its authority; whoever asked for more must hear of it.
fn warn_if_shorter(now: SystemTime, ttl: i32, end: SystemTime, common: &CommonArgs) {
    let asked = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
    // Whole seconds, and clocks that differ a little.
    let short = end + Duration::from_secs(10) < now + asked;
    if short && !common.quiet {
        // A hint only: when standard error is gone there is nobody to tell.
        writeln!(
            io::stderr(),
            "warning: it lives shorter than asked, until {}: the authority ends then",
            rfc3339(end)
        )
        .ok();
    }
}

/// Asked before anything is signed.
fn writable(path: &Path) -> Result<(), CommandError> {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    tempfile::tempfile_in(folder.unwrap_or(Path::new(".")))
        .map(drop)
        .map_err(|cause| not_written(path, cause))
}

fn write(path: &Path, content: &[u8]) -> Result<(), CommandError> {
    files::replace(path, files::PRIVATE, content).map_err(|cause| not_written(path, cause))
}

fn not_written(path: &Path, cause: io::Error) -> CommandError {
    CommandError::Write {
        file: path.display().to_string(),
        cause,
    }
}
