//! Budgets with paused time.

use super::*;

fn limits(attest: u32) -> Limits {
    let config = LimitsConfig {
        attestations_per_second: attest,
        ..LimitsConfig::default()
    };
    Limits::new(&config, Clock::system())
}

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

#[tokio::test(start_paused = true)]
async fn ca_47_over_the_budget_a_call_waits_and_far_over_it_is_refused() {
    let limits = limits(10);
    let start = limits.clock.monotonic();
    for _ in 0..10 {
        assert!(limits.wait(Limit::Attest, HERE, 1).await);
    }
    assert_eq!(start.elapsed(), Duration::ZERO, "a second's worth at once");
    assert!(limits.wait(Limit::Attest, HERE, 1).await);
    assert_eq!(start.elapsed(), Duration::from_millis(100));
    assert!(
        !limits.wait(Limit::Attest, HERE, 11).await,
        "more than a burst at once"
    );
}

#[tokio::test(start_paused = true)]
async fn one_address_does_not_use_up_anothers_budget() {
    let limits = limits(1);
    let there: IpAddr = "10.0.0.1".parse().unwrap();
    let start = limits.clock.monotonic();
    assert!(limits.wait(Limit::Attest, HERE, 1).await);
    assert!(limits.wait(Limit::Attest, there, 1).await);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn zero_is_no_limit() {
    assert!(limits(0).wait(Limit::Attest, HERE, 1_000_000).await);
}

#[tokio::test(start_paused = true)]
async fn a_wait_of_more_than_five_seconds_is_refused_and_costs_nothing() {
    let limits = limits(1);
    let mut granted = 0;
    while limits.turn(Limit::Attest, HERE, 1).is_some() {
        granted += 1;
    }
    assert_eq!(granted, 6, "one at once and five that wait");
}
