//! From token to SVID, and on: restarts, renewals, a CA that goes away, lies or bans.

use std::time::Duration;

use proto::{finial::feed::v1::FeedUpdate, spire::api::types::permission_denied_details::Reason};
use tonic::Code;

use crate::{
    ca::{Ca, Spoil},
    rig::{Agent, eventually, join_token, my_uid, next, quiet},
};

#[tokio::test]
async fn a_node_with_a_join_token_gives_its_processes_identities() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let context = agent.fetch().await.unwrap();
    assert_eq!(context.identities().len(), 1);
    assert_eq!(
        context.identities()[0].svid.id().as_str(),
        "spiffe://dev.test/pay"
    );
    agent.stop().await;
}

#[tokio::test]
async fn an_entry_that_is_created_later_reaches_the_socket_by_push() {
    let ca = Ca::start().await;
    let agent = Agent::start(&ca).await;
    assert_eq!(
        agent.fetch().await.unwrap_err().code(),
        Code::PermissionDenied
    );
    ca.entry("pay", "/pay", &[&my_uid()]);
    eventually("the identity is there", async || {
        agent.fetch().await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_restart_with_a_used_join_token_goes_on_with_the_kept_identity() {
    use std::os::unix::fs::MetadataExt;
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    ca.token("only-once");
    let agent = Agent::start_in(&ca, crate::rig::directory(), &join_token("only-once")).await;
    agent.ready().await;
    let dir = agent.stop().await;
    let kept = std::fs::metadata(dir.path().join("data/agent-identity.sealed")).unwrap();
    assert_eq!(kept.mode() & 0o7777, 0o600);
    assert_eq!(
        std::fs::metadata(dir.path().join("data")).unwrap().mode() & 0o777,
        0o700
    );

    let agent = Agent::start_in(&ca, dir, &join_token("only-once")).await;
    agent.ready().await;
    agent.fetch().await.unwrap();
    assert_eq!(ca.seen().attested.len(), 1, "attested only once");
}

#[tokio::test]
async fn a_restart_while_the_ca_is_away_serves_what_the_last_run_held_to_who_is_entitled() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    ca.entry("other", "/other", &["unix:uid:4294967"]);
    let agent = Agent::start(&ca).await;
    let before = agent.fetch().await.unwrap();
    ca.down().await;
    let dir = agent.stop().await;

    let started = tokio::time::Instant::now();
    let agent = Agent::start_in(&ca, dir, &join_token("none")).await;
    let after = agent.fetch().await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(after.identities().len(), 1);
    assert_eq!(
        (
            after.identities()[0].svid.serial(),
            &*after.identities()[0].key
        ),
        (
            before.identities()[0].svid.serial(),
            &*before.identities()[0].key
        )
    );
    agent.ready().await;

    // What changed meanwhile counts as soon as the CA is heard again.
    ca.remove_entry("pay");
    let mut stream = agent.svids().await.unwrap();
    next(&mut stream).await.unwrap();
    ca.up().await;
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_agent_whose_own_svid_ran_out_serves_what_it_kept_until_that_runs_out_too() {
    let ca = Ca::start().await;
    ca.knobs().reattestable = true;
    ca.knobs().agent_ttl = Duration::from_secs(2);
    ca.knobs().svid_ttl = Duration::from_secs(9);
    ca.entry("pay", "/pay", &[&my_uid()]);
    let dir = crate::rig::directory();
    let token = dir.path().join("token");
    std::fs::write(&token, "t.o.ken").unwrap();
    let attestation = format!(
        "  k8sPsat:\n    cluster: kind\n    tokenFile: {}",
        token.display()
    );
    let agent = Agent::start_in(&ca, dir, &attestation).await;
    agent.ready().await;
    agent.fetch().await.unwrap();
    ca.down().await;
    let dir = agent.stop().await;
    tokio::time::sleep(Duration::from_millis(3100)).await;
    let agent = Agent::start_in(&ca, dir, &attestation).await;
    let mut stream = agent.svids().await.unwrap();
    next(&mut stream).await.unwrap();
    assert!(
        !agent.app.readiness().is_ready(),
        "the node is not attested"
    );
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    ca.up().await;
    eventually("it rejoins by itself", async || agent.fetch().await.is_ok()).await;
}

#[tokio::test]
async fn a_banned_agent_keeps_nothing_for_its_next_start() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    agent.fetch().await.unwrap();
    ca.down().await;
    ca.knobs().deny = Some(Reason::AgentBanned);
    ca.up().await;
    agent.app.tasks().join().await.unwrap_err();
    let dir = agent.dir;
    ca.down().await;
    let agent = Agent::start_in(&ca, dir, &join_token("none")).await;
    let status = agent.fetch().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
}

#[tokio::test]
async fn damaged_state_does_not_keep_the_agent_from_starting() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    agent.fetch().await.unwrap();
    let dir = agent.stop().await;
    let file = dir.path().join("data/node-state.sealed");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let agent = Agent::start_in(&ca, dir, &join_token("none")).await;
    agent.ready().await;
    agent.fetch().await.unwrap();
    assert!(file.with_extension("sealed.refused").exists());
}

#[tokio::test]
async fn a_used_token_without_a_kept_identity_ends_the_program_with_the_reason() {
    let ca = Ca::start().await;
    let agent = Agent::start_in(&ca, crate::rig::directory(), &join_token("never-made")).await;
    let failure = agent.app.tasks().join().await.unwrap_err();
    let text = mesh_runtime::errors::ErrorChain(&failure).to_string();
    assert!(
        text.contains("refused this node") && text.contains("already been used"),
        "{text}"
    );
    assert!(
        !text.contains("never-made"),
        "the token is not shown: {text}"
    );
}

#[tokio::test]
async fn a_projected_token_is_sent_with_its_cluster_and_read_anew_each_time() {
    let ca = Ca::start().await;
    ca.knobs().reattestable = true;
    ca.knobs().agent_ttl = Duration::from_secs(3);
    let dir = crate::rig::directory();
    let token = dir.path().join("token");
    std::fs::write(&token, "first.token.value\n").unwrap();
    let attestation = format!(
        "  k8sPsat:\n    cluster: kind\n    tokenFile: {}",
        token.display()
    );
    let agent = Agent::start_in(&ca, dir, &attestation).await;
    agent.ready().await;
    std::fs::write(&token, "second.token.value\n").unwrap();
    eventually("it attests again instead of renewing", async || {
        ca.seen().evidence.len() >= 2
    })
    .await;
    let seen = ca.seen();
    assert_eq!(seen.renewed, 0);
    let payloads: Vec<serde_json::Value> = seen
        .evidence
        .iter()
        .map(|data| serde_json::from_slice(&data.payload).unwrap())
        .collect();
    assert!(seen.evidence.iter().all(|data| data.r#type == "k8s_psat"));
    assert_eq!(
        payloads[0],
        serde_json::json!({ "cluster": "kind", "token": "first.token.value" })
    );
    assert_eq!(payloads[1]["token"], "second.token.value");
}

#[tokio::test]
async fn the_agents_own_svid_is_renewed_and_the_feed_goes_on_where_it_was() {
    let ca = Ca::start().await;
    ca.knobs().agent_ttl = Duration::from_secs(3);
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let mut stream = agent.svids().await.unwrap();
    next(&mut stream).await.unwrap();
    eventually("renewed twice", async || ca.seen().renewed >= 2).await;
    eventually("resumed", async || {
        ca.seen()
            .hellos
            .iter()
            .skip(1)
            .any(|hello| hello.resume_after > 0)
    })
    .await;
    assert!(
        quiet(&mut stream, Duration::from_millis(300)).await,
        "workloads notice nothing"
    );
    assert_eq!(ca.seen().attested.len(), 1);
}

#[tokio::test]
async fn workload_svids_rotate_at_half_of_their_life_with_a_new_key_each_time() {
    let ca = Ca::start().await;
    ca.knobs().svid_ttl = Duration::from_secs(4);
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let mut stream = agent.svids().await.unwrap();
    let first = next(&mut stream).await.unwrap();
    let second = next(&mut stream).await.unwrap();
    let third = next(&mut stream).await.unwrap();
    let serials: std::collections::BTreeSet<_> = [&first, &second, &third]
        .map(|c| c.identities()[0].svid.serial().to_owned())
        .into();
    let keys: std::collections::BTreeSet<_> = [&first, &second, &third]
        .map(|c| c.identities()[0].key.to_vec())
        .into();
    assert_eq!((serials.len(), keys.len()), (3, 3));
}

#[tokio::test]
async fn the_agent_serves_on_while_the_ca_is_away_and_comes_back_by_itself() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    agent.fetch().await.unwrap();
    ca.down().await;
    agent.fetch().await.unwrap();
    let mut stream = agent.svids().await.unwrap();
    next(&mut stream).await.unwrap();
    ca.entry("shop", "/shop", &[&my_uid()]);
    ca.up().await;
    let context = next(&mut stream).await.unwrap();
    assert_eq!(
        context.identities().len(),
        2,
        "the change that happened meanwhile has arrived"
    );
}

#[tokio::test]
async fn ag_21_svids_are_served_until_they_expire_and_then_withdrawn() {
    let ca = Ca::start().await;
    ca.knobs().svid_ttl = Duration::from_secs(3);
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let mut stream = agent.svids().await.unwrap();
    next(&mut stream).await.unwrap();
    ca.down().await;
    let status = loop {
        match next(&mut stream).await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    ca.up().await;
    eventually("it rejoins by itself", async || agent.fetch().await.is_ok()).await;
}

#[tokio::test]
async fn one_identity_that_fails_does_not_hold_up_the_others() {
    let ca = Ca::start().await;
    ca.knobs()
        .refuse_entries
        .insert("bad".into(), Code::Internal.into());
    ca.entry("bad", "/bad", &[&my_uid()]);
    ca.entry("good", "/good", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let context = agent.fetch().await.unwrap();
    assert_eq!(context.identities()[0].svid.id().path(), "/good");
}

#[tokio::test]
async fn a_batch_that_is_refused_whole_is_split_until_the_bad_part_is_alone() {
    let ca = Ca::start().await;
    ca.knobs().poison_entry = Some("e05".into());
    for n in 0..8 {
        ca.entry(&format!("e{n:02}"), &format!("/e{n}"), &[&my_uid()]);
    }
    let agent = Agent::start(&ca).await;
    eventually("the other seven are there", async || {
        agent
            .fetch()
            .await
            .is_ok_and(|context| context.identities().len() == 7)
    })
    .await;
}

#[tokio::test]
async fn ag_22_what_a_peer_would_refuse_is_discarded_and_the_valid_svid_stays() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let mut stream = agent.svids().await.unwrap();
    let first = next(&mut stream).await.unwrap();
    for spoil in [
        Spoil::OtherId,
        Spoil::OtherKey,
        Spoil::OtherRoot,
        Spoil::Expired,
        Spoil::Garbage,
    ] {
        ca.knobs().spoil.insert("pay".into(), spoil);
        let before = ca.seen().signed.len();
        // Another DNS name makes the agent ask again at once.
        ca.entry_with("pay", "/pay", &[&my_uid()], |entry| {
            entry.dns_names = vec![format!("n{before}.test")]
        });
        eventually("the agent asked", async || ca.seen().signed.len() > before).await;
        let context = agent.fetch().await.unwrap();
        assert_eq!(
            context.identities()[0].svid.serial(),
            first.identities()[0].svid.serial()
        );
    }
    ca.knobs().spoil.clear();
    let next = next(&mut stream).await.unwrap();
    assert_ne!(
        next.identities()[0].svid.serial(),
        first.identities()[0].svid.serial()
    );
    assert!(
        agent
            .metrics()
            .await
            .contains("workload_agent_svid_rotations_total{type=\"x509\",result=\"failed\"}")
    );
}

#[tokio::test]
async fn a_bad_update_is_refused_with_the_reason_and_the_state_before_it_stays() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    agent.fetch().await.unwrap();
    let good = ca.snapshot();
    let bad = |change: &dyn Fn(&mut FeedUpdate)| {
        let mut update = good.clone();
        update.revision += 7;
        change(&mut update);
        update
    };
    let cases: [(&str, FeedUpdate); 5] = [
        ("trust bundle", bad(&|u| u.bundles.clear())),
        (
            "spiffe_id",
            bad(&|u| u.upserted_entries[0].spiffe_id = None),
        ),
        (
            "selectors",
            bad(&|u| u.upserted_entries[0].selectors.clear()),
        ),
        (
            "asn1",
            bad(&|u| u.bundles[0].x509_authorities[0].asn1 = vec![1, 2, 3]),
        ),
        (
            "does not follow",
            bad(&|u| {
                u.snapshot = false;
                u.server_epoch = "another".into();
            }),
        ),
    ];
    for (reason, update) in cases {
        let before = ca.seen().acks.len();
        let hellos = ca.seen().hellos.len();
        let revision = update.revision;
        ca.send(update);
        eventually("the refusal arrives", async || {
            ca.seen().acks[before..]
                .iter()
                .any(|(r, why)| *r == revision && why.contains(reason))
        })
        .await;
        agent.fetch().await.unwrap();
        eventually("the agent comes back from where it was", async || {
            ca.seen().hellos.len() > hellos
        })
        .await;
    }
}

#[tokio::test]
async fn a_new_root_reaches_workloads_and_their_svids_follow_it() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let mut stream = agent.svids().await.unwrap();
    let first = next(&mut stream).await.unwrap();
    ca.rotate_root(true);
    let second = next(&mut stream).await.unwrap();
    let domain = "dev.test".parse().unwrap();
    assert_eq!(
        second
            .bundles()
            .get(&domain)
            .unwrap()
            .x509_authorities()
            .len(),
        2
    );
    assert_eq!(
        second.identities()[0].svid.serial(),
        first.identities()[0].svid.serial(),
        "still trusted, still good"
    );
}

#[tokio::test]
async fn ca_52_svids_of_a_tainted_root_are_replaced_at_once_and_served_until_then_also_the_agents_own()
 {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let mut stream = agent.svids().await.unwrap();
    let first = next(&mut stream).await.unwrap();
    ca.rotate_root(true);
    next(&mut stream).await.unwrap();
    let renewed = ca.seen().renewed;
    ca.knobs().delay = Duration::from_millis(300);
    ca.taint_old_roots();
    let serial = first.identities()[0].svid.serial();
    eventually("a new SVID", async || {
        let now = agent
            .fetch()
            .await
            .expect("served until its successor is there");
        now.identities()[0].svid.serial() != serial
    })
    .await;
    eventually("the agent's own is new too", async || {
        ca.seen().renewed > renewed
    })
    .await;
}

#[tokio::test]
async fn svids_of_a_removed_root_are_replaced_at_once_also_the_agents_own() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let mut stream = agent.svids().await.unwrap();
    let first = next(&mut stream).await.unwrap();
    // Both are trusted first, as a CA does it; then the old one goes.
    ca.rotate_root(true);
    next(&mut stream).await.unwrap();
    ca.rotate_root(false);
    eventually("a new SVID under the new root", async || {
        agent
            .fetch()
            .await
            .is_ok_and(|c| c.identities()[0].svid.serial() != first.identities()[0].svid.serial())
    })
    .await;
    eventually("the agent has a new SVID too", async || {
        let seen = ca.seen();
        seen.renewed + seen.attested.len() >= 2
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_the_ca_forgot_attests_again() {
    let ca = Ca::start().await;
    ca.knobs().reattestable = true;
    let dir = crate::rig::directory();
    let token = dir.path().join("token");
    std::fs::write(&token, "t.o.ken").unwrap();
    let agent = Agent::start_in(
        &ca,
        dir,
        &format!(
            "  k8sPsat:\n    cluster: kind\n    tokenFile: {}",
            token.display()
        ),
    )
    .await;
    agent.ready().await;
    ca.down().await;
    ca.knobs().deny = Some(Reason::AgentNotAttested);
    ca.up().await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    ca.knobs().deny = None;
    eventually("attested again", async || ca.seen().attested.len() >= 2).await;
}

#[tokio::test]
async fn a_banned_agent_withdraws_everything_and_stops() {
    let ca = Ca::start().await;
    ca.entry("pay", "/pay", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let mut stream = agent.svids().await.unwrap();
    next(&mut stream).await.unwrap();
    ca.down().await;
    ca.knobs().deny = Some(Reason::AgentBanned);
    ca.up().await;
    let failure = agent.app.tasks().join().await.unwrap_err();
    assert!(
        mesh_runtime::errors::ErrorChain(&failure)
            .to_string()
            .contains("banned"),
        "{failure:?}"
    );
    let status = next(&mut stream).await.unwrap_err();
    assert!(
        matches!(status.code(), Code::PermissionDenied | Code::Unavailable),
        "{status}"
    );
}

#[tokio::test]
async fn more_entries_than_are_made_ahead_and_everyone_who_asks_is_served() {
    let ca = Ca::start().await;
    ca.entries((0..1200).map(|n| {
        (
            format!("e{n:04}"),
            format!("/e{n}"),
            vec![format!("unix:uid:{}", 100_000 + n)],
        )
    }));
    ca.entry("last", "/last", &[&my_uid()]);
    let agent = Agent::start(&ca).await;
    let context = agent.fetch().await.unwrap();
    assert_eq!(context.identities()[0].svid.id().path(), "/last");
    eventually("the thousand are made", async || {
        ca.seen().signed.len() > 1000
    })
    .await;
    assert_eq!(ca.seen().signed.len(), 1001);
    assert!(ca.seen().batches.iter().all(|size| *size <= 64));
}

#[tokio::test]
async fn an_agent_whose_own_svid_ran_out_while_the_ca_was_away_proves_itself_again() {
    let ca = Ca::start().await;
    ca.knobs().reattestable = true;
    ca.knobs().agent_ttl = Duration::from_secs(2);
    ca.entry("pay", "/pay", &[&my_uid()]);
    let dir = crate::rig::directory();
    let token = dir.path().join("token");
    std::fs::write(&token, "t.o.ken").unwrap();
    let attestation = format!(
        "  k8sPsat:\n    cluster: kind\n    tokenFile: {}",
        token.display()
    );
    let agent = Agent::start_in(&ca, dir, &attestation).await;
    agent.ready().await;
    agent.fetch().await.unwrap();
    ca.down().await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    agent.fetch().await.unwrap();
    ca.knobs().agent_ttl = Duration::from_secs(3600);
    ca.entry("shop", "/shop", &[&my_uid()]);
    ca.up().await;
    eventually("it is back in step", async || {
        agent
            .fetch()
            .await
            .is_ok_and(|context| context.identities().len() == 2)
    })
    .await;
}
