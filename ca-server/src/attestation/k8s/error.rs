//! Why a service-account token did not prove a node: one variant and one code per reason. None of them quotes the token.

use mesh_runtime::errors::{Blame, Coded};

use crate::store::StoreError;

/// A cause that was made safe to show.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a token was refused.
#[derive(Debug, thiserror::Error)]
pub enum K8sRefused {
    /// Not `{cluster, token}`.
    #[error("the evidence is not JSON with `cluster` and `token`")]
    Payload,
    /// Not configured here.
    #[error("the cluster is not configured")]
    UnknownCluster,
    /// Not three parts of base64url with JSON in the middle.
    #[error("the token is not a JWT")]
    NotAJwt,
    /// A claim that every bound token has.
    #[error("the token has no usable claim `{0}`")]
    Claims(&'static str),
    /// For instance one made by hand.
    #[error("the token is not bound to a pod")]
    NotBoundToAPod,
    /// The pod was not scheduled, or the node object was missing.
    #[error("the token names no node with a UID")]
    NoNodeClaim,
    /// Of another cluster.
    #[error("the token's issuer is not that of the cluster")]
    OtherIssuer,
    /// Meant for somebody else.
    #[error("the token is not meant for this server: none of its audiences is ours")]
    OtherAudience,
    /// Over.
    #[error("the token has expired")]
    TokenExpired,
    /// Too many nodes wait for the cluster's answers.
    #[error("too many nodes wait for the answers of this cluster")]
    Busy,
    /// The API server did not answer, or not with a review.
    #[error("token review did not answer")]
    ReviewUnavailable(#[source] Cause),
    /// An answer without a status.
    #[error("token review gave no verdict")]
    NoVerdict,
    /// The API server says that the token is bad.
    #[error("token review reported an error")]
    ReviewError,
    /// The API server says no.
    #[error("token review says the token is not authentic")]
    NotAuthenticated,
    /// The API server says no, and the pod that the token names is not there.
    #[error("token review refused the token, and the pod that it names is gone")]
    NotAuthenticatedPodGone,
    /// An API server that ignored the audiences.
    #[error("token review confirmed none of our audiences")]
    AudienceNotConfirmed,
    /// Some other user.
    #[error("the token's user is not a service account")]
    NotAServiceAccount,
    /// Not an agent.
    #[error("the service account is not one of the agents'")]
    AccountNotAllowed,
    /// A fact of a bound token that the review does not confirm.
    #[error("token review does not give exactly one `{0}`")]
    ExtraMissing(&'static str),
    /// The review and the token disagree.
    #[error("token review and token differ in the {0}")]
    ClaimsDiffer(&'static str),
    /// Pod or node could not be asked for.
    #[error("the cluster did not answer about the pod or the node")]
    LookupUnavailable(#[source] Cause),
    /// Deleted.
    #[error("the token's pod does not exist")]
    PodMissing,
    /// Deleted and made again.
    #[error("the pod of that name is another one than the token's")]
    PodReplaced,
    /// Its account differs.
    #[error("the pod runs under another service account")]
    PodOtherAccount,
    /// Only a kubelet makes those.
    #[error("the pod has no service account")]
    PodWithoutAccount,
    /// Written by a kubelet, not by the cluster.
    #[error("the pod is a mirror pod")]
    MirrorPod,
    /// Scheduled elsewhere.
    #[error("the pod is not on the token's node")]
    PodOtherNode,
    /// Being deleted.
    #[error("the pod is being deleted")]
    PodTerminating,
    /// Succeeded or failed.
    #[error("the pod is over")]
    PodOver,
    /// Owned by something else.
    #[error("the pod is not owned by the agents' DaemonSet")]
    NotOfTheDaemonSet,
    /// Deleted.
    #[error("the token's node does not exist")]
    NodeMissing,
    /// Deleted and made again.
    #[error("the node of that name is another one than the token's")]
    NodeReplaced,
    /// It may not come back.
    #[error("the agent of this node is banned")]
    Banned,
    /// The earlier pod is still alive.
    #[error("another live pod is the agent of this node")]
    SecondAgent,
    /// Seen from another pod or node.
    #[error("the token was used by another agent")]
    ReplayedElsewhere,
    /// Seen with another key while its agent lives.
    #[error("the token was used with another key by an agent that is connected")]
    ReplayedBesideLiveAgent,
    /// Two came at once.
    #[error("the token was used with another key at the same time")]
    LostTheRace,
    /// A fact that is no selector.
    #[error("a fact about the node cannot be a selector")]
    Selector,
    /// The store did not answer.
    #[error("the token's use could not be recorded")]
    Store(#[from] StoreError),
}

impl K8sRefused {
    /// Who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Busy
            | Self::ReviewUnavailable(_)
            | Self::NoVerdict
            | Self::LookupUnavailable(_) => Blame::Dependency,
            Self::Store(error) => error.blame(),
            _ => Blame::Caller,
        }
    }

    /// Whether the caller sent something that cannot be read, as opposed to something that was judged.
    pub fn is_malformed(&self) -> bool {
        matches!(
            self,
            Self::Payload
                | Self::UnknownCluster
                | Self::NotAJwt
                | Self::Claims(_)
                | Self::NotBoundToAPod
                | Self::NoNodeClaim
        )
    }
}

impl Coded for K8sRefused {
    fn code(&self) -> &'static str {
        match self {
            Self::Payload => "FNL1121",
            Self::UnknownCluster => "FNL1122",
            Self::NotAJwt => "FNL1123",
            Self::Claims(_) => "FNL1124",
            Self::NotBoundToAPod => "FNL1125",
            Self::NoNodeClaim => "FNL1126",
            Self::OtherIssuer => "FNL1127",
            Self::OtherAudience => "FNL1128",
            Self::TokenExpired => "FNL1129",
            Self::ReviewUnavailable(_) => "FNL1130",
            Self::NoVerdict => "FNL1131",
            Self::ReviewError => "FNL1132",
            Self::NotAuthenticated => "FNL1133",
            Self::AudienceNotConfirmed => "FNL1134",
            Self::NotAServiceAccount => "FNL1135",
            Self::AccountNotAllowed => "FNL1136",
            Self::ExtraMissing(_) => "FNL1137",
            Self::ClaimsDiffer(_) => "FNL1138",
            Self::LookupUnavailable(_) => "FNL1139",
            Self::PodMissing => "FNL1140",
            Self::PodReplaced => "FNL1141",
            Self::PodOtherAccount => "FNL1142",
            Self::PodWithoutAccount => "FNL1143",
            Self::MirrorPod => "FNL1144",
            Self::PodOtherNode => "FNL1145",
            Self::PodTerminating => "FNL1146",
            Self::PodOver => "FNL1147",
            Self::NotOfTheDaemonSet => "FNL1148",
            Self::NodeMissing => "FNL1149",
            Self::NodeReplaced => "FNL1150",
            Self::Banned => "FNL1151",
            Self::SecondAgent => "FNL1152",
            Self::ReplayedElsewhere => "FNL1153",
            Self::ReplayedBesideLiveAgent => "FNL1154",
            Self::LostTheRace => "FNL1155",
            Self::Selector => "FNL1156",
            Self::Busy => "FNL1157",
            Self::NotAuthenticatedPodGone => "FNL1158",
            Self::Store(error) => error.code(),
        }
    }
}
