//! Whether the store's answers could have come one after the other: clients that read, create, change by revision and delete the same
//! few entries, killed and started again, and a checker that looks for an order of all they did (Wing and Gong).
//! Trusts the order of the lines that the clients write: one before each call and one after its answer.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures::future::join_all;
use tempfile::TempDir;

use super::crash::{ROUND, STORE, lines_until_killed, open, random, variable};
use super::*;
use crate::store::conformance::entry;
use crate::store::{CreatedEntry, Stores, UpdatedEntry};

const CLIENTS_TEST: &str = "store::sled::linear::the_clients_of_the_test_below";
const CLIENTS: u64 = 8;
const KEYS: u64 = 20;
const CALLS: u64 = 100;
const ROUNDS: usize = 12;

/// Which write an entry holds; none, if it is not there.
type State = Option<u64>;

#[derive(Clone, Copy, Debug)]
enum Call {
    Read,
    Create { new: u64 },
    Update { expected: u64, new: u64 },
    Delete,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    /// It was done.
    Done,
    /// This was there: what was read, deleted, or in the way.
    Was(State),
}

/// A call with the lines at which it began and was answered; without an answer the kill came first, and it was done or not.
#[derive(Clone, Copy, Debug)]
struct Op {
    began: usize,
    answered: Option<(usize, Answer)>,
    call: Call,
}

impl Op {
    /// The state after it, if it could have happened in this one.
    fn after(&self, state: State) -> Option<State> {
        let answer = self.answered.map(|(_, answer)| answer);
        match (self.call, answer) {
            (Call::Create { new }, Some(Answer::Done) | None) => {
                state.is_none().then_some(Some(new))
            }
            (Call::Update { expected, new }, Some(Answer::Done) | None) => {
                (state == Some(expected)).then_some(Some(new))
            }
            (Call::Update { expected, .. }, Some(Answer::Was(was))) => {
                (was == state && was != Some(expected)).then_some(state)
            }
            (Call::Create { .. }, Some(Answer::Was(was))) => {
                (was == state && was.is_some()).then_some(state)
            }
            (Call::Read, Some(Answer::Was(was))) => (was == state).then_some(state),
            (Call::Delete, Some(Answer::Was(was))) => (was == state).then_some(None),
            (Call::Delete, None) => Some(None),
            (Call::Read | Call::Delete, Some(Answer::Done)) | (Call::Read, None) => None,
        }
    }
}

/// The states in which some order of the calls, true to their times, can have left an entry. None: there is no such order.
fn possible(ops: &[Op], before: &BTreeSet<State>) -> BTreeSet<State> {
    assert!(ops.len() <= 128, "{} calls of one entry", ops.len());
    let (mut seen, mut ends) = (HashSet::new(), BTreeSet::new());
    let mut open: Vec<(u128, State)> = before.iter().map(|state| (0, *state)).collect();
    while let Some((done, state)) = open.pop() {
        if !seen.insert((done, state)) {
            continue;
        }
        let left = || (0..ops.len()).filter(|at| done & (1 << at) == 0);
        let ends_at = |at: usize| ops[at].answered.map(|(line, _)| line);
        // Nothing that began after an answer was given can come before what was answered.
        let horizon = left().filter_map(ends_at).min();
        if horizon.is_none() {
            ends.insert(state);
        }
        for at in left().filter(|at| horizon.is_none_or(|line| ops[*at].began < line)) {
            open.extend(ops[at].after(state).map(|next| (done | 1 << at, next)));
        }
    }
    ends
}

/// Does nothing unless it was started by the test below.
#[tokio::test]
#[ignore = "the child process of the test below"]
async fn the_clients_of_the_test_below() {
    let (Some(path), Some(round)) = (variable(STORE), variable(ROUND)) else {
        return;
    };
    let round: u64 = round.parse().expect("a number");
    let stores = open(Path::new(&path)).await;
    join_all((0..CLIENTS).map(|client| work(&stores, (round * CLIENTS + client) * CALLS * 2)))
        .await;
}

fn told(state: State) -> String {
    state.map_or("-".into(), |write| write.to_string())
}

/// Calls with numbers from `first` on, each said before it is made and after it is answered.
async fn work(stores: &Stores, first: u64) {
    for number in (first..first + CALLS * 2).step_by(2) {
        let key = random(KEYS);
        let id = format!("key-{key}");
        let holding = |hint: u64, revision: u64| mesh_identity::Entry {
            hint: hint.to_string(),
            revision,
            ..entry(&id)
        };
        let read = async |number: u64| {
            println!("say {number} {key} read 0 0 .");
            let found = stores.entries.get(&id.parse().expect("an id")).await;
            let found = found.expect("read");
            println!(
                "say {number} was {} .",
                told(found.as_deref().map(write_of))
            );
            found
        };
        match random(4) {
            0 => drop(read(number).await),
            1 => {
                println!("say {number} {key} create {number} 0 .");
                match stores
                    .entries
                    .create(holding(number, 0))
                    .await
                    .expect("answered")
                {
                    CreatedEntry::New(_) => println!("say {number} done - ."),
                    CreatedEntry::AlreadyExists(other) | CreatedEntry::IdTaken(other) => {
                        println!("say {number} was {} .", write_of(&other));
                    }
                }
            }
            2 => {
                println!("say {number} {key} delete 0 0 .");
                let gone = stores.entries.delete(&id.parse().expect("an id")).await;
                let gone = gone.expect("answered");
                println!("say {number} was {} .", told(gone.as_deref().map(write_of)));
            }
            _ => {
                let Some(found) = read(number).await else {
                    continue;
                };
                let (number, expected) = (number + 1, write_of(&found));
                println!("say {number} {key} update {number} {expected} .");
                let change = holding(number, found.revision);
                match stores.entries.update(change).await.expect("answered") {
                    UpdatedEntry::Done(_) => println!("say {number} done - ."),
                    UpdatedEntry::NotFound => println!("say {number} was - ."),
                    UpdatedEntry::Changed(now) | UpdatedEntry::AlreadyExists(now) => {
                        println!("say {number} was {} .", write_of(&now));
                    }
                }
            }
        }
    }
}

fn write_of(entry: &mesh_identity::Entry) -> u64 {
    entry.hint.parse().expect("a number")
}

/// The calls on each entry, in the order in which they began.
fn histories(lines: &[String]) -> BTreeMap<u64, Vec<Op>> {
    let mut began: BTreeMap<u64, (u64, Op)> = BTreeMap::new();
    for (line, text) in lines.iter().enumerate() {
        let words: Vec<&str> = text.split(' ').collect();
        let number = |at: usize| -> u64 { words[at].parse().expect("a number") };
        match words[..] {
            ["say", _, "done", _, "."] => {
                let (_, op) = began.get_mut(&number(1)).expect("it began");
                op.answered = Some((line, Answer::Done));
            }
            ["say", _, "was", state, "."] => {
                let (_, op) = began.get_mut(&number(1)).expect("it began");
                op.answered = Some((line, Answer::Was(state.parse().ok())));
            }
            ["say", _, _, what, _, _, "."] => {
                let call = match what {
                    "read" => Call::Read,
                    "create" => Call::Create { new: number(4) },
                    "delete" => Call::Delete,
                    _ => Call::Update {
                        expected: number(5),
                        new: number(4),
                    },
                };
                let op = Op {
                    began: line,
                    answered: None,
                    call,
                };
                began.insert(number(1), (number(2), op));
            }
            // The kill cut it off.
            _ => assert_eq!(line, lines.len() - 1, "{text}"),
        }
    }
    let mut all: BTreeMap<u64, Vec<Op>> = BTreeMap::new();
    for (key, op) in began.into_values() {
        all.entry(key).or_default().push(op);
    }
    all
}

#[tokio::test]
async fn st_19_eight_clients_killed_again_and_again_see_one_order_of_reads_inserts_changes_and_deletions()
 {
    let folder = TempDir::new().expect("a folder");
    let store = folder.path().join("store");
    let nothing = BTreeSet::from([None]);
    let mut states: BTreeMap<u64, BTreeSet<State>> = BTreeMap::new();
    let (mut calls, mut unanswered) = (0, 0);
    for round in 0..ROUNDS {
        let lines = lines_until_killed(CLIENTS_TEST, &store, round, &[], 120);
        for (key, ops) in histories(&lines) {
            calls += ops.len();
            unanswered += ops.iter().filter(|op| op.answered.is_none()).count();
            let before = states.get(&key).unwrap_or(&nothing);
            let after = possible(&ops, before);
            assert!(
                !after.is_empty(),
                "round {round}, entry {key}, from {before:?}: {ops:?}"
            );
            states.insert(key, after);
        }
    }
    let stores = open(&store).await;
    for (key, ends) in states {
        let id = format!("key-{key}").parse().expect("an id");
        let found = stores.entries.get(&id).await.expect("read");
        let state = found.as_deref().map(write_of);
        assert!(
            ends.contains(&state),
            "entry {key} holds {state:?}, of {ends:?}"
        );
    }
    println!("{calls} calls, {unanswered} of them unanswered, have an order");
    assert!(
        calls > 500 && unanswered > 0,
        "{calls} calls, {unanswered} unanswered"
    );
}

fn op(began: usize, answered: Option<(usize, Answer)>, call: Call) -> Op {
    Op {
        began,
        answered,
        call,
    }
}

/// The control: what a store that is wrong would have said has no order.
#[test]
fn the_checker_finds_lost_updates_stale_reads_and_lost_and_risen_entries() {
    use Answer::{Done, Was};
    let from = |state: State| BTreeSet::from([state]);
    let read = |began, answered, was| op(began, Some((answered, Was(was))), Call::Read);
    let update = |began, answered, expected, new| {
        op(
            began,
            Some((answered, Done)),
            Call::Update { expected, new },
        )
    };
    let lost_update = [update(0, 2, 1, 2), update(1, 3, 1, 3)];
    let stale = [update(0, 1, 1, 2), read(2, 3, Some(1))];
    let lost = [
        op(0, Some((1, Done)), Call::Create { new: 2 }),
        read(2, 3, None),
    ];
    let risen = [
        op(0, Some((1, Was(Some(1)))), Call::Delete),
        read(2, 3, Some(1)),
    ];
    for (wrong, before) in [
        (&lost_update, Some(1)),
        (&stale, Some(1)),
        (&lost, None),
        (&risen, Some(1)),
    ] {
        assert!(possible(wrong, &from(before)).is_empty(), "{wrong:?}");
    }
    // At the same time either may come first; a call that was not answered was done or not.
    let overlapping = [update(0, 3, 1, 2), read(1, 2, Some(1))];
    assert_eq!(possible(&overlapping, &from(Some(1))), from(Some(2)));
    let pending = [op(0, None, Call::Delete)];
    assert_eq!(
        possible(&pending, &from(Some(1))),
        BTreeSet::from([None, Some(1)])
    );
}
