//! A small but true certificate authority for the tests: real mutual TLS, real signatures, the feed, and faults on demand.
//! Trusts the tests. Never used outside of them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures::{Stream, StreamExt};
use mesh_identity::{
    Bundle, BundleSet, SpiffeId, TrustDomain, X509Authority, X509Svid,
    test_util::jwt::{JwtSigner, claims},
};
use mesh_runtime::{
    accept::{Incoming, Limits, Permit},
    tasks::StopSource,
};
use mesh_tls::{
    Authorizer, ClientPolicy, IdentityCell, PrivateKey, ServerConfig, ServerStream, TlsIdentity,
};
use proto::{
    finial::feed::v1::{
        FeedUpdate, FollowRequest, Hello,
        feed_server::{Feed, FeedServer},
        follow_request::Message,
    },
    spire::api::{
        server::{
            agent::v1::{
                self as agent,
                agent_server::{Agent, AgentServer},
            },
            svid::v1::{
                self as svid,
                svid_server::{Svid, SvidServer},
            },
        },
        types::{self, permission_denied_details::Reason},
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{broadcast, mpsc},
};
use tonic::{Request, Response, Status, Streaming, transport::server::Connected};

/// The trust domain of the tests.
pub(crate) const DOMAIN: &str = "dev.test";

/// A root with its key.
pub(crate) struct Root {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) der: CertificateDer<'static>,
}

impl Root {
    pub(crate) fn new(domain: &str) -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = params(&format!("spiffe://{domain}"), Duration::from_secs(86_400));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let der = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            der,
        }
    }

    pub(crate) fn sign(
        &self,
        id: &str,
        dns: &[String],
        ttl: Duration,
        key: &impl PublicKeyData,
    ) -> CertificateDer<'static> {
        let mut params = params(id, ttl);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names.extend(
            dns.iter()
                .map(|name| SanType::DnsName(name.as_str().try_into().unwrap())),
        );
        params.signed_by(key, &self.issuer).unwrap().der().clone()
    }
}

fn params(id: &str, ttl: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Finial test");
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    let now = now();
    params.not_before = (now - Duration::from_secs(10)).into();
    params.not_after = (now + ttl).into();
    params
}

#[expect(
    clippy::disallowed_methods,
    reason = "the tests' CA signs for the real clock of real TLS handshakes"
)]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// What the CA does wrong on purpose, and how long its certificates live.
pub(crate) struct Knobs {
    pub(crate) svid_ttl: Duration,
    pub(crate) agent_ttl: Duration,
    pub(crate) reattestable: bool,
    /// Answers for an entry: refused with this status code.
    pub(crate) refuse_entries: BTreeMap<String, i32>,
    /// Certificates for an entry come out wrong.
    pub(crate) spoil: BTreeMap<String, Spoil>,
    /// The whole batch is refused when it holds this entry.
    pub(crate) poison_entry: Option<String>,
    /// Signing takes this long.
    pub(crate) delay: Duration,
    /// Every call of an agent is denied with this reason.
    pub(crate) deny: Option<Reason>,
    /// New feed streams are refused.
    pub(crate) no_feed: bool,
}

#[derive(Clone, Copy)]
pub(crate) enum Spoil {
    OtherId,
    OtherKey,
    OtherRoot,
    Expired,
    Garbage,
}

/// What happened.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) attested: Vec<String>,
    pub(crate) evidence: Vec<types::AttestationData>,
    pub(crate) renewed: usize,
    pub(crate) hellos: Vec<Hello>,
    pub(crate) acks: Vec<(u64, String)>,
    pub(crate) signed: Vec<String>,
    pub(crate) keys: BTreeSet<Vec<u8>>,
    pub(crate) batches: Vec<usize>,
    pub(crate) tokens: Vec<String>,
}

struct State {
    /// The roots but the first are tainted.
    tainted: std::sync::atomic::AtomicBool,
    roots: Mutex<Vec<Arc<Root>>>,
    jwt: JwtSigner,
    tokens: Mutex<BTreeSet<String>>,
    knobs: Mutex<Knobs>,
    seen: Mutex<Seen>,
    content: Mutex<Content>,
    updates: broadcast::Sender<FeedUpdate>,
}

struct Content {
    revision: u64,
    entries: BTreeMap<String, types::Entry>,
    foreign: Vec<types::Bundle>,
    bundle_sequence: u64,
}

/// The running CA.
#[derive(Clone)]
pub(crate) struct Ca {
    state: Arc<State>,
    address: SocketAddr,
    cell: IdentityCell,
    stop: Arc<Mutex<StopSource>>,
}

impl Ca {
    pub(crate) async fn start() -> Self {
        mesh_tls::install_default_provider();
        let root = Arc::new(Root::new(DOMAIN));
        let cell = IdentityCell::new(server_identity(&[Arc::clone(&root)]));
        let knobs = Knobs {
            svid_ttl: Duration::from_secs(3600),
            agent_ttl: Duration::from_secs(3600),
            reattestable: false,
            refuse_entries: BTreeMap::new(),
            spoil: BTreeMap::new(),
            poison_entry: None,
            delay: Duration::ZERO,
            deny: None,
            no_feed: false,
        };
        let state = Arc::new(State {
            tainted: false.into(),
            roots: Mutex::new(vec![root]),
            jwt: JwtSigner::new("test-key"),
            tokens: Mutex::default(),
            knobs: Mutex::new(knobs),
            seen: Mutex::default(),
            content: Mutex::new(Content {
                revision: 1,
                entries: BTreeMap::new(),
                foreign: Vec::new(),
                bundle_sequence: 1,
            }),
            updates: broadcast::channel(64).0,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ca = Self {
            state,
            address,
            cell,
            stop: Arc::default(),
        };
        ca.serve(listener);
        ca
    }

    fn serve(&self, listener: TcpListener) {
        let stop = StopSource::new();
        *self.stop.lock().unwrap() = stop.clone();
        let config = mesh_tls::server_config(
            &self.cell,
            ClientPolicy::Optional(Authorizer::any_verified()),
            &[b"h2"],
            Arc::new(now),
        );
        let incoming = Incoming::new(
            listener,
            "test-ca",
            Limits::default(),
            stop.stop(),
            move |stream, permit| shake_hands(Arc::clone(&config), stream, permit),
        );
        // Streams end when the incoming one does only if they are cut: a CA that goes away does not say goodbye.
        let cut = stop.stop();
        let incoming = incoming.map(move |io| {
            io.map(|io: Io| Io {
                cut: Box::pin(cut.cancelled_owned()),
                ..io
            })
        });
        let router = tonic::transport::Server::builder()
            .add_service(AgentServer::new(self.clone()))
            .add_service(SvidServer::new(self.clone()))
            .add_service(FeedServer::new(self.clone()));
        tokio::spawn(router.serve_with_incoming(incoming));
    }

    /// Goes away: connections break, the port is closed.
    pub(crate) async fn down(&self) {
        self.stop.lock().unwrap().trigger();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    /// Comes back on the same port.
    pub(crate) async fn up(&self) {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.serve(listener);
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn knobs(&self) -> MutexGuard<'_, Knobs> {
        self.state.knobs.lock().unwrap()
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.state.seen.lock().unwrap()
    }

    pub(crate) fn token(&self, token: &str) {
        self.state.tokens.lock().unwrap().insert(token.into());
    }

    pub(crate) fn bundle(&self) -> Bundle {
        let roots = self.state.roots.lock().unwrap().clone();
        let tainted = self.state.tainted.load(Ordering::Relaxed);
        let marked = bundle_of(&roots).x509_authorities().to_vec().into_iter();
        let marked = marked
            .enumerate()
            .map(|(n, root)| root.with_tainted(tainted && n > 0));
        Bundle::new(DOMAIN.parse().unwrap(), marked)
            .unwrap()
            .with_jwt_authorities([self.state.jwt.authority()])
            .unwrap()
            .with_sequence(self.state.content.lock().unwrap().bundle_sequence)
    }

    /// The key that signs tokens.
    pub(crate) fn jwt(&self) -> &JwtSigner {
        &self.state.jwt
    }

    /// A foreign trust domain that only has this JWT authority.
    pub(crate) fn foreign_jwt(&self, domain: &str, signer: &JwtSigner) {
        let bundle = types::Bundle::from(&signer.bundle(domain));
        self.change(|content| content.foreign.push(bundle));
    }

    /// A new root that signs from now on; the old one stays trusted or not.
    pub(crate) fn rotate_root(&self, keep_old: bool) {
        let fresh = Arc::new(Root::new(DOMAIN));
        let mut roots = self.state.roots.lock().unwrap();
        if !keep_old {
            roots.clear();
        }
        roots.insert(0, fresh);
        self.cell.publish(server_identity(&roots));
        drop(roots);
        self.change(|content| content.bundle_sequence += 1);
    }

    /// Marks every root but the one that signs.
    pub(crate) fn taint_old_roots(&self) {
        self.state.tainted.store(true, Ordering::Relaxed);
        self.change(|content| content.bundle_sequence += 1);
    }

    pub(crate) fn entry(&self, id: &str, path: &str, selectors: &[&str]) {
        self.entry_with(id, path, selectors, |_| {});
    }

    pub(crate) fn entry_with(
        &self,
        id: &str,
        path: &str,
        selectors: &[&str],
        change: impl FnOnce(&mut types::Entry),
    ) {
        let spiffe = |path: &str| {
            Some(types::Spiffeid {
                trust_domain: DOMAIN.into(),
                path: path.into(),
            })
        };
        let selectors = selectors.iter().map(|text| {
            let (kind, value) = text.split_once(':').unwrap();
            types::Selector {
                r#type: kind.into(),
                value: value.into(),
            }
        });
        self.change(|content| {
            let mut entry = types::Entry {
                id: id.into(),
                spiffe_id: spiffe(path),
                parent_id: spiffe("/spire/agent/join_token/tests"),
                selectors: selectors.collect(),
                revision_number: i64::try_from(content.revision).unwrap(),
                created_at: 1_700_000_000,
                ..Default::default()
            };
            change(&mut entry);
            content.entries.insert(id.into(), entry);
        });
    }

    /// Many at once, in one update.
    pub(crate) fn entries(&self, all: impl Iterator<Item = (String, String, Vec<String>)>) {
        let spiffe = |path: &str| {
            Some(types::Spiffeid {
                trust_domain: DOMAIN.into(),
                path: path.into(),
            })
        };
        self.change(|content| {
            for (id, path, selectors) in all {
                let selectors = selectors.iter().map(|text| {
                    let (kind, value) = text.split_once(':').unwrap();
                    types::Selector {
                        r#type: kind.into(),
                        value: value.into(),
                    }
                });
                let entry = types::Entry {
                    id: id.clone(),
                    spiffe_id: spiffe(&path),
                    parent_id: spiffe("/spire/agent/join_token/tests"),
                    selectors: selectors.collect(),
                    created_at: 1_700_000_000,
                    ..Default::default()
                };
                content.entries.insert(id, entry);
            }
        });
    }

    pub(crate) fn remove_entry(&self, id: &str) {
        self.change(|content| drop(content.entries.remove(id)));
    }

    pub(crate) fn foreign_bundle(&self, domain: &str) {
        let root = Root::new(domain);
        let bundle = types::Bundle {
            trust_domain: domain.into(),
            x509_authorities: vec![types::X509Certificate {
                asn1: root.der.to_vec(),
                tainted: false,
            }],
            sequence_number: 1,
            ..Default::default()
        };
        self.change(|content| {
            content
                .foreign
                .retain(|bundle| bundle.trust_domain != domain);
            content.foreign.push(bundle);
        });
    }

    pub(crate) fn snapshot(&self) -> FeedUpdate {
        let own = types::Bundle::from(&self.bundle());
        let content = self.state.content.lock().unwrap();
        FeedUpdate {
            server_epoch: "tests".into(),
            revision: content.revision,
            snapshot: true,
            upserted_entries: content.entries.values().cloned().collect(),
            bundles: std::iter::once(own)
                .chain(content.foreign.iter().cloned())
                .collect(),
            ..Default::default()
        }
    }

    /// Sends an update as it is, without remembering it.
    pub(crate) fn send(&self, update: FeedUpdate) {
        self.state.updates.send(update).ok();
    }

    fn change(&self, change: impl FnOnce(&mut Content)) {
        let mut content = self.state.content.lock().unwrap();
        content.revision += 1;
        change(&mut content);
        drop(content);
        self.send(self.snapshot());
    }

    fn active(&self) -> Arc<Root> {
        Arc::clone(&self.state.roots.lock().unwrap()[0])
    }

    fn denied(&self) -> Result<(), Status> {
        let Some(reason) = self.knobs().deny else {
            return Ok(());
        };
        Err(denied(reason))
    }

    fn issue(&self, id: &str, csr: &[u8], ttl: Duration) -> Result<types::X509svid, Status> {
        let key = self.public_key(csr)?;
        self.svid(id, &[], ttl, &key)
    }

    fn public_key(&self, csr: &[u8]) -> Result<rcgen::SubjectPublicKeyInfo, Status> {
        let csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(
            csr.to_vec(),
        ))
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let key = rcgen::SubjectPublicKeyInfo::from_der(&csr.public_key.subject_public_key_info())
            .unwrap();
        if !self
            .seen()
            .keys
            .insert(csr.public_key.subject_public_key_info())
        {
            return Err(Status::invalid_argument("this key was used before"));
        }
        Ok(key)
    }

    fn svid(
        &self,
        id: &str,
        dns: &[String],
        ttl: Duration,
        key: &impl PublicKeyData,
    ) -> Result<types::X509svid, Status> {
        let der = self.active().sign(id, dns, ttl, key);
        let svid =
            X509Svid::parse(vec![der]).map_err(|error| Status::internal(error.to_string()))?;
        Ok(types::X509svid::from(&svid))
    }

    fn spoiled(
        &self,
        spoil: Spoil,
        entry: &types::Entry,
        key: &rcgen::SubjectPublicKeyInfo,
    ) -> types::X509svid {
        let id = id_of(entry);
        let ttl = Duration::from_secs(3600);
        let other_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        match spoil {
            Spoil::OtherId => self
                .svid("spiffe://dev.test/somebody-else", &[], ttl, key)
                .unwrap(),
            Spoil::OtherKey => self.svid(&id, &[], ttl, &other_key).unwrap(),
            Spoil::OtherRoot => {
                let der = Root::new(DOMAIN).sign(&id, &[], ttl, key);
                types::X509svid::from(&X509Svid::parse(vec![der]).unwrap())
            }
            Spoil::Expired => {
                let mut params = params(&id, Duration::ZERO);
                params.is_ca = IsCa::ExplicitNoCa;
                params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
                params.extended_key_usages = vec![
                    ExtendedKeyUsagePurpose::ServerAuth,
                    ExtendedKeyUsagePurpose::ClientAuth,
                ];
                params.not_before = (now() - Duration::from_secs(100)).into();
                params.not_after = (now() - Duration::from_secs(50)).into();
                let der = params
                    .signed_by(key, &self.active().issuer)
                    .unwrap()
                    .der()
                    .clone();
                types::X509svid::from(&X509Svid::parse(vec![der]).unwrap())
            }
            Spoil::Garbage => types::X509svid {
                cert_chain: vec![vec![0x30; 10 * 1024]],
                id: entry.spiffe_id.clone(),
                expires_at: 4_000_000_000,
                hint: String::new(),
            },
        }
    }
}

fn id_of(entry: &types::Entry) -> String {
    entry
        .spiffe_id
        .as_ref()
        .map(|id| format!("spiffe://{}{}", id.trust_domain, id.path))
        .unwrap()
}

pub(crate) fn denied(reason: Reason) -> Status {
    proto::convert::permission_denied("denied", reason)
}

fn bundle_of(roots: &[Arc<Root>]) -> Bundle {
    let domain: TrustDomain = DOMAIN.parse().unwrap();
    let authorities = roots
        .iter()
        .map(|root| X509Authority::parse(root.der.clone()).unwrap())
        .collect::<Vec<_>>();
    Bundle::new(domain, authorities).unwrap()
}

fn server_identity(roots: &[Arc<Root>]) -> TlsIdentity {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let der = roots[0].sign(
        "spiffe://dev.test/spire/server",
        &[],
        Duration::from_secs(3600),
        &key,
    );
    let mut bundles = BundleSet::new();
    bundles.insert(bundle_of(roots));
    let private = PrivateKey::from_pkcs8(key.serialize_der()).unwrap();
    TlsIdentity::new(X509Svid::parse(vec![der]).unwrap(), private, bundles, now()).unwrap()
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Agent for Ca {
    type AttestAgentStream = Answers<agent::AttestAgentResponse>;

    async fn attest_agent(
        &self,
        request: Request<Streaming<agent::AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        self.denied()?;
        let ask = request
            .into_inner()
            .message()
            .await?
            .and_then(|ask| ask.step);
        let Some(agent::attest_agent_request::Step::Params(params)) = ask else {
            return Err(Status::invalid_argument("no params"));
        };
        let (data, csr) = (params.data.unwrap(), params.params.unwrap().csr);
        self.seen().evidence.push(data.clone());
        let id = match data.r#type.as_str() {
            "join_token" => {
                let token = String::from_utf8(data.payload).unwrap();
                if !self.state.tokens.lock().unwrap().remove(&token) {
                    return Err(Status::invalid_argument(
                        "failed to attest: join token does not exist or has already been used",
                    ));
                }
                format!("spiffe://{DOMAIN}/spire/agent/join_token/{token}")
            }
            "k8s_psat" => format!("spiffe://{DOMAIN}/spire/agent/k8s_psat/kind/node-uid"),
            other => {
                return Err(Status::failed_precondition(format!(
                    "no attestor for {other}"
                )));
            }
        };
        let ttl = self.knobs().agent_ttl;
        let reattestable = self.knobs().reattestable;
        let svid = self.issue(&id, &csr, ttl)?;
        self.seen().attested.push(id);
        let result = agent::attest_agent_response::Result {
            svid: Some(svid),
            reattestable,
        };
        let answer = agent::AttestAgentResponse {
            step: Some(agent::attest_agent_response::Step::Result(result)),
        };
        Ok(Response::new(Box::pin(futures::stream::iter([Ok(answer)]))))
    }

    async fn renew_agent(
        &self,
        request: Request<agent::RenewAgentRequest>,
    ) -> Result<Response<agent::RenewAgentResponse>, Status> {
        self.denied()?;
        let id = caller(&request)?;
        let csr = request.into_inner().params.unwrap().csr;
        let ttl = self.knobs().agent_ttl;
        let svid = self.issue(id.as_str(), &csr, ttl)?;
        self.seen().renewed += 1;
        Ok(Response::new(agent::RenewAgentResponse {
            svid: Some(svid),
        }))
    }

    async fn count_agents(
        &self,
        _: Request<agent::CountAgentsRequest>,
    ) -> Result<Response<agent::CountAgentsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_agents(
        &self,
        _: Request<agent::ListAgentsRequest>,
    ) -> Result<Response<agent::ListAgentsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_agent(
        &self,
        _: Request<agent::GetAgentRequest>,
    ) -> Result<Response<types::Agent>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn delete_agent(
        &self,
        _: Request<agent::DeleteAgentRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn ban_agent(&self, _: Request<agent::BanAgentRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn create_join_token(
        &self,
        _: Request<agent::CreateJoinTokenRequest>,
    ) -> Result<Response<types::JoinToken>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn post_status(
        &self,
        _: Request<agent::PostStatusRequest>,
    ) -> Result<Response<agent::PostStatusResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl Svid for Ca {
    async fn batch_new_x509svid(
        &self,
        request: Request<svid::BatchNewX509svidRequest>,
    ) -> Result<Response<svid::BatchNewX509svidResponse>, Status> {
        self.denied()?;
        caller(&request)?;
        let delay = self.knobs().delay;
        tokio::time::sleep(delay).await;
        let asks = request.into_inner().params;
        self.seen().batches.push(asks.len());
        if self
            .knobs()
            .poison_entry
            .as_ref()
            .is_some_and(|poison| asks.iter().any(|ask| ask.entry_id == *poison))
        {
            return Err(Status::invalid_argument("one of these I do not like"));
        }
        let results = asks.into_iter().map(|ask| {
            let (refused, spoil, ttl) = {
                let knobs = self.knobs();
                (
                    knobs.refuse_entries.get(&ask.entry_id).copied(),
                    knobs.spoil.get(&ask.entry_id).copied(),
                    knobs.svid_ttl,
                )
            };
            let entry = self
                .state
                .content
                .lock()
                .unwrap()
                .entries
                .get(&ask.entry_id)
                .cloned();
            let outcome = match (entry, refused) {
                (None, _) => Err(Status::not_found("entry not found or not authorized")),
                (_, Some(code)) => Err(Status::new(code.into(), "refused by the test")),
                (Some(entry), None) => self.public_key(&ask.csr).and_then(|key| {
                    let ttl = match entry.x509_svid_ttl {
                        0 => ttl,
                        seconds => Duration::from_secs(u64::try_from(seconds).unwrap()),
                    };
                    match spoil {
                        Some(spoil) => Ok(self.spoiled(spoil, &entry, &key)),
                        None => self.svid(&id_of(&entry), &entry.dns_names, ttl, &key),
                    }
                }),
            };
            match outcome {
                Ok(svid) => {
                    self.seen().signed.push(ask.entry_id);
                    let status = Some(types::Status {
                        code: 0,
                        message: "OK".into(),
                    });
                    svid::batch_new_x509svid_response::Result {
                        status,
                        svid: Some(svid),
                    }
                }
                Err(status) => {
                    let status = types::Status {
                        code: status.code().into(),
                        message: status.message().into(),
                    };
                    svid::batch_new_x509svid_response::Result {
                        status: Some(status),
                        svid: None,
                    }
                }
            }
        });
        Ok(Response::new(svid::BatchNewX509svidResponse {
            results: results.collect(),
        }))
    }

    async fn mint_x509svid(
        &self,
        _: Request<svid::MintX509svidRequest>,
    ) -> Result<Response<svid::MintX509svidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn mint_jwtsvid(
        &self,
        _: Request<svid::MintJwtsvidRequest>,
    ) -> Result<Response<svid::MintJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn mint_witsvid(
        &self,
        _: Request<svid::MintWitsvidRequest>,
    ) -> Result<Response<svid::MintWitsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn new_jwtsvid(
        &self,
        request: Request<svid::NewJwtsvidRequest>,
    ) -> Result<Response<svid::NewJwtsvidResponse>, Status> {
        self.denied()?;
        caller(&request)?;
        let ask = request.into_inner();
        if let Some(code) = self.knobs().refuse_entries.get(&ask.entry_id) {
            return Err(Status::new((*code).into(), "refused"));
        }
        let entries = &self.state.content.lock().unwrap().entries;
        let entry = entries.get(&ask.entry_id);
        let entry = entry.ok_or_else(|| Status::not_found("no such entry"))?;
        let iat = now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let mut said = claims(&id_of(entry), "");
        said["aud"] = ask.audience.clone().into();
        said["iat"] = iat.as_secs().into();
        said["exp"] = (iat.as_secs() + 300).into();
        let signer = &self.state.jwt;
        self.seen().tokens.push(ask.entry_id);
        let token = signer.sign(&signer.header(), &said);
        Ok(Response::new(svid::NewJwtsvidResponse {
            svid: Some(types::Jwtsvid {
                token,
                ..Default::default()
            }),
        }))
    }
    async fn batch_new_witsvid(
        &self,
        _: Request<svid::BatchNewWitsvidRequest>,
    ) -> Result<Response<svid::BatchNewWitsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn new_downstream_x509ca(
        &self,
        _: Request<svid::NewDownstreamX509caRequest>,
    ) -> Result<Response<svid::NewDownstreamX509caResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl Feed for Ca {
    type FollowStream = Answers<FeedUpdate>;

    async fn follow(
        &self,
        request: Request<Streaming<FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        self.denied()?;
        if self.knobs().no_feed {
            return Err(Status::unavailable("not now"));
        }
        caller(&request)?;
        let mut asks = request.into_inner();
        let Some(Message::Hello(hello)) = asks.message().await?.and_then(|ask| ask.message) else {
            return Err(Status::invalid_argument("no hello"));
        };
        let mut changes = self.state.updates.subscribe();
        let first = self.snapshot();
        let up_to_date =
            hello.server_epoch == first.server_epoch && hello.resume_after == first.revision;
        self.seen().hellos.push(hello);
        let (tx, rx) = mpsc::channel(16);
        let ca = self.clone();
        tokio::spawn(async move {
            let again = FeedUpdate {
                server_epoch: first.server_epoch.clone(),
                revision: first.revision,
                ..Default::default()
            };
            let mut queue: VecDeque<_> = [if up_to_date { again } else { first }].into();
            loop {
                while let Some(update) = queue.pop_front() {
                    if tx.send(Ok(update)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    update = changes.recv() => match update {
                        Ok(update) => queue.push_back(update),
                        Err(_) => return,
                    },
                    ask = asks.message() => match ask {
                        Ok(Some(FollowRequest { message: Some(Message::Ack(ack)) })) => {
                            ca.seen().acks.push((ack.revision, ack.refused_because));
                        }
                        Ok(Some(_)) => return,
                        // The agent has closed its side.
                        Ok(None) | Err(_) => return,
                    },
                    () = tx.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(
            tokio_stream::wrappers::ReceiverStream::new(rx),
        )))
    }
}

fn caller<T>(request: &Request<T>) -> Result<SpiffeId, Status> {
    request
        .extensions()
        .get::<Option<SpiffeId>>()
        .cloned()
        .flatten()
        .ok_or_else(|| Status::unauthenticated("no certificate"))
}

async fn shake_hands(
    config: Arc<ServerConfig>,
    stream: TcpStream,
    permit: Permit,
) -> Result<Io, io::Error> {
    let (stream, peer) = mesh_tls::accept(&config, stream)
        .await
        .map_err(io::Error::other)?;
    Ok(Io {
        stream,
        peer: peer.map(|peer| peer.id),
        cut: Box::pin(std::future::pending()),
        _permit: permit,
    })
}

struct Io {
    stream: ServerStream<TcpStream>,
    peer: Option<SpiffeId>,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
    _permit: Permit,
}

impl Connected for Io {
    type ConnectInfo = Option<SpiffeId>;
    fn connect_info(&self) -> Option<SpiffeId> {
        self.peer.clone()
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
