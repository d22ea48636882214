//! A wall clock that is set under a running agent, and a fleet's worth of SVIDs that must be replaced at once.

use std::time::Duration;

use mesh_runtime::clock::Clock;
use tonic::Code;

use crate::{
    ca::{self, Ca},
    rig::{Agent, directory, eventually, join_token, my_uid, next},
};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn ag_20_a_wall_clock_that_is_set_ahead_and_back_costs_few_calls_and_never_an_expired_svid() {
    let ca = Ca::start().await;
    ca.knobs().svid_ttl = HOUR;
    ca.knobs().agent_ttl = HOUR;
    ca.entry("pay", "/pay", &[&my_uid()]);
    ca.token("once");
    let clock = Clock::manual(ca::now());
    let agent = Agent::start_with_clock(&ca, directory(), &join_token("once"), clock.clone()).await;
    agent.ready().await;
    let serial = async || {
        agent
            .fetch()
            .await
            .map(|now| now.identities()[0].svid.serial().to_owned())
    };
    let first = serial().await.unwrap();
    let calls = || {
        let seen = ca.seen();
        seen.signed.len() + seen.renewed + seen.attested.len()
    };

    for ahead in [2 * HOUR, 10 * 365 * 24 * HOUR] {
        let before = calls();
        clock.set(ca::now() + ahead);
        // Waits as long as a caller waits for an SVID; none of those that the CA signs is valid under this clock.
        let status = serial().await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(
            calls() - before <= 12,
            "{} calls in 5 seconds",
            calls() - before
        );
        clock.set(ca::now());
        eventually("it serves again", async || serial().await.is_ok()).await;
    }
    let second = serial().await.unwrap();
    assert_ne!(second, first, "the first one was withdrawn");

    let before = calls();
    clock.set(ca::now() - 2 * HOUR);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(serial().await.unwrap(), second, "what is held is served");
    assert!(
        calls() - before <= 8,
        "{} calls in 3 seconds",
        calls() - before
    );
    clock.set(ca::now());
    ca.rotate_root(true);
    let mut stream = agent.svids().await.unwrap();
    eventually("and it hears what changes", async || {
        next(&mut stream)
            .await
            .unwrap()
            .bundles()
            .iter()
            .any(|own| own.x509_authorities().len() == 2)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn svids_of_a_tainted_authority_are_replaced_for_a_thousand_workloads_within_thirty_seconds()
{
    let ca = Ca::start().await;
    ca.entries((0..1000).map(|n| {
        let uid = if n == 0 {
            my_uid()
        } else {
            format!("unix:uid:{}", 100_000 + n)
        };
        (format!("e{n:04}"), format!("/e{n}"), vec![uid])
    }));
    let agent = Agent::start(&ca).await;
    let signed = || ca.seen().signed.len();
    let made = tokio::time::timeout(Duration::from_secs(60), async {
        while signed() < 1000 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    made.await.expect("a thousand SVIDs");
    ca.rotate_root(true);
    let mut stream = agent.svids().await.unwrap();
    let old = next(&mut stream).await.unwrap();
    ca.seen().signed.clear();
    let began = tokio::time::Instant::now();
    ca.taint_old_roots();
    let replaced = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let distinct: std::collections::BTreeSet<_> =
                ca.seen().signed.iter().cloned().collect();
            if distinct.len() >= 1000 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    replaced.await.expect("all of them in time");
    println!("1000 SVIDs replaced after {:?}", began.elapsed());
    eventually("this process has its new one", async || {
        let now = agent.fetch().await.expect("served all the time");
        now.identities()[0].svid.serial() != old.identities()[0].svid.serial()
    })
    .await;
}
