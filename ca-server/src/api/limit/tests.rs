//! Budgets with paused time.

use super::*;

fn limits(attest: u32) -> Limits {
    let config = LimitsConfig {
        attestations_per_second: attest,
        ..LimitsConfig::default()
    };
    Limits::new(&config, Clock::system())
}

fn at(address: &str) -> Payer {
    Payer::at(address.parse().unwrap())
}

fn here() -> Payer {
    at("127.0.0.1")
}

fn agent(name: &str) -> Payer {
    let id = format!("spiffe://dev.test/spire/agent/join_token/{name}");
    Payer::Identity(id.parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn ca_47_over_the_budget_a_call_waits_and_far_over_it_is_refused() {
    let limits = limits(10);
    let start = limits.clock.monotonic();
    for _ in 0..10 {
        assert!(limits.wait(Limit::Attest, here(), 1).await);
    }
    assert_eq!(start.elapsed(), Duration::ZERO, "a second's worth at once");
    assert!(limits.wait(Limit::Attest, here(), 1).await);
    assert_eq!(start.elapsed(), Duration::from_millis(100));
    assert!(
        !limits.wait(Limit::Attest, here(), 11).await,
        "more than a burst at once"
    );
}

#[tokio::test(start_paused = true)]
async fn one_address_does_not_use_up_anothers_budget() {
    let limits = limits(1);
    let start = limits.clock.monotonic();
    assert!(limits.wait(Limit::Attest, here(), 1).await);
    assert!(limits.wait(Limit::Attest, at("10.0.0.1"), 1).await);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn zero_is_no_limit() {
    assert!(limits(0).wait(Limit::Attest, here(), 1_000_000).await);
}

#[tokio::test(start_paused = true)]
async fn a_wait_of_more_than_five_seconds_is_refused_and_costs_nothing() {
    let limits = limits(1);
    let mut granted = 0;
    while limits.turn(Limit::Attest, here(), 1).is_some() {
        granted += 1;
    }
    assert_eq!(granted, 6, "one at once and five that wait");
}

#[tokio::test(start_paused = true)]
async fn agents_behind_one_address_do_not_pay_for_each_other() {
    let limits = limits(1);
    let start = limits.clock.monotonic();
    assert!(limits.wait(Limit::Attest, agent("a"), 1).await);
    assert!(limits.wait(Limit::Attest, agent("b"), 1).await);
    assert!(limits.wait(Limit::Attest, here(), 1).await);
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(limits.wait(Limit::Attest, agent("a"), 1).await);
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn strangers_at_many_addresses_leave_room_for_an_agent() {
    let limits = limits(1);
    let flood = (0..MOST_ADDRESSES as u32 + 10)
        .map(|number| Payer::at(std::net::Ipv4Addr::from(number).into()));
    let refused = flood.filter(|payer| limits.turn(Limit::Attest, payer.clone(), 1).is_none());
    assert_eq!(refused.count(), 10);
    assert!(limits.turn(Limit::Attest, agent("a"), 1).is_some());
}

#[test]
fn a_network_of_ipv6_pays_from_one_budget() {
    assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1"));
    assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
    assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
}
