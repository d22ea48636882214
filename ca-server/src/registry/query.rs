//! Decides what SPIRE's list calls return: filters and pages, pure over lists that are in order.
//! Trusts the lists. Never gives out a page token that a stranger could make allocate.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_identity::{Entry, Selector, SpiffeId, TrustDomain};
use mesh_runtime::errors::Coded;

use crate::store::Node;

/// How a set is compared with the one that a filter names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// Both are equal.
    Exact,
    /// All of the object's are among the filter's.
    Subset,
    /// All of the filter's are among the object's.
    Superset,
    /// At least one is in both.
    Any,
}

impl Match {
    fn holds<T: Ord>(self, has: &BTreeSet<T>, wanted: &BTreeSet<T>) -> bool {
        match self {
            Self::Exact => has == wanted,
            Self::Subset => !has.is_empty() && has.is_subset(wanted),
            Self::Superset => has.is_superset(wanted),
            Self::Any => !has.is_disjoint(wanted),
        }
    }
}

/// Which entries are wanted; what is `None` does not matter.
#[derive(Clone, Debug, Default)]
pub struct EntryFilter {
    /// By the identity.
    pub spiffe_id: Option<SpiffeId>,
    /// By the parent.
    pub parent_id: Option<SpiffeId>,
    /// By the selectors.
    pub selectors: Option<(BTreeSet<Selector>, Match)>,
    /// By the trust domains that it federates with.
    pub federates_with: Option<(BTreeSet<TrustDomain>, Match)>,
    /// By the hint.
    pub hint: Option<String>,
    /// By whether it may ask for an intermediate CA.
    pub downstream: Option<bool>,
}

impl EntryFilter {
    /// Whether an entry is wanted.
    pub fn wants(&self, entry: &Entry) -> bool {
        let same = |wanted: &Option<SpiffeId>, has: &SpiffeId| {
            wanted.as_ref().is_none_or(|wanted| wanted == has)
        };
        same(&self.spiffe_id, &entry.spiffe_id)
            && same(&self.parent_id, &entry.parent_id)
            && self
                .selectors
                .as_ref()
                .is_none_or(|(wanted, how)| how.holds(&entry.selectors, wanted))
            && self
                .federates_with
                .as_ref()
                .is_none_or(|(wanted, how)| how.holds(&entry.federates_with, wanted))
            && self.hint.as_ref().is_none_or(|hint| *hint == entry.hint)
            && self.downstream.is_none_or(|is| is == entry.downstream)
    }
}

/// Which agents are wanted; what is `None` does not matter.
#[derive(Clone, Debug, Default)]
pub struct AgentFilter {
    /// By how it proved itself.
    pub attestation_type: Option<String>,
    /// By its selectors.
    pub selectors: Option<(BTreeSet<Selector>, Match)>,
    /// By whether it is banned.
    pub banned: Option<bool>,
    /// By whether it may attest again.
    pub can_reattest: Option<bool>,
    /// By the end of its SVID.
    pub expires_before: Option<SystemTime>,
}

impl AgentFilter {
    /// Whether an agent is wanted.
    pub fn wants(&self, node: &Node) -> bool {
        self.attestation_type
            .as_ref()
            .is_none_or(|kind| *kind == node.attestation_type)
            && self
                .selectors
                .as_ref()
                .is_none_or(|(wanted, how)| how.holds(&node.selectors, wanted))
            && self.banned.is_none_or(|is| is == node.banned)
            && self.can_reattest.is_none_or(|is| is == node.can_reattest)
            && self
                .expires_before
                .is_none_or(|moment| node.expires_at < moment)
    }
}

/// Which part of a list is wanted.
#[derive(Clone, Debug, Default)]
pub struct Page {
    size: usize,
    after: Option<String>,
}

/// How many bytes of objects go into one message. SPIRE's clients read no message above 4 MiB.
pub const ROOM: usize = 3 * 1024 * 1024;

/// The longest token that is read: that of the longest SPIFFE ID.
const LONGEST_TOKEN: usize = 2048 * 4 / 3 + 1;

impl Page {
    /// The key of the last object of the page before.
    pub(super) fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// As the wire says it: size 0 means everything, the token is the one of the page before.
    pub fn new(size: i32, token: &str) -> Result<Self, PageError> {
        let size = usize::try_from(size).map_err(|_| PageError::Size(size))?;
        if token.is_empty() {
            return Ok(Self { size, after: None });
        }
        if token.len() > LONGEST_TOKEN {
            return Err(PageError::Token);
        }
        let after = URL_SAFE_NO_PAD
            .decode(token)
            .map_err(|_| PageError::Token)?;
        let after = String::from_utf8(after).map_err(|_| PageError::Token)?;
        Ok(Self {
            size,
            after: Some(after),
        })
    }
}

/// One page, and the token of the next one, empty after the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paged<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// What to ask for next.
    pub next: String,
}

/// A page of agents; `make` says how each looks outside, and how many bytes that has.
pub fn agents_page<W>(
    all: Vec<Arc<Node>>,
    filter: &AgentFilter,
    page: &Page,
    make: impl Fn(&Node) -> (W, usize),
) -> Paged<W> {
    let wanted = all.into_iter().filter(|node| filter.wants(node));
    cut(wanted, page, |node| node.id.as_str(), make)
}

/// A page of a list that is in the order of `key`. The token is the key of the last object of the page before, so a page is right
/// whatever came or went in between.
pub fn cut<T, W>(
    all: impl Iterator<Item = Arc<T>>,
    page: &Page,
    key: impl Fn(&T) -> &str,
    make: impl Fn(&T) -> (W, usize),
) -> Paged<W> {
    let mut sheet = Sheet::new(page);
    for item in all.filter(|item| page.after().is_none_or(|after| key(item) > after)) {
        if sheet.put(key(&item), || make(&item)).is_break() {
            break;
        }
    }
    sheet.end()
}

/// A page while it is filled. It ends when it has as many objects as were asked for, or no room for the next.
pub(super) struct Sheet<W> {
    items: Vec<W>,
    size: usize,
    room: usize,
    last: String,
    more: bool,
}

impl<W> Sheet<W> {
    /// An empty one.
    pub(super) fn new(page: &Page) -> Self {
        Self {
            items: Vec::new(),
            size: page.size,
            room: ROOM,
            last: String::new(),
            more: false,
        }
    }

    /// Puts the next object on it, or finds that it belongs on the next page.
    pub(super) fn put(&mut self, key: &str, make: impl FnOnce() -> (W, usize)) -> ControlFlow<()> {
        let full = self.size != 0 && self.items.len() >= self.size;
        let made = (!full).then(make);
        match made {
            // The first goes out whatever its size, or the list would never end.
            Some((made, size)) if size <= self.room || self.items.is_empty() => {
                self.room = self.room.saturating_sub(size);
                self.items.push(made);
                key.clone_into(&mut self.last);
                ControlFlow::Continue(())
            }
            _ => {
                self.more = true;
                ControlFlow::Break(())
            }
        }
    }

    /// What is on it.
    pub(super) fn end(self) -> Paged<W> {
        let next = match self.more {
            true => URL_SAFE_NO_PAD.encode(self.last),
            false => String::new(),
        };
        Paged {
            items: self.items,
            next,
        }
    }
}

/// Why a page cannot be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Below zero.
    #[error("page_size is {0}, and cannot be negative")]
    Size(i32),
    /// Not one of ours.
    #[error("page_token is not one that this server gave out")]
    Token,
}

impl Coded for PageError {
    fn code(&self) -> &'static str {
        match self {
            Self::Size(_) => "FNL1223",
            Self::Token => "FNL1224",
        }
    }
}
