//! Decides whether a verified SPIFFE ID may be at the other end of a connection.
//! Trusts that the ID was proven before it is asked.
//! Never has a default: whoever makes a TLS configuration says whom it is for.

use std::{collections::BTreeSet, fmt, sync::Arc};

use mesh_identity::{SpiffeId, TrustDomain};

/// Who may be the peer. Cheap to clone. Compares IDs byte for byte.
#[derive(Clone)]
pub struct Authorizer {
    rule: Rule,
}

#[derive(Clone)]
enum Rule {
    Exactly(SpiffeId),
    OneOf(Arc<BTreeSet<SpiffeId>>),
    TrustDomain(TrustDomain),
    By(Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>),
    AnyVerified,
}

impl Authorizer {
    /// That one ID.
    pub fn exactly(id: SpiffeId) -> Self {
        Self {
            rule: Rule::Exactly(id),
        }
    }

    /// Any of these IDs; none if there are none.
    pub fn one_of(ids: impl IntoIterator<Item = SpiffeId>) -> Self {
        Self {
            rule: Rule::OneOf(Arc::new(ids.into_iter().collect())),
        }
    }

    /// Any ID of that trust domain.
    pub fn trust_domain(domain: TrustDomain) -> Self {
        Self {
            rule: Rule::TrustDomain(domain),
        }
    }

    /// Whoever a function accepts. It is called once in each handshake and must not block.
    pub fn by(accepts: Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>) -> Self {
        Self {
            rule: Rule::By(accepts),
        }
    }

    /// Anyone whose ID is proven, of any trust domain that we hold a bundle of. Right where a later step decides per request.
    pub fn any_verified() -> Self {
        Self {
            rule: Rule::AnyVerified,
        }
    }

    /// Whether the owner of that ID may be the peer.
    pub fn permits(&self, id: &SpiffeId) -> bool {
        match &self.rule {
            Rule::Exactly(one) => one == id,
            Rule::OneOf(ids) => ids.contains(id),
            Rule::TrustDomain(domain) => id.is_member_of(domain),
            Rule::By(accepts) => accepts(id),
            Rule::AnyVerified => true,
        }
    }
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            Rule::Exactly(id) => f.debug_tuple("Exactly").field(id).finish(),
            Rule::OneOf(ids) => f.debug_tuple("OneOf").field(ids).finish(),
            Rule::TrustDomain(domain) => f.debug_tuple("TrustDomain").field(domain).finish(),
            Rule::By(_) => f.write_str("By(a function)"),
            Rule::AnyVerified => f.write_str("AnyVerified"),
        }
    }
}

#[cfg(test)]
mod tests;
