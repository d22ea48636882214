//! Tests of `verify.rs`.

use super::*;
use crate::test_util::{Made, now};

#[test]
fn a_right_chain_proves_its_id() {
    let root = Made::root("dev.test");
    let leaf = root.leaf("spiffe://dev.test/pay");
    let proven = verify_x509_svid(&leaf.chain, &root.bundles("dev.test"), now()).unwrap();
    assert_eq!(proven.id.as_str(), "spiffe://dev.test/pay");
    let ca = root.intermediate("dev.test", "ca 1");
    let leaf = ca.leaf("spiffe://dev.test/pay");
    verify_x509_svid(&leaf.chain, &root.bundles("dev.test"), now()).unwrap();
}
