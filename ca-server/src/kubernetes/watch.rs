//! Keeps a cluster's reflection as the API server says it is: one watch for each kind, read anew where it breaks.
//! Trusts the watches of `kube`. Never holds a whole object longer than it takes to trim it.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Error, Event};
use mesh_identity::TrustDomain;
use mesh_runtime::tasks::Stop;
use mesh_runtime::telemetry::Repetition;

use super::bans::{Bans, Lost};
use super::facts::{Labels, NodeFacts, PodFacts, created_at};
use super::rule::{Rule, RuleError, RuleName, class_name};
use super::state::{Change, Reflection};

/// A watch never ends by itself, and its errors are retried.
type Never = std::convert::Infallible;

/// Follows the pods.
pub(super) async fn pods(
    client: kube::Client,
    to: Arc<Reflection>,
    stop: Stop,
) -> Result<(), Never> {
    let all: Api<Pod> = Api::all(client);
    let events = watcher::watcher(all, watcher::Config::default());
    follow(
        "watch-pods",
        events,
        stop,
        PodFacts::of,
        |change| to.pods(change),
        uid,
        |_| {},
    )
    .await
}

/// Follows the nodes, and bans the agents of those that are gone.
pub(super) async fn nodes(
    client: kube::Client,
    to: Arc<Reflection>,
    bans: Bans,
    stop: Stop,
) -> Result<(), Never> {
    let all: Api<PartialObjectMeta<Node>> = Api::all(client);
    let mut events = Box::pin(watcher::watcher(all, watcher::Config::default()).default_backoff());
    let quiet = Repetition::new("watch-nodes");
    let (mut listed, mut listed_at) = (Vec::new(), bans.now());
    while let Some(Some(event)) = stop.unless_stopped(events.next()).await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                failed(&quiet, &error);
                continue;
            }
        };
        quiet.succeeded();
        if matches!(event, Event::Init) {
            listed_at = bans.now();
        }
        let read = |node: PartialObjectMeta<Node>| NodeFacts::of(node.metadata);
        let Some(change) = collect(event, &mut listed, read, name) else {
            continue;
        };
        let lost = match &change {
            Change::Set(node) => Lost::of(&node.name, to.node_uid(&node.name), Some(&node.uid)),
            Change::Gone(name) => Lost::of(name, to.node_uid(name), None),
            Change::All(_) => Some(Lost::Unlisted { at: listed_at }),
        };
        to.nodes(change);
        if let Some(lost) = lost {
            bans.judge(&to, lost).await;
        }
    }
    Ok(())
}

/// Follows the namespaces.
pub(super) async fn namespaces(
    client: kube::Client,
    to: Arc<Reflection>,
    stop: Stop,
) -> Result<(), Never> {
    let all: Api<PartialObjectMeta<Namespace>> = Api::all(client);
    let events = watcher::watcher(all, watcher::Config::default());
    let read = |one: PartialObjectMeta<Namespace>| {
        Some((one.metadata.name?, one.metadata.labels.unwrap_or_default()))
    };
    let tell = |change: Change<(String, Labels)>| to.namespaces(change);
    follow("watch-namespaces", events, stop, read, tell, name, |_| {}).await
}

/// The class of the objects that are ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) name: String,
    pub(super) classless: bool,
}

impl Class {
    fn is_ours(&self, spec: &serde_json::Value) -> bool {
        let name = class_name(spec);
        name == self.name || (name.is_empty() && self.classless)
    }
}

/// The kind `ClusterSPIFFEID`.
pub(super) fn cluster_spiffe_ids() -> ApiResource {
    let kind = GroupVersionKind::gvk("spire.spiffe.io", "v1alpha1", "ClusterSPIFFEID");
    ApiResource::from_gvk_with_plural(&kind, "clusterspiffeids")
}

/// Follows the `ClusterSPIFFEID`s of a class.
pub(super) async fn rules(
    client: kube::Client,
    to: Arc<Reflection>,
    class: Class,
    stop: Stop,
) -> Result<(), Never> {
    let all: Api<DynamicObject> = Api::all_with(client, &cluster_spiffe_ids());
    let own = to.setting().trust_domain.clone();
    let events = watcher::watcher(all, watcher::Config::default());
    // One that changed its class is gone for us, by an event that says it changed.
    let reflected = to.clone();
    let read = move |object: DynamicObject| {
        let (of, read) = read_rule(object, &own, &class)?;
        match read {
            Some(read) => Some((of, read)),
            None => {
                reflected.rules(Change::Gone(of.uid));
                None
            }
        }
    };
    let missing = |error: &Error| {
        if is_not_found(error) {
            to.no_rules();
        }
    };
    follow(
        "watch-cluster-spiffe-ids",
        events,
        stop,
        read,
        |change| to.rules(change),
        uid,
        missing,
    )
    .await
}

/// Reads an object; no rule in it if it is of another class.
fn read_rule(
    object: DynamicObject,
    own: &TrustDomain,
    class: &Class,
) -> Option<(RuleName, Option<Result<Rule, RuleError>>)> {
    let of = RuleName {
        created_at: created_at(&object.metadata),
        generation: object.metadata.generation.unwrap_or_default(),
        name: object.metadata.name?,
        uid: object.metadata.uid?,
    };
    let mut data = object.data;
    let spec = data
        .get_mut("spec")
        .map(serde_json::Value::take)
        .unwrap_or_default();
    let read = class
        .is_ours(&spec)
        .then(|| Rule::parse(of.clone(), spec, own));
    Some((of, read))
}

/// Follows one kind until it is asked to stop.
async fn follow<K, T>(
    name: &'static str,
    events: impl Stream<Item = Result<Event<K>, Error>> + Send,
    stop: Stop,
    read: impl Fn(K) -> Option<T>,
    tell: impl Fn(Change<T>),
    key: impl Fn(&K) -> String,
    on_error: impl Fn(&Error),
) -> Result<(), Never> {
    let mut events = Box::pin(events.default_backoff());
    let quiet = Repetition::new(name);
    let mut listed = Vec::new();
    while let Some(Some(event)) = stop.unless_stopped(events.next()).await {
        match event {
            Ok(event) => {
                quiet.succeeded();
                if let Some(change) = collect(event, &mut listed, &read, &key) {
                    tell(change);
                }
            }
            Err(error) => {
                failed(&quiet, &error);
                on_error(&error);
            }
        }
    }
    Ok(())
}

/// What an event of a watch changes. A list is told when it is whole.
fn collect<K, T>(
    event: Event<K>,
    listed: &mut Vec<T>,
    read: impl Fn(K) -> Option<T>,
    key: impl Fn(&K) -> String,
) -> Option<Change<T>> {
    match event {
        Event::Init => listed.clear(),
        Event::InitApply(object) => listed.extend(read(object)),
        Event::InitDone => return Some(Change::All(std::mem::take(listed))),
        Event::Apply(object) => return read(object).map(Change::Set),
        Event::Delete(object) => return Some(Change::Gone(key(&object))),
    }
    None
}

fn uid(object: &impl ResourceExt) -> String {
    object.uid().unwrap_or_default()
}

fn name(object: &impl ResourceExt) -> String {
    object.name_any()
}

/// The watch begins anew after a pause.
fn failed(quiet: &Repetition, error: &Error) {
    let _said = quiet.failed(error);
}

/// The kind is not installed.
fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}
