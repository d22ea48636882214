//! Tokens for agents, and certificates and tokens that administrators mint.

use mesh_identity::jwt::verify_jwt_svid;
use proto::spire::api::server::svid::v1 as wire;

use super::*;

async fn token(agent: &Agent, entry_id: &str, audience: &[&str]) -> Result<types::Jwtsvid, Status> {
    let ask = wire::NewJwtsvidRequest {
        entry_id: entry_id.into(),
        audience: audience.iter().map(|&value| value.into()).collect(),
    };
    let answer = SvidClient::new(agent.channel.clone())
        .new_jwtsvid(ask)
        .await?;
    Ok(answer.into_inner().svid.unwrap())
}

async fn mint_token(
    server: &Server,
    id: &str,
    audience: &[&str],
    ttl: i32,
) -> Result<types::Jwtsvid, Status> {
    let (trust_domain, path) = id.split_once('/').unwrap_or((id, ""));
    let path = match path {
        "" => String::new(),
        path => format!("/{path}"),
    };
    let ask = wire::MintJwtsvidRequest {
        id: Some(types::Spiffeid {
            trust_domain: trust_domain.into(),
            path,
        }),
        audience: audience.iter().map(|&value| value.into()).collect(),
        ttl,
    };
    let answer = SvidClient::new(admin_channel(server).await)
        .mint_jwtsvid(ask)
        .await?;
    Ok(answer.into_inner().svid.unwrap())
}

async fn mint(server: &Server, csr: Vec<u8>, ttl: i32) -> Result<types::X509svid, Status> {
    let ask = wire::MintX509svidRequest { csr, ttl };
    let answer = SvidClient::new(admin_channel(server).await)
        .mint_x509svid(ask)
        .await?;
    Ok(answer.into_inner().svid.unwrap())
}

/// A request for these URIs, DNS names and common name.
fn request(uris: &[&str], dns_names: &[&str], common_name: &str) -> Vec<u8> {
    let mut params = rcgen::CertificateParams::new(
        dns_names
            .iter()
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>(),
    )
    .unwrap();
    for uri in uris {
        let uri = rcgen::SanType::URI((*uri).try_into().unwrap());
        params.subject_alt_names.push(uri);
    }
    params.distinguished_name = rcgen::DistinguishedName::new();
    if !common_name.is_empty() {
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, common_name);
        params
            .distinguished_name
            .push(rcgen::DnType::CountryName, "DE");
    }
    let key = rcgen::KeyPair::generate().unwrap();
    params.serialize_request(&key).unwrap().der().to_vec()
}

#[tokio::test]
async fn jwt_7_jwt_21_an_agent_gets_a_token_for_its_entry_with_a_record_and_without_the_token_in_it()
 {
    let server = Server::start().await;
    let agent = server.join().await;
    server.entry("web", &agent.id).await;
    let svid = token(&agent, "web", &["bank", "", "shop"]).await.unwrap();
    let bundles = server.bundles().await;
    let proven = verify_jwt_svid(&svid.token, &bundles, &["shop"], server.clock.now()).unwrap();
    assert_eq!(proven.id.as_str(), "spiffe://dev.test/web");
    assert_eq!(proven.audience, ["bank", "shop"]);
    assert_eq!(svid.id, Some((&proven.id).into()));
    assert_eq!(
        svid.expires_at - svid.issued_at,
        300,
        "five minutes if nobody says otherwise"
    );
    let records = server.audit.records();
    let record = records.last().unwrap();
    assert_eq!(
        (&record["action"], &record["outcome"]),
        (&"svid.issue".into(), &"success".into())
    );
    assert_eq!(record["object"]["kind"], "jwt-svid");
    assert_eq!(record["object"]["name"], "spiffe://dev.test/web");
    assert_eq!(record["object"]["id"], "web");
    let all = format!("{records:?}");
    assert!(!all.contains(&svid.token) && !all.contains(svid.token.split('.').nth(2).unwrap()));
}

#[tokio::test]
async fn a_tokens_life_name_and_hint_come_from_its_entry_and_end_with_the_authority() {
    let server = Server::start().await;
    let agent = server.join().await;
    for (name, ttl) in [("short", 7), ("endless", 2_000_000_000)] {
        let mut entry = server.entry(name, &agent.id).await;
        entry.jwt_svid_ttl = Some(Duration::from_secs(ttl));
        entry.jwt_svid_include_jti = true;
        entry.hint = "main".into();
        server.stores.entries.update(entry).await.unwrap();
    }
    let short = token(&agent, "short", &["bank"]).await.unwrap();
    assert_eq!(
        (short.expires_at - short.issued_at, short.hint.as_str()),
        (7, "main")
    );
    let bundles = server.bundles().await;
    let proven = verify_jwt_svid(&short.token, &bundles, &["bank"], server.clock.now()).unwrap();
    assert!(proven.claims.contains_key("jti"));
    let endless = token(&agent, "endless", &["bank"]).await.unwrap();
    let life = endless.expires_at - endless.issued_at;
    assert!(
        (86_390..=86_400).contains(&life),
        "capped without an error: {life}"
    );
}

#[tokio::test]
async fn ca_14_jwt_8_a_token_for_anothers_entry_or_without_an_audience_is_refused_and_on_record() {
    let server = Server::start().await;
    let (agent, other) = (server.join().await, server.join().await);
    server.entry("web", &other.id).await;
    for entry in ["web", "no-such", "", "in valid"] {
        let refused = token(&agent, entry, &["bank"]).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{entry}");
        assert_eq!(refused.message(), "entry not found or not authorized");
    }
    for audience in [&[][..], &[""], &["", ""]] {
        let refused = token(&other, "web", audience).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(refused.message(), "at least one audience is required");
    }
    let long = "a".repeat(20_000);
    let refused = token(&other, "web", &[&long]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    token(&other, "web", &["bank"]).await.unwrap(); // its record comes after those of all refusals before it
    let records = server.audit.records();
    let denied = records
        .iter()
        .filter(|r| r["action"] == "svid.issue" && r["outcome"] == "denied");
    assert_eq!(denied.count(), 8);
}

#[tokio::test]
async fn ca_28_when_the_record_cannot_be_written_no_token_leaves() {
    let server = Server::start().await;
    let agent = server.join().await;
    server.entry("web", &agent.id).await;
    server.audit.fail(true);
    let refused = token(&agent, "web", &["bank"]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let refused = mint_token(&server, "dev.test/web", &["bank"], 0)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let csr = request(&["spiffe://dev.test/web"], &[], "");
    let refused = mint(&server, csr, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}

#[tokio::test]
async fn an_administrator_mints_tokens_for_workloads_of_the_trust_domain_and_for_nobody_else() {
    let server = Server::start().await;
    let svid = mint_token(&server, "dev.test/any/workload", &["bank"], 33)
        .await
        .unwrap();
    assert_eq!(svid.expires_at - svid.issued_at, 33);
    let bundles = server.bundles().await;
    verify_jwt_svid(&svid.token, &bundles, &["bank"], server.clock.now()).unwrap();
    let default = mint_token(&server, "dev.test/a", &["bank"], 0)
        .await
        .unwrap();
    assert_eq!(default.expires_at - default.issued_at, 300);
    for id in [
        "other.test/a",
        "dev.test",
        "dev.test/spire/server",
        "dev.test/spire/agent/x",
        "DEV.test/a",
        "dev.test/a//b",
        "/a",
    ] {
        let refused = mint_token(&server, id, &["bank"], 0).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{id}");
        assert!(
            refused.message().starts_with("invalid SPIFFE ID"),
            "{}",
            refused.message()
        );
    }
    let refused = mint_token(&server, "dev.test/a", &["bank"], -1)
        .await
        .unwrap_err();
    assert_eq!(refused.message(), "ttl cannot be negative");
    let refused = mint_token(&server, "dev.test/a", &[], 0).await.unwrap_err();
    assert_eq!(refused.message(), "at least one audience is required");
}

#[tokio::test]
async fn t_39_a_minted_certificate_has_the_names_and_the_subject_of_its_request() {
    let server = Server::start().await;
    let names = ["web.example", "*.api.example"];
    let csr = request(&["spiffe://dev.test/web"], &names, "web");
    let wire = mint(&server, csr, 120).await.unwrap();
    let svid = IssuedX509Svid::try_from(wire).unwrap().svid;
    let bundles = server.bundles().await;
    let now = server.clock.now();
    let proven = mesh_identity::verify::verify_x509_svid(svid.chain(), &bundles, now).unwrap();
    assert_eq!(proven.id.as_str(), "spiffe://dev.test/web");
    let (_, leaf) = x509_parser::parse_x509_certificate(&svid.chain()[0]).unwrap();
    assert_eq!(leaf.subject().to_string(), "CN=web, C=DE");
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    let dns: Vec<_> = san
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            x509_parser::extensions::GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })
        .collect();
    assert_eq!(dns, names);
    let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert_eq!(life, 130, "the ttl and the backdated start");
    let records = server.audit.records();
    let minted = records.iter().find(|r| r["action"] == "svid.mint").unwrap();
    assert_eq!(minted["object"]["serial"], svid.serial());
}

#[tokio::test]
async fn t_39_a_request_that_names_what_must_not_be_minted_is_refused_in_spires_words() {
    let server = Server::start().await;
    let id = "spiffe://dev.test/web";
    for (csr, says) in [
        (vec![], "missing CSR"),
        (request(&[], &[], ""), "CSR URI SAN is required"),
        (
            request(&[id, "spiffe://dev.test/b"], &[], ""),
            "only one URI SAN is expected",
        ),
        (
            request(&["https://dev.test/web"], &[], ""),
            "CSR URI SAN is not a valid SPIFFE ID",
        ),
        (
            request(&["spiffe://other.test/web"], &[], ""),
            "CSR URI SAN is invalid",
        ),
        (
            request(&["spiffe://dev.test"], &[], ""),
            "CSR URI SAN is invalid",
        ),
        (
            request(&["spiffe://dev.test/spire/server"], &[], ""),
            "CSR URI SAN is invalid",
        ),
        (
            request(&[id], &["a_b.example"], ""),
            "CSR DNS name is not valid",
        ),
        (
            request(&[id], &["*.example", "a.example"], ""),
            "CSR DNS name a.example is covered",
        ),
        (request(&[id], &[], &"x".repeat(201)), "the subject has"),
        (
            vec![0x30, 0],
            "the certificate request is not PKCS#10 in DER",
        ),
    ] {
        let refused = mint(&server, csr, 0).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{says}");
        assert!(refused.message().starts_with(says), "{}", refused.message());
    }
    let refused = mint(&server, request(&[id], &[], ""), -5)
        .await
        .unwrap_err();
    assert_eq!(refused.message(), "ttl cannot be negative");
}
