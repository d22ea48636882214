//! Decides which agents lose their node: those of a node that was deleted, or made again under its name.
//! Trusts a deletion that the watch tells. Never bans a whole cluster because a list looks like another cluster's.

use std::sync::Arc;
use std::time::SystemTime;

use mesh_runtime::audit::{Action, Actor, AuditLog, Object, Outcome};
use mesh_runtime::clock::Clock;
use mesh_runtime::errors::{Coded, ErrorChain};

use super::state::Reflection;
use crate::store::{Node, Nodes, StoreError};

/// How nodes may have been lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// The node of this name and UID is gone.
    One {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// All nodes were listed anew; what was attested before and is not in the list is gone.
    Unlisted {
        /// When the list was asked for.
        at: SystemTime,
    },
}

impl Lost {
    /// What is lost when a name has another UID than before, or none.
    pub(super) fn of(name: &str, before: Option<String>, now: Option<&str>) -> Option<Self> {
        let uid = before.filter(|before| Some(before.as_str()) != now)?;
        Some(Self::One {
            name: name.to_owned(),
            uid,
        })
    }
}

/// Bans agents.
#[derive(Clone)]
pub(super) struct Bans {
    pub(super) nodes: Arc<dyn Nodes>,
    pub(super) audit: AuditLog,
    pub(super) clock: Clock,
}

impl Bans {
    pub(super) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// Bans whom the loss concerns. A ban ends the agent's streams and renewals.
    pub(super) async fn judge(&self, reflection: &Reflection, lost: Lost) {
        let cluster = &reflection.setting().cluster;
        let agents = match self.nodes.list().await {
            Ok(agents) => agents,
            Err(error) => return failed(&error),
        };
        let homeless = match homeless(&agents, cluster, &lost, |name| reflection.node_uid(name)) {
            Ok(homeless) => homeless,
            Err(OtherCluster { agents }) => {
                tracing::error!(
                    code = "FNL1163",
                    cluster,
                    agents,
                    "none of the agents' nodes is in the cluster's list: this is another cluster, and no agent is banned"
                );
                return;
            }
        };
        for agent in homeless {
            if let Err(error) = self.ban(agent).await {
                failed(&error);
            }
        }
    }

    async fn ban(&self, agent: &Node) -> Result<(), StoreError> {
        let mut record = self
            .audit
            .begin(Action("agent.ban"), Actor::system("ca-server"));
        record.object(
            Object::new("agent")
                .name(agent.id.as_str())
                .after("banned, since its node was deleted"),
        );
        match self.nodes.set_banned(&agent.id, true).await {
            Ok(_) => {
                tracing::warn!(agent = %agent.id, "the node of an agent was deleted; the agent is banned");
                record.finish_later(Outcome::Success, None);
                Ok(())
            }
            Err(error) => {
                record.finish_later(Outcome::Failure, Some(error.code()));
                Err(error)
            }
        }
    }
}

fn failed(error: &StoreError) {
    tracing::error!(code = error.code(), error = %ErrorChain(error), "the agent of a deleted node could not be banned");
}

/// The list cannot be of the cluster that the agents are in.
#[derive(Debug, PartialEq, Eq)]
struct OtherCluster {
    agents: usize,
}

/// The agents of this cluster that have lost their node.
fn homeless<'a>(
    agents: &'a [Arc<Node>],
    cluster: &str,
    lost: &Lost,
    uid_now: impl Fn(&str) -> Option<String>,
) -> Result<Vec<&'a Node>, OtherCluster> {
    let ours: Vec<_> = agents
        .iter()
        .filter(|agent| !agent.banned)
        .filter_map(|agent| Some((&**agent, agent.kubernetes.as_ref()?)))
        .filter(|(_, facts)| facts.cluster == cluster)
        .collect();
    match lost {
        Lost::One { name, uid } => Ok(ours
            .into_iter()
            .filter(|(_, facts)| facts.node_name == *name && facts.node_uid == *uid)
            .map(|(agent, _)| agent)
            .collect()),
        Lost::Unlisted { at } => {
            let earlier: Vec<_> = ours
                .into_iter()
                .filter(|(agent, _)| agent.attested_at < *at)
                .collect();
            let all = earlier.len();
            let gone: Vec<_> = earlier
                .into_iter()
                .filter(|(_, facts)| uid_now(&facts.node_name).as_ref() != Some(&facts.node_uid))
                .map(|(agent, _)| agent)
                .collect();
            match all > 1 && gone.len() == all {
                true => Err(OtherCluster { agents: all }),
                false => Ok(gone),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::registry::tests::node;
    use crate::store::KubernetesFacts;

    fn agent(name: &str, cluster: &str, attested: u64) -> Arc<Node> {
        Arc::new(Node {
            kubernetes: Some(KubernetesFacts {
                cluster: cluster.into(),
                namespace: "mesh".into(),
                service_account: "agent".into(),
                pod_name: format!("agent-{name}"),
                pod_uid: "p".into(),
                node_name: name.into(),
                node_uid: format!("uid-{name}"),
            }),
            attested_at: UNIX_EPOCH + Duration::from_secs(attested),
            ..node(&format!("/spire/agent/k8s_psat/{cluster}/{name}"), &[])
        })
    }

    fn names(found: Result<Vec<&Node>, OtherCluster>) -> Vec<String> {
        let found = found.unwrap();
        found
            .iter()
            .map(|agent| agent.id.path().rsplit('/').next().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_deleted_or_replaced_node_costs_its_own_agent_and_no_other() {
        let all = [
            agent("a", "prod", 1),
            agent("b", "prod", 1),
            agent("a", "test", 1),
        ];
        let lost = Lost::of("a", Some("uid-a".into()), None).unwrap();
        assert_eq!(names(homeless(&all, "prod", &lost, |_| None)), ["a"]);
        assert_eq!(
            Lost::of("a", Some("uid-a".into()), Some("other")),
            Some(lost)
        );
        assert_eq!(Lost::of("a", Some("uid-a".into()), Some("uid-a")), None);
        assert_eq!(Lost::of("a", None, Some("uid-a")), None);
        let of_before = Lost::One {
            name: "a".into(),
            uid: "an earlier one".into(),
        };
        assert!(names(homeless(&all, "prod", &of_before, |_| None)).is_empty());
    }

    #[test]
    fn a_list_bans_whom_it_does_not_name_unless_it_names_nobody() {
        let all = [
            agent("a", "prod", 1),
            agent("b", "prod", 1),
            agent("new", "prod", 9),
        ];
        let lost = Lost::Unlisted {
            at: UNIX_EPOCH + Duration::from_secs(5),
        };
        let only_a = |name: &str| (name == "a").then(|| "uid-a".to_owned());
        assert_eq!(names(homeless(&all, "prod", &lost, only_a)), ["b"]);
        // Its node may be younger than the list.
        assert_eq!(
            homeless(&all, "prod", &lost, |_| None),
            Err(OtherCluster { agents: 2 })
        );
        assert_eq!(names(homeless(&all[..1], "prod", &lost, |_| None)), ["a"]);
    }
}
