//! What a status means.

use proto::convert::permission_denied;
use types::permission_denied_details::Reason;

use super::*;

#[test]
fn t_40_the_reason_of_a_denial_decides_between_attesting_again_and_stopping() {
    let cases = [
        (Reason::AgentBanned, Verdict::Banned),
        (Reason::AgentExpired, Verdict::AttestAgain),
        (Reason::AgentNotAttested, Verdict::AttestAgain),
        (Reason::AgentNotActive, Verdict::AttestAgain),
        (Reason::AgentMustReattest, Verdict::AttestAgain),
        (Reason::Unknown, Verdict::No),
    ];
    for (reason, wanted) in cases {
        assert_eq!(
            verdict(&permission_denied("no", reason)),
            wanted,
            "{reason:?}"
        );
    }
    assert_eq!(
        verdict(&Status::permission_denied("without a detail")),
        Verdict::No
    );
    assert_eq!(verdict(&Status::unavailable("")), Verdict::Later);
    assert_eq!(verdict(&Status::invalid_argument("")), Verdict::No);
    // Garbage in the details is no reason.
    let garbage = Status::with_details(Code::PermissionDenied, "", vec![0xff; 64].into());
    assert_eq!(verdict(&garbage), Verdict::No);
}
