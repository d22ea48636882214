//! Each view of a record: nothing of it lost, nothing in it taken for something else.

use super::*;

fn line(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut record = json!({
        "v": 1, "id": "01J", "seq": 7, "time": "2026-11-25T12:00:00.250000Z",
        "actor": { "type": "user", "id": "uid:0" },
        "origin": { "ip": "10.0.0.1", "port": "4711" },
        "action": "entry.create", "outcome": "success",
        "object": { "kind": "entry", "name": "spiffe://dev.test/web", "id": "web" },
    });
    change(&mut record);
    record.to_string().into_bytes()
}

fn view(form: Form, line: &[u8]) -> String {
    String::from_utf8(form.of(line)).unwrap()
}

fn object(form: Form, line: &[u8]) -> Value {
    serde_json::from_str(&view(form, line)).unwrap()
}

fn hash(line: &[u8]) -> String {
    hex(digest(&SHA256, line).as_ref())
}

#[test]
fn every_view_carries_the_id_and_the_hash_of_the_record() {
    let line = line(|_| {});
    for form in [Form::Ocsf, Form::Cloudevents, Form::Csv, Form::Cef] {
        let shown = view(form, &line);
        assert!(
            shown.contains("01J") && shown.contains(&hash(&line)),
            "{shown}"
        );
        assert_eq!(shown.lines().count(), 1);
    }
    assert_eq!(view(Form::Jsonl, &line).trim_end().as_bytes(), line);
}

#[test]
fn ocsf_has_a_class_and_an_activity_for_each_action() {
    for (action, class, activity) in [
        ("entry.create", 3004, 1),
        ("entry.list", 3004, 2),
        ("node.attest", 3004, 6),
        ("authority.activate", 3004, 10),
        ("agent.ban", 3004, 11),
        ("bundle.append", 3004, 1),
        ("log.start", 6002, 3),
        ("log.stop", 6002, 4),
        ("log.read", 6003, 2),
        ("svid.issue", 6003, 99),
    ] {
        let event = object(Form::Ocsf, &line(|record| record["action"] = action.into()));
        let told = ["class_uid", "activity_id", "type_uid", "category_uid"]
            .map(|field| event[field].as_u64().unwrap());
        let expected = [class, activity, class * 100 + activity, class / 1000];
        assert_eq!(told, expected, "{action}");
    }
    let event = object(Form::Ocsf, &line(|_| {}));
    assert_eq!(event["entity"]["uid"], "web");
    assert_eq!(event["src_endpoint"]["port"], 4711);
    assert_eq!(event["time"], 1_795_608_000_250_i64);
    assert_eq!(event["status_id"], 1);
    let denied = line(|record| record["outcome"] = "denied".into());
    assert_eq!(object(Form::Ocsf, &denied)["status_id"], 2);
}

#[test]
fn a_cloud_event_holds_the_record_unchanged() {
    let line = line(|_| {});
    let event = object(Form::Cloudevents, &line);
    assert_eq!(event["data"].to_string().into_bytes(), line);
    assert_eq!(event["type"], "dev.finial.audit.entry.create");
    assert_eq!(event["subject"], "spiffe://dev.test/web");
    assert_eq!(event["specversion"], "1.0");
}

#[test]
fn what_a_stranger_said_ends_no_cell_starts_no_formula_and_adds_no_field() {
    let hostile = |text: &str| line(|record| record["object"]["name"] = text.into());
    let row = view(Form::Csv, &hostile("=cmd(\"x\"),y\nz"));
    assert!(row.contains(",\"'=cmd(\"\"x\"\"),y\nz\","), "{row}");
    assert!(view(Form::Csv, &hostile("@sum")).contains(",'@sum,"));
    let columns = Form::Csv.heading().matches(',').count();
    assert_eq!(
        view(Form::Csv, &hostile("plain")).matches(',').count(),
        columns
    );
    let event = view(Form::Cef, &hostile("a outcome=success\nCEF:0|x\\"));
    assert!(
        event.contains("cs3=a outcome\\=success\\nCEF:0|x\\\\ "),
        "{event}"
    );
    assert_eq!(event.lines().count(), 1);
    let event = view(Form::Cef, &line(|record| record["action"] = "a|b".into()));
    assert!(
        event.contains("|a\\|b|a\\|b|3|externalId=01J act=a|b "),
        "{event}"
    );
}
