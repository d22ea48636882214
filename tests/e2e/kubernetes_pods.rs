//! A pod becomes an identity without anybody registering it, on a real API server and with processes in real cgroups: by the
//! default rule, by ClusterSPIFFEIDs, on its own node only, and no longer than the pod and the node are there.

use std::{
    io::{BufRead, BufReader, Read},
    process::Child,
    sync::mpsc,
    time::Duration,
};

use finial::dev::files;
use mesh_tests::{cgroup::Container, eventually, kube::Rig, programs, world::World};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::kubernetes::{AUDIENCE, agent_config, authority_with};

/// An agent on node-1 and a namespace with workloads.
struct Scene {
    // In this order: processes before the API server.
    world: World,
    rig: Rig,
}

impl Scene {
    async fn start(workloads: &str) -> Option<Self> {
        let rig = Rig::start().await?;
        rig.node("node-1").await;
        rig.node("node-2").await;
        rig.namespace("mesh", "agent").await;
        rig.namespace("shop", "cashier").await;
        rig.install(include_str!(
            "../../deploy/kubernetes/crds/clusterspiffeids.yaml"
        ))
        .await;
        let pod = rig.pod("mesh", "agent-1", "agent", "node-1").await;
        // With the rights of the manifests and no others: what they lack would be missing below.
        rig.create(
            include_str!("../../deploy/kubernetes/namespaces.yaml"),
            false,
        )
        .await;
        rig.create(
            include_str!("../../deploy/kubernetes/ca-server-rbac.yaml"),
            false,
        )
        .await;
        let rights = rig.kubeconfig_of("finial", "ca-server");
        let more = format!(
            "        workloads: {workloads}\n        publishBundle: {{ namespace: finial-agents }}\n"
        );
        let mut world = authority_with(&rights, &more).await;
        let token = rig
            .token("mesh", "agent", AUDIENCE, Some(("agent-1", &pod)))
            .await;
        world.write("agent.token", &token);
        world.start_agent(&agent_config(&world, "agent")).await;
        Some(Self { world, rig })
    }

    /// The identities that a process in this container is given now.
    fn identities(&self, container: &Container) -> Vec<String> {
        let mut child = self.call(container, "fetch");
        let mut text = String::new();
        let out = child.stdout.as_mut().expect("it is piped");
        out.read_to_string(&mut text).expect("UTF-8");
        let ended = child.wait().expect("it ends");
        match ended.success() {
            true => ids(&text),
            false => Vec::new(),
        }
    }

    fn call(&self, container: &Container, verb: &str) -> Child {
        let socket = format!("unix://{}", self.world.file("agent.sock"));
        let mut arguments = vec!["api", verb];
        arguments.extend((verb == "fetch").then_some("x509"));
        arguments.extend(["--socket", &socket, "-o", "json"]);
        container.spawn(&programs::path("workload-agent"), &arguments)
    }

    /// Whether a process in this container is given exactly this identity, soon.
    async fn becomes(&self, container: &Container, expected: &[&str]) -> bool {
        let expected: Vec<_> = expected
            .iter()
            .map(|path| format!("spiffe://{}{path}", files::TRUST_DOMAIN))
            .collect();
        eventually::within(Duration::from_secs(20), async || {
            self.identities(container) == expected
        })
        .await
    }
}

fn ids(text: &str) -> Vec<String> {
    let answer: Value = serde_json::from_str(text).expect("JSON");
    let svids = answer["svids"].as_array().expect("a list");
    let id = |svid: &Value| svid["spiffeId"].as_str().expect("an ID").to_owned();
    svids.iter().map(id).collect()
}

/// A process that watches its identities.
struct Watcher {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Watcher {
    fn of(mut child: Child) -> Self {
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        let (to, lines) = mpsc::channel();
        std::thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .try_for_each(|line| to.send(line))
        });
        Self { child, lines }
    }

    fn next(&self) -> Vec<String> {
        let line = self.lines.recv_timeout(Duration::from_secs(20));
        ids(&line.expect("the next state"))
    }

    /// How long it took from `since` until the stream was ended, and what the process then said.
    async fn ended(mut self, since: Instant) -> (Duration, String) {
        let ended = eventually::within(Duration::from_secs(20), async || {
            self.child.try_wait().is_ok_and(|status| status.is_some())
        });
        assert!(ended.await, "the stream goes on");
        let took = since.elapsed();
        let mut said = String::new();
        let err = self.child.stderr.as_mut().expect("it is piped");
        err.read_to_string(&mut said).expect("UTF-8");
        (took, said)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Deletion is felt within two seconds of the watch event.
const SOON: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_its_identity_by_the_default_rule_on_its_own_node_and_until_it_is_deleted() {
    let Some(scene) = Scene::start("{ defaultRule: true }").await else {
        return;
    };
    let here = scene.rig.pod("shop", "till", "cashier", "node-1").await;
    let far = scene.rig.pod("shop", "far", "cashier", "node-2").await;
    let (Some(till), Some(elsewhere)) = (Container::of_pod(&here), Container::of_pod(&far)) else {
        return;
    };
    let cashier = format!("spiffe://{}/ns/shop/sa/cashier", files::TRUST_DOMAIN);
    assert!(scene.becomes(&till, &["/ns/shop/sa/cashier"]).await);
    assert!(
        scene.identities(&elsewhere).is_empty(),
        "a pod of another node"
    );
    let entries = scene.world.ca_json(&["entry", "list"]);
    assert!(
        !entries.to_string().contains("cashier"),
        "an entry is stored: {entries}"
    );

    let watcher = Watcher::of(scene.call(&till, "watch"));
    let states = [watcher.next(), watcher.next()];
    assert_eq!(
        states.concat(),
        [cashier.as_str(); 2],
        "given, and renewed at half its life"
    );
    let since = Instant::now();
    scene.rig.delete_pod("shop", "till").await;
    let (took, said) = watcher.ended(since).await;
    println!("the stream of a deleted pod ended after {took:?}");
    assert!(took < SOON, "{took:?}");
    assert!(said.contains("FNL2104"), "{said}");
    assert!(scene.identities(&till).is_empty());

    // The same name again is another pod: what still runs of the old one has nothing of it.
    scene.rig.pod("shop", "till", "cashier", "node-1").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(scene.identities(&till).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manifests_are_admitted_and_the_trust_bundle_is_where_they_mount_it() {
    let Some(scene) = Scene::start("{ defaultRule: true }").await else {
        return;
    };
    let rig = &scene.rig;
    let server = rig
        .create(include_str!("../../deploy/kubernetes/ca-server.yaml"), true)
        .await;
    let agent = include_str!("../../deploy/kubernetes/workload-agent.yaml");
    let (account, _) = agent.split_once("\n---\n").expect("the account is first");
    let agents = rig.create(agent, true).await;
    rig.create(account, false).await;

    let of_kind = |all: &[Value], kind: &str| {
        let found = all.iter().find(|object| object["kind"] == kind);
        found.unwrap_or_else(|| panic!("no {kind}")).clone()
    };
    let mut spec = of_kind(&server, "StatefulSet")["spec"]["template"]["spec"].clone();
    let volumes = spec["volumes"].as_array_mut().expect("a list");
    volumes.push(json!({ "name": "data", "emptyDir": {} })); // the claim's place
    let admitted = rig.judge_pod("finial", "ca-server-0", &spec).await;
    assert_eq!(admitted, Ok(()));
    let spec = &of_kind(&agents, "DaemonSet")["spec"]["template"]["spec"];
    let admitted = rig.judge_pod("finial-agents", "agent", spec).await;
    assert_eq!(admitted, Ok(()));
    let mut beside = spec.clone();
    beside["serviceAccountName"] = json!("ca-server");
    let refused = rig.judge_pod("finial", "agent", &beside).await;
    let refused = refused.expect_err("the level of ca-server's namespace is not enforced");
    assert!(refused.contains("violates PodSecurity"), "{refused}");
    for (objects, program) in [(&server, "ca-server"), (&agents, "workload-agent")] {
        let file = format!("{program}.yaml");
        let map = of_kind(objects, "ConfigMap");
        let path = scene
            .world
            .write(&file, map["data"][&file].as_str().expect("a file"));
        let arguments = ["validate", "--config", &path.display().to_string()];
        programs::succeed(program, &arguments, &scene.world.path(""));
    }

    let socket = scene.world.file("ca-admin.sock");
    let arguments = [
        "bundle",
        "show",
        "--format",
        "pem",
        "--admin-socket",
        &socket,
    ];
    let roots = programs::succeed("ca-server", &arguments, &scene.world.path(""));
    let published = async |path: &str, at: &str| {
        let found = eventually::within(Duration::from_secs(20), async || {
            let object = rig.object(path).await.unwrap_or_default();
            object
                .pointer(at)
                .is_some_and(|text| text.as_str().map(str::trim) == Some(roots.trim()))
        });
        assert!(found.await, "{path} does not hold the roots");
    };
    published(
        "/api/v1/namespaces/finial-agents/configmaps/spire-bundle",
        "/data/bundle.crt",
    )
    .await;
    published(
        "/apis/certificates.k8s.io/v1/clustertrustbundles/mesh.finial.dev:spiffe:bundle",
        "/spec/trustBundle",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_spiffe_id_decides_what_pods_are_called_as_soon_as_it_changes() {
    let Some(scene) = Scene::start("{ defaultRule: true, className: mesh }").await else {
        return;
    };
    let uid = scene.rig.pod("shop", "till", "cashier", "node-1").await;
    let Some(till) = Container::of_pod(&uid) else {
        return;
    };
    assert!(scene.becomes(&till, &["/ns/shop/sa/cashier"]).await);

    let rule = |template: &str| json!({ "spiffeIDTemplate": format!("spiffe://{{{{ .TrustDomain }}}}/{template}"), "className": "mesh" });
    scene
        .rig
        .rule("tills", rule("till/{{ .PodMeta.Name }}"))
        .await;
    assert!(scene.becomes(&till, &["/till/till"]).await);
    // Another controller's, one that cannot be understood, and one that selects nothing here change nothing.
    let mut other = rule("other");
    other["className"] = json!("spire");
    scene.rig.rule("other", other).await;
    scene
        .rig
        .rule("nonsense", rule("{{ range .PodMeta.Labels }}"))
        .await;
    let status = async |name: &str, expected: &str, words: &str| {
        let path = format!("/apis/spire.spiffe.io/v1alpha1/clusterspiffeids/{name}");
        let said = eventually::within(Duration::from_secs(20), async || {
            let object = scene.rig.object(&path).await.unwrap_or_default();
            let condition = &object["status"]["conditions"][0];
            condition["status"] == expected && object["status"].to_string().contains(words)
        });
        let object = scene.rig.object(&path).await;
        assert!(said.await, "{name}: {object:?}");
    };
    status("tills", "True", "\"podsSelected\":2").await;
    status("nonsense", "False", "range .PodMeta.Labels").await;
    let foreign = "/apis/spire.spiffe.io/v1alpha1/clusterspiffeids/other";
    let foreign = scene.rig.object(foreign).await.expect("it is there");
    assert_eq!(
        foreign["status"],
        Value::Null,
        "another controller's object"
    );
    let mut selective = rule("selected");
    selective["podSelector"] = json!({ "matchLabels": { "app": "web" } });
    scene.rig.rule("selective", selective).await;
    scene.rig.rule("more", rule("more")).await;
    assert!(
        scene.becomes(&till, &["/till/till", "/more"]).await
            || scene.becomes(&till, &["/more", "/till/till"]).await
    );
    scene
        .rig
        .label_pod("shop", "till", json!({ "app": "web" }))
        .await;
    let has_three = eventually::within(Duration::from_secs(20), async || {
        scene.identities(&till).len() == 3
    });
    assert!(
        has_three.await,
        "a label of the pod counts as soon as it is there"
    );
    for name in ["tills", "more", "selective"] {
        scene.rig.delete_rule(name).await;
    }
    assert!(scene.becomes(&till, &["/ns/shop/sa/cashier"]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_deleted_takes_its_agent_with_it_and_its_name_does_not_bring_it_back() {
    let Some(mut scene) = Scene::start("{ defaultRule: true }").await else {
        return;
    };
    let uid = scene.rig.pod("shop", "till", "cashier", "node-1").await;
    let Some(till) = Container::of_pod(&uid) else {
        return;
    };
    assert!(scene.becomes(&till, &["/ns/shop/sa/cashier"]).await);
    let banned = |scene: &Scene| {
        let agents = scene.world.ca_json(&["agent", "list"]);
        agents.to_string().contains("\"banned\":true")
    };
    assert!(!banned(&scene));
    let since = Instant::now();
    scene.rig.delete_node("node-1").await;
    scene.rig.node("node-1").await;
    let ban = eventually::within(Duration::from_secs(20), async || banned(&scene));
    assert!(ban.await, "the agent of a deleted node is not banned");
    println!(
        "the agent of a deleted node was banned after {:?}",
        since.elapsed()
    );
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    let by_the_server = scene.world.audit("ca-server").into_iter().find(|record| {
        record["action"] == "agent.ban" && record.to_string().contains("node was deleted")
    });
    assert!(by_the_server.is_some(), "the ban is not on record");
    // Its token names the node that is gone: coming back is refused.
    drop(scene.world.agent.take());
    let gone = scene.world.audit("ca-server").len();
    let config = agent_config(&scene.world, "agent").replace("/agent\n", "/again\n");
    let config = scene.world.write("again.yaml", &config);
    let program = programs::path("workload-agent");
    let agent = finial::dev::process::Process::start(
        "again",
        &program,
        &config,
        &scene.world.path(""),
        &[],
    )
    .await;
    let refused = eventually::within(Duration::from_secs(15), async || {
        scene
            .world
            .audit("ca-server")
            .into_iter()
            .skip(gone)
            .any(|record| {
                record["action"] == "node.attest" && record.to_string().contains("denied")
            })
    });
    assert!(
        refused.await,
        "an agent of a node that is gone attested again"
    );
    drop(agent);
}
