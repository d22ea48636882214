//! Which fields of an agent go out.

use proto::convert::selectors_to_wire;
use proto::spire::api::types;

use super::super::seconds;
use crate::store::Node;

/// An agent for the wire with the fields that a mask names; without one, all.
pub(super) fn masked(node: &Node, mask: Option<&types::AgentMask>) -> types::Agent {
    let all = types::AgentMask {
        attestation_type: true,
        x509svid_serial_number: true,
        x509svid_expires_at: true,
        selectors: true,
        banned: true,
        can_reattest: true,
        agent_version: true,
    };
    let mask = mask.unwrap_or(&all);
    types::Agent {
        id: Some((&node.id).into()),
        attestation_type: match mask.attestation_type {
            true => node.attestation_type.clone(),
            false => String::new(),
        },
        x509svid_serial_number: match mask.x509svid_serial_number {
            true => decimal(&node.serial),
            false => String::new(),
        },
        x509svid_expires_at: match mask.x509svid_expires_at {
            true => seconds(node.expires_at),
            false => 0,
        },
        selectors: match mask.selectors {
            true => selectors_to_wire(&node.selectors),
            false => Vec::new(),
        },
        banned: mask.banned && node.banned,
        can_reattest: mask.can_reattest && node.can_reattest,
        agent_version: match mask.agent_version {
            true => node.agent_version.clone(),
            false => String::new(),
        },
    }
}

/// A serial number as SPIRE writes it: decimal. Ours are hex.
pub(super) fn decimal(hex: &str) -> String {
    let mut digits = vec![0_u8];
    for nibble in hex.chars().filter_map(|c| c.to_digit(16)) {
        let mut carry = nibble;
        for digit in &mut digits {
            let value = u32::from(*digit) * 16 + carry;
            *digit = (value % 10) as u8;
            carry = value / 10;
        }
        while carry > 0 {
            digits.push((carry % 10) as u8);
            carry /= 10;
        }
    }
    match hex.is_empty() {
        true => String::new(),
        false => digits.iter().rev().map(|d| char::from(b'0' + d)).collect(),
    }
}
