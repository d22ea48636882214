//! Why the roots of an outside authority cannot be used, and why a node was not believed by one; one code per reason.
//! Never says which check a stranger's certificate failed: `api/status.rs` keeps that for the record.

use std::path::{Path, PathBuf};

use mesh_runtime::errors::Coded;

use super::MOST_INTERMEDIATES;

/// Why the roots cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The operating system says no.
    #[error("the roots of x509pop in {} cannot be read", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// Something in it is not a certificate that could be a root.
    #[error("{} holds something that is no root certificate", path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
    },
    /// Nothing in it.
    #[error("{} holds no certificate", path.display())]
    None {
        /// Which file.
        path: PathBuf,
    },
}

impl RootsError {
    /// Which file.
    pub fn path(&self) -> &Path {
        match self {
            Self::File { path, .. } | Self::Certificate { path } | Self::None { path } => path,
        }
    }
}

impl Coded for RootsError {
    fn code(&self) -> &'static str {
        "FNL1070"
    }
}

/// Why a certificate or its proof was refused.
#[derive(Debug, thiserror::Error)]
pub enum X509PopRefused {
    /// Not what SPIRE's agents and ours send.
    #[error("the evidence is not JSON with `certificates`, each in base64")]
    Evidence,
    /// More than anybody needs.
    #[error(
        "{0} certificates were shown; a leaf and at most {MOST_INTERMEDIATES} authorities are read"
    )]
    TooMany(usize),
    /// The leaf, or an extension of it.
    #[error("the node's certificate cannot be read")]
    Unreadable,
    /// No path from a root.
    #[error("no valid root leads to the node's certificate")]
    Path(#[source] webpki::Error),
    /// Its authority did not make it for signatures.
    #[error("the node's certificate is not for digital signatures")]
    NotForSignatures,
    /// Nothing that SPIRE's protocol or our library could verify.
    #[error("the key of the node's certificate is neither RSA nor ECDSA on P-256 or P-384")]
    KeyKind,
    /// A name that cannot be a selector or a part of an ID.
    #[error("a name in the node's certificate cannot be a selector")]
    Name,
    /// Not what was asked for.
    #[error("the answer to the challenge is not what was asked for")]
    Answer,
    /// The proof.
    #[error("the answer is not signed by the key of the node's certificate")]
    NoPossession,
    /// The operating system gave no randomness.
    #[error("no random number could be made")]
    Random,
}

impl X509PopRefused {
    /// Whether the request could not be read, rather than not be believed.
    pub fn is_malformed(&self) -> bool {
        matches!(
            self,
            Self::Evidence | Self::TooMany(_) | Self::Unreadable | Self::Answer
        )
    }
}

impl Coded for X509PopRefused {
    fn code(&self) -> &'static str {
        match self {
            Self::Evidence | Self::TooMany(_) | Self::Unreadable => "FNL1071",
            Self::Path(_) => "FNL1072",
            Self::NotForSignatures | Self::KeyKind => "FNL1073",
            Self::Name => "FNL1074",
            Self::Answer => "FNL1075",
            Self::NoPossession => "FNL1076",
            Self::Random => "FNL1077",
        }
    }
}
