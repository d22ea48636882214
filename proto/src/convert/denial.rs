//! The detail that goes along with PermissionDenied to an agent: whether to prove itself again, or to stop.
//! It trusts the type's name in the detail; anything else in the trailer is passed over, for others may put details there too.
//! It never decides which reason applies.

use prost::Message;
use tonic::{Code, Status};

use crate::spire::api::types::{PermissionDeniedDetails, permission_denied_details::Reason};

const TYPE: &str = "spire.api.types.PermissionDeniedDetails";

/// `google.rpc.Status`, which the trailer `grpc-status-details-bin` carries.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// PermissionDenied with this message and this reason as its detail.
pub fn permission_denied(message: impl Into<String>, reason: Reason) -> Status {
    let message = message.into();
    let detail = prost_types::Any {
        type_url: format!("type.googleapis.com/{TYPE}"),
        value: PermissionDeniedDetails {
            reason: reason.into(),
        }
        .encode_to_vec(),
    };
    let status = RpcStatus {
        code: Code::PermissionDenied.into(),
        message: message.clone(),
        details: vec![detail],
    };
    Status::with_details(
        Code::PermissionDenied,
        message,
        status.encode_to_vec().into(),
    )
}

/// The reason in a status; `None` where it is not PermissionDenied, has no such detail, or one that cannot be read.
pub fn denied_because(status: &Status) -> Option<Reason> {
    if status.code() != Code::PermissionDenied {
        return None;
    }
    let outer = RpcStatus::decode(status.details()).ok()?;
    let detail = outer
        .details
        .iter()
        .find(|any| any.type_url.rsplit('/').next() == Some(TYPE))?;
    let reason = PermissionDeniedDetails::decode(detail.value.as_slice())
        .ok()?
        .reason;
    Reason::try_from(reason).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_comes_back_the_same() {
        for number in 0..=5 {
            let reason = Reason::try_from(number).expect("six reasons");
            let status = permission_denied("agent is banned", reason);
            assert_eq!(
                (status.code(), status.message()),
                (Code::PermissionDenied, "agent is banned")
            );
            assert_eq!(denied_because(&status), Some(reason));
        }
    }

    #[test]
    fn the_trailer_has_the_bytes_that_spires_agent_reads() {
        let status = permission_denied("no", Reason::AgentBanned);
        let url = b"type.googleapis.com/spire.api.types.PermissionDeniedDetails";
        let mut any = vec![0x0a, url.len() as u8];
        any.extend(url);
        any.extend([0x12, 2, 0x08, 4]);
        let mut bytes = vec![0x08, 7, 0x12, 2, b'n', b'o', 0x1a, any.len() as u8];
        bytes.extend(any);
        assert_eq!(status.details(), bytes);
    }

    #[test]
    fn a_status_without_our_detail_has_no_reason() {
        assert_eq!(denied_because(&Status::permission_denied("no")), None);
        let garbage = Status::with_details(Code::PermissionDenied, "no", vec![0xff].into());
        assert_eq!(denied_because(&garbage), None);
        let denied = permission_denied("no", Reason::AgentBanned);
        let other = Status::with_details(Code::NotFound, "no", denied.details().to_vec().into());
        assert_eq!(denied_because(&other), None, "another status is no denial");
        let unknown = RpcStatus {
            details: vec![prost_types::Any {
                type_url: format!("x/{TYPE}"),
                value: vec![0x08, 99],
            }],
            ..Default::default()
        };
        let unknown =
            Status::with_details(Code::PermissionDenied, "no", unknown.encode_to_vec().into());
        assert_eq!(
            denied_because(&unknown),
            None,
            "a reason of the future is not UNKNOWN"
        );
    }
}
