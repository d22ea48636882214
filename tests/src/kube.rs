//! A real kube-apiserver on a real etcd, as plain processes on loopback, one rig per test run.
//! Plays kubelet where a test needs one: nodes, pods and pod-bound tokens are made here.
//! Never reads the user's kubeconfig: a real cluster may be behind it.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use kube::{Client, Config, config::Kubeconfig};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

use crate::{env, eventually};

/// The issuer that the rig's API server puts into its tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Where ClusterSPIFFEIDs are.
const RULES: &str = "/apis/spire.spiffe.io/v1alpha1/clusterspiffeids";

/// A running API server, stopped when dropped.
pub struct Rig {
    dir: tempfile::TempDir,
    etcd: Child,
    apiserver: Child,
    client: Client,
    pki: Pki,
    port: u16,
}

impl Rig {
    /// Starts a rig from the folder named by `KUBEBUILDER_ASSETS`, or the cache of `tests/rig/build.sh`.
    /// `None`, with the reason printed, where the programs are missing; a panic where that happens in CI.
    pub async fn start() -> Option<Self> {
        mesh_tls::install_default_provider(); // the client takes the process's
        let Some(assets) = assets() else {
            let reason = "skipped: no etcd and kube-apiserver. Get them: \
                          KUBEBUILDER_ASSETS=$(tests/rig/build.sh) cargo test -p mesh-tests";
            assert!(
                env::read("CI").is_none(),
                "in CI the rig must be there; {reason}"
            );
            eprintln!("{reason}");
            return None;
        };
        for attempt in 1..=3 {
            // A port may be taken between our look and the server's bind.
            match Self::try_start(&assets).await {
                Ok(rig) => return Some(rig),
                Err(log) if attempt == 3 || !log.contains("address already in use") => {
                    panic!("the rig did not start:\n{log}")
                }
                Err(_) => {}
            }
        }
        unreachable!("the loop returns or panics")
    }

    async fn try_start(assets: &Path) -> Result<Self, String> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let pki = Pki::make(dir.path());
        let (etcd_port, port) = (free_port(), free_port());
        let etcd_url = format!("http://127.0.0.1:{etcd_port}");
        let etcd = spawn(
            assets.join("etcd"),
            dir.path().join("etcd.log"),
            &[
                format!("--data-dir={}", dir.path().join("etcd").display()),
                "--unsafe-no-fsync".into(),
                "--listen-peer-urls=http://127.0.0.1:0".into(),
                format!("--listen-client-urls={etcd_url}"),
                format!("--advertise-client-urls={etcd_url}"),
            ],
        );
        let file = |name: &str| dir.path().join(name).display().to_string();
        let log = dir.path().join("kube-apiserver.log");
        let apiserver = spawn(
            assets.join("kube-apiserver"),
            log.clone(),
            &[
                format!("--etcd-servers={etcd_url}"),
                "--bind-address=127.0.0.1".into(),
                "--advertise-address=127.0.0.1".into(),
                format!("--secure-port={port}"),
                format!("--tls-cert-file={}", file("apiserver.crt")),
                format!("--tls-private-key-file={}", file("apiserver.key")),
                format!("--client-ca-file={}", file("ca.crt")),
                format!("--service-account-issuer={ISSUER}"),
                format!("--service-account-signing-key-file={}", file("sa.key")),
                format!("--service-account-key-file={}", file("sa.pub")),
                "--service-cluster-ip-range=10.0.0.0/24".into(),
                "--endpoint-reconciler-type=none".into(),
                "--authorization-mode=Node,RBAC".into(),
                "--enable-admission-plugins=NodeRestriction".into(),
            ],
        );
        let admin = pki.kubeconfig(port, "rig-admin", &["system:masters"]);
        fs::write(dir.path().join("admin.kubeconfig"), &admin).expect("the kubeconfig is written");
        let client = client(&admin).await;
        let mut rig = Self {
            dir,
            etcd,
            apiserver,
            client,
            pki,
            port,
        };
        let ready = eventually::within(Duration::from_secs(60), || {
            let client = rig.client.clone();
            async move { get(&client, "/api/v1/namespaces/default").await.is_ok() }
        })
        .await;
        if !ready || rig.apiserver.try_wait().is_ok_and(|s| s.is_some()) {
            return Err(fs::read_to_string(log).unwrap_or_default());
        }
        Ok(rig)
    }

    /// The administrator's kubeconfig: what ca-server is given.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("admin.kubeconfig")
    }

    /// A kubeconfig of a service account, with the rights that it has and no others.
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> PathBuf {
        let name = format!("system:serviceaccount:{namespace}:{account}");
        let groups = [
            "system:serviceaccounts",
            &format!("system:serviceaccounts:{namespace}"),
        ];
        let text = self.pki.kubeconfig(self.port, &name, &groups);
        let path = self
            .dir
            .path()
            .join(format!("{namespace}-{account}.kubeconfig"));
        fs::write(&path, text).expect("the kubeconfig is written");
        path
    }

    /// Creates the objects of a manifest, or only has them judged.
    pub async fn create(&self, manifest: &str, only_judge: bool) -> Vec<Value> {
        let query = if only_judge {
            "?dryRun=All&fieldValidation=Strict"
        } else {
            "?fieldValidation=Strict"
        };
        let mut made = Vec::new();
        for document in manifest.split("\n---\n") {
            let field = |name: &str| {
                let line = document.lines().find_map(|line| line.strip_prefix(name));
                line.map(str::trim)
            };
            let (version, kind) = (field("apiVersion:"), field("kind:"));
            let (version, kind) = (version.expect("a version"), kind.expect("a kind"));
            let group = match version.contains('/') {
                true => format!("/apis/{version}"),
                false => format!("/api/{version}"),
            };
            let namespace = field("  namespace:").map(|name| format!("/namespaces/{name}"));
            let path = format!(
                "{group}{}/{}s{query}",
                namespace.unwrap_or_default(),
                kind.to_lowercase()
            );
            let request = http::Request::post(path);
            made.push(
                self.send(request, "application/yaml", document.to_owned())
                    .await,
            );
        }
        made
    }

    /// What the API server would say to this pod.
    ///
    /// # Errors
    /// When it would not admit it, in its words.
    pub async fn judge_pod(&self, namespace: &str, name: &str, spec: &Value) -> Result<(), String> {
        let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
        let body = json!({ "metadata": { "name": name }, "spec": spec });
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(body.to_string().into_bytes())
            .expect("a request");
        let answer = self.client.request::<Value>(request).await;
        answer.map(drop).map_err(|error| error.to_string())
    }

    /// An object, if it is there.
    pub async fn object(&self, path: &str) -> Option<Value> {
        get(&self.client, path).await.ok()
    }

    /// A namespace with the service account `account` in it. Nobody else makes accounts here.
    pub async fn namespace(&self, name: &str, account: &str) {
        self.post(
            "/api/v1/namespaces",
            json!({ "metadata": { "name": name } }),
        )
        .await;
        self.post(
            &format!("/api/v1/namespaces/{name}/serviceaccounts"),
            json!({ "metadata": { "name": account } }),
        )
        .await;
    }

    /// Creates a Node; returns its UID.
    pub async fn node(&self, name: &str) -> String {
        let node = self
            .post("/api/v1/nodes", json!({ "metadata": { "name": name } }))
            .await;
        uid(&node)
    }

    /// Removes a Node.
    pub async fn delete_node(&self, name: &str) {
        self.delete(&format!("/api/v1/nodes/{name}")).await;
    }

    /// Creates a pod already scheduled to `node`; returns its UID.
    pub async fn pod(&self, namespace: &str, name: &str, account: &str, node: &str) -> String {
        let pod = self
            .post(
                &format!("/api/v1/namespaces/{namespace}/pods"),
                json!({
                    "metadata": { "name": name },
                    "spec": {
                        "serviceAccountName": account,
                        "nodeName": node,
                        "automountServiceAccountToken": false,
                        "containers": [{ "name": "agent", "image": "agent.invalid/agent" }],
                    },
                }),
            )
            .await;
        uid(&pod)
    }

    /// Removes a pod at once, as `kubectl delete --grace-period=0 --force`.
    pub async fn delete_pod(&self, namespace: &str, name: &str) {
        self.delete(&format!(
            "/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds=0"
        ))
        .await;
    }

    /// Sets labels of a pod.
    pub async fn label_pod(&self, namespace: &str, name: &str, labels: Value) {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let body = json!({ "metadata": { "labels": labels } });
        self.send(
            http::Request::patch(&path),
            "application/merge-patch+json",
            body.to_string(),
        )
        .await;
    }

    /// Installs a custom resource definition, in YAML, and waits until it is served.
    pub async fn install(&self, definition: &str) {
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let made = self
            .send(
                http::Request::post(path),
                "application/yaml",
                definition.to_owned(),
            )
            .await;
        let (spec, name) = (&made["spec"], made["metadata"]["name"].as_str());
        let field = |value: &Value| value.as_str().expect("a text").to_owned();
        let list = format!(
            "/apis/{}/{}/{}",
            field(&spec["group"]),
            field(&spec["versions"][0]["name"]),
            field(&spec["names"]["plural"]),
        );
        let served = eventually::within(Duration::from_secs(20), async || {
            get(&self.client, &list).await.is_ok()
        });
        assert!(served.await, "{name:?} is not served");
    }

    /// Creates a ClusterSPIFFEID.
    pub async fn rule(&self, name: &str, spec: Value) {
        self.post(
            RULES,
            json!({
                "apiVersion": "spire.spiffe.io/v1alpha1",
                "kind": "ClusterSPIFFEID",
                "metadata": { "name": name },
                "spec": spec,
            }),
        )
        .await;
    }

    /// Removes a ClusterSPIFFEID.
    pub async fn delete_rule(&self, name: &str) {
        self.delete(&format!("{RULES}/{name}")).await;
    }

    /// A token as kubelet projects it: bound to the pod where one is given.
    pub async fn token(
        &self,
        namespace: &str,
        account: &str,
        audience: &str,
        pod: Option<(&str, &str)>,
    ) -> String {
        let mut spec = json!({ "audiences": [audience], "expirationSeconds": 3600 });
        if let Some((name, uid)) = pod {
            spec["boundObjectRef"] =
                json!({ "apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid });
        }
        let answer = self
            .post(
                &format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"),
                json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec }),
            )
            .await;
        answer["status"]["token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.send(
            http::Request::post(path),
            "application/json",
            body.to_string(),
        )
        .await
    }

    async fn send(&self, to: http::request::Builder, form: &str, body: String) -> Value {
        let request = to
            .header("content-type", form)
            .body(body.into_bytes())
            .expect("a request");
        let what = format!("{} {}", request.method(), request.uri());
        self.client
            .request(request)
            .await
            .unwrap_or_else(|e| panic!("{what}: {e}"))
    }

    async fn delete(&self, path: &str) {
        let request = http::Request::delete(path)
            .body(Vec::new())
            .expect("a request");
        let _: Value = self
            .client
            .request(request)
            .await
            .unwrap_or_else(|e| panic!("DELETE {path}: {e}"));
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for child in [&mut self.apiserver, &mut self.etcd] {
            if child.kill().is_ok() {
                child.wait().ok();
            }
        }
    }
}

async fn get(client: &Client, path: &str) -> Result<Value, kube::Error> {
    client
        .request(
            http::Request::get(path)
                .body(Vec::new())
                .expect("a request"),
        )
        .await
}

async fn client(kubeconfig: &str) -> Client {
    let parsed = Kubeconfig::from_yaml(kubeconfig).expect("our own kubeconfig parses");
    let config = Config::from_custom_kubeconfig(parsed, &Default::default())
        .await
        .expect("our own kubeconfig is complete");
    Client::try_from(config).expect("a client")
}

fn uid(object: &Value) -> String {
    object["metadata"]["uid"]
        .as_str()
        .expect("every object has a UID")
        .to_owned()
}

fn assets() -> Option<PathBuf> {
    let cache = env::read("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::read("HOME").map(|home| Path::new(&home).join(".cache")))
        .map(|cache| cache.join("finial-rig/kubernetes-1.37.2"));
    let folder = env::read("KUBEBUILDER_ASSETS")
        .map(PathBuf::from)
        .or(cache)?;
    (folder.join("etcd").exists() && folder.join("kube-apiserver").exists()).then_some(folder)
}

fn spawn(program: PathBuf, log: PathBuf, arguments: &[String]) -> Child {
    let log = File::create(log).expect("a log file");
    Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .unwrap_or_else(|e| panic!("{}: {e}", program.display()))
}

/// A port below the kernel's range for outgoing connections, so that no client socket takes it in between.
fn free_port() -> u16 {
    let start = 20_000 + (std::process::id() % 11_000) as u16;
    (start..32_000)
        .chain(20_000..start)
        .filter(|port| {
            PORTS
                .lock()
                .expect("no panic under this lock")
                .insert(*port)
        })
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port on loopback")
}

static PORTS: std::sync::Mutex<std::collections::BTreeSet<u16>> =
    std::sync::Mutex::new(std::collections::BTreeSet::new());

struct Pki {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn make(dir: &Path) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "rig");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).expect("a root").pem();
        let pki = Self {
            certificate,
            issuer: Issuer::new(params, key),
        };
        let (certificate, key) =
            pki.leaf("kube-apiserver", &[], ExtendedKeyUsagePurpose::ServerAuth);
        // The signature of tokens: ES256. RS256 is covered by ca-server's own tests.
        let tokens = KeyPair::generate().expect("a key");
        for (name, content) in [
            ("ca.crt", &pki.certificate),
            ("apiserver.crt", &certificate),
            ("apiserver.key", &key),
            ("sa.key", &tokens.serialize_pem()),
            ("sa.pub", &tokens.public_key_pem()),
        ] {
            fs::write(dir.join(name), content).expect("the rig's folder is writable");
        }
        pki
    }

    fn leaf(
        &self,
        name: &str,
        groups: &[&str],
        usage: ExtendedKeyUsagePurpose,
    ) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        for group in groups {
            params
                .distinguished_name
                .push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![usage];
        params.subject_alt_names = vec![
            SanType::IpAddress([127, 0, 0, 1].into()),
            SanType::DnsName("localhost".try_into().expect("ASCII")),
        ];
        let certificate = params
            .signed_by(&key, &self.issuer)
            .expect("a certificate")
            .pem();
        (certificate, key.serialize_pem())
    }

    fn kubeconfig(&self, port: u16, name: &str, groups: &[&str]) -> String {
        let (certificate, key) = self.leaf(name, groups, ExtendedKeyUsagePurpose::ClientAuth);
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "rig", "cluster": {
                "server": format!("https://127.0.0.1:{port}"),
                "certificate-authority-data": STANDARD.encode(&self.certificate),
            }}],
            "users": [{ "name": name, "user": {
                "client-certificate-data": STANDARD.encode(certificate),
                "client-key-data": STANDARD.encode(key),
            }}],
            "contexts": [{ "name": "rig", "context": { "cluster": "rig", "user": name } }],
            "current-context": "rig",
        })
        .to_string()
    }
}
