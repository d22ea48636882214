//! The signed log: what its checkpoints find, what is proved of it, what leaves it, and how it starts and ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::super::canonical::canonical;
use super::super::merkle::leaf;
use super::super::sealer::tree_file;
use super::*;

const ORIGIN: &str = "dev.test/ca-server/audit";

fn open(dir: &Path, largest: u64) -> Result<AuditLog, AuditError> {
    AuditLog::open_with(dir, "test", &clock(), largest, Some(ORIGIN))
}

/// Runs of a program, each with so many records, then a stop.
fn runs(dir: &Path, largest: u64, runs: &[usize]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        for count in runs {
            let log = open(dir, largest).unwrap();
            for n in 0..*count {
                let mut record = log.begin(Action("entry.create"), Actor::user("root"));
                record.object(Object::new("entry").id(format!("e{n}")));
                record.finish_later(Outcome::Success, None);
                if n % 7 == 3 {
                    log.checkpoint().await.unwrap();
                }
            }
            log.close().await.unwrap();
        }
    });
}

fn ledger(dir: &Path) -> Ledger {
    Ledger::open(dir, None).unwrap()
}

fn lines(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string(dir.join(FILE_NAME)).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn write(dir: &Path, lines: &[String]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(dir.join(FILE_NAME), text).unwrap();
}

/// What somebody does who may write the file: numbers and hashes are made to fit again.
fn rechained(lines: &[String]) -> Vec<String> {
    let mut head = Head::genesis();
    let chain = |line: &String| {
        let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
        record["seq"] = (head.seq + 1).into();
        record["prev"] = head.hash.as_str().into();
        let line = canonical(&record).unwrap();
        head = Head::after(head.seq + 1, line.as_bytes());
        line
    };
    lines.iter().map(chain).collect()
}

fn refused(dir: &Path) -> VerifyError {
    ledger(dir).verify(None, &[]).expect_err("a changed log")
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Edit,
    Remove,
    Swap,
    Repeat,
    CutOff,
}

fn changed(lines: &[String], change: Change, at: usize) -> Vec<String> {
    let mut lines = lines.to_vec();
    match change {
        Change::Edit => {
            let mut record: serde_json::Value = serde_json::from_str(&lines[at]).unwrap();
            record["actor"]["id"] = "somebody-else".into();
            lines[at] = canonical(&record).unwrap();
        }
        Change::Remove => drop(lines.remove(at)),
        Change::Swap => {
            let next = (at + 1) % lines.len();
            lines.swap(at, next);
        }
        Change::Repeat => lines.insert(at, lines[at].clone()),
        Change::CutOff => lines.truncate(at),
    }
    lines
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn every_record_of_any_log_is_proved_to_who_has_the_public_key_only(
        counts in proptest::collection::vec(0_usize..25, 1..4),
        largest in prop_oneof![Just(u64::MAX), 1000_u64..6000],
    ) {
        let dir = tempfile::tempdir().unwrap();
        runs(dir.path(), largest, &counts);
        let ledger = ledger(dir.path());
        let verified = ledger.verify(None, &[]).unwrap();
        let sealed = verified.sealed.unwrap();
        prop_assert!(verified.closed);
        prop_assert_eq!(sealed.signed, verified.head.seq);
        let key: PublicKey = ledger.key().to_string().parse().unwrap();
        for number in 1..=verified.head.seq {
            let text = ledger.prove(&Wanted::Number(number)).unwrap().to_string();
            let proof = Proof::parse(&text, &key).unwrap();
            proof.verify(&[]).unwrap();
            let Proof::Inclusion { record, .. } = &proof else { panic!("{proof:?}") };
            let record: serde_json::Value = serde_json::from_str(record).unwrap();
            prop_assert_eq!(&record["seq"], number);
            let by_id = ledger.prove(&Wanted::Id(record["id"].as_str().unwrap().to_owned())).unwrap();
            prop_assert_eq!(by_id, proof);
        }
        for old in ledger.checkpoints() {
            let text = ledger.prove_since(old).unwrap().to_string();
            let proof = Proof::parse(&text, &key).unwrap();
            prop_assert!(proof.verify(std::slice::from_ref(old)).is_ok(), "{}", text);
            prop_assert_eq!(proof.verify(&[]).unwrap_err().code(), "FNL0214");
        }
    }

    #[test]
    fn every_change_of_any_record_is_found_also_when_the_chain_is_made_to_fit(
        count in 1_usize..20,
        change in prop_oneof![
            Just(Change::Edit), Just(Change::Remove), Just(Change::Swap), Just(Change::Repeat), Just(Change::CutOff),
        ],
        at in any::<proptest::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        runs(dir.path(), u64::MAX, &[count]);
        let whole = lines(dir.path());
        let at = at.index(whole.len());
        for bad in [changed(&whole, change, at), rechained(&changed(&whole, change, at))] {
            write(dir.path(), &bad);
            let error = refused(dir.path());
            prop_assert!(matches!(error.code(), "FNL0207" | "FNL0208"), "{:?}", error);
            prop_assert!(matches!(
                open(dir.path(), u64::MAX).unwrap_err().code(),
                "FNL0203" | "FNL0208"
            ));
        }
        write(dir.path(), &whole);
        ledger(dir.path()).verify(None, &[]).unwrap();
    }

    #[test]
    fn a_proof_with_any_byte_changed_proves_nothing_else(at in any::<proptest::sample::Index>(), bit in 0_u8..8) {
        let dir = tempfile::tempdir().unwrap();
        runs(dir.path(), u64::MAX, &[5]);
        let ledger = ledger(dir.path());
        let proof = ledger.prove(&Wanted::Number(4)).unwrap();
        let mut bytes = proof.to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(text) = String::from_utf8(bytes)
            && let Ok(other) = Proof::parse(&text, ledger.key())
        {
            prop_assert!(other.verify(&[]).is_err() || other == proof);
        }
    }

    #[test]
    fn the_export_of_any_period_is_proved_without_the_log_and_changes_in_it_are_found(
        count in 3_usize..20,
        from in any::<proptest::sample::Index>(),
        length in any::<proptest::sample::Index>(),
        largest in prop_oneof![Just(u64::MAX), 1000_u64..6000],
    ) {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("log");
        let time = Clock::frozen(UNIX_EPOCH + Duration::from_secs(1_795_564_800));
        let start = time.now();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let log = AuditLog::open_with(&dir, "test", &time, largest, Some(ORIGIN)).unwrap();
            for _ in 0..count {
                time.advance(Duration::from_secs(1));
                log.begin(Action("a.b"), Actor::system("t")).finish_later(Outcome::Success, None);
            }
            log.close().await.unwrap();
        });
        let from = 1 + from.index(count);
        let until = from + 1 + length.index(count - from + 1);
        let period = Period {
            from: Some(start + Duration::from_secs(from as u64)),
            until: Some(start + Duration::from_secs(until as u64)),
        };
        let to = home.path().join("evidence");
        let log = ledger(&dir);
        let exported = log.export(&period, &to, &time).unwrap();
        let size = until as u64 - from as u64;
        prop_assert!(exported.last + 1 - exported.first >= size);
        prop_assert_eq!(exported.signed, exported.last);
        let mut printed = Vec::new();
        log.within(&period, &mut |line| { printed.push(String::from_utf8(line.to_vec()).unwrap()); Ok(()) }).unwrap();
        prop_assert_eq!(&printed, &lines(&to));
        prop_assert!(log.export(&period, &to, &time).is_err(), "nothing is written over");

        let evidence = Ledger::open(&to, Some(log.key().clone())).unwrap();
        let verified = evidence.verify(None, &[]).unwrap();
        prop_assert_eq!(verified.sealed.unwrap().signed, exported.last);
        let proof = evidence.prove(&Wanted::Number(exported.first));
        if log.checkpoints().iter().any(|c| c.size() == exported.last) {
            proof.unwrap().verify(&[]).unwrap();
        }

        let whole = lines(&to);
        let edited = changed(&whole, Change::Edit, whole.len() - 1);
        write(&to, &edited);
        prop_assert_eq!(Ledger::open(&to, None).unwrap_err().code(), "FNL0216");
        fs::remove_file(to.join("manifest.json")).unwrap();
        prop_assert_eq!(ledger(&to).verify(None, &[]).unwrap_err().code(), "FNL0208");
    }
}

#[test]
fn a_shortened_log_with_its_checkpoints_shortened_too_shows_only_what_was_kept_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    runs(dir.path(), u64::MAX, &[10]);
    let log = ledger(dir.path());
    let (newest, older) = (log.newest().unwrap().clone(), log.checkpoints()[1].clone());
    let whole = lines(dir.path());
    let kept: String = log.checkpoints()[..2]
        .iter()
        .map(ToString::to_string)
        .collect();
    fs::write(dir.path().join(CHECKPOINTS_FILE), kept).unwrap();
    let bad = rechained(&changed(&whole, Change::Edit, whole.len() - 2));
    write(dir.path(), &bad);
    assert!(matches!(
        refused(dir.path()),
        VerifyError::Checkpoint(BadCheckpoint::Open(_))
    ));
    write(dir.path(), &bad[..bad.len() - 1]);
    let verified = ledger(dir.path()).verify(None, &[]).unwrap();
    assert!(
        verified.sealed.unwrap().signed < verified.head.seq,
        "the end is said to be unsigned"
    );
    assert!(ledger(dir.path()).verify(None, &[older]).is_ok());
    let error = ledger(dir.path()).verify(None, &[newest]).unwrap_err();
    assert_eq!(error.code(), "FNL0208", "{error:?}");
}

#[test]
fn what_somebody_adds_behind_a_log_that_was_closed_is_found() {
    let dir = tempfile::tempdir().unwrap();
    runs(dir.path(), u64::MAX, &[2]);
    let whole = lines(dir.path());
    for added in [vec![1], vec![0, 1], vec![0, 1, whole.len() - 1]] {
        let more = added.iter().map(|at| whole[*at].clone());
        write(
            dir.path(),
            &rechained(&whole.iter().cloned().chain(more).collect::<Vec<_>>()),
        );
        assert_eq!(refused(dir.path()).code(), "FNL0208", "{added:?}");
        assert_eq!(
            open(dir.path(), u64::MAX).unwrap_err().code(),
            "FNL0208",
            "{added:?}"
        );
    }
    // The one record that a start leaves when the power goes before it has signed.
    write(dir.path(), &rechained(&[&whole[..], &whole[..1]].concat()));
    ledger(dir.path()).verify(None, &[]).unwrap();
    runs(dir.path(), u64::MAX, &[1]);
    ledger(dir.path()).verify(None, &[]).unwrap();
}

#[test]
fn a_list_of_checkpoints_that_is_too_short_for_its_log_is_found() {
    let dir = tempfile::tempdir().unwrap();
    runs(dir.path(), u64::MAX, &[1800]);
    let log = ledger(dir.path());
    let covered: Vec<u64> = log.checkpoints().iter().map(Checkpoint::size).collect();
    assert!(covered.len() > 3);
    fs::write(
        dir.path().join(CHECKPOINTS_FILE),
        log.checkpoints()[0].to_string(),
    )
    .unwrap();
    assert!(matches!(
        refused(dir.path()),
        VerifyError::Checkpoint(BadCheckpoint::Uncovered { signed: 0, .. })
    ));
}

#[tokio::test]
async fn a_thousand_records_are_signed_without_being_asked() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), u64::MAX).unwrap();
    for _ in 0..2100 {
        log.begin(Action("a.b"), Actor::system("t"))
            .finish_later(Outcome::Success, None);
    }
    // Whoever is answered knows that everything before is written; what is signed of it is signed after the answer.
    log.begin(Action("a.b"), Actor::system("t"))
        .finish(Outcome::Success, None)
        .await
        .unwrap();
    log.checkpoint().await.unwrap();
    let sizes: Vec<u64> = ledger(dir.path())
        .checkpoints()
        .iter()
        .map(Checkpoint::size)
        .collect();
    let gaps = sizes.windows(2).map(|two| two[1] - two[0]);
    assert!(gaps.max().unwrap() <= 1000 + 512, "{sizes:?}");
    assert_eq!(sizes.last(), Some(&2102));
    log.close().await.unwrap();
}

#[test]
fn older_files_may_be_moved_away_and_the_rest_is_still_proved() {
    let dir = tempfile::tempdir().unwrap();
    runs(dir.path(), 2_000, &[30, 30]);
    let whole = ledger(dir.path());
    let head = whole.verify(None, &[]).unwrap().head;
    assert!(whole.files().len() > 3);
    let old = whole.checkpoints()[1].clone();
    let first = whole.files()[0].clone();
    fs::remove_file(&first).unwrap();
    let rest = ledger(dir.path());
    assert_eq!(rest.verify(Some(head.clone()), &[]).unwrap().head, head);
    for number in closed_number(&first).unwrap() + 1..=head.seq {
        rest.prove(&Wanted::Number(number))
            .unwrap()
            .verify(&[])
            .unwrap();
    }
    assert_eq!(
        rest.prove(&Wanted::Number(1)).unwrap_err().code(),
        "FNL0217"
    );
    assert!(matches!(
        rest.verify(None, std::slice::from_ref(&old)),
        Err(VerifyError::Checkpoint(BadCheckpoint::Gone(_)))
    ));
    assert_eq!(rest.prove_since(&old).unwrap_err().code(), "FNL0219");
    runs(dir.path(), 2_000, &[1]);
    ledger(dir.path()).verify(None, &[]).unwrap();

    fs::remove_file(dir.path().join(tree_file(closed_number(&first).unwrap()))).unwrap();
    assert!(matches!(
        refused(dir.path()),
        VerifyError::Checkpoint(BadCheckpoint::Start(_))
    ));
}

#[test]
fn a_tree_between_two_files_that_was_changed_is_found() {
    let dir = tempfile::tempdir().unwrap();
    runs(dir.path(), 2_000, &[30]);
    let files = ledger(dir.path()).files().to_vec();
    let last = closed_number(&files[files.len() - 2]).unwrap();
    let path = dir.path().join(tree_file(last));
    let mut tree = super::super::sealer::read_tree(dir.path(), last).unwrap();
    tree = merkle::Tree::of_peaks(last, vec![leaf(b"another"); tree.peaks().len()]).unwrap();
    fs::write(path, super::super::sealer::tree_text(&tree)).unwrap();
    assert_eq!(open(dir.path(), 2_000).unwrap_err().code(), "FNL0208");
    for file in &files[..files.len() - 1] {
        fs::remove_file(file).unwrap();
    }
    assert_eq!(refused(dir.path()).code(), "FNL0208");
}

#[test]
fn a_log_from_before_there_were_checkpoints_is_signed_whole() {
    for largest in [u64::MAX, 2_000] {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let log = AuditLog::open_with(dir.path(), "test", &clock(), largest, None).unwrap();
            for _ in 0..20 {
                log.begin(Action("a.b"), Actor::system("t"))
                    .finish(Outcome::Success, None)
                    .await
                    .unwrap();
            }
            assert_eq!(log.checkpoint().await.unwrap_err().code(), "FNL0213");
            log.close().await.unwrap();
        });
        assert_eq!(
            Ledger::open(dir.path(), None).unwrap_err().code(),
            "FNL0215"
        );
        runs(dir.path(), largest, &[3]);
        let log = ledger(dir.path());
        log.verify(None, &[]).unwrap();
        log.prove(&Wanted::Number(2)).unwrap().verify(&[]).unwrap();
    }
}

#[test]
fn what_signed_may_not_go_missing_or_become_somebody_elses() {
    let dir = tempfile::tempdir().unwrap();
    runs(dir.path(), u64::MAX, &[3]);
    let key = dir.path().join(KEY_FILE);
    let list = dir.path().join(CHECKPOINTS_FILE);
    let (text, signed) = (
        fs::read_to_string(&key).unwrap(),
        fs::read_to_string(&list).unwrap(),
    );
    assert_eq!(
        fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let why = || {
        let error = open(dir.path(), u64::MAX).unwrap_err();
        (error.code(), ErrorChain(&error).to_string())
    };

    fs::remove_file(&key).unwrap();
    assert_eq!(why().0, "FNL0209", "{}", why().1);
    assert!(why().1.contains("missing"), "{}", why().1);
    let (_, other) = super::super::note::SigningKey::generate(ORIGIN).unwrap();
    fs::write(&key, other.as_bytes()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(why().0, "FNL0208");
    fs::write(&key, "PRIVATE+KEY+a+b+c").unwrap();
    assert_eq!(why().0, "FNL0209");
    assert!(!why().1.contains("PRIVATE"));
    fs::write(&key, &text).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(why().1.contains("640"), "{}", why().1);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(&list).unwrap();
    assert_eq!(why().0, "FNL0208");

    fs::write(&list, &signed).unwrap();
    fs::write(dir.path().join(PUBLIC_KEY_FILE), "another").unwrap();
    runs(dir.path(), u64::MAX, &[0]);
    ledger(dir.path())
        .verify(None, &[])
        .expect("the public key is that of the private one again");
}

#[test]
fn a_first_start_that_lost_power_before_its_key_was_kept_is_a_first_start_again() {
    let dir = tempfile::tempdir().unwrap();
    runs(dir.path(), u64::MAX, &[3]);
    let first = ledger(dir.path()).checkpoints()[0].to_string();
    fs::write(dir.path().join(CHECKPOINTS_FILE), first).unwrap();
    fs::remove_file(dir.path().join(KEY_FILE)).unwrap();
    let before = fs::read_to_string(dir.path().join(PUBLIC_KEY_FILE)).unwrap();
    runs(dir.path(), u64::MAX, &[3]);
    ledger(dir.path()).verify(None, &[]).unwrap();
    // Whoever kept the public key learns of it.
    let other = Ledger::open(dir.path(), Some(before.parse().unwrap()));
    assert_eq!(other.unwrap_err().code(), "FNL0208");
}

#[test]
fn a_checkpoint_torn_by_power_loss_is_signed_anew() {
    let dir = tempfile::tempdir().unwrap();
    runs(dir.path(), u64::MAX, &[3]);
    let list = dir.path().join(CHECKPOINTS_FILE);
    let mut bytes = fs::read(&list).unwrap();
    bytes.truncate(bytes.len() - 20);
    bytes.resize(bytes.len() + 100, 0);
    fs::write(&list, &bytes).unwrap();
    runs(dir.path(), u64::MAX, &[1]);
    let verified = ledger(dir.path()).verify(None, &[]).unwrap();
    assert_eq!(verified.sealed.unwrap().signed, verified.head.seq);
}

#[tokio::test]
async fn age_of_the_checkpoint_and_state_of_the_file_are_metrics() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), u64::MAX).unwrap();
    let metrics = Metrics::new("test");
    log.register_checkpoints(&metrics, "test");
    for _ in 0..3 {
        log.begin(Action("a.b"), Actor::system("t"))
            .finish(Outcome::Success, None)
            .await
            .unwrap();
    }
    let shows = |line: &str| {
        let text = metrics.classic_text();
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    };
    shows("test_audit_tree_size 4.0");
    shows("test_audit_unsigned_records 3.0");
    shows("test_audit_last_checkpoint_timestamp_seconds 1795564800.0");
    let note = log.checkpoint().await.unwrap();
    assert_eq!(note.size(), 4);
    assert_eq!(log.checkpoint().await.unwrap(), note, "nothing new to sign");
    shows("test_audit_unsigned_records 0.0");
    shows("test_audit_checkpoint_failures_total 0");
    shows("test_audit_chain_intact 1.0");
    let aside = dir.path().join("aside");
    fs::rename(dir.path().join(FILE_NAME), &aside).unwrap();
    fs::copy(&aside, dir.path().join(FILE_NAME)).unwrap();
    log.checkpoint().await.unwrap();
    shows("test_audit_chain_intact 0.0");
    log.close().await.unwrap();
}
