//! The log under normal work, failing disks, kills and tampering.

use super::*;
use std::time::Duration;

mod signed;

fn clock() -> Clock {
    Clock::frozen(UNIX_EPOCH + Duration::from_secs(1_795_564_800))
}

async fn five_records(dir: &Path) -> PathBuf {
    let log = AuditLog::open(dir, "test", &clock()).unwrap();
    for n in 0..3 {
        let mut record = log.begin(
            Action("entry.create"),
            Actor::user("root").authn("uds").process(0, Some(1)),
        );
        record
            .object(Object::new("entry").id(format!("e{n}")))
            .origin(Origin::unix("/run/a.sock"));
        record.finish(Outcome::Success, None).await.unwrap();
    }
    log.close().await.unwrap();
    dir.join(FILE_NAME)
}

fn flaw(path: &Path) -> BadRecord {
    match verify(&[path]) {
        Err(VerifyError::Bad(bad)) => bad,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_record_has_the_fields_of_the_reference_page_in_canonical_form() {
    let (log, memory) = AuditLog::memory("test", &clock());
    let mut record = log.begin(
        Action("authz.deny"),
        Actor::workload("spiffe://dev.test/shop").authn("mtls"),
    );
    record
        .origin(Origin::tcp("127.0.0.1:4711".parse().unwrap()))
        .object(Object::new("service").name("spiffe://dev.test/pay"))
        .decision(
            Decision::deny("no rule allows it")
                .policy("payments")
                .policy_rev("3")
                .mode("enforce"),
        )
        .trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
        .request_id("r1");
    let receipt = record
        .finish(Outcome::Denied, Some("FNL3101"))
        .await
        .unwrap();
    let line = memory.text().lines().nth(1).unwrap().to_owned();
    let prev = verify::hash(memory.text().lines().next().unwrap().as_bytes());
    assert_eq!(
        line,
        format!(
            "{{\"action\":\"authz.deny\",\"actor\":{{\"authn\":\"mtls\",\"id\":\"spiffe://dev.test/shop\",\"type\":\"workload\"}},\"code\":\"FNL3101\",\
             \"decision\":{{\"effect\":\"deny\",\"mode\":\"enforce\",\"policy\":\"payments\",\"policy_rev\":\"3\",\"reason\":\"no rule allows it\"}},\
             \"id\":\"{}\",\"object\":{{\"kind\":\"service\",\"name\":\"spiffe://dev.test/pay\"}},\"origin\":{{\"ip\":\"127.0.0.1\",\"port\":\"4711\"}},\
             \"outcome\":\"denied\",\"prev\":\"{prev}\",\"request_id\":\"r1\",\"seq\":2,\"time\":\"2026-11-25T00:00:00.000000Z\",\
             \"trace\":{{\"span_id\":\"00f067aa0ba902b7\",\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\"}},\"v\":1}}",
            receipt.id
        )
    );
}

#[tokio::test]
async fn a_dropped_record_says_aborted() {
    let (log, memory) = AuditLog::memory("test", &clock());
    drop(log.begin(Action("svid.issue"), Actor::agent("a")));
    let cancelled = log.begin(Action("svid.issue"), Actor::agent("b"));
    let task = tokio::spawn(async move {
        std::future::pending::<()>().await;
        cancelled.finish(Outcome::Success, None).await
    });
    tokio::task::yield_now().await;
    task.abort();
    task.await.unwrap_err();
    log.close().await.unwrap();
    for record in memory.of("svid.issue") {
        assert_eq!(
            (&record["outcome"], &record["code"]),
            (&"failure".into(), &"aborted".into())
        );
    }
    assert_eq!(memory.of("svid.issue").len(), 2);
}

#[tokio::test]
async fn a_record_that_cannot_be_written_is_an_error_and_the_chain_goes_on_after_the_trouble() {
    let (log, memory) = AuditLog::memory("test", &clock());
    memory.fail(true);
    let refused = log
        .begin(Action("svid.issue"), Actor::agent("a"))
        .finish(Outcome::Success, None)
        .await;
    assert_eq!(refused.unwrap_err().code(), "FNL0204");
    assert_eq!(log.write_failures(), 1);
    memory.fail(false);
    let receipt = log
        .begin(Action("svid.issue"), Actor::agent("b"))
        .finish(Outcome::Success, None)
        .await
        .unwrap();
    assert_eq!(receipt.seq, 2);
    log.close().await.unwrap();
    let mut chain = verify::Chain::new(&Expect::default());
    assert!(
        chain
            .file(Path::new("memory"), memory.text().as_bytes(), true)
            .is_ok()
    );
    assert_eq!(chain.end(Path::new("memory")).unwrap().records, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_share_few_flushes_and_numbers_have_no_gap() {
    let (log, memory) = AuditLog::memory("test", &clock());
    let calls: Vec<_> = (0..3000)
        .map(|_| {
            let log = log.clone();
            tokio::spawn(async move {
                log.begin(Action("svid.issue"), Actor::agent("a"))
                    .finish(Outcome::Success, None)
                    .await
                    .unwrap()
                    .seq
            })
        })
        .collect();
    let mut numbers = Vec::new();
    for call in calls {
        numbers.push(call.await.unwrap());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (2..=3001).collect::<Vec<_>>());
    assert!(memory.flushes() < 3000, "{} flushes", memory.flushes());
}

#[tokio::test]
async fn more_dropped_records_than_the_queue_holds_are_all_written() {
    let (log, memory) = AuditLog::memory("test", &clock());
    let many = QUEUE * 3;
    let open: Vec<_> = (0..many)
        .map(|_| log.begin(Action("svid.issue"), Actor::agent("a")))
        .collect();
    drop(open);
    log.close().await.unwrap();
    assert_eq!(memory.of("svid.issue").len(), many);
}

#[tokio::test]
async fn after_closing_records_are_refused() {
    let (log, _memory) = AuditLog::memory("test", &clock());
    log.close().await.unwrap();
    let late = log
        .begin(Action("svid.issue"), Actor::agent("a"))
        .finish(Outcome::Success, None)
        .await;
    assert_eq!(late.unwrap_err().code(), "FNL0205");
}

#[tokio::test]
async fn x_06_a_strangers_text_cannot_make_a_second_line() {
    let (log, memory) = AuditLog::memory("test", &clock());
    let mut record = log.begin(
        Action("svid.issue"),
        Actor::workload("a\n{\"action\":\"forged\"}\u{202e}"),
    );
    record.object(Object::new("x").name("y".repeat(100_000)));
    record.finish(Outcome::Success, None).await.unwrap();
    assert_eq!(memory.text().lines().count(), 2);
    assert!(memory.text().lines().all(|line| line.len() < 4096));
    assert!(!memory.text().contains('\u{202e}') && !memory.text().contains("\\n"));
}

#[tokio::test]
async fn a_second_process_is_kept_out_and_the_log_continues_after_closing() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "test", &clock()).unwrap();
    assert_eq!(
        AuditLog::open(dir.path(), "test", &clock())
            .unwrap_err()
            .code(),
        "FNL0202"
    );
    log.close().await.unwrap();
    let log = AuditLog::open(dir.path(), "test", &clock()).unwrap();
    let receipt = log
        .begin(Action("a.b"), Actor::system("t"))
        .finish(Outcome::Success, None)
        .await
        .unwrap();
    assert_eq!(receipt.seq, 4);
    log.close().await.unwrap();
    let verified = verify(&[dir.path().join(FILE_NAME)]).unwrap();
    assert_eq!((verified.records, verified.unclean_stops), (5, 0));
}

#[tokio::test]
async fn a_torn_last_line_is_torn_not_tampering_and_the_chain_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = five_records(dir.path()).await;
    let whole = std::fs::read(&path).unwrap();
    let cut = whole.len() - 10;
    std::fs::write(&path, &whole[..cut]).unwrap();
    let verified = verify(&[&path]).unwrap();
    assert_eq!(
        (verified.records, verified.torn.as_ref().map(|t| t.line)),
        (4, Some(5))
    );
    let log = AuditLog::open(dir.path(), "test", &clock()).unwrap();
    log.close().await.unwrap();
    let verified = verify(&[&path]).unwrap();
    assert_eq!(
        (verified.records, verified.torn, verified.unclean_stops),
        (6, None, 1)
    );
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        text.lines().nth(4).unwrap().contains("a torn last line of"),
        "{text}"
    );
    assert!(dir.path().join("audit.jsonl.torn-before-5").exists());
}

#[tokio::test]
async fn a_hole_at_the_end_of_the_file_is_torn() {
    let dir = tempfile::tempdir().unwrap();
    let path = five_records(dir.path()).await;
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend_from_slice(&[0; 4096]);
    bytes.extend_from_slice(b"\"x\"}\n{\"v\":1");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(verify(&[&path]).unwrap().records, 5);
    AuditLog::open(dir.path(), "test", &clock())
        .unwrap()
        .close()
        .await
        .unwrap();
    assert_eq!(verify(&[&path]).unwrap().records, 7);
}

#[tokio::test]
async fn flipping_any_byte_of_a_record_names_that_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = five_records(dir.path()).await;
    let whole = std::fs::read(&path).unwrap();
    let lines = whole.iter().filter(|b| **b == b'\n').count() as u64;
    let mut line = 1;
    for at in 0..whole.len() {
        let newline = whole[at] == b'\n';
        let bit = 1_u8 << (at % 3);
        let mut bytes = whole.clone();
        bytes[at] ^= bit;
        std::fs::write(&path, &bytes).unwrap();
        match verify(&[&path]) {
            Err(VerifyError::Bad(bad)) => {
                let pair = bad.flaw == Flaw::ChangedOrNext && bad.line + 1 == line;
                assert!(bad.line == line || pair, "byte {at} of line {line}: {bad}");
            }
            // Nothing after the last record vouches for it: a chain alone cannot show more than its form.
            Ok(_) => assert_eq!(line, lines, "byte {at} of line {line} was not noticed"),
            Err(other) => panic!("{other}"),
        }
        line += u64::from(newline);
    }
}

#[tokio::test]
async fn removal_reordering_and_insertion_name_the_first_bad_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = five_records(dir.path()).await;
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let write = |order: &[usize]| {
        let text: String = order.iter().map(|n| format!("{}\n", lines[*n])).collect();
        std::fs::write(&path, text).unwrap();
    };
    write(&[0, 1, 3, 4]);
    assert_eq!(
        (flaw(&path).seq, flaw(&path).flaw),
        (3, Flaw::Number { found: 4 })
    );
    write(&[0, 2, 1, 3, 4]);
    assert_eq!(
        (flaw(&path).seq, flaw(&path).flaw),
        (2, Flaw::Number { found: 3 })
    );
    write(&[0, 1, 1, 2, 3, 4]);
    assert_eq!(
        (flaw(&path).seq, flaw(&path).flaw),
        (3, Flaw::Number { found: 2 })
    );
    write(&[1, 2, 3, 4]);
    assert_eq!(
        (flaw(&path).seq, flaw(&path).flaw),
        (1, Flaw::Number { found: 2 })
    );
}

#[tokio::test]
async fn a_cut_off_end_shows_when_somebody_kept_the_head() {
    let dir = tempfile::tempdir().unwrap();
    let path = five_records(dir.path()).await;
    let head = verify(&[&path]).unwrap().head;
    let expect = Expect {
        contains: Some(head.clone()),
        ..Expect::default()
    };
    verify_against(&[&path], &expect).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let shorter: String = text.lines().take(4).map(|l| format!("{l}\n")).collect();
    std::fs::write(&path, shorter).unwrap();
    verify(&[&path]).expect("a chain alone cannot show it");
    let Err(VerifyError::Bad(bad)) = verify_against(&[&path], &expect) else {
        panic!("not noticed")
    };
    assert_eq!((bad.seq, bad.flaw), (head.seq, Flaw::Missing));
}

#[tokio::test]
async fn a_changed_log_is_not_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = five_records(dir.path()).await;
    let text =
        std::fs::read_to_string(&path)
            .unwrap()
            .replacen("\"id\":\"e1\"", "\"id\":\"e9\"", 1);
    std::fs::write(&path, text).unwrap();
    let error = AuditLog::open(dir.path(), "test", &clock()).unwrap_err();
    assert_eq!(error.code(), "FNL0203");
    assert!(
        ErrorChain(&error).to_string().contains("record 3 ("),
        "{}",
        ErrorChain(&error)
    );
}

#[tokio::test]
async fn counts_are_metrics() {
    let (log, _memory) = AuditLog::memory("test", &clock());
    let metrics = Metrics::new("test");
    log.register(&metrics, "test");
    log.begin(Action("a.b"), Actor::system("t"))
        .finish(Outcome::Success, None)
        .await
        .unwrap();
    let text = metrics.classic_text();
    assert!(
        text.contains("test_audit_records_total 1")
            && text.contains("test_audit_write_failures_total 0"),
        "{text}"
    );
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_verified_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        let mut chain = verify::Chain::new(&Expect::default());
        let _ended = chain.file(Path::new("x"), bytes.as_slice(), true).is_ok() && chain.end(Path::new("x")).is_ok();
    }
}

/// The child's part of the next test: this test binary again, told by its environment to write until it is killed.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the parent test tells its child by the environment what to be"
)]
fn child_writing_until_killed() {
    let Some(dir) = std::env::var_os("MESH_RUNTIME_AUDIT_CHILD") else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let log = AuditLog::open(Path::new(&dir), "child", &Clock::system()).unwrap();
        loop {
            let receipt = log
                .begin(Action("a.b"), Actor::system("t"))
                .finish(Outcome::Success, None)
                .await
                .unwrap();
            println!("SEQ {}", receipt.seq);
        }
    });
}

#[test]
fn a_process_killed_while_writing_loses_no_acknowledged_record() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "audit::tests::child_writing_until_killed",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("MESH_RUNTIME_AUDIT_CHILD", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while seen < 50 + round * 7 {
            let line = lines.next().unwrap().unwrap();
            if let Some((_, seq)) = line.split_once("SEQ ") {
                acknowledged = seq.parse::<u64>().unwrap();
                seen += 1;
            }
        }
        child.kill().unwrap();
        for line in lines.map_while(Result::ok) {
            if let Some((_, seq)) = line.split_once("SEQ ")
                && let Ok(seq) = seq.parse::<u64>()
            {
                acknowledged = seq;
            }
        }
        child.wait().unwrap();
        let verified = verify(&[dir.path().join(FILE_NAME)]).unwrap();
        assert!(
            verified.head.seq >= acknowledged,
            "round {round}: {} < {acknowledged}",
            verified.head.seq
        );
    }
}

#[tokio::test]
async fn a_full_file_is_closed_and_the_next_one_continues_its_chain() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let log = AuditLog::open_with(dir.path(), "test", &clock(), 2_000, None).unwrap();
        for _ in 0..20 {
            let record = log.begin(Action("a.b"), Actor::system("t"));
            record.finish(Outcome::Success, None).await.unwrap();
        }
        log.close().await.unwrap();
    }
    let files = files(dir.path()).unwrap();
    assert!(files.len() > 4, "{files:?}");
    let verified = verify(&files).unwrap();
    // 2 starts, 2 stops, 40 records, and one log.rotate at the end of each closed file.
    assert_eq!(verified.records, 44 + files.len() as u64 - 1);
    let first = std::fs::read_to_string(&files[0]).unwrap();
    assert!(
        first
            .lines()
            .last()
            .unwrap()
            .contains("\"action\":\"log.rotate\"")
    );

    let later = &files[2..];
    assert!(matches!(verify(later), Err(VerifyError::Bad(_))));
    let anywhere = Expect {
        start: Start::Anywhere,
        ..Expect::default()
    };
    assert_eq!(
        verify_against(later, &anywhere).unwrap().head,
        verified.head
    );
    assert!(
        matches!(verify(&[&files[0], &files[2]]), Err(VerifyError::Bad(_))),
        "a missing file"
    );
    std::fs::remove_file(&files[0]).unwrap();
    AuditLog::open(dir.path(), "test", &clock())
        .unwrap()
        .close()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_current_file_that_was_swapped_for_another_does_not_continue_the_closed_one() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open_with(dir.path(), "test", &clock(), 1, None).unwrap();
    log.begin(Action("a.b"), Actor::system("t"))
        .finish(Outcome::Success, None)
        .await
        .unwrap();
    log.close().await.unwrap();
    let other = tempfile::tempdir().unwrap();
    std::fs::copy(five_records(other.path()).await, dir.path().join(FILE_NAME)).unwrap();
    let error = AuditLog::open(dir.path(), "test", &clock()).unwrap_err();
    assert_eq!(error.code(), "FNL0203");
}
