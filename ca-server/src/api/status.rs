//! The one map from our errors to gRPC status, details and FNL code: what SPIRE would answer, with the same words where its
//! agents and tools read them. Trusts each error to know who is to blame. Never tells a stranger about our insides.

use mesh_identity::EntryIdError;
use mesh_runtime::audit::{AuditError, Outcome};
use mesh_runtime::errors::{Blame, Coded, ErrorChain};
use prost::Message;
use proto::convert::WireError;
use proto::spire::api::types;
use proto::spire::api::types::permission_denied_details::Reason;
use tonic::{Code, Status};

use super::caller::NotACaller;
use crate::attestation::{AttestError, K8sRefused, X509PopRefused};
use crate::authority::{AppendError, TurnError};
use crate::federation::{EndpointUrlError, RefreshError};
use crate::issuance::{CsrError, IssueError, MintError};
use crate::registry::{CreateError, NotAuthorized, PageError};
use crate::store::StoreError;

/// A call, or an item of a batch, that was not done.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// For logs, records and `docs/errors`.
    pub code: &'static str,
    /// gRPC's word.
    pub grpc: Code,
    /// For the caller.
    pub message: String,
    /// For SPIRE's agents.
    reason: Option<Reason>,
    /// The true reason, for the record alone: with it neither reason nor code reaches the caller, whom they would tell
    /// which check a token failed.
    kept_back: Option<String>,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: &'static str, grpc: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            grpc,
            message: message.into(),
            reason: None,
            kept_back: None,
        }
    }

    /// The same, with `error` and the code for the record alone.
    fn keep_back(self, error: &dyn std::error::Error) -> Self {
        Self {
            kept_back: Some(ErrorChain(error).to_string()),
            ..self
        }
    }

    /// The same, said of a larger thing.
    pub(super) fn within(self, what: &str) -> Self {
        Self {
            message: format!("{what}: {}", self.message),
            ..self
        }
    }

    /// The same in other words.
    pub(super) fn saying(self, message: &str) -> Self {
        Self {
            message: message.to_owned(),
            ..self
        }
    }

    /// Why, for the record.
    pub fn why(&self) -> &str {
        self.kept_back.as_deref().unwrap_or(&self.message)
    }

    /// Not allowed, or not done.
    pub fn outcome(&self) -> Outcome {
        match self.grpc {
            Code::Internal | Code::Unavailable | Code::Unknown => Outcome::Failure,
            _ => Outcome::Denied,
        }
    }

    /// As the status of one item of a batch.
    pub fn item(&self) -> types::Status {
        types::Status {
            code: self.grpc as i32,
            message: self.message.clone(),
        }
    }

    /// As the status of the whole call.
    pub fn into_status(self) -> Status {
        let mut status = match self.reason {
            Some(reason) => Status::with_details(
                self.grpc,
                self.message.clone(),
                details(&self, reason).into(),
            ),
            None => Status::new(self.grpc, self.message),
        };
        if self.kept_back.is_none() {
            status.metadata_mut().insert(
                "x-finial-error",
                tonic::metadata::MetadataValue::from_static(self.code),
            );
        }
        status
    }

    /// What a fault of ours looks like from outside: the reason is in the log.
    fn internal(error: &(impl std::error::Error + Coded), what: &str) -> Self {
        tracing::error!(code = error.code(), error = %ErrorChain(error), "{what}");
        Self::new(error.code(), Code::Internal, what)
    }

    fn by_blame(error: &(impl std::error::Error + Coded), blame: Blame, what: &str) -> Self {
        match blame {
            Blame::Caller => Self::new(
                error.code(),
                Code::InvalidArgument,
                ErrorChain(error).to_string(),
            ),
            Blame::Us => Self::internal(error, what),
            Blame::Dependency => {
                tracing::error!(code = error.code(), error = %ErrorChain(error), "{what}");
                Self::new(error.code(), Code::Unavailable, what)
            }
        }
    }
}

/// `google.rpc.Status`, which carries details in the trailer `grpc-status-details-bin`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

fn details(refusal: &Refusal, reason: Reason) -> Vec<u8> {
    let details = types::PermissionDeniedDetails {
        reason: reason.into(),
    };
    RpcStatus {
        code: refusal.grpc as i32,
        message: refusal.message.clone(),
        details: vec![prost_types::Any {
            type_url: "type.googleapis.com/spire.api.types.PermissionDeniedDetails".into(),
            value: details.encode_to_vec(),
        }],
    }
    .encode_to_vec()
}

impl From<NotACaller> for Refusal {
    fn from(error: NotACaller) -> Self {
        let reason = match &error {
            NotACaller::AgentExpired(_) => Reason::AgentExpired,
            NotACaller::AgentNotAttested(_) => Reason::AgentNotAttested,
            NotACaller::AgentNotActive(_) => Reason::AgentNotActive,
            NotACaller::AgentBanned(_) => Reason::AgentBanned,
            NotACaller::AgentMustReattest => Reason::AgentMustReattest,
            NotACaller::Store(store) => return Self::from(store),
        };
        Self {
            code: error.code(),
            grpc: Code::PermissionDenied,
            message: error.to_string(),
            reason: Some(reason),
            kept_back: None,
        }
    }
}

impl From<&StoreError> for Refusal {
    fn from(error: &StoreError) -> Self {
        Self::by_blame(error, error.blame(), "the store did not do it")
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}

impl From<AuditError> for Refusal {
    fn from(error: AuditError) -> Self {
        Self::by_blame(
            &error,
            Blame::Dependency,
            "the audit record could not be written, so nothing was granted",
        )
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self::new(
            "FNL1240",
            Code::InvalidArgument,
            ErrorChain(&error).to_string(),
        )
    }
}

impl From<EntryIdError> for Refusal {
    fn from(error: EntryIdError) -> Self {
        Self::new("FNL1241", Code::InvalidArgument, error.to_string())
    }
}

impl From<RefreshError> for Refusal {
    /// SPIRE says Internal, and why: administrators alone may ask.
    fn from(error: RefreshError) -> Self {
        let why = ErrorChain(&error).to_string();
        Self::new(error.code(), Code::Internal, why).within("failed to refresh bundle")
    }
}

impl From<EndpointUrlError> for Refusal {
    fn from(error: EndpointUrlError) -> Self {
        Self::new(error.code(), Code::InvalidArgument, error.to_string())
    }
}

impl From<PageError> for Refusal {
    fn from(error: PageError) -> Self {
        Self::new(error.code(), Code::InvalidArgument, error.to_string())
    }
}

impl From<NotAuthorized> for Refusal {
    fn from(error: NotAuthorized) -> Self {
        match &error {
            // SPIRE's words and code; whether the entry exists is not told.
            NotAuthorized::NotYours { .. } => Self::new(
                error.code(),
                Code::NotFound,
                "entry not found or not authorized",
            ),
            NotAuthorized::NotYet { .. } => {
                Self::new(error.code(), Code::Unavailable, error.to_string())
            }
        }
    }
}

impl From<CsrError> for Refusal {
    fn from(error: CsrError) -> Self {
        Self::new(error.code(), Code::InvalidArgument, error.to_string())
    }
}

impl From<MintError> for Refusal {
    fn from(error: MintError) -> Self {
        match error {
            MintError::Csr(error) => error.into(),
            error => Self::new(
                error.code(),
                Code::InvalidArgument,
                ErrorChain(&error).to_string(),
            ),
        }
    }
}

impl From<TurnError> for Refusal {
    fn from(error: TurnError) -> Self {
        match &error {
            TurnError::NotPrepared(_) | TurnError::NotTainted => {
                // SPIRE's code for them, although the caller is to blame.
                Self::new(error.code(), Code::Internal, error.to_string())
            }
            TurnError::UpstreamSigns => {
                Self::new(error.code(), Code::FailedPrecondition, error.to_string())
            }
            _ => Self::by_blame(&error, error.blame(), "the authority was not turned"),
        }
    }
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Self {
        Self::by_blame(&error, error.blame(), "the authorities were not appended")
    }
}

impl From<IssueError> for Refusal {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::NotAuthorized(error) => error.into(),
            IssueError::Csr(error) => error.into(),
            IssueError::Audit(error) => error.into(),
            error => Self::by_blame(
                &error,
                error.blame(),
                "the certificate or token was not issued",
            ),
        }
    }
}

impl From<CreateError> for Refusal {
    fn from(error: CreateError) -> Self {
        match &error {
            CreateError::IdTaken(_) => {
                Self::new(error.code(), Code::AlreadyExists, error.to_string())
            }
            _ => Self::by_blame(&error, error.blame(), "the entry was not stored"),
        }
    }
}

impl From<AttestError> for Refusal {
    fn from(error: AttestError) -> Self {
        let code = error.code();
        match &error {
            AttestError::UnknownKind => {
                Self::new(code, Code::FailedPrecondition, error.to_string())
            }
            AttestError::Banned(id) => Self {
                code,
                ..Self::from(NotACaller::AgentBanned(id.clone()))
            },
            AttestError::K8s(K8sRefused::Banned) => Self {
                code,
                grpc: Code::PermissionDenied,
                message: "failed to attest: agent is banned".into(),
                reason: Some(Reason::AgentBanned),
                kept_back: None,
            },
            // The reason is in the record; a stranger with a stolen or forged token learns only that it was refused.
            AttestError::K8s(refused) if refused.blame() == Blame::Caller => {
                match refused.is_malformed() {
                    true => Self::new(code, Code::InvalidArgument, error.to_string()),
                    false => Self::new(
                        code,
                        Code::PermissionDenied,
                        "the service-account token was refused",
                    )
                    .keep_back(&error),
                }
            }
            AttestError::X509Pop(refused) if refused.is_malformed() => {
                Self::new(code, Code::InvalidArgument, error.to_string())
            }
            AttestError::X509Pop(refused) if !matches!(refused, X509PopRefused::Random) => {
                Self::new(
                    code,
                    Code::PermissionDenied,
                    "the node's certificate was refused",
                )
                .keep_back(&error)
            }
            AttestError::K8s(_) if error.blame() == Blame::Dependency => {
                tracing::warn!(code, error = %ErrorChain(&error), "a node could not be attested");
                Self::new(code, Code::Internal, "the cluster could not be asked")
            }
            AttestError::JoinToken(refused) if error.blame() == Blame::Caller => {
                tracing::debug!(code, error = %refused, "a join token was refused");
                Self::new(
                    code,
                    Code::InvalidArgument,
                    "join token does not exist or has already been used",
                )
                .keep_back(&error)
            }
            _ => Self::by_blame(&error, error.blame(), "the node could not be attested"),
        }
    }
}
