//! `finial policy` as a person runs it: real files, standard output and exit codes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::path::PathBuf;
use std::process::Command;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("finial-policy-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn finial(args: &[&str]) -> (i32, String) {
    let ended = Command::new(env!("CARGO_BIN_EXE_finial"))
        .arg("policy")
        .args(args)
        .output()
        .unwrap();
    let text = String::from_utf8(ended.stdout).unwrap() + &String::from_utf8(ended.stderr).unwrap();
    (ended.status.code().unwrap(), text)
}

const POLICY: &str = "apiVersion: mesh.finial.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: { name: pay }\nspec:\n  rules:\n  - name: charge\n    from: [ { source: { principals: [td/shop] } } ]\n    to: [ { operation: { methods: [POST], paths: [/charge] } } ]\n";

#[test]
fn lint_finds_what_may_not_be_meant_and_mistakes_with_their_places() {
    let folder = Folder::new("lint");
    let good = folder.write("good.yaml", POLICY);
    assert_eq!(finial(&["lint", &good]).0, 0);
    let wide = folder.write("wide.yaml", &POLICY.replace("td/shop", "td/sho*"));
    let (code, text) = finial(&["lint", &good, &wide]);
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("warning[prefix-inside-a-name]: policy pay rule charge"),
        "{text}"
    );
    let bad = folder.write("bad.yaml", &POLICY.replace("from:", "form:"));
    let (code, text) = finial(&["lint", &bad]);
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("FNL0502") && text.contains("bad.yaml:7:5"),
        "{text}"
    );
    let (code, text) = finial(&["lint", "/nowhere.yaml"]);
    assert!(code == 1 && text.contains("FNL9010"), "{text}");
}

#[test]
fn test_runs_cases_and_explain_answers_a_question() {
    let folder = Folder::new("test");
    let policy = folder.write("policy.yaml", POLICY);
    let case = |expect: &str| {
        format!(
            "apiVersion: mesh.finial.dev/v1alpha1\nkind: PolicyTest\nmetadata: {{ name: t }}\nspec:\n  cases:\n  - {{ name: get, given: {{ from: td/shop, port: 80, method: GET, path: /charge }}, expect: {expect} }}\n"
        )
    };
    let right = folder.write("right.yaml", &case("DENY"));
    let (code, text) = finial(&["test", "--policy", &policy, &right]);
    assert!(code == 0 && text.contains("1 passed, 0 failed"), "{text}");
    assert!(
        text.contains("no case reached policy pay rule charge"),
        "{text}"
    );
    let wrong = folder.write("wrong.yaml", &case("ALLOW"));
    let (code, text) = finial(&["test", "--policy", &policy, &wrong, &right]);
    assert!(code == 3 && text.contains("FAILED t/get"), "{text}");
    assert!(text.contains("methods: GET is not in [POST]"), "{text}");
    let ask = |method: &str| {
        finial(&[
            "explain",
            "--policy",
            &policy,
            "--from",
            "spiffe://td/shop",
            "--port",
            "80",
            "--method",
            method,
            "--path",
            "/charge",
        ])
    };
    assert_eq!(ask("POST").0, 0);
    let (code, text) = ask("GET");
    assert!(
        code == 3 && text.contains("no rule allows it; nearest is policy pay rule charge"),
        "{text}"
    );
}

#[test]
fn simulate_lists_what_a_new_policy_would_change_of_recorded_requests() {
    let folder = Folder::new("simulate");
    let policy = folder.write("policy.yaml", POLICY);
    let line = |source: &str, method: &str, path: &str, effect: &str| {
        format!(
            "{{\"direction\":\"inbound\",\"effect\":\"{effect}\",\"source\":\"{source}\",\"peer\":\"127.0.0.1:9\",\"method\":\"{method}\",\"path\":\"{path}\",\"host\":\"pay\"}}\n"
        )
    };
    let log = folder.write(
        "access.log",
        &(line("spiffe://td/shop", "POST", "/charge", "allow")
            + &line("spiffe://td/shop", "GET", "/status", "allow")
            + &line("spiffe://td/shop", "GET", "/status", "allow")
            + &line("spiffe://td/shop", "POST", "/charge", "deny")
            + &line("spiffe://td/eve", "POST", "/charge", "deny")
            + "{\"direction\":\"outbound\"}\nnonsense\n"),
    );
    let (code, text) = finial(&[
        "simulate", "--policy", &policy, "--log", &log, "--port", "80",
    ]);
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("newly denied 2 times: spiffe://td/shop GET pay/status: no rule allows it"),
        "{text}"
    );
    assert!(
        text.contains("newly allowed 1 times: spiffe://td/shop POST pay/charge"),
        "{text}"
    );
    assert!(
        text.contains(
            "5 recorded decisions asked again, 3 would change, 2 lines are no recorded decision"
        ),
        "{text}"
    );
}

#[test]
fn suggest_writes_a_policy_from_what_was_allowed_and_names_what_nobody_needed() {
    let folder = Folder::new("suggest");
    let line = |effect: &str, path: &str, source: &str| {
        format!(
            "{{\"direction\":\"inbound\",\"effect\":\"{effect}\",\"source\":\"{source}\",\"peer\":\"192.0.2.1:1\",\"method\":\"POST\",\"path\":\"{path}\",\"host\":\"pay\"}}\n"
        )
    };
    let text = line("allow", "/charge", "spiffe://td/shop")
        + &line("allow", "/charge", "spiffe://td/shop")
        + &line("allow", "/a*", "spiffe://td/shop")
        + &line("allow", "/charge", "unknown")
        + &line("deny", "/admin", "spiffe://td/shop")
        + "{\"event\":\"handshake\"}\n";
    let log = folder.write("access.log", &text);
    let (code, made) = finial(&["suggest", "--log", &log, "--port", "80", "-n", "shops"]);
    assert_eq!(code, 0, "{made}");
    assert!(
        made.contains("- \"/charge\" # 2 times") && !made.contains("/admin"),
        "{made}"
    );
    assert!(
        made.contains("1 denied, 1 without identity, 1 that would be read as a pattern, 1 lines"),
        "{made}"
    );
    // What was suggested is a policy, and it allows what was seen.
    let suggested = folder.write("suggested.yaml", &made);
    let ask = |path: &str| {
        let question = [
            "explain",
            "--policy",
            &suggested,
            "--from",
            "spiffe://td/shop",
            "--port",
            "80",
            "--method",
            "POST",
            "--path",
            path,
        ];
        finial(&question).0
    };
    assert_eq!((ask("/charge"), ask("/admin")), (0, 3));

    let more = folder.write(
        "more.yaml",
        &(POLICY.to_owned()
            + "  - name: refund\n    to: [ { operation: { paths: [/refund] } } ]\n"),
    );
    let tighten = [
        "suggest",
        "--log",
        &log,
        "--port",
        "80",
        "--tighten",
        "--policy",
        &more,
    ];
    let (code, text) = finial(&tighten);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("unused: policy pay rule refund"), "{text}");
    assert!(!text.contains("rule charge"), "{text}");
    assert_eq!(
        finial(&["suggest", "--log", &log, "--port", "80", "--name", "a: b"]).0,
        2
    );
}

#[test]
fn check_tells_what_the_proxy_of_a_workload_could_not_enforce() {
    let folder = Folder::new("check");
    let policy = folder.write("policy.yaml", POLICY);
    let (code, text) = finial(&["check", &policy]);
    assert_eq!((code, text.as_str()), (0, "1 ALLOW rules in force\n"));
    let (code, text) = finial(&["check", &policy, "--protocol", "tcp"]);
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("FNL0510") && text.contains("HTTP fields"),
        "{text}"
    );
    let selecting = POLICY.replace(
        "spec:\n",
        "spec:\n  selector: { matchLabels: { app: pay } }\n",
    );
    let selecting = folder.write("selecting.yaml", &selecting);
    assert_eq!(finial(&["check", &selecting]).0, 3);
    let of = |label: &str| finial(&["check", &selecting, "-n", "shops", "-l", label]);
    assert_eq!(of("app=pay").0, 0);
    let (code, text) = of("app=other");
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("everything is denied"), "{text}");
}
