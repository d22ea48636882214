//! The whole server in one process: memory store, real sockets, real TLS. Each caller's kind against each RPC.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_identity::{SpiffeId, TrustDomain, X509Svid};
use mesh_runtime::audit::{AuditLog, Memory};
use mesh_runtime::clock::Clock;
use mesh_runtime::tasks::Tasks;
use mesh_tls::{Authorizer, ClientConfig, IdentityCell, PrivateKey, TlsIdentity};
use prost::Message;
use proto::convert::feed::Assembly;
use proto::convert::{CarriedBundle, IssuedX509Svid};
use proto::finial::feed::v1::feed_client::FeedClient;
use proto::finial::feed::v1::{Ack, FollowRequest, Hello, follow_request};
use proto::spire::api::server::agent::v1::agent_client::AgentClient;
use proto::spire::api::server::agent::v1::{
    self as agent_wire, attest_agent_request, attest_agent_response,
};
use proto::spire::api::server::bundle::v1::GetBundleRequest;
use proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use proto::spire::api::server::entry::v1 as entry_wire;
use proto::spire::api::server::entry::v1::entry_client::EntryClient;
use proto::spire::api::server::svid::v1::svid_client::SvidClient;
use proto::spire::api::server::svid::v1::{BatchNewX509svidRequest, NewX509svidParams};
use proto::spire::api::types;
use proto::spire::api::types::permission_denied_details::Reason;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::client::{AdminClient, ClientError, NewEntry};
use crate::app::{self, Given};
use crate::config::CaServerConfig;
use crate::store::Stores;

mod admins;
mod agents;
mod authorities;
mod bundles;
mod entries;
mod federation;
mod hostile;
mod operators;
mod public;
mod svids;
mod x509pop;

struct Server {
    address: String,
    bundle_endpoint: Option<String>,
    admin: AdminClient,
    audit: Memory,
    clock: Clock,
    stores: Stores,
    tasks: Tasks,
    directory: tempfile::TempDir,
}

/// An agent with its identity.
struct Agent {
    id: SpiffeId,
    cell: IdentityCell,
    channel: Channel,
    serial: String,
}

fn own() -> TrustDomain {
    "dev.test".parse().unwrap()
}

#[expect(
    clippy::disallowed_methods,
    reason = "certificates made here must be valid for the machine's clock"
)]
fn real_now() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

impl Server {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut CaServerConfig)) -> Self {
        mesh_tls::install_default_provider();
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::manual(real_now());
        let (log, audit) = AuditLog::memory("ca-server", &clock);
        let stores = Stores::memory(&own());
        let mut config = CaServerConfig {
            trust_domain: own(),
            ..CaServerConfig::default()
        };
        config.listen.address = ([127, 0, 0, 1], 0).into();
        config.listen.admin_socket = directory.path().join("admin.sock");
        config.telemetry.metrics.address = ([127, 0, 0, 1], 0).into();
        config.keys.sealing_key = directory.path().join("sealing.key");
        config.limits.attestations_per_second = 0;
        change(&mut config);
        let given = Given {
            stores: stores.clone(),
            audit: log,
            clock: clock.clone(),
        };
        let app = app::build(&config, given).await.unwrap();
        let addresses = app.addresses();
        let address = addresses.get("grpc").unwrap().to_owned();
        let tasks = Tasks::new("test");
        let handle = tasks.clone();
        tokio::spawn(async move { app.run(handle).await });
        let admin = AdminClient::connect(&config.listen.admin_socket)
            .await
            .unwrap();
        Self {
            address,
            bundle_endpoint: addresses.get("bundleEndpoint").map(str::to_owned),
            admin,
            audit,
            clock,
            stores,
            tasks,
            directory,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("admin.sock")
    }

    async fn bundles(&self) -> mesh_identity::BundleSet {
        std::iter::once(self.admin.bundle().await.unwrap()).collect()
    }

    async fn channel(&self, tls: Arc<ClientConfig>) -> Channel {
        self.try_channel(tls).await.unwrap()
    }

    async fn try_channel(
        &self,
        tls: Arc<ClientConfig>,
    ) -> Result<Channel, tonic::transport::Error> {
        let address = self.address.clone();
        let connector = tower::service_fn(move |_| {
            let (address, tls) = (address.clone(), tls.clone());
            async move {
                let stream = TcpStream::connect(address).await?;
                let (stream, _) = mesh_tls::connect(&tls, stream)
                    .await
                    .map_err(std::io::Error::other)?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        Endpoint::from_static("http://ca-server")
            .connect_with_connector(connector)
            .await
    }

    fn server_id(&self) -> Authorizer {
        Authorizer::exactly("spiffe://dev.test/spire/server".parse().unwrap())
    }

    async fn anonymous(&self) -> Channel {
        let tls = mesh_tls::bootstrap_client_config(
            self.bundles().await,
            self.server_id(),
            &[b"h2"],
            self.clock.as_fn(),
        );
        self.channel(tls).await
    }

    async fn attest(&self, kind: &str, payload: &[u8], csr: Vec<u8>) -> Result<X509Svid, Status> {
        let params = agent_wire::attest_agent_request::Params {
            data: Some(types::AttestationData {
                r#type: kind.into(),
                payload: payload.into(),
            }),
            params: Some(agent_wire::AgentX509svidParams { csr }),
        };
        let ask = agent_wire::AttestAgentRequest {
            step: Some(attest_agent_request::Step::Params(params)),
        };
        let mut answers = AgentClient::new(self.anonymous().await)
            .attest_agent(tokio_stream::once(ask))
            .await?
            .into_inner();
        match answers.message().await?.unwrap().step.unwrap() {
            attest_agent_response::Step::Result(result) => {
                Ok(IssuedX509Svid::try_from(result.svid.unwrap()).unwrap().svid)
            }
            attest_agent_response::Step::Challenge(_) => panic!("no challenge is needed"),
        }
    }

    async fn join(&self) -> Agent {
        let (token, _) = self.admin.create_token(None, 600).await.unwrap();
        self.join_with(&token).await.unwrap()
    }

    async fn join_with(&self, token: &str) -> Result<Agent, Status> {
        let (key, csr) = key_and_csr();
        let svid = self.attest("join_token", token.as_bytes(), csr).await?;
        Ok(self.agent(svid, key).await)
    }

    async fn agent(&self, svid: X509Svid, key: rcgen::KeyPair) -> Agent {
        let key = PrivateKey::from_pkcs8(key.serialize_der()).unwrap();
        let (id, serial) = (svid.id().clone(), svid.serial().to_owned());
        let identity = TlsIdentity::new(svid, key, self.bundles().await, self.clock.now()).unwrap();
        let cell = IdentityCell::new(identity);
        let tls = mesh_tls::client_config(&cell, self.server_id(), &[b"h2"], self.clock.as_fn());
        Agent {
            id,
            channel: self.channel(tls).await,
            cell,
            serial,
        }
    }

    async fn entry(&self, name: &str, parent: &SpiffeId) -> mesh_identity::Entry {
        self.admin
            .create_entry(&new_entry(name, parent))
            .await
            .unwrap()
    }
}

fn named(id: &SpiffeId) -> crate::registry::EntryFilter {
    crate::registry::EntryFilter {
        spiffe_id: Some(id.clone()),
        ..Default::default()
    }
}

fn new_entry(name: &str, parent: &SpiffeId) -> NewEntry {
    NewEntry {
        id: name.into(),
        selectors: vec!["unix:uid:1".parse().unwrap()],
        ..NewEntry::new(
            format!("spiffe://dev.test/{name}").parse().unwrap(),
            parent.clone(),
        )
    }
}

fn key_and_csr() -> (rcgen::KeyPair, Vec<u8>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .unwrap()
        .der()
        .to_vec();
    (key, csr)
}

async fn issue(agent: &Agent, entry_id: &str, csr: Vec<u8>) -> Result<X509Svid, types::Status> {
    let ask = BatchNewX509svidRequest {
        params: vec![NewX509svidParams {
            entry_id: entry_id.into(),
            csr,
        }],
    };
    let answer = SvidClient::new(agent.channel.clone())
        .batch_new_x509svid(ask)
        .await
        .unwrap()
        .into_inner();
    let result = answer.results.into_iter().next().unwrap();
    match result.svid {
        Some(svid) => Ok(IssuedX509Svid::try_from(svid).unwrap().svid),
        None => Err(result.status.unwrap()),
    }
}

#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// The details as a SPIRE agent reads them.
fn reason(status: &Status) -> Option<Reason> {
    let rpc = RpcStatus::decode(status.details()).unwrap();
    let detail = rpc.details.first()?;
    assert_eq!(
        detail.type_url,
        "type.googleapis.com/spire.api.types.PermissionDeniedDetails"
    );
    assert_eq!(
        (rpc.code, rpc.message.as_str()),
        (status.code() as i32, status.message())
    );
    Some(
        types::PermissionDeniedDetails::decode(detail.value.as_slice())
            .unwrap()
            .reason(),
    )
}

#[tokio::test]
async fn from_token_to_svid_with_a_record_of_each_step() {
    let server = Server::start().await;
    let agent = server.join().await;
    assert!(agent.id.path().starts_with("/spire/agent/join_token/"));
    server.entry("web", &agent.id).await;
    let svid = issue(&agent, "web", key_and_csr().1).await.unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://dev.test/web");
    let issued = server.audit.of("svid.issue");
    assert_eq!(issued[0]["outcome"], "success");
    assert_eq!(issued[0]["object"]["serial"], svid.serial());
    assert_eq!(issued[0]["actor"]["id"], agent.id.as_str());
    assert_eq!(
        server.audit.of("node.attest")[0]["object"]["serial"],
        agent.serial
    );
    let remembered = server
        .stores
        .issued
        .get(svid.serial())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(remembered.agent_id.as_ref(), Some(&agent.id));
}

#[tokio::test]
async fn x509_1_2_5_6_what_is_issued_is_one_uri_san_no_subject_and_a_leaf() {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let server = Server::start().await;
    let agent = server.join().await;
    server.entry("web", &agent.id).await;
    // CA-18: whatever the request asks for, the certificate holds what the entry says.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["evil.test".into()]).unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(
        "spiffe://dev.test/admin".try_into().unwrap(),
    ));
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "root");
    let csr = params.serialize_request(&key).unwrap().der().to_vec();
    let svid = issue(&agent, "web", csr).await.unwrap();
    assert_eq!(svid.chain().len(), 1, "the root is never sent");
    let (_, leaf) = X509Certificate::from_der(svid.leaf()).unwrap();
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(
        san.value.general_names,
        [GeneralName::URI("spiffe://dev.test/web")]
    );
    assert!(san.critical && leaf.subject().iter().next().is_none());
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(
        usage.critical
            && usage.value.digital_signature()
            && !usage.value.key_cert_sign()
            && !usage.value.crl_sign()
    );
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.code_signing);
    assert!(leaf.raw_serial().len() <= 20 && leaf.raw_serial().len() >= 8);
}

#[tokio::test]
async fn t_22_a_join_token_works_once_also_when_many_come_at_the_same_time() {
    let server = Arc::new(Server::start().await);
    let (token, _) = server.admin.create_token(None, 600).await.unwrap();
    let attempts: Vec<_> = (0..16)
        .map(|_| {
            let (server, token) = (server.clone(), token.clone());
            tokio::spawn(async move {
                server
                    .attest("join_token", token.as_bytes(), key_and_csr().1)
                    .await
            })
        })
        .collect();
    let mut good = 0;
    for attempt in attempts {
        match attempt.await.unwrap() {
            Ok(_) => good += 1,
            Err(status) => assert_eq!(status.code(), Code::InvalidArgument),
        }
    }
    assert_eq!(good, 1);
    assert!(
        server
            .audit
            .of("node.attest")
            .iter()
            .filter(|r| r["code"] == "FNL1112")
            .count()
            == 15
    );
}

#[tokio::test]
async fn unknown_and_expired_tokens_look_alike_outside_and_differ_in_the_record() {
    let server = Server::start().await;
    let (token, _) = server.admin.create_token(None, 1).await.unwrap();
    server.clock.advance(Duration::from_secs(2));
    let expired = server
        .attest("join_token", token.as_bytes(), key_and_csr().1)
        .await
        .unwrap_err();
    let unknown = server
        .attest("join_token", b"never-made", key_and_csr().1)
        .await
        .unwrap_err();
    assert_eq!(
        (expired.code(), expired.message()),
        (unknown.code(), unknown.message())
    );
    let codes: Vec<_> = server
        .audit
        .of("node.attest")
        .iter()
        .map(|r| r["code"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(codes, ["FNL1113", "FNL1111"]);
}

#[tokio::test]
async fn attestation_without_its_parts_is_refused_as_in_spire() {
    let server = Server::start().await;
    let csr = || key_and_csr().1;
    for (kind, payload, csr, code) in [
        ("", &b"x"[..], csr(), Code::InvalidArgument),
        ("join_token", b"", csr(), Code::InvalidArgument),
        ("join_token", b"x", vec![], Code::InvalidArgument),
        ("join_token", b"x", vec![1, 2, 3], Code::InvalidArgument),
        ("join_token", b"../../server", csr(), Code::InvalidArgument),
        ("tpm", b"x", csr(), Code::FailedPrecondition),
        ("k8s_psat", b"{}", csr(), Code::FailedPrecondition),
    ] {
        assert_eq!(
            server.attest(kind, payload, csr).await.unwrap_err().code(),
            code,
            "{kind}"
        );
    }
}

#[tokio::test]
async fn a_bad_request_does_not_use_the_token_up() {
    let server = Server::start().await;
    let (token, _) = server.admin.create_token(None, 600).await.unwrap();
    assert!(
        server
            .attest("join_token", token.as_bytes(), vec![0; 20])
            .await
            .is_err()
    );
    assert!(server.join_with(&token).await.is_ok());
}

#[tokio::test]
async fn a_token_with_a_name_makes_an_alias_below_the_agent_and_evicting_removes_it() {
    let server = Server::start().await;
    let name: SpiffeId = "spiffe://dev.test/node".parse().unwrap();
    let (token, _) = server.admin.create_token(Some(&name), 600).await.unwrap();
    let agent = server.join_with(&token).await.unwrap();
    let alias = server.admin.entries(&named(&name)).await.unwrap();
    assert_eq!((alias.len(), &alias[0].parent_id), (1, &agent.id));
    server.entry("web", &name).await;
    assert!(
        issue(&agent, "web", key_and_csr().1).await.is_ok(),
        "what is below its name is the agent's"
    );
    let admin = AgentClient::new(admin_channel(&server).await);
    admin
        .clone()
        .delete_agent(agent_wire::DeleteAgentRequest {
            id: Some((&agent.id).into()),
        })
        .await
        .unwrap();
    assert!(
        server
            .admin
            .entries(&named(&name))
            .await
            .unwrap()
            .is_empty()
    );
}

async fn admin_channel(server: &Server) -> Channel {
    let path = server.socket();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            tokio::net::UnixStream::connect(path)
                .await
                .map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://x")
        .connect_with_connector(connector)
        .await
        .unwrap()
}

#[tokio::test]
async fn ca_14_another_agents_entry_is_not_found_and_on_record() {
    let server = Server::start().await;
    let (a, b) = (server.join().await, server.join().await);
    server.entry("web", &a.id).await;
    let status = issue(&b, "web", key_and_csr().1).await.unwrap_err();
    assert_eq!(
        (status.code, status.message.as_str()),
        (Code::NotFound as i32, "entry not found or not authorized")
    );
    // A denial grants nothing, so its record is written without making the caller wait for it.
    for _ in 0..100 {
        if server
            .audit
            .of("svid.issue")
            .iter()
            .any(|record| record["code"] == "FNL1220")
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the denial is not on record");
}

#[tokio::test]
async fn each_item_of_a_batch_has_its_own_status_in_order() {
    let server = Server::start().await;
    let agent = server.join().await;
    server.entry("web", &agent.id).await;
    let params = |entry_id: &str, csr| NewX509svidParams {
        entry_id: entry_id.into(),
        csr,
    };
    let ask = BatchNewX509svidRequest {
        params: vec![
            params("", key_and_csr().1),
            params("web", key_and_csr().1),
            params("web", vec![]),
            params("nope", key_and_csr().1),
            params("web", vec![9]),
        ],
    };
    let mut client = SvidClient::new(agent.channel.clone());
    let results = client
        .batch_new_x509svid(ask)
        .await
        .unwrap()
        .into_inner()
        .results;
    let codes: Vec<i32> = results
        .iter()
        .map(|r| r.status.as_ref().unwrap().code)
        .collect();
    let (ok, bad, missing) = (0, Code::InvalidArgument as i32, Code::NotFound as i32);
    assert_eq!(codes, [bad, ok, bad, missing, bad]);
    let empty = client
        .batch_new_x509svid(BatchNewX509svidRequest::default())
        .await
        .unwrap_err();
    assert_eq!(empty.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn ca_21_the_authoritys_own_key_is_not_certified() {
    // The key of an authority is public in its certificate, but nobody else can sign a request with it; the gate behind is tested in `authority`.
    let server = Server::start().await;
    let agent = server.join().await;
    server.entry("web", &agent.id).await;
    let (_, mut csr) = key_and_csr();
    let last = csr.len() - 1;
    csr[last] ^= 1;
    assert_eq!(
        issue(&agent, "web", csr).await.unwrap_err().code,
        Code::InvalidArgument as i32
    );
}

#[tokio::test]
async fn ca_28_when_the_record_cannot_be_written_nothing_is_issued() {
    let server = Server::start().await;
    let agent = server.join().await;
    server.entry("web", &agent.id).await;
    server.audit.fail(true);
    let status = issue(&agent, "web", key_and_csr().1).await.unwrap_err();
    assert_eq!(status.code, Code::Unavailable as i32);
    server.audit.fail(false);
}

#[tokio::test]
async fn t_40_an_agent_that_is_banned_evicted_or_expired_reads_the_exact_reason() {
    let server = Server::start().await;
    let ask = entry_wire::GetAuthorizedEntriesRequest::default;
    let banned = server.join().await;
    let evicted = server.join().await;
    let expired = server.join().await;
    let replaced = server.join().await;
    server
        .stores
        .nodes
        .set_banned(&banned.id, true)
        .await
        .unwrap();
    server.stores.nodes.delete(&evicted.id).await.unwrap();
    let mut node = (*server
        .stores
        .nodes
        .get(&replaced.id)
        .await
        .unwrap()
        .unwrap())
    .clone();
    node.serial = "ab".into();
    server.stores.nodes.attest(node).await.unwrap();
    for (agent, wanted) in [
        (&banned, Reason::AgentBanned),
        (&evicted, Reason::AgentNotAttested),
        (&replaced, Reason::AgentNotActive),
    ] {
        let status = EntryClient::new(agent.channel.clone())
            .get_authorized_entries(ask())
            .await
            .unwrap_err();
        assert_eq!(
            (status.code(), reason(&status)),
            (Code::PermissionDenied, Some(wanted))
        );
    }
    server.clock.advance(Duration::from_secs(3601));
    let status = EntryClient::new(expired.channel.clone())
        .get_authorized_entries(ask())
        .await
        .unwrap_err();
    assert_eq!(reason(&status), Some(Reason::AgentExpired));
}

#[tokio::test]
async fn a_renewed_certificate_becomes_the_one_in_use_at_its_first_use() {
    let server = Server::start().await;
    let agent = server.join().await;
    let (key, csr) = key_and_csr();
    let renewed = AgentClient::new(agent.channel.clone())
        .renew_agent(agent_wire::RenewAgentRequest {
            params: Some(agent_wire::AgentX509svidParams { csr }),
        })
        .await
        .unwrap()
        .into_inner();
    let svid = IssuedX509Svid::try_from(renewed.svid.unwrap())
        .unwrap()
        .svid;
    let ask = entry_wire::GetAuthorizedEntriesRequest::default;
    EntryClient::new(agent.channel.clone())
        .get_authorized_entries(ask())
        .await
        .unwrap();
    let next = server.agent(svid, key).await;
    EntryClient::new(next.channel.clone())
        .get_authorized_entries(ask())
        .await
        .unwrap();
    let old = EntryClient::new(agent.channel.clone())
        .get_authorized_entries(ask())
        .await
        .unwrap_err();
    assert_eq!(reason(&old), Some(Reason::AgentNotActive));
    assert_eq!(server.audit.of("agent.renew")[0]["outcome"], "success");
}

#[tokio::test]
async fn an_agent_that_can_attest_again_must_not_renew() {
    let server = Server::start().await;
    let agent = server.join().await;
    let mut node = (*server.stores.nodes.get(&agent.id).await.unwrap().unwrap()).clone();
    node.can_reattest = true;
    server.stores.nodes.attest(node).await.unwrap();
    let status = AgentClient::new(agent.channel.clone())
        .renew_agent(agent_wire::RenewAgentRequest {
            params: Some(agent_wire::AgentX509svidParams {
                csr: key_and_csr().1,
            }),
        })
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::PermissionDenied, Some(Reason::AgentMustReattest))
    );
}

/// Calls any RPC with an empty message and says what came of it.
async fn probe(channel: Channel, path: &'static str) -> Code {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let answer = client
        .server_streaming(
            tonic::Request::new(()),
            http::uri::PathAndQuery::from_static(path),
            codec,
        )
        .await;
    match answer {
        Err(status) => status.code(),
        Ok(mut answers) => {
            match tokio::time::timeout(Duration::from_millis(300), answers.get_mut().message())
                .await
            {
                Ok(Err(status)) => status.code(),
                _ => Code::Ok,
            }
        }
    }
}

#[tokio::test]
async fn ca_23_every_rpc_answers_every_kind_of_caller_as_the_table_says() {
    use super::caller::Kind;
    let server = Server::start().await;
    let agent = server.join().await;
    let (admin_agent, other_agent) = (server.join().await, server.join().await);
    let mut admin_entry = new_entry("operator", &admin_agent.id);
    admin_entry.admin = true;
    server.admin.create_entry(&admin_entry).await.unwrap();
    server.entry("nobody", &other_agent.id).await;
    let workload = async |agent: &Agent, entry: &str| {
        let (key, csr) = key_and_csr();
        let svid = issue(agent, entry, csr).await.unwrap();
        server.agent(svid, key).await.channel
    };
    let callers = [
        (Kind::Anonymous, server.anonymous().await),
        (Kind::Agent, agent.channel.clone()),
        (
            Kind::WorkloadAdmin,
            workload(&admin_agent, "operator").await,
        ),
        (Kind::Other, workload(&other_agent, "nobody").await),
        (Kind::LocalAdmin, admin_channel(&server).await),
    ];
    for row in super::permit::TABLE {
        for (kind, channel) in &callers {
            let code = probe(channel.clone(), row.path).await;
            if row.callers.is_empty() {
                assert_eq!(code, Code::Unimplemented, "{kind:?} {}", row.path);
            } else if row.callers.contains(kind) {
                assert_ne!(code, Code::PermissionDenied, "{kind:?} {}", row.path);
                assert_ne!(code, Code::Unimplemented, "{kind:?} {}", row.path);
            } else {
                assert_eq!(code, Code::PermissionDenied, "{kind:?} {}", row.path);
            }
        }
    }
    for path in [
        "/x.Y/Z",
        "/spire.api.server.agent.v1.agent/attestagent",
        "/spire.api.server.agent.v1.Agent/%41ttestAgent",
    ] {
        assert_eq!(
            probe(server.anonymous().await, path).await,
            Code::Unimplemented
        );
    }
    server.admin.agents().await.unwrap(); // its record comes after those of all refusals before it
    let denied = server
        .audit
        .records()
        .iter()
        .filter(|r| r["code"] == "FNL1245")
        .count();
    assert!(denied > 50, "each refusal is on record");
}

#[tokio::test]
async fn the_bundle_is_for_anybody() {
    let server = Server::start().await;
    let wire = BundleClient::new(server.anonymous().await)
        .get_bundle(GetBundleRequest { output_mask: None })
        .await
        .unwrap()
        .into_inner();
    let bundle = CarriedBundle::try_from(wire).unwrap().bundle;
    assert_eq!(bundle, server.admin.bundle().await.unwrap());
}

#[tokio::test]
async fn t_42_creating_the_same_entry_again_returns_the_one_that_is_there() {
    let server = Server::start().await;
    let parent: SpiffeId = "spiffe://dev.test/spire/agent/join_token/x"
        .parse()
        .unwrap();
    server.entry("web", &parent).await;
    let mut client = EntryClient::new(admin_channel(&server).await);
    let mut again = types::Entry::from(&server.admin.entry("web").await.unwrap());
    again.id = String::new();
    let results = client
        .batch_create_entry(entry_wire::BatchCreateEntryRequest {
            entries: vec![again],
            output_mask: None,
        })
        .await
        .unwrap()
        .into_inner()
        .results;
    assert_eq!(
        results[0].status.as_ref().unwrap().code,
        Code::AlreadyExists as i32
    );
    assert_eq!(results[0].entry.as_ref().unwrap().id, "web");
}

#[tokio::test]
async fn ca_15_reserved_and_foreign_identities_are_refused() {
    let server = Server::start().await;
    let parent: SpiffeId = "spiffe://dev.test/spire/agent/join_token/x"
        .parse()
        .unwrap();
    for id in [
        "spiffe://dev.test/spire/server",
        "spiffe://other.test/web",
        "spiffe://dev.test",
    ] {
        let mut new = new_entry("web", &parent);
        new.spiffe_id = id.parse().unwrap();
        match server.admin.create_entry(&new).await.unwrap_err() {
            ClientError::Refused { grpc, .. } => assert_eq!(grpc, Code::InvalidArgument),
            other => panic!("{other}"),
        }
    }
}

/// The feed of one agent.
struct Feed {
    said: mpsc::Sender<FollowRequest>,
    updates: tonic::Streaming<proto::finial::feed::v1::FeedUpdate>,
    assembly: Assembly,
}

impl Feed {
    async fn open(agent: &Agent, epoch: &str, resume_after: u64) -> Self {
        let (said, receiver) = mpsc::channel(16);
        let hello = Hello {
            server_epoch: epoch.into(),
            resume_after,
            agent_version: "1.2.3".into(),
        };
        said.send(FollowRequest {
            message: Some(follow_request::Message::Hello(hello)),
        })
        .await
        .unwrap();
        let updates = FeedClient::new(agent.channel.clone())
            .follow(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Self {
            said,
            updates,
            assembly: Assembly::default(),
        }
    }

    async fn next(&mut self) -> Result<proto::convert::feed::Update, Status> {
        loop {
            let part = tokio::time::timeout(Duration::from_secs(10), self.updates.message())
                .await
                .expect("an update comes")?
                .expect("the stream goes on");
            if let Some(update) = self.assembly.add(part, &own()).unwrap() {
                return Ok(update);
            }
        }
    }
}

#[tokio::test]
async fn an_entry_that_is_created_reaches_its_agent_by_push_and_can_be_issued_at_once() {
    let server = Server::start().await;
    let agent = server.join().await;
    let mut feed = Feed::open(&agent, "", 0).await;
    let first = feed.next().await.unwrap();
    assert!(first.snapshot && first.entries.is_empty() && first.bundles.len() == 1);
    server.entry("web", &agent.id).await;
    let update = feed.next().await.unwrap();
    assert!(!update.snapshot);
    assert_eq!(update.entries[0].id.as_str(), "web");
    assert!(issue(&agent, "web", key_and_csr().1).await.is_ok());
    server.admin.delete_entry("web").await.unwrap();
    assert_eq!(
        feed.next().await.unwrap().removed_entries[0].as_str(),
        "web"
    );
    assert_eq!(
        issue(&agent, "web", key_and_csr().1)
            .await
            .unwrap_err()
            .code,
        Code::NotFound as i32
    );
}

#[tokio::test]
async fn an_agent_resumes_where_it_was() {
    let server = Server::start().await;
    let agent = server.join().await;
    let at = Feed::open(&agent, "", 0).await.next().await.unwrap().at;
    server.entry("web", &agent.id).await;
    let resumed = Feed::open(&agent, &at.epoch, at.revision)
        .await
        .next()
        .await
        .unwrap();
    assert!(!resumed.snapshot && resumed.entries.len() == 1);
    let other = Feed::open(&agent, "another-epoch", at.revision)
        .await
        .next()
        .await
        .unwrap();
    assert!(other.snapshot);
}

#[tokio::test]
async fn a_ban_ends_the_stream_with_its_reason() {
    let server = Server::start().await;
    let agent = server.join().await;
    let mut feed = Feed::open(&agent, "", 0).await;
    let first = feed.next().await.unwrap();
    let ack = Ack {
        revision: first.at.revision,
        refused_because: String::new(),
    };
    feed.said
        .send(FollowRequest {
            message: Some(follow_request::Message::Ack(ack)),
        })
        .await
        .unwrap();
    AgentClient::new(admin_channel(&server).await)
        .ban_agent(agent_wire::BanAgentRequest {
            id: Some((&agent.id).into()),
        })
        .await
        .unwrap();
    let status = feed.next().await.unwrap_err();
    assert_eq!(reason(&status), Some(Reason::AgentBanned));
    assert_eq!(
        server.audit.of("agent.ban")[0]["object"]["name"],
        agent.id.as_str()
    );
}

#[tokio::test]
async fn a_stream_that_does_not_begin_with_hello_is_refused() {
    let server = Server::start().await;
    let agent = server.join().await;
    let ack = Ack {
        revision: 1,
        refused_because: String::new(),
    };
    let mut updates = FeedClient::new(agent.channel.clone())
        .follow(tokio_stream::once(FollowRequest {
            message: Some(follow_request::Message::Ack(ack)),
        }))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        updates.message().await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn sync_gives_everything_at_once_and_refuses_what_spire_refuses() {
    let server = Server::start().await;
    let agent = server.join().await;
    server.entry("web", &agent.id).await;
    let sync = async |ask: entry_wire::SyncAuthorizedEntriesRequest| {
        let mut answers = EntryClient::new(agent.channel.clone())
            .sync_authorized_entries(tokio_stream::once(ask))
            .await?
            .into_inner();
        answers.message().await.map(Option::unwrap)
    };
    let all = sync(entry_wire::SyncAuthorizedEntriesRequest::default())
        .await
        .unwrap();
    assert!(all.entries.len() == 1 && !all.more && all.entry_revisions.is_empty());
    let ids = entry_wire::SyncAuthorizedEntriesRequest {
        ids: vec!["web".into()],
        ..Default::default()
    };
    assert_eq!(sync(ids).await.unwrap_err().code(), Code::InvalidArgument);
    let masked = entry_wire::SyncAuthorizedEntriesRequest {
        output_mask: Some(types::EntryMask::default()),
        ..Default::default()
    };
    assert_eq!(
        sync(masked).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn the_servers_own_svid_is_that_of_the_server() {
    let server = Server::start().await;
    let agent = server.join().await;
    assert_eq!(agent.cell.current().id(), &agent.id);
    // The handshake in `attest` demanded exactly spiffe://dev.test/spire/server.
    let wrong = Authorizer::exactly("spiffe://dev.test/web".parse().unwrap());
    let tls = mesh_tls::bootstrap_client_config(
        server.bundles().await,
        wrong,
        &[b"h2"],
        server.clock.as_fn(),
    );
    let stream = TcpStream::connect(&server.address).await.unwrap();
    assert!(mesh_tls::connect(&tls, stream).await.is_err());
}

#[tokio::test]
async fn an_authority_is_in_the_bundle_before_it_signs_and_each_transition_is_on_record() {
    let server = Server::with(|config| {
        config.lifetimes.x509_authority = mesh_runtime::config::HumanDuration::from_secs(120);
        config.lifetimes.x509_svid = mesh_runtime::config::HumanDuration::from_secs(20);
        config.lifetimes.agent_svid = mesh_runtime::config::HumanDuration::from_secs(20);
    })
    .await;
    let recorded = async |action: &str| {
        for _ in 0..200 {
            if !server.audit.of(action).is_empty() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    };
    let first = server.admin.bundle().await.unwrap();
    assert_eq!(first.x509_authorities().len(), 1);
    server.clock.advance(Duration::from_secs(80));
    assert!(recorded("authority.prepare").await);
    assert!(
        server.audit.of("authority.activate").is_empty(),
        "it does not sign yet"
    );
    let both = server.admin.bundle().await.unwrap();
    assert_eq!(both.x509_authorities().len(), 2);
    assert!(both.sequence() > first.sequence());
    server.clock.advance(Duration::from_secs(25));
    assert!(recorded("authority.activate").await);
    assert!(recorded("authority.supersede").await);
}
