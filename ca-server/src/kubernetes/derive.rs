//! Decides which identities a pod has: pod, node, namespace and rules → entries, and the rules that gave none with the reason.
//! Trusts its arguments. Never falls back to another rule because one that matches could not be rendered.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_identity::{
    DnsName, DnsNameError, Entry, EntryError, EntryId, Selector, SelectorError, SpiffeId,
    SpiffeIdError, TrustDomain,
};

use super::facts::{Labels, NodeFacts, PodFacts};
use super::rule::Rule;
use super::template::{Data, RenderError, Template};

/// What is the same for all pods of a cluster.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) trust_domain: TrustDomain,
    pub(super) cluster: String,
    pub(super) cluster_domain: String,
}

/// What the rules give one pod.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Its identities, by preference.
    pub(super) entries: Vec<Entry>,
    /// Rules that match and gave nothing.
    pub(super) failures: Vec<Failure>,
    /// Rules whose identity another rule gave before.
    pub(super) masked: usize,
}

/// A rule that matches a pod and could not be applied.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) rule: Arc<Rule>,
    pub(super) why: CannotApply,
}

/// Why a rule gives a pod nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum CannotApply {
    /// A fact is missing, or must not stand in an ID.
    #[error("{field} cannot be rendered")]
    Render {
        field: &'static str,
        #[source]
        cause: RenderError,
    },
    /// What was rendered is no SPIFFE ID.
    #[error("spiffeIDTemplate gives no SPIFFE ID")]
    SpiffeId(#[source] SpiffeIdError),
    /// What was rendered is no DNS name.
    #[error("dnsNameTemplates gives no DNS name")]
    DnsName(#[source] DnsNameError),
    /// What was rendered is no selector.
    #[error("workloadSelectorTemplates gives no selector")]
    Selector(#[source] SelectorError),
    /// Not an entry as SPIRE allows it.
    #[error("the identity is not well formed")]
    Entry(#[source] EntryError),
}

/// The entries of a pod on a node whose agent is `agent`. `rules` are in the order of their preference.
pub(super) fn identities(
    setting: &Setting,
    agent: &SpiffeId,
    pod: &PodFacts,
    node: &NodeFacts,
    namespace: &Labels,
    rules: &[Arc<Rule>],
) -> Outcome {
    let mut outcome = Outcome::default();
    if pod.barred.is_some() {
        return outcome;
    }
    let matching: Vec<_> = rules
        .iter()
        .filter(|rule| rule.matches(pod, namespace))
        .collect();
    let rank = matching.iter().map(|rule| rule.rank()).min();
    let data = Data {
        trust_domain: &setting.trust_domain,
        cluster: &setting.cluster,
        cluster_domain: &setting.cluster_domain,
        pod,
        node,
    };
    let mut seen: BTreeSet<(SpiffeId, BTreeSet<Selector>)> = BTreeSet::new();
    for rule in matching
        .into_iter()
        .filter(|rule| Some(rule.rank()) == rank)
    {
        match entry(setting, agent, rule, &data) {
            Ok(entry) if seen.insert((entry.spiffe_id.clone(), entry.selectors.clone())) => {
                outcome.entries.push(entry);
            }
            Ok(_) => outcome.masked += 1,
            Err(why) => outcome.failures.push(Failure {
                rule: rule.clone(),
                why,
            }),
        }
    }
    outcome
}

fn entry(
    setting: &Setting,
    agent: &SpiffeId,
    rule: &Rule,
    data: &Data<'_>,
) -> Result<Entry, CannotApply> {
    let spiffe_id = render("spiffeIDTemplate", &rule.spiffe_id, data, true)?;
    let mut selectors = BTreeSet::new();
    selectors.insert(
        Selector::new("k8s", &format!("pod-uid:{}", data.pod.uid))
            .map_err(CannotApply::Selector)?,
    );
    for template in &rule.workload_selectors {
        let text = render("workloadSelectorTemplates", template, data, false)?;
        selectors.insert(text.parse().map_err(CannotApply::Selector)?);
    }
    let mut dns_names: Vec<DnsName> = Vec::new();
    for template in &rule.dns_names {
        let name = render("dnsNameTemplates", template, data, false)?;
        let name = name.parse().map_err(CannotApply::DnsName)?;
        if !dns_names.contains(&name) {
            dns_names.push(name);
        }
    }
    let mut entry = Entry {
        id: PREFIX.parse().expect("a name until it has its own"),
        spiffe_id: spiffe_id.parse().map_err(CannotApply::SpiffeId)?,
        parent_id: agent.clone(),
        selectors,
        x509_svid_ttl: rule.ttl,
        jwt_svid_ttl: rule.jwt_ttl,
        federates_with: rule.federates_with.clone(),
        admin: rule.admin,
        downstream: rule.downstream,
        expires_at: None,
        dns_names,
        // What an entry says never changes under its name, so there is nothing to count.
        revision: 1,
        store_svid: false,
        hint: rule.hint.clone(),
        created_at: data.pod.created_at,
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    };
    entry
        .validate(&setting.trust_domain)
        .map_err(CannotApply::Entry)?;
    entry.id = name(setting, rule, &entry);
    Ok(entry)
}

fn render(
    field: &'static str,
    template: &Template,
    data: &Data<'_>,
    as_path: bool,
) -> Result<String, CannotApply> {
    template
        .render(data, as_path)
        .map_err(|cause| CannotApply::Render { field, cause })
}

/// How the names of derived entries begin.
pub(super) const PREFIX: &str = "k8s.";

/// The name of an entry is the digest of what it says: the same on each server and after each restart, and another one as soon as
/// it says something else.
fn name(setting: &Setting, rule: &Rule, entry: &Entry) -> EntryId {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    let mut part = |bytes: &[u8]| {
        digest.update(&(bytes.len() as u64).to_be_bytes());
        digest.update(bytes);
    };
    part(setting.cluster.as_bytes());
    part(rule.of.uid.as_bytes());
    part(entry.parent_id.as_str().as_bytes());
    part(entry.spiffe_id.as_str().as_bytes());
    part(&(entry.selectors.len() as u64).to_be_bytes());
    for selector in &entry.selectors {
        part(selector.as_str().as_bytes());
    }
    for ttl in [entry.x509_svid_ttl, entry.jwt_svid_ttl] {
        part(&ttl.map_or(0, |ttl| ttl.as_secs()).to_be_bytes());
    }
    part(&(entry.federates_with.len() as u64).to_be_bytes());
    for domain in &entry.federates_with {
        part(domain.as_str().as_bytes());
    }
    for name in &entry.dns_names {
        part(name.as_str().as_bytes());
    }
    part(entry.hint.as_bytes());
    part(&[u8::from(entry.admin), u8::from(entry.downstream)]);
    let hex: String = digest.finish().as_ref()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{PREFIX}{hex}")
        .parse()
        .expect("hexadecimal digits name an entry")
}

#[cfg(test)]
mod tests;
