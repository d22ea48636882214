//! Decides what the records' Merkle tree is: leaves, nodes, roots and proofs as RFC 6962 2.1 hashes and orders them.
//! Trusts nothing: a proof is believed when it leads to a root that somebody signed. Never keeps the leaves: a tree is its peaks.

use std::ops::Range;

use ring::digest::{self, SHA256};

/// A SHA-256.
pub type Hash = [u8; 32];

/// More leaves than any log has: numbers of records stay exact in every JSON reader.
const LARGEST: u64 = 1 << 53;

/// The hash of a record in the tree: that of the line, without its line feed.
pub fn leaf(line: &[u8]) -> Hash {
    hash(&[&[0], line])
}

fn node(left: &Hash, right: &Hash) -> Hash {
    hash(&[&[1], left, right])
}

fn hash(parts: &[&[u8]]) -> Hash {
    let mut context = digest::Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// A tree that grows at its end. It holds the roots of its largest whole subtrees, from left to right, and no more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    peaks: Vec<Hash>,
}

impl Tree {
    /// The tree of so many leaves with these peaks; `None` when there cannot be so many of them.
    pub fn of_peaks(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        let fits = size < LARGEST && peaks.len() == size.count_ones() as usize;
        fits.then_some(Self { size, peaks })
    }

    /// How many leaves it has.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The roots of its largest whole subtrees, from left to right.
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: Hash) {
        self.join(0, leaf);
    }

    /// Adds a whole subtree of 2^`level` leaves. The tree's size is a multiple of that.
    fn join(&mut self, level: u32, root: Hash) {
        self.size += 1 << level;
        self.peaks.push(root);
        let mut joined = self.size >> level;
        while joined & 1 == 0
            && let (Some(right), Some(left)) = (self.peaks.pop(), self.peaks.pop())
        {
            self.peaks.push(node(&left, &right));
            joined >>= 1;
        }
    }

    /// Its root.
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else {
            return hash(&[]);
        };
        peaks.fold(*last, |right, left| node(left, &right))
    }

    /// Its whole subtrees: the first leaf of each, its height, its root.
    fn subtrees(&self) -> impl Iterator<Item = (u64, u32, Hash)> {
        let heights = (0..u64::BITS)
            .rev()
            .filter(|level| self.size >> level & 1 == 1);
        let mut first = 0;
        heights.zip(&self.peaks).map(move |(level, root)| {
            let at = first;
            first += 1 << level;
            (at, level, *root)
        })
    }
}

/// The largest power of two below a number that is larger than one.
fn split(leaves: u64) -> u64 {
    1 << (leaves - 1).ilog2()
}

/// The subtrees whose roots prove that a leaf is in a tree, from the leaf up (RFC 6962 2.1.1).
fn inclusion(index: u64, size: u64) -> Vec<Range<u64>> {
    let (mut within, mut beside) = (0..size, Vec::new());
    while within.end - within.start > 1 {
        let middle = within.start + split(within.end - within.start);
        if index < middle {
            beside.push(middle..within.end);
            within.end = middle;
        } else {
            beside.push(within.start..middle);
            within.start = middle;
        }
    }
    beside.reverse();
    beside
}

/// The subtrees whose roots prove that a tree of `old` leaves was continued to one of `new` (RFC 6962 2.1.2).
fn consistency(old: u64, new: u64) -> Vec<Range<u64>> {
    let (mut within, mut beside, mut whole) = (0..new, Vec::new(), true);
    while within.end != old {
        let middle = within.start + split(within.end - within.start);
        if old <= middle {
            beside.push(middle..within.end);
            within.end = middle;
        } else {
            beside.push(within.start..middle);
            within.start = middle;
            whole = false;
        }
    }
    // When the old tree is itself one subtree of the new one its root is known already.
    if !whole {
        beside.push(within);
    }
    beside.reverse();
    beside
}

/// Collects the roots that a proof consists of while the leaves pass by.
#[derive(Debug)]
pub(super) struct Collector(Vec<(Range<u64>, Tree)>);

impl Collector {
    /// For the proof that the leaf is in the tree of `size` leaves. The leaf is one of them.
    pub(super) fn inclusion(index: u64, size: u64) -> Self {
        Self::of(inclusion(index, size))
    }

    /// For the proof that the tree of `old` leaves was continued to one of `new`. Neither is empty, the old one not larger.
    pub(super) fn consistency(old: u64, new: u64) -> Self {
        Self::of(consistency(old, new))
    }

    fn of(spans: Vec<Range<u64>>) -> Self {
        Self(spans.into_iter().map(|s| (s, Tree::default())).collect())
    }

    /// Begins after a tree whose leaves are not at hand. What is proved must lie behind it.
    pub(super) fn after(mut self, tree: &Tree) -> Self {
        for (first, level, root) in tree.subtrees() {
            self.add(first, level, root);
        }
        self
    }

    /// Takes the next leaf.
    pub(super) fn leaf(&mut self, index: u64, leaf: Hash) {
        self.add(index, 0, leaf);
    }

    fn add(&mut self, first: u64, level: u32, root: Hash) {
        let span = self.0.iter_mut().find(|(span, _)| span.contains(&first));
        if let Some((span, tree)) = span
            && span.start + tree.size == first
            && first + (1 << level) <= span.end
        {
            tree.join(level, root);
        }
    }

    /// The proof; `None` when leaves are missing.
    pub(super) fn finish(self) -> Option<Vec<Hash>> {
        let root = |(span, tree): (Range<u64>, Tree)| {
            (tree.size == span.end - span.start).then(|| tree.root())
        };
        self.0.into_iter().map(root).collect()
    }
}

/// Whether the proof leads from the leaf to the root of the tree of `size` leaves.
pub fn is_included(index: u64, leaf: Hash, size: u64, root: &Hash, proof: &[Hash]) -> bool {
    if index >= size {
        return false;
    }
    let beside = inclusion(index, size);
    let up = |below: Hash, (span, hash): (&Range<u64>, &Hash)| match span.start > index {
        true => node(&below, hash),
        false => node(hash, &below),
    };
    beside.len() == proof.len() && beside.iter().zip(proof).fold(leaf, up) == *root
}

/// Whether the proof leads from the root of the tree of `old` leaves to that of `new` leaves.
pub fn is_continued(old: u64, old_root: &Hash, new: u64, new_root: &Hash, proof: &[Hash]) -> bool {
    if old > new {
        return false;
    }
    // Everything continues the empty tree.
    if old == 0 || old == new {
        return proof.is_empty() && (old == 0 || old_root == new_root);
    }
    let beside = consistency(old, new);
    if beside.len() != proof.len() {
        return false;
    }
    let mut steps = beside.iter().zip(proof);
    // The last whole subtree of the old tree: named by the proof, or the old tree itself.
    let first = match old.is_power_of_two() {
        true => *old_root,
        false => match steps.next() {
            Some((_, hash)) => *hash,
            None => return false,
        },
    };
    let (mut of_old, mut of_new) = (first, first);
    for (span, hash) in steps {
        if span.start >= old {
            of_new = node(&of_new, hash);
        } else {
            of_old = node(hash, &of_old);
            of_new = node(hash, &of_new);
        }
    }
    of_old == *old_root && of_new == *new_root
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Hash {
        let bytes: Vec<u8> = (0..64)
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect();
        bytes.try_into().unwrap()
    }

    fn leaves(count: u64) -> Vec<Hash> {
        (0..count).map(|n| leaf(&n.to_be_bytes())).collect()
    }

    fn tree(leaves: &[Hash]) -> Tree {
        let mut tree = Tree::default();
        leaves.iter().for_each(|leaf| tree.push(*leaf));
        tree
    }

    /// RFC 6962 2.1, word for word: the slow way.
    fn mth(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => hash(&[]),
            [one] => *one,
            more => {
                let (left, right) = more.split_at(split(more.len() as u64) as usize);
                node(&mth(left), &mth(right))
            }
        }
    }

    #[test]
    fn rfc_6962_2_1_known_hashes() {
        // The empty tree and the leaf of no bytes, as every implementation has them.
        let empty = hex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(Tree::default().root(), empty);
        let of_nothing = hex("6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
        assert_eq!(leaf(b""), of_nothing);
        assert_eq!(tree(&[leaf(b"")]).root(), of_nothing);
    }

    #[test]
    fn a_growing_tree_has_the_root_that_the_rfc_defines() {
        let all = leaves(70);
        for size in 0..=all.len() {
            let grown = tree(&all[..size]);
            assert_eq!(grown.root(), mth(&all[..size]), "{size}");
            let again = Tree::of_peaks(grown.size(), grown.peaks().to_vec()).unwrap();
            assert_eq!(again, grown);
            assert!(
                Tree::of_peaks(grown.size() + 1, grown.peaks().to_vec()).is_none() || size & 1 == 1
            );
        }
    }

    #[test]
    fn each_leaf_of_each_tree_is_proved_also_when_the_leaves_before_it_are_gone() {
        let all = leaves(40);
        for size in 1..=all.len() as u64 {
            let root = tree(&all[..size as usize]).root();
            for index in 0..size {
                for gone in [0, index / 2, index] {
                    let mut collector =
                        Collector::inclusion(index, size).after(&tree(&all[..gone as usize]));
                    (gone..size).for_each(|at| collector.leaf(at, all[at as usize]));
                    let proof = collector.finish().unwrap();
                    assert!(is_included(index, all[index as usize], size, &root, &proof));
                    let other = (index + 1) % size;
                    assert!(
                        size == 1 || !is_included(other, all[index as usize], size, &root, &proof)
                    );
                    assert!(!is_included(index, leaf(b"another"), size, &root, &proof));
                    assert!(!is_included(
                        index,
                        all[index as usize],
                        size,
                        &leaf(b""),
                        &proof
                    ));
                    assert!(!is_included(size, all[index as usize], size, &root, &proof));
                    let longer = [&proof[..], &[root]].concat();
                    assert!(!is_included(
                        index,
                        all[index as usize],
                        size,
                        &root,
                        &longer
                    ));
                }
            }
        }
    }

    #[test]
    fn each_tree_is_proved_to_continue_each_smaller_one() {
        let all = leaves(40);
        for new in 1..=all.len() as u64 {
            let new_root = tree(&all[..new as usize]).root();
            for old in 1..=new {
                let old_root = tree(&all[..old as usize]).root();
                for gone in [0, old / 2, old] {
                    let mut collector =
                        Collector::consistency(old, new).after(&tree(&all[..gone as usize]));
                    (gone..new).for_each(|at| collector.leaf(at, all[at as usize]));
                    let proof = collector.finish().unwrap();
                    assert!(
                        is_continued(old, &old_root, new, &new_root, &proof),
                        "{old} {new} {gone}"
                    );
                    assert!(!is_continued(old, &leaf(b""), new, &new_root, &proof));
                    assert!(!is_continued(old, &old_root, new, &leaf(b""), &proof));
                    assert!(!is_continued(new + 1, &old_root, new, &new_root, &proof));
                    let longer = [&proof[..], &[old_root]].concat();
                    assert!(!is_continued(old, &old_root, new, &new_root, &longer));
                    if let Some((_, shorter)) = proof.split_last() {
                        assert!(!is_continued(old, &old_root, new, &new_root, shorter));
                    }
                }
            }
        }
        assert!(is_continued(0, &hash(&[]), 7, &leaf(b"any"), &[]));
    }

    #[test]
    fn sizes_of_a_stranger_cost_nothing() {
        let huge = u64::MAX;
        assert!(!is_included(huge - 1, leaf(b""), huge, &leaf(b""), &[]));
        assert!(!is_continued(huge - 1, &leaf(b""), huge, &leaf(b""), &[]));
        assert!(Collector::inclusion(huge - 1, huge).finish().is_none());
        assert!(Tree::of_peaks(huge, vec![leaf(b""); 64]).is_none());
    }
}
