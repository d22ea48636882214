//! The main road on real input: a pod-bound service-account token of a real API server becomes an agent, a
//! process gets an identity, a request passes between proxies, certificates rotate, a wrong caller is denied.
//! And every token that is not what it should be is refused, each with its own reason in the audit record.

use std::{collections::BTreeMap, path::Path, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use finial::dev::{files, http, process::Process};
use mesh_tests::{echo::Echo, eventually, kube::Rig, programs, world::World};
use serde_json::Value;

const CLUSTER: &str = "rig";
pub(crate) const AUDIENCE: &str = "ca-server";

/// An authority that trusts the rig's cluster.
async fn authority(rig: &Rig) -> World {
    authority_with(&rig.kubeconfig(), "").await
}

/// The same with further lines about the cluster.
pub(crate) async fn authority_with(kubeconfig: &Path, more: &str) -> World {
    World::with_ca(|config| {
        format!(
            "{config}attestation:\n  node:\n    - k8sPsat:\n        cluster: {CLUSTER}\n        kubeconfig: {}\n        \
             audiences: [{AUDIENCE}]\n        issuer: {}\n        serviceAccounts: [\"mesh:agent\"]\n{more}",
            kubeconfig.display(),
            mesh_tests::kube::ISSUER,
        )
    })
    .await
}

/// The agent's configuration with a token file instead of a join token.
pub(crate) fn agent_config(world: &World, name: &str) -> String {
    files::workload_agent(&world.text(), world.ca().address("grpc"))
        .replace(
            &format!("joinToken: {{ tokenFile: {}/join-token }}", world.text()),
            &format!(
                "k8sPsat: {{ cluster: {CLUSTER}, tokenFile: {}/{name}.token }}",
                world.text()
            ),
        )
        .replace("/agent\n", &format!("/{name}\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_token_becomes_mutual_tls_that_rotates_and_denies() {
    let Some(rig) = Rig::start().await else {
        return;
    };
    let node = rig.node("node-1").await;
    rig.namespace("mesh", "agent").await;
    let pod = rig.pod("mesh", "agent-1", "agent", "node-1").await;
    let mut world = authority(&rig).await;
    world.write(
        "agent.token",
        &rig.token("mesh", "agent", AUDIENCE, Some(("agent-1", &pod)))
            .await,
    );

    world.start_agent(&agent_config(&world, "agent")).await;
    let agent_id = format!(
        "spiffe://{}/spire/agent/k8s_psat/{CLUSTER}/{node}",
        files::TRUST_DOMAIN
    );
    let agents = world.ca_json(&["agent", "list"]).to_string();
    assert!(agents.contains(&node), "{agents}");
    world.set_agent_id(agent_id);

    let app = Echo::start().await;
    let pay = world.pay(app.address()).await;
    let shop = world.caller("shop", &pay).await;
    let guest = world.caller("guest", &pay).await;
    let charge = async |caller: &Process| {
        http::send(caller.address("outbound.pay"), "POST", "/charge")
            .await
            .expect("an answer")
    };

    let allowed = charge(&shop).await;
    assert_eq!(allowed.status, 200, "{}", allowed.text());
    let denied = charge(&guest).await;
    assert_eq!(denied.status, 403);
    assert!(
        denied
            .header("x-finial-error")
            .is_some_and(|code| code.starts_with("FNL3"))
    );

    let identities = async |proxy: &Process| {
        proxy
            .metric("mesh_proxy_identity_updates_total")
            .await
            .unwrap_or_default()
    };
    let (shop_before, pay_before) = (identities(&shop).await, identities(&pay).await);
    let rotated = eventually::within(Duration::from_secs(20), async || {
        assert_eq!(charge(&shop).await.status, 200);
        identities(&shop).await > shop_before && identities(&pay).await > pay_before
    });
    assert!(rotated.await, "shop and pay did not both rotate");
    assert_eq!(charge(&guest).await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_what_it_should_be_is_refused_with_its_own_reason() {
    let Some(rig) = Rig::start().await else {
        return;
    };
    rig.namespace("mesh", "agent").await;
    rig.node("node-1").await;
    rig.node("node-2").await;
    let pod = rig.pod("mesh", "agent-1", "agent", "node-1").await;
    let gone = rig.pod("mesh", "agent-2", "agent", "node-1").await;
    let moved = rig.pod("mesh", "agent-3", "agent", "node-2").await;
    let mut world = authority(&rig).await;

    let good = rig
        .token("mesh", "agent", AUDIENCE, Some(("agent-1", &pod)))
        .await;
    let of_deleted_pod = rig
        .token("mesh", "agent", AUDIENCE, Some(("agent-2", &gone)))
        .await;
    let of_recreated_node = rig
        .token("mesh", "agent", AUDIENCE, Some(("agent-3", &moved)))
        .await;
    rig.delete_pod("mesh", "agent-2").await;
    rig.delete_node("node-2").await;
    rig.node("node-2").await;

    // The good one first: it attests, and is replayed below by a holder of another key.
    world.write("agent.token", &good);
    world.start_agent(&agent_config(&world, "agent")).await;

    let cases = [
        ("forged", forged(&good)),
        (
            "foreign-audience",
            rig.token("mesh", "agent", "somebody-else", Some(("agent-1", &pod)))
                .await,
        ),
        ("unbound", rig.token("mesh", "agent", AUDIENCE, None).await),
        ("deleted-pod", of_deleted_pod),
        ("recreated-node", of_recreated_node),
        ("replayed", good),
    ];
    let mut reasons = BTreeMap::new();
    for (name, token) in cases {
        let record = refusal(&world, name, &token).await;
        let code = record["outcome"]["code"]
            .as_str()
            .or(record["code"].as_str())
            .unwrap_or_default()
            .to_owned();
        println!("{name}: {code} {}", record["decision"]["reason"]);
        assert!(code.starts_with("FNL11"), "{name}: {record}");
        assert!(
            !record.to_string().contains(&token),
            "{name}: the record holds the token"
        );
        if let Some(other) = reasons.insert(code, name) {
            panic!("{name} and {other} are refused with the same reason");
        }
    }
}

/// Presents the token with a fresh key and returns the audit record of its refusal.
async fn refusal(world: &World, name: &str, token: &str) -> Value {
    let refused = || {
        let denied = |record: &Value| {
            record["action"] == "node.attest" && record.to_string().contains("denied")
        };
        world
            .audit("ca-server")
            .into_iter()
            .filter(denied)
            .collect::<Vec<_>>()
    };
    let before = refused().len();
    world.write(&format!("{name}.token"), token);
    let config = agent_config(world, name)
        .replace("agent.sock", &format!("{name}.sock"))
        .replace("agent-admin.sock", &format!("{name}-admin.sock"));
    let config = world.write(&format!("{name}.yaml"), &config);
    let program = programs::path("workload-agent");
    // An agent that is refused may end at once or keep trying; its record is what counts.
    let agent = Process::start(name, &program, &config, &world.path(""), &[]).await;
    let seen = eventually::within(Duration::from_secs(15), async || refused().len() > before).await;
    drop(agent);
    assert!(seen, "no record of a refusal of {name}");
    refused().swap_remove(before)
}

/// The same claims under a signature that is not the cluster's.
fn forged(token: &str) -> String {
    let (claims, signature) = token.rsplit_once('.').expect("a compact JWS");
    let mut signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    signature[7] ^= 1;
    format!("{claims}.{}", URL_SAFE_NO_PAD.encode(signature))
}
