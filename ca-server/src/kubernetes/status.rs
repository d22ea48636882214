//! Tells people what became of their `ClusterSPIFFEID`s: a condition and SPIRE's counts in the object's status.
//! Trusts the reflection. Never writes a status that says the same, and never what is another class's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use mesh_runtime::clock::Clock;
use mesh_runtime::tasks::Stop;
use mesh_runtime::telemetry::Repetition;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::rule::RuleName;
use super::state::Reflection;
use super::watch::cluster_spiffe_ids;

/// Changes within this time are told together.
const TOGETHER: Duration = Duration::from_millis(500);

/// After a failure.
const RETRY: Duration = Duration::from_secs(5);

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) name: String,
    /// The form of the object that this is about.
    pub(super) generation: i64,
    /// Why it is not applied in that form.
    pub(super) problem: Option<String>,
    pub(super) namespaces: usize,
    pub(super) pods: usize,
    pub(super) render_failures: usize,
}

impl Verdict {
    /// A verdict that counts nothing yet.
    pub(super) fn of(rule: &RuleName, problem: Option<String>) -> Self {
        Self {
            name: rule.name.clone(),
            generation: rule.generation,
            problem,
            namespaces: 0,
            pods: 0,
            render_failures: 0,
        }
    }
}

/// What was written last, and since when it is so.
struct Written {
    verdict: Verdict,
    since: SystemTime,
}

/// Writes each verdict that changed, until it is asked to stop.
pub(super) async fn run(
    client: kube::Client,
    of: Arc<Reflection>,
    clock: Clock,
    stop: Stop,
) -> Result<(), std::convert::Infallible> {
    let objects: Api<DynamicObject> = Api::all_with(client, &cluster_spiffe_ids());
    let quiet = Repetition::new("write-status");
    let mut written: BTreeMap<String, Written> = BTreeMap::new();
    let mut facts = of.facts();
    loop {
        facts.mark_unchanged();
        let verdicts = of.verdicts();
        written.retain(|uid, _| verdicts.contains_key(uid));
        let mut all_well = true;
        for (uid, verdict) in verdicts {
            let before = written.get(&uid);
            if before.is_some_and(|before| before.verdict == verdict) {
                continue;
            }
            let same = before
                .filter(|before| before.verdict.problem.is_none() == verdict.problem.is_none());
            let since = same.map_or_else(|| clock.now(), |before| before.since);
            match write(&objects, &verdict, since).await {
                Ok(()) => {
                    quiet.succeeded();
                    written.insert(uid, Written { verdict, since });
                }
                // It is gone, and the watch will say so.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    let _said = quiet.failed(&error);
                    all_well = false;
                }
            }
        }
        let next = async {
            tokio::select! {
                changed = facts.changed() => drop(changed),
                () = clock.sleep(RETRY), if !all_well => {}
            }
            clock.sleep(TOGETHER).await;
        };
        if stop.unless_stopped(next).await.is_none() {
            return Ok(());
        }
    }
}

/// SPIRE's own definition of the kind has no conditions, and applying what a definition lacks is refused: then the counts alone.
async fn write(
    objects: &Api<DynamicObject>,
    verdict: &Verdict,
    since: SystemTime,
) -> Result<(), kube::Error> {
    let by = PatchParams::apply("ca-server").force();
    let full = Patch::Apply(object(verdict, Some(since)));
    match objects.patch_status(&verdict.name, &by, &full).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 422 | 500) => {
            let counts = Patch::Apply(object(verdict, None));
            objects.patch_status(&verdict.name, &by, &counts).await?;
        }
        written => drop(written?),
    }
    Ok(())
}

fn object(verdict: &Verdict, since: Option<SystemTime>) -> Value {
    let mut status = json!({ "stats": {
        "namespacesSelected": verdict.namespaces,
        "podsSelected": verdict.pods,
        "podEntryRenderFailures": verdict.render_failures,
    } });
    if let Some(since) = since {
        let (value, reason) = match verdict.problem {
            None => ("True", "Understood"),
            Some(_) => ("False", "NotUnderstood"),
        };
        status["conditions"] = json!([{
            "type": "Accepted",
            "status": value,
            "reason": reason,
            "message": verdict.problem.as_deref().unwrap_or_default(),
            "observedGeneration": verdict.generation,
            "lastTransitionTime": OffsetDateTime::from(since)
                .replace_nanosecond(0)
                .unwrap_or(OffsetDateTime::UNIX_EPOCH)
                .format(&Rfc3339)
                .unwrap_or_default(),
        }]);
    }
    json!({
        "apiVersion": "spire.spiffe.io/v1alpha1",
        "kind": "ClusterSPIFFEID",
        "metadata": { "name": verdict.name },
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_object_says_so_for_the_form_that_was_read_and_counts_stand_alone() {
        let mut verdict = Verdict {
            name: "r".into(),
            generation: 7,
            problem: Some("ttl: not a duration".into()),
            namespaces: 1,
            pods: 2,
            render_failures: 3,
        };
        let refused = object(&verdict, Some(SystemTime::UNIX_EPOCH));
        let condition = &refused["status"]["conditions"][0];
        assert_eq!(condition["status"], "False");
        assert_eq!(condition["message"], "ttl: not a duration");
        assert_eq!(condition["observedGeneration"], 7);
        assert_eq!(condition["lastTransitionTime"], "1970-01-01T00:00:00Z");
        verdict.problem = None;
        let accepted = object(&verdict, Some(SystemTime::UNIX_EPOCH));
        assert_eq!(accepted["status"]["conditions"][0]["status"], "True");
        let counts = object(&verdict, None);
        assert_eq!(
            counts["status"].as_object().map(|status| status.len()),
            Some(1)
        );
        assert_eq!(counts["status"]["stats"]["podEntryRenderFailures"], 3);
    }
}
