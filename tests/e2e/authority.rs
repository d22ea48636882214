//! A change of authorities with the real programs: a new one signs when the agents know it, a stopped agent holds the turn and is
//! named, an operator overrides, and what a tainted authority signed is followed until nobody holds it any more.

use std::time::{Duration, SystemTime};

use mesh_tests::{eventually, world::World};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The life of the first authority. The next one takes its turn when a sixth is left, and halfway from there to the end in any case.
const LIFE: Duration = Duration::from_secs(46);

/// With the ten seconds by which its start is backdated.
const WHOLE: Duration = LIFE.saturating_add(Duration::from_secs(10));

#[expect(clippy::disallowed_methods, reason = "real processes are timed")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn id(authority: &Value) -> String {
    authority["authorityId"].as_str().expect("an id").to_owned()
}

fn active(world: &World) -> Value {
    world.ca_json(&["authority", "x509", "show"])["x509"]["active"].clone()
}

fn signal(world: &World, signal: Signal) {
    let agent = world.agent.as_ref().expect("it runs").pid();
    kill(Pid::from_raw(agent.cast_signed()), signal).expect("it is ours");
}

/// Stops the agent and prepares an authority that it cannot hear of.
fn prepare_unheard(world: &World) -> Value {
    signal(world, Signal::SIGSTOP);
    world.ca_json(&["authority", "x509", "prepare"])["prepared"].clone()
}

fn waits_for(world: &World) -> Vec<String> {
    let progress = world.ca_json(&["authority", "show"]);
    let ids = progress["waitsFor"]["agents"].as_array().expect("a list");
    ids.iter()
        .map(|id| id.as_str().expect("text").to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_authority_signs_only_when_the_stopped_agent_lives_again_and_acknowledges_it() {
    let with = |config: String, life: Duration, agent: Duration| {
        let (life, agent) = (life.as_secs(), agent.as_secs());
        config
            .replace("x509Authority: 10m", &format!("x509Authority: {life}s"))
            .replace("x509Svid: 20s", "x509Svid: 7s")
            .replace("agentSvid: 60s", &format!("agentSvid: {agent}s"))
    };
    let mut dev = String::new();
    let mut world = World::with_ca(|config| {
        dev.clone_from(&config);
        with(config, LIFE, LIFE / 6)
    })
    .await;
    let first = active(&world);
    let ends = first["expiresAt"].as_str().expect("a time");
    let ends: SystemTime = OffsetDateTime::parse(ends, &Rfc3339)
        .expect("RFC 3339")
        .into();
    let (turn, latest) = (ends - WHOLE / 6, ends - WHOLE / 12);
    // Only a longer life of authorities allows an agent's SVID to live as long as the first authority: until then the agent,
    // which will be stopped, is one that lives.
    world.ca.take().expect("it runs").stop().await;
    world.write("ca.yaml", &with(dev, LIFE * 6, LIFE));
    world.start_ca().await;
    world.join().await;
    let prepared = prepare_unheard(&world);
    let wait = turn.duration_since(now()).unwrap_or_default();
    tokio::time::sleep(wait).await;

    let named = eventually::within(Duration::from_secs(3), async || {
        waits_for(&world) == [world.agent_id()]
    });
    assert!(named.await, "the stopped agent is named");
    assert_eq!(id(&active(&world)), id(&first), "and holds the turn");
    signal(&world, Signal::SIGCONT);
    let turned = eventually::within(Duration::from_secs(20), async || {
        id(&active(&world)) == id(&prepared)
    });
    assert!(turned.await, "the agent's word is what was waited for");
    assert!(now() < latest, "and not the time");
    assert!(waits_for(&world).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn ca_52_an_operator_overrides_and_the_taint_of_the_old_authority_is_followed_to_its_end() {
    let world = &World::start(|config| config).await;
    let old = id(&active(world));
    let new = id(&prepare_unheard(world));
    world.ca_json(&["authority", "x509", "activate", "--authority-id", &new]);
    assert_eq!(id(&active(world)), new, "though the agent is stopped");
    let by_whom: Vec<Value> = world
        .audit("ca-server")
        .into_iter()
        .filter(|record| record["action"] == "authority.activate" && record["outcome"] == "success")
        .map(|record| record["actor"].clone())
        .collect();
    let uid = nix::unistd::getuid().to_string();
    let operator = by_whom.iter().any(|actor| actor.to_string().contains(&uid));
    assert!(operator, "the operator is on record: {by_whom:?}");

    world.ca_json(&["authority", "x509", "taint", "--authority-id", &old]);
    let holders = || world.ca_json(&["authority", "show"])["tainted"][0].clone();
    let tainted = holders();
    assert_eq!(tainted["authorityId"], old);
    assert_eq!(
        tainted["heldBy"]["agents"],
        serde_json::json!([world.agent_id()])
    );
    assert!(tainted["svids"].as_u64() > Some(0));
    signal(world, Signal::SIGCONT);
    // The agent asks for itself and for its workloads anew, long before what it holds would end by itself.
    let replaced = eventually::within(Duration::from_secs(20), async || holders()["svids"] == 0);
    assert!(replaced.await, "still held: {}", holders());
}
