//! The configuration files of the demonstration. Ports are 0 and lives are short; everything else is what an
//! operator would write.

use std::net::SocketAddr;

/// The trust domain of the demonstration.
pub const TRUST_DOMAIN: &str = "dev.test";
/// The life of each SVID; renewed at half.
pub const SVID_SECONDS: u64 = 20;

pub fn ca_server(dir: &str) -> String {
    format!(
        r#"apiVersion: config.finial.dev/v1
kind: CaServerConfig
trustDomain: {TRUST_DOMAIN}
listen:
  address: 127.0.0.1:0
  adminSocket: {dir}/ca-admin.sock
store:
  sled: {{ path: {dir}/ca }}
keys:
  sealingKey: {dir}/ca-sealing.key
lifetimes:
  x509Authority: 10m
  x509Svid: {SVID_SECONDS}s
  agentSvid: 60s
audit:
  dir: {dir}/audit/ca-server
telemetry:
  metrics: {{ address: 127.0.0.1:0 }}
"#
    )
}

pub fn workload_agent(dir: &str, server: &str) -> String {
    format!(
        r#"apiVersion: config.finial.dev/v1
kind: WorkloadAgentConfig
trustDomain: {TRUST_DOMAIN}
server:
  address: {server}
  trustBundle: {dir}/bundle.pem
dataDir: {dir}/agent
workloadApi:
  socket: {dir}/agent.sock
admin:
  socket: {dir}/agent-admin.sock
nodeAttestation:
  joinToken: {{ tokenFile: {dir}/join-token }}
telemetry:
  metrics: {{ address: 127.0.0.1:0 }}
"#
    )
}

/// The proxy of pay: lets requests in to the application.
pub fn pay(dir: &str, application: SocketAddr) -> String {
    format!(
        r#"{head}inbound:
  listen: 127.0.0.1:0
  application: {application}
  protocol: http
policy: {{ file: {dir}/policy.yaml }}
{tail}"#,
        head = head(dir),
        tail = tail(dir, "pay"),
    )
}

/// The proxy of a caller of pay.
pub fn caller(dir: &str, name: &str, pay: &str) -> String {
    format!(
        r#"{head}outbound:
  - name: pay
    listen: 127.0.0.1:0
    to: {pay}
    serverId: spiffe://{TRUST_DOMAIN}/pay
    protocol: http
{tail}"#,
        head = head(dir),
        tail = tail(dir, name),
    )
}

fn head(dir: &str) -> String {
    format!(
        "apiVersion: config.finial.dev/v1\nkind: MeshProxyConfig\nworkloadApi: {{ socket: \"unix://{dir}/agent.sock\" }}\n"
    )
}

fn tail(dir: &str, name: &str) -> String {
    format!(
        "accessLog: {{ path: {dir}/{name}-access.jsonl }}\naudit: {{ dir: {dir}/audit/{name} }}\ntelemetry: {{ metrics: {{ address: 127.0.0.1:0 }} }}\n"
    )
}

/// What pay allows at first: shop may charge and look, nobody else may do anything.
pub const POLICY: &str = r#"# Edit me while the mesh runs: the change is in force within a second.
apiVersion: mesh.finial.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: allow-shop }
spec:
  action: ALLOW
  rules:
    - name: charge
      from:
        - source: { principals: ["spiffe://dev.test/shop"] }
      to:
        - operation: { methods: [POST], paths: [/charge] }
"#;

/// What the scene adds, and takes away again, to show that an edit counts at once.
pub const POLICY_FOR_GUEST: &str = r#"---
apiVersion: mesh.finial.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: allow-guest }
spec:
  action: ALLOW
  rules:
    - name: charge
      from:
        - source: { principals: ["spiffe://dev.test/guest"] }
      to:
        - operation: { methods: [POST], paths: [/charge] }
"#;
