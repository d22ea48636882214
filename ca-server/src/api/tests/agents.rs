//! `agent.v1` as SPIRE's tools use it: filters, pages, ban and evict.

use proto::spire::api::types::selector_match::MatchBehavior;

use super::super::caller::NotACaller;
use super::*;

async fn client(server: &Server) -> AgentClient<Channel> {
    AgentClient::new(admin_channel(server).await)
}

#[tokio::test]
async fn list_and_count_of_agents_agree_under_every_filter() {
    let server = Server::start().await;
    let (banned, live) = (server.join().await, server.join().await);
    client(&server)
        .await
        .ban_agent(agent_wire::BanAgentRequest {
            id: Some((&banned.id).into()),
        })
        .await
        .unwrap();
    let mut node = (*server.stores.nodes.get(&live.id).await.unwrap().unwrap()).clone();
    node.id = "spiffe://dev.test/spire/agent/k8s_psat/c/n"
        .parse()
        .unwrap();
    node.attestation_type = "k8s_psat".into();
    node.selectors = ["k8s_psat:cluster:c".parse().unwrap()].into();
    node.can_reattest = true;
    node.expires_at = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let psat = node.id.clone();
    server.stores.nodes.attest(node).await.unwrap();
    let cluster = |how: MatchBehavior| {
        Some(types::SelectorMatch {
            selectors: vec![types::Selector {
                r#type: "k8s_psat".into(),
                value: "cluster:c".into(),
            }],
            r#match: how.into(),
        })
    };
    macro_rules! check {
        ($expected:expr, $field:ident: $value:expr) => {{
            let ask = agent_wire::ListAgentsRequest {
                filter: Some(agent_wire::list_agents_request::Filter {
                    $field: $value,
                    ..Default::default()
                }),
                ..Default::default()
            };
            let listed = client(&server).await.list_agents(ask).await.unwrap();
            let mut ids: Vec<SpiffeId> = listed
                .into_inner()
                .agents
                .iter()
                .map(|agent| agent.id.as_ref().unwrap().try_into().unwrap())
                .collect();
            let mut expected: Vec<SpiffeId> = $expected.map(Clone::clone).into();
            ids.sort();
            expected.sort();
            assert_eq!(ids, expected, stringify!($field));
            let ask = agent_wire::CountAgentsRequest {
                filter: Some(agent_wire::count_agents_request::Filter {
                    $field: $value,
                    ..Default::default()
                }),
            };
            let counted = client(&server).await.count_agents(ask).await.unwrap();
            assert_eq!(counted.into_inner().count as usize, expected.len());
        }};
    }
    check!([&banned.id], by_banned: Some(true));
    check!([&live.id, &psat], by_banned: Some(false));
    check!([&psat], by_can_reattest: Some(true));
    check!([&psat], by_attestation_type: "k8s_psat".into());
    check!([&banned.id, &live.id, &psat], by_attestation_type: String::new());
    check!([&psat], by_selector_match: cluster(MatchBehavior::MatchExact));
    check!([&psat], by_selector_match: cluster(MatchBehavior::MatchAny));
    check!([&psat], by_expires_before: "2001-09-09 03:46:41 +0200 +02".into());
    check!([&psat; 0], by_expires_before: "2001-09-09 01:46:40 +0000 +00".into());
}

#[tokio::test]
async fn a_filter_of_agents_that_cannot_be_read_is_refused() {
    use agent_wire::list_agents_request::Filter;
    let server = Server::start().await;
    for filter in [
        Filter {
            by_expires_before: "tomorrow".into(),
            ..Default::default()
        },
        Filter {
            by_selector_match: Some(types::SelectorMatch::default()),
            ..Default::default()
        },
    ] {
        let ask = agent_wire::ListAgentsRequest {
            filter: Some(filter),
            ..Default::default()
        };
        let refused = client(&server).await.list_agents(ask).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn agents_come_in_pages_and_a_mask_leaves_the_id() {
    let server = Server::start().await;
    for _ in 0..3 {
        server.join().await;
    }
    let mut client = client(&server).await;
    let (mut token, mut seen, mut pages) = (String::new(), Vec::new(), 0);
    loop {
        let ask = agent_wire::ListAgentsRequest {
            output_mask: Some(types::AgentMask::default()),
            page_size: 2,
            page_token: token,
            ..Default::default()
        };
        let page = client.list_agents(ask).await.unwrap().into_inner();
        pages += 1;
        for agent in &page.agents {
            assert!(agent.x509svid_serial_number.is_empty() && agent.selectors.is_empty());
        }
        seen.extend(page.agents.into_iter().map(|agent| agent.id.unwrap().path));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    seen.dedup();
    assert_eq!((seen.len(), pages), (3, 2));
}

#[tokio::test]
async fn ban_and_evict_of_what_is_no_agent_are_refused_in_spires_words() {
    let server = Server::start().await;
    let mut client = client(&server).await;
    let id = |path: &str| {
        Some(types::Spiffeid {
            trust_domain: "dev.test".into(),
            path: path.into(),
        })
    };
    for (id, code, message) in [
        (None, Code::InvalidArgument, "invalid agent ID: "),
        (id("/web"), Code::InvalidArgument, "invalid agent ID: "),
        (
            id("/spire/agent/join_token/none"),
            Code::NotFound,
            "agent not found",
        ),
    ] {
        let ban = agent_wire::BanAgentRequest { id: id.clone() };
        let evict = agent_wire::DeleteAgentRequest { id };
        for refused in [
            client.ban_agent(ban).await.unwrap_err(),
            client.delete_agent(evict).await.unwrap_err(),
        ] {
            assert_eq!(refused.code(), code);
            assert!(
                refused.message().starts_with(message),
                "{}",
                refused.message()
            );
        }
    }
}

#[tokio::test]
async fn an_agent_that_a_ban_or_an_eviction_overtakes_hears_of_it_as_such() {
    use crate::registry::tests::{id, node, own};
    let stores = crate::store::Stores::memory(&own());
    let path = "/spire/agent/join_token/a";
    let agent = node(path, &[]);
    let presented = agent.serial.clone();
    stores.nodes.attest(agent).await.unwrap();
    stores.nodes.set_banned(&id(path), true).await.unwrap();
    let renewed = crate::store::RenewedSerial {
        serial: "new".into(),
        expires_at: std::time::UNIX_EPOCH,
    };
    let nodes = &*stores.nodes;
    let change = nodes.renew(&id(path), &presented, renewed).await.unwrap();
    assert!(change.is_none(), "the ban came first");
    let why = NotACaller::overtaken(nodes, &id(path)).await;
    assert!(matches!(why, NotACaller::AgentBanned(_)), "{why}");
    nodes.set_banned(&id(path), false).await.unwrap();
    let why = NotACaller::overtaken(nodes, &id(path)).await;
    assert!(matches!(why, NotACaller::AgentNotActive(_)), "{why}");
    nodes.delete(&id(path)).await.unwrap();
    let why = NotACaller::overtaken(nodes, &id(path)).await;
    assert!(matches!(why, NotACaller::AgentNotAttested(_)), "{why}");
}
