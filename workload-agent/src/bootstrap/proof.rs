//! Decides what this node shows as proof, read at the moment it is needed, and how it answers when the CA asks back.
//! Trusts the files that the configuration names. Never shows a token or key, never signs what another alone has chosen.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh_runtime::telemetry::Secret;
use mesh_tls::{Possession, WebIdentity};
use proto::spire::api::types;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::BootstrapError;
use crate::config::{NodeAttestation, X509PopOptions};

/// The longest token, certificate or key file that is read.
const LONGEST_FILE: u64 = 64 * 1024;

/// The length of each side's random number in x509pop.
const NONCE: usize = 32;

/// How this node proves what it is.
#[derive(Debug)]
pub enum Proof {
    /// A join token in a file.
    JoinTokenFile(PathBuf),
    /// A join token.
    JoinToken(Secret<String>),
    /// A projected service-account token.
    K8sPsat {
        /// The cluster's name.
        cluster: String,
        /// The token.
        token_file: PathBuf,
    },
    /// A certificate of an outside authority, and its key.
    X509Pop(X509PopOptions),
}

/// What is shown, and what a question about it is answered with.
pub(super) struct Evidence {
    pub(super) data: types::AttestationData,
    key: Option<WebIdentity>,
}

/// Why the certificate cannot be a proof.
#[derive(Debug, thiserror::Error)]
pub enum PossessionError {
    /// A file.
    #[error("{} cannot be read", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// What is in the files.
    #[error(transparent)]
    Unusable(#[from] mesh_tls::WebIdentityError),
    /// A key that cannot make what SPIRE's protocol asks for.
    #[error("the key of the certificate is neither RSA nor on P-256")]
    KeyKind,
    /// The CA asks for something else.
    #[error("the challenge is not one for the key of the certificate")]
    Challenge,
    /// The operating system gave no randomness.
    #[error("no random number could be made")]
    Random,
}

#[derive(Deserialize)]
struct Challenge {
    rsa_signature: Option<Nonce>,
    ecdsa_signature: Option<Nonce>,
}

#[derive(Deserialize)]
struct Nonce {
    nonce: String,
}

#[derive(Default, Serialize)]
struct Answer {
    rsa_signature: Option<RsaAnswer>,
    ecdsa_signature: Option<EcdsaAnswer>,
}

#[derive(Serialize)]
struct RsaAnswer {
    nonce: String,
    signature: String,
}

#[derive(Serialize)]
struct EcdsaAnswer {
    nonce: String,
    r: String,
    s: String,
}

impl Proof {
    /// What the configuration says; it has checked that there is exactly one.
    pub fn from_config(options: NodeAttestation) -> Option<Self> {
        match (options.join_token, options.k8s_psat, options.x509_pop) {
            (Some(join), None, None) => match (join.token, join.token_file) {
                (Some(token), None) => Some(Self::JoinToken(token)),
                (None, Some(file)) => Some(Self::JoinTokenFile(file)),
                _ => None,
            },
            (None, Some(psat), None) => Some(Self::K8sPsat {
                cluster: psat.cluster,
                token_file: psat.token_file,
            }),
            (None, None, Some(pop)) => Some(Self::X509Pop(pop)),
            _ => None,
        }
    }

    /// The evidence of this moment. Files are read each time: projected tokens are replaced by a symlink swap, certificates renewed.
    pub(super) fn evidence(&self) -> Result<Evidence, BootstrapError> {
        let data = |kind: &str, payload: Vec<u8>| types::AttestationData {
            r#type: kind.into(),
            payload,
        };
        let shown = |data| Evidence { data, key: None };
        Ok(match self {
            Self::JoinToken(token) => {
                shown(data("join_token", token.expose().trim().as_bytes().into()))
            }
            Self::JoinTokenFile(path) => {
                shown(data("join_token", read_token(path)?.as_bytes().into()))
            }
            Self::K8sPsat {
                cluster,
                token_file,
            } => {
                let token = read_token(token_file)?;
                let payload = serde_json::json!({ "cluster": cluster, "token": *token });
                shown(data("k8s_psat", payload.to_string().into_bytes()))
            }
            Self::X509Pop(files) => {
                let identity = certificate(files)?;
                let chain: Vec<_> = identity.chain().map(|der| STANDARD.encode(der)).collect();
                let payload = serde_json::json!({ "certificates": chain });
                Evidence {
                    data: data("x509pop", payload.to_string().into_bytes()),
                    key: Some(identity),
                }
            }
        })
    }
}

impl Evidence {
    /// Answers what the CA asks back. Our own random number is signed with its, so that it cannot choose what is signed.
    pub(super) fn answer(&self, challenge: &[u8]) -> Result<Vec<u8>, BootstrapError> {
        let key = self.key.as_ref().ok_or(BootstrapError::Challenge)?;
        Ok(answer(key, challenge)?)
    }
}

fn answer(key: &WebIdentity, challenge: &[u8]) -> Result<Vec<u8>, PossessionError> {
    let asked: Challenge =
        serde_json::from_slice(challenge).map_err(|_| PossessionError::Challenge)?;
    let (theirs, rsa) = match (asked.rsa_signature, asked.ecdsa_signature) {
        (Some(asked), None) => (asked, true),
        (None, Some(asked)) => (asked, false),
        _ => return Err(PossessionError::Challenge),
    };
    let theirs = STANDARD
        .decode(theirs.nonce)
        .ok()
        .filter(|nonce| nonce.len() == NONCE)
        .ok_or(PossessionError::Challenge)?;
    let mut ours = [0; NONCE];
    SystemRandom::new()
        .fill(&mut ours)
        .map_err(|_| PossessionError::Random)?;
    let nonce = STANDARD.encode(ours);
    let answer = match key.prove(&[theirs, ours.to_vec()].concat()) {
        Some(Possession::Rsa(signature)) if rsa => Answer {
            rsa_signature: Some(RsaAnswer {
                nonce,
                signature: STANDARD.encode(signature),
            }),
            ..Answer::default()
        },
        Some(Possession::Ecdsa { r, s }) if !rsa => Answer {
            ecdsa_signature: Some(EcdsaAnswer {
                nonce,
                r: STANDARD.encode(r),
                s: STANDARD.encode(s),
            }),
            ..Answer::default()
        },
        Some(_) => return Err(PossessionError::Challenge),
        None => return Err(PossessionError::KeyKind),
    };
    Ok(serde_json::to_vec(&answer).expect("text is JSON"))
}

fn certificate(files: &X509PopOptions) -> Result<WebIdentity, PossessionError> {
    let mut chain = read(&files.certificate_file)?;
    if let Some(more) = &files.intermediates_file {
        chain.push(b'\n');
        chain.extend_from_slice(&read(more)?);
    }
    let key = read(&files.private_key_file)?;
    Ok(WebIdentity::from_pem(&chain, &key)?)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, PossessionError> {
    let mut bytes = Zeroizing::new(Vec::new());
    fs::File::open(path)
        .and_then(|file| file.take(LONGEST_FILE).read_to_end(&mut bytes))
        .map_err(|cause| PossessionError::File {
            path: path.to_owned(),
            cause,
        })?;
    Ok(bytes)
}

fn read_token(path: &PathBuf) -> Result<Zeroizing<String>, BootstrapError> {
    let mut text = Zeroizing::new(String::new());
    fs::File::open(path)
        .and_then(|file| file.take(LONGEST_FILE).read_to_string(&mut text))
        .map_err(|cause| BootstrapError::TokenFile {
            path: path.clone(),
            cause,
        })?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(BootstrapError::Token { path: path.clone() });
    }
    Ok(Zeroizing::new(token.to_owned()))
}
