//! `ca-server svid mint`: certificates and tokens for whom an administrator says, printed or written to files.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_identity::X509Svid;
use serde_json::Value;

use super::server::{Server, code};

const WEB: &str = "spiffe://dev.test/web";

fn openssl(arguments: &[&str]) -> String {
    let output = std::process::Command::new("openssl")
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// The claims of a token; its signature is for others to look at.
fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

#[test]
fn a_minted_certificate_and_its_key_are_written_privately_and_openssl_agrees_with_them() {
    let server = Server::start();
    let folder = server.path().join("web");
    let folder = folder.to_str().unwrap();
    let mint = [
        "svid",
        "mint",
        "x509",
        "--spiffe-id",
        WEB,
        "--dns",
        "web.dev.test",
        "--dns",
        "w.dev.test",
    ];
    let written = [&mint[..], &["--ttl", "10m", "--write", folder]].concat();
    let (exit, why) = server.refused(&written);
    assert_eq!(exit, 1);
    assert!(why.contains("FNL1060") && why.contains("svid.pem"), "{why}");

    std::fs::create_dir(folder).unwrap();
    // What lies there is replaced, and a planted link is not followed.
    let planted = server.path().join("planted");
    std::fs::write(&planted, "as it was").unwrap();
    std::os::unix::fs::symlink(&planted, format!("{folder}/key.pem")).unwrap();
    let told = server.text(&written);
    assert!(
        told.starts_with(&format!("X509-SVID written to {folder}/svid.pem\n")),
        "{told}"
    );
    assert_eq!(std::fs::read_to_string(&planted).unwrap(), "as it was");
    let path = |name: &str| format!("{folder}/{name}");
    let files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    assert_eq!(files.len(), 3, "{files:?}");
    assert!(files.iter().all(|file| mode(file) == 0o600));

    let svid = X509Svid::from_pem(&std::fs::read(path("svid.pem")).unwrap()).unwrap();
    assert_eq!(svid.id().as_str(), WEB);
    let life = svid
        .not_after()
        .duration_since(svid.not_before())
        .unwrap()
        .as_secs();
    assert!((600..=611).contains(&life), "{life}");
    if std::process::Command::new("openssl")
        .arg("version")
        .output()
        .is_err()
    {
        println!("skipped: there is no openssl on this machine (Debian: apt-get install openssl)");
        return;
    }
    let (chain, roots) = (path("svid.pem"), path("bundle.pem"));
    assert!(openssl(&["verify", "-CAfile", &roots, &chain]).contains("OK"));
    let of_certificate = openssl(&["x509", "-in", &chain, "-noout", "-pubkey"]);
    assert_eq!(
        openssl(&["pkey", "-in", &path("key.pem"), "-pubout"]),
        of_certificate
    );
    let names = openssl(&["x509", "-in", &chain, "-noout", "-ext", "subjectAltName"]);
    assert!(
        names.contains("DNS:web.dev.test") && names.contains("DNS:w.dev.test"),
        "{names}"
    );
}

#[test]
fn a_minted_certificate_is_printed_as_spire_prints_it_or_as_json() {
    let server = Server::start();
    let text = server.text(&[
        "x509",
        "mint",
        "-spiffeID",
        WEB,
        "-dns",
        "web.dev.test",
        "-ttl",
        "60s",
    ]);
    let parts: Vec<&str> = ["X509-SVID:\n", "\nPrivate key:\n", "\nRoot CAs:\n"]
        .iter()
        .map(|heading| text.split_once(heading).unwrap().1)
        .collect();
    assert!(
        parts[1].starts_with("-----BEGIN PRIVATE KEY-----"),
        "{text}"
    );
    assert!(
        parts[2].ends_with(&server.text(&["bundle", "show"])),
        "{text}"
    );
    let json = server.json(&["svid", "mint", "x509", "--spiffe-id", WEB]);
    assert_eq!(json["spiffeId"], WEB);
    let svid = X509Svid::from_pem(json["x509Svid"].as_str().unwrap().as_bytes()).unwrap();
    assert_eq!(svid.id().as_str(), WEB);
    assert!(
        json["privateKey"]
            .as_str()
            .unwrap()
            .starts_with("-----BEGIN PRIVATE KEY-----")
    );
}

#[test]
fn a_minted_token_is_printed_alone_or_written_privately() {
    let server = Server::start();
    let audience = ["--audience", "db", "--audience", "cache"];
    let printed = server.text(
        &[
            &["svid", "mint", "jwt", "--spiffe-id", WEB, "--ttl", "1m"],
            &audience[..],
        ]
        .concat(),
    );
    let token = printed.strip_suffix('\n').unwrap();
    let said = claims(token);
    assert_eq!(
        (&said["sub"], &said["aud"]),
        (&WEB.into(), &serde_json::json!(["db", "cache"]))
    );
    assert_eq!(
        said["exp"].as_u64().unwrap() - said["iat"].as_u64().unwrap(),
        60
    );

    let file = server.path().join("token");
    let path = file.to_str().unwrap();
    let spires = [
        "jwt",
        "mint",
        "-spiffeID",
        WEB,
        "-audience",
        "db",
        "-ttl",
        "1m",
        "-write",
        path,
    ];
    assert_eq!(
        server.text(&spires),
        format!("JWT-SVID written to {path}\n")
    );
    assert_eq!(mode(&file), 0o600);
    assert_eq!(
        claims(&std::fs::read_to_string(&file).unwrap())["aud"],
        serde_json::json!(["db"])
    );
    let json = server.json(&[
        "svid",
        "mint",
        "jwt",
        "--spiffe-id",
        WEB,
        "--audience",
        "db",
    ]);
    assert_eq!(claims(json["token"].as_str().unwrap())["sub"], WEB);
}

#[test]
fn what_cannot_be_minted_is_refused_and_a_shortened_life_is_told() {
    let server = Server::start();
    let foreign = [
        "svid",
        "mint",
        "x509",
        "--spiffe-id",
        "spiffe://other.test/web",
    ];
    let (exit, why) = server.refused(&foreign);
    assert_eq!(exit, 1);
    assert!(why.contains("FNL1211"), "{why}");
    let server_id = [
        "svid",
        "mint",
        "jwt",
        "--spiffe-id",
        "spiffe://dev.test/spire/server",
        "--audience",
        "db",
    ];
    assert_eq!(server.refused(&server_id).0, 1);
    for usage in [
        &["svid", "mint", "jwt", "--spiffe-id", WEB][..],
        &["svid", "mint", "x509", "--spiffe-id", "web"],
        &["svid", "mint", "x509", "--spiffe-id", WEB, "--dns", "-"],
        &[
            "svid",
            "mint",
            "x509",
            "--spiffe-id",
            WEB,
            "--ttl",
            "99999999h",
        ],
    ] {
        assert_eq!(server.refused(usage).0, 2, "{usage:?}");
    }
    let long = [
        "svid",
        "mint",
        "jwt",
        "--spiffe-id",
        WEB,
        "--audience",
        "db",
        "--ttl",
        "100h",
    ];
    let output = server.ask(&long);
    assert_eq!(code(&output), 0);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.starts_with("warning: it lives shorter than asked"),
        "{told}"
    );
    assert!(server.ask(&[&long[..], &["-q"]].concat()).stderr.is_empty());
}
