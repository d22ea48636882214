//! The rim towards Kubernetes: what the API server says → our own values, and from those which identities a pod has.
//! Trusts the API server of a configured cluster, over TLS, about its own objects; nobody's annotations, and no label that a node
//! may write about itself.
//! Never stores an entry for a pod: identities are worked out from the facts of now when an agent asks.
//!
//! Reading order: [`facts`] (pods, nodes, namespaces, trimmed), [`rule`] (a `ClusterSPIFFEID`) with [`label_selector`] and
//! [`template`], [`derive`] (facts and rules → identities), [`state`] (what of it is an agent's), [`watch`], [`bans`], [`status`] and [`publish`].

mod bans;
pub(crate) mod client;
mod config;
mod derive;
mod facts;
mod label_selector;
mod publish;
mod rule;
mod state;
mod status;
mod template;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_identity::{SpiffeId, TrustDomain};
use mesh_runtime::audit::AuditLog;
use mesh_runtime::clock::Clock;
use mesh_runtime::tasks::Tasks;

use self::bans::Bans;
use self::derive::Setting;
use self::publish::Publisher;
use self::state::Reflection;
use self::watch::Class;
use crate::config::NodeAttestor;
use crate::registry::{Derivation, Derived};
use crate::store::{Node, Nodes, StoredBundle};

pub use self::client::ClusterError;
pub use self::config::{PublishConfig, WorkloadsConfig};

/// The clusters whose pods get identities by rule, or that are given our bundle.
pub struct Clusters {
    by_name: BTreeMap<String, Cluster>,
    publishers: BTreeMap<String, Publisher>,
    generation: tokio::sync::watch::Sender<u64>,
}

struct Cluster {
    reflection: Arc<Reflection>,
    client: kube::Client,
    class: Class,
}

impl Clusters {
    /// Those of the configuration that have a `workloads` section; none is asked anything yet.
    pub async fn open(
        configured: &[NodeAttestor],
        own: &TrustDomain,
    ) -> Result<Arc<Self>, ClusterError> {
        let mut clusters = Self {
            by_name: BTreeMap::new(),
            publishers: BTreeMap::new(),
            generation: tokio::sync::watch::Sender::new(0),
        };
        for one in configured {
            let NodeAttestor::K8sPsat(settings) = one else {
                continue;
            };
            if let Some(to) = &settings.publish_bundle {
                let publisher = Publisher {
                    client: client::client(settings, client::config(settings).await?)?,
                    to: to.clone(),
                    limit: settings.timeout.get(),
                };
                clusters
                    .publishers
                    .insert(settings.cluster.clone(), publisher);
            }
            let Some(workloads) = &settings.workloads else {
                continue;
            };
            // A watch is silent for minutes: only the calls that begin it have a limit.
            let client = client::client(settings, client::config(settings).await?)?;
            let setting = Setting {
                trust_domain: own.clone(),
                cluster: settings.cluster.clone(),
                cluster_domain: workloads.cluster_domain.clone(),
            };
            let reflection =
                Reflection::new(setting, workloads.default_rule, clusters.generation.clone());
            let cluster = Cluster {
                reflection: Arc::new(reflection),
                client,
                class: Class {
                    name: workloads.class_name.clone(),
                    classless: workloads.watch_classless,
                },
            };
            clusters.by_name.insert(settings.cluster.clone(), cluster);
        }
        Ok(Arc::new(clusters))
    }

    /// Publishes our bundle where that is wanted, until the tasks are asked to stop.
    pub fn publish(
        &self,
        tasks: &Tasks,
        bundle: &tokio::sync::watch::Receiver<Arc<StoredBundle>>,
        clock: &Clock,
    ) {
        for (name, publisher) in &self.publishers {
            let (publisher, bundle, clock) = (publisher.clone(), bundle.clone(), clock.clone());
            tasks.spawn(&format!("bundle-to-{name}"), |stop| {
                publisher.run(bundle, clock, stop)
            });
        }
    }

    /// Follows the clusters until the tasks are asked to stop. The agent of a node that is deleted is banned.
    pub fn start(&self, tasks: &Tasks, nodes: &Arc<dyn Nodes>, audit: &AuditLog, clock: &Clock) {
        for (name, cluster) in &self.by_name {
            let to = || (cluster.client.clone(), cluster.reflection.clone());
            let bans = Bans {
                nodes: nodes.clone(),
                audit: audit.clone(),
                clock: clock.clone(),
            };
            let (client, reflection) = to();
            tasks.spawn(&format!("pods-of-{name}"), |stop| {
                watch::pods(client, reflection, stop)
            });
            let (client, reflection) = to();
            tasks.spawn(&format!("nodes-of-{name}"), |stop| {
                watch::nodes(client, reflection, bans, stop)
            });
            let (client, reflection) = to();
            tasks.spawn(&format!("namespaces-of-{name}"), |stop| {
                watch::namespaces(client, reflection, stop)
            });
            let (client, reflection) = to();
            let class = cluster.class.clone();
            tasks.spawn(&format!("rules-of-{name}"), |stop| {
                watch::rules(client, reflection, class, stop)
            });
            let (client, reflection) = to();
            let clock = clock.clone();
            tasks.spawn(&format!("status-in-{name}"), |stop| {
                status::run(client, reflection, clock, stop)
            });
        }
    }

    fn of_agent(&self, agent: &Node) -> Option<&Reflection> {
        let facts = agent.kubernetes.as_ref()?;
        Some(&self.by_name.get(&facts.cluster)?.reflection)
    }
}

impl Derivation for Clusters {
    fn of(&self, agent: &Node) -> Derived {
        self.of_agent(agent)
            .map_or(Derived::Nothing, |cluster| cluster.of(agent))
    }

    fn may_have_changed(&self, agent: &Node, since: u64) -> bool {
        self.of_agent(agent)
            .is_some_and(|cluster| cluster.may_have_changed(agent, since))
    }

    fn is_admin(&self, id: &SpiffeId) -> bool {
        self.by_name
            .values()
            .any(|cluster| cluster.reflection.is_admin(id))
    }

    fn generation(&self) -> tokio::sync::watch::Receiver<u64> {
        self.generation.subscribe()
    }
}
