//! The rows of the Workload API (WEP, WAPI) and of the agent (AG): each is tested by its number, or docs/workload-rows.md says why
//! not yet.

use std::collections::BTreeSet;

/// Every requirement of the Workload Endpoint and of the Workload API, and every row of the agent's test plan.
fn rows() -> BTreeSet<String> {
    let endpoint = (1..=24).map(|n| format!("WEP-{n}"));
    let api = (1..=16).chain(20..=34).chain(40..=52).chain(60..=64);
    let api = api.map(|n| format!("WAPI-{n}"));
    let agent = (1..=18).chain(20..=26).map(|n| format!("AG-{n:02}"));
    endpoint.chain(api).chain(agent).collect()
}

#[test]
fn each_row_of_the_workload_api_and_of_the_agent_is_a_test_or_says_why_not_yet() {
    super::security_rows::hold(&rows(), "docs/workload-rows.md");
}
