//! Who signs our X.509 authorities, if not they themselves: an authority whose certificate and key lie in files (SPIRE's upstream
//! "disk"). Then ours are intermediates, our bundle holds its roots, and it decides how long they can live.
//! Trusts the owner of the files for what is in them. Never hands out an intermediate that was not tried: a throw-away SVID below
//! it must verify as a peer would verify it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mesh_identity::verify::verify_x509_svid;
use mesh_identity::{Bundle, BundleSet, SpiffeId, TrustDomain, X509Authority};
use mesh_runtime::errors::Coded;
use rcgen::{Issuer, PublicKeyData};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::above::Above;
use super::certificate::{Signer, authority_params};
use super::facts::{facts, is_self_issued};
use super::keys::{CaKey, KeyType, Pkcs8, generate};
use super::times::Times;
use super::{AuthorityError, BACKDATE, LeafTemplate, SHORTEST_LIFE};

/// More of a file is not read: no chain and no bundle of roots is larger.
const LONGEST_FILE: u64 = 1024 * 1024;

/// Who signs our X.509 authorities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum UpstreamAuthority {
    /// An authority in files, read anew for each authority of ours.
    Disk(DiskUpstream),
}

/// The `upstreamAuthority.disk` section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskUpstream {
    /// PEM: the certificate that signs, then those above it. Without `bundle` the last one is the root.
    pub certificate: PathBuf,
    /// PEM: its private key, PKCS#8.
    pub key: PathBuf,
    /// PEM: the roots.
    pub bundle: Option<PathBuf>,
}

/// An authority of ours that was signed and tried.
pub(super) struct Intermediate {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) signer: Signer,
    pub(super) above: Above,
}

/// What the files hold.
struct Opened<'a> {
    files: &'a DiskUpstream,
    issuer: Issuer<'static, CaKey>,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<X509Authority>,
    trust: BundleSet,
}

impl DiskUpstream {
    /// Signs an authority for a key of ours that lives as long as asked, or as long as what is above it.
    pub(super) async fn sign(
        &self,
        trust_domain: &TrustDomain,
        pkcs8: &Pkcs8,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Intermediate, AuthorityError> {
        let opened = self.open(trust_domain)?;
        let throw_away = CaKey::from_pkcs8(&generate(KeyType::EcP256).await?);
        let throw_away = throw_away.map_err(|reason| AuthorityError::Make { reason })?;
        let throw_away = throw_away.subject_public_key_info();
        let asked = now + lifetime;
        let (made, ends) = opened.sign(trust_domain, pkcs8, &throw_away, asked, now)?;
        let made = match ends < asked {
            true => opened.sign(trust_domain, pkcs8, &throw_away, ends, now)?.0,
            false => made,
        };
        let left = ends.duration_since(now).unwrap_or_default();
        if left < SHORTEST_LIFE {
            let why = io::Error::other("what is above ends too soon");
            return Err(opened.unfit(why).into());
        }
        if left + Duration::from_secs(1) < lifetime {
            tracing::warn!(
                ?left,
                ?lifetime,
                "the upstream authority ends first: a new authority of ours lives shorter than configured"
            );
        }
        Ok(made)
    }

    fn open(&self, trust_domain: &TrustDomain) -> Result<Opened<'_>, UpstreamError> {
        let mut chain = certificates(&self.certificate)?;
        let key = self.key()?;
        let content = |path: &Path, problem: String| UpstreamError::Content {
            path: path.to_owned(),
            problem,
        };
        let in_certificate = |problem| content(&self.certificate, problem);
        let signs = chain[0].clone();
        if facts(&signs).map_err(in_certificate)?.public_key != key.subject_public_key_info() {
            return Err(UpstreamError::Key {
                key: self.key.clone(),
                certificate: self.certificate.clone(),
            });
        }
        let roots = match &self.bundle {
            Some(path) => certificates(path)?,
            None => match chain.last() {
                Some(last) if is_self_issued(last) => vec![last.clone()],
                _ => {
                    return Err(in_certificate(
                        "its last certificate is no root; name the roots in `bundle`".into(),
                    ));
                }
            },
        };
        chain.retain(|certificate| !roots.contains(certificate));
        let bundle_file = self.bundle.as_ref().unwrap_or(&self.certificate);
        let roots = roots.into_iter().map(|der| {
            let root = X509Authority::parse(der);
            let root = root.map_err(|error| self.unfit(bundle_file, error))?;
            match root.subject_key_id().is_empty() {
                true => Err(content(
                    bundle_file,
                    "a root has no subject key id, by which it could be tainted and revoked".into(),
                )),
                false => Ok(root),
            }
        });
        let roots: Vec<X509Authority> = roots.collect::<Result<_, _>>()?;
        let bundle = Bundle::new(trust_domain.clone(), roots.iter().cloned());
        let bundle = bundle.map_err(|error| self.unfit(bundle_file, error))?;
        let issuer = Issuer::from_ca_cert_der(&signs, key);
        Ok(Opened {
            files: self,
            issuer: issuer.map_err(|error| in_certificate(error.to_string()))?,
            chain,
            roots,
            trust: std::iter::once(bundle).collect(),
        })
    }

    fn key(&self) -> Result<CaKey, UpstreamError> {
        let malformed = |problem: &str| UpstreamError::Content {
            path: self.key.clone(),
            problem: problem.to_owned(),
        };
        let file = open(&self.key)?;
        // Asked of the open file. A group may read it: that is how a cluster hands secrets to a user that is not root.
        let mode = file.metadata().map_err(|cause| unread(&self.key, cause))?;
        let mode = mode.mode();
        if mode & 0o027 != 0 {
            let mode = mode & 0o7777;
            return Err(malformed(&format!(
                "others may read or write this private key (mode {mode:04o}); it must be 0600 or 0640 at most"
            )));
        }
        let text = Zeroizing::new(content(file, &self.key)?);
        let key = PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|_| {
            malformed(
                "there is no private key in PKCS#8 (`openssl pkcs8 -topk8 -nocrypt` makes it)",
            )
        })?;
        let pkcs8 = Zeroizing::new(key.secret_pkcs8_der().to_vec());
        CaKey::from_pkcs8(&pkcs8).map_err(|problem| malformed(&problem))
    }

    fn unfit(
        &self,
        file: &Path,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> UpstreamError {
        UpstreamError::Unfit {
            path: file.to_owned(),
            cause: Box::new(cause),
        }
    }
}

impl Opened<'_> {
    fn unfit(&self, cause: impl std::error::Error + Send + Sync + 'static) -> UpstreamError {
        self.files.unfit(&self.files.certificate, cause)
    }

    /// Signs and tries; tells also when the first certificate above ends, or `ends` if none does before.
    fn sign(
        &self,
        trust_domain: &TrustDomain,
        pkcs8: &Pkcs8,
        throw_away: &[u8],
        ends: SystemTime,
        now: SystemTime,
    ) -> Result<(Intermediate, SystemTime), AuthorityError> {
        let failed = |reason| AuthorityError::Make { reason };
        let key = CaKey::from_pkcs8(pkcs8).map_err(failed)?;
        let times = Times {
            not_before: now - BACKDATE,
            not_after: ends,
        };
        let params = authority_params(trust_domain, &key, times).map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer);
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        let certificate = certificate.der().clone();
        let mut above = Above {
            chain: self.chain.clone(),
            roots: self.roots.clone(),
            root_id: String::new(),
        };
        let trial = Signer::restore(&certificate, key, Some(&above)).map_err(failed)?;
        let health = SpiffeId::from_parts(trust_domain, "/for/health/check/only");
        let template = LeafTemplate {
            spiffe_id: health.map_err(|error| failed(error.to_string()))?,
            dns_names: Vec::new(),
            subject: Vec::new(),
            ttl: ends.duration_since(now).unwrap_or_default(),
            not_before_backdate: BACKDATE,
        };
        let tried = trial.sign(&template, throw_away, now);
        let tried = tried.map_err(|error| self.unfit(error))?;
        let proven = verify_x509_svid(&tried.chain, &self.trust, now);
        let proven = proven.map_err(|error| self.unfit(error))?;
        above.root_id.clone_from(&proven.authority);
        let key = CaKey::from_pkcs8(pkcs8).map_err(failed)?;
        let signer = Signer::restore(&certificate, key, Some(&above)).map_err(failed)?;
        let made = Intermediate {
            certificate,
            signer,
            above,
        };
        // In whole seconds the trial ends up to a second before what was asked for.
        let cut = proven.valid_until + Duration::from_secs(1) <= ends;
        Ok((made, if cut { proven.valid_until } else { ends }))
    }
}

fn open(path: &Path) -> Result<File, UpstreamError> {
    File::open(path).map_err(|cause| unread(path, cause))
}

fn content(file: File, path: &Path) -> Result<Vec<u8>, UpstreamError> {
    let mut bytes = Vec::new();
    let read = file.take(LONGEST_FILE).read_to_end(&mut bytes);
    read.map_err(|cause| unread(path, cause))?;
    Ok(bytes)
}

fn unread(path: &Path, cause: io::Error) -> UpstreamError {
    UpstreamError::File {
        path: path.to_owned(),
        cause,
    }
}

/// The certificates of a file; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, UpstreamError> {
    let malformed = |problem: String| UpstreamError::Content {
        path: path.to_owned(),
        problem,
    };
    let bytes = content(open(path)?, path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if all.is_empty() => Err(malformed("there is no certificate in PEM".into())),
        Ok(all) => Ok(all),
        Err(error) => Err(malformed(error.to_string())),
    }
}

/// Why an authority in files did not sign.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// A file cannot be read.
    #[error("the upstream authority's file {} cannot be read", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// What stands in it cannot be used.
    #[error("the upstream authority's file {}: {problem}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// Key and certificate do not belong together.
    #[error("the upstream authority's key {} is not that of the first certificate in {}", key.display(), certificate.display())]
    Key {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// No peer would accept what it signs.
    #[error("the upstream authority in {} cannot sign for this trust domain", path.display())]
    Unfit {
        /// The file with the certificate that is at fault, or that signs.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Coded for UpstreamError {
    fn code(&self) -> &'static str {
        match self {
            Self::File { .. } => "FNL1063",
            Self::Content { .. } => "FNL1064",
            Self::Key { .. } => "FNL1065",
            Self::Unfit { .. } => "FNL1066",
        }
    }
}
