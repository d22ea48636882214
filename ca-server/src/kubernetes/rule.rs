//! Decides what a `ClusterSPIFFEID` says: all of its fields read and understood, or the object refused with the reason.
//! Trusts nothing that it does not know. Never guesses: a field of a later version refuses the object.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use mesh_identity::TrustDomain;
use mesh_runtime::errors::Coded;
use serde::Deserialize;

use super::facts::{Labels, PodFacts};
use super::label_selector::LabelSelector;
use super::template::{Template, TemplateError};

/// The most templates of one kind in one rule.
const MOST: usize = 64;

/// Who a rule is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RuleName {
    /// The object's name; empty for the default rule.
    pub(super) name: String,
    /// The object's UID.
    pub(super) uid: String,
    /// When it was made: the older rule goes first.
    pub(super) created_at: SystemTime,
    /// The number of its form; each edit of the spec raises it.
    pub(super) generation: i64,
}

/// A `ClusterSPIFFEID` that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) of: RuleName,
    pub(super) spiffe_id: Template,
    pub(super) dns_names: Vec<Template>,
    pub(super) workload_selectors: Vec<Template>,
    pub(super) ttl: Option<Duration>,
    pub(super) jwt_ttl: Option<Duration>,
    pub(super) federates_with: BTreeSet<TrustDomain>,
    pub(super) hint: String,
    pub(super) admin: bool,
    pub(super) downstream: bool,
    pub(super) fallback: bool,
    namespaces: Option<LabelSelector>,
    pods: Option<LabelSelector>,
}

/// `spire.spiffe.io/v1alpha1`, `ClusterSPIFFEID`, `spec`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    #[serde(rename = "spiffeIDTemplate")]
    spiffe_id_template: String,
    pod_selector: Option<LabelSelector>,
    namespace_selector: Option<LabelSelector>,
    #[serde(default, rename = "dnsNameTemplates")]
    dns_name_templates: Vec<String>,
    #[serde(default)]
    workload_selector_templates: Vec<String>,
    ttl: Option<String>,
    jwt_ttl: Option<String>,
    #[serde(default)]
    federates_with: Vec<String>,
    #[serde(default, rename = "className")]
    _class_name: String,
    #[serde(default)]
    admin: bool,
    #[serde(default)]
    downstream: bool,
    #[serde(default, rename = "autoPopulateDNSNames")]
    auto_populate_dns_names: bool,
    #[serde(default)]
    fallback: bool,
    #[serde(default)]
    hint: String,
}

/// Why a `ClusterSPIFFEID` is not applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum RuleError {
    /// Missing, unknown or of another type.
    #[error("the spec cannot be read")]
    Spec(#[source] serde_json::Error),
    /// Not in our subset.
    #[error("{field}: the template cannot be used")]
    Template {
        field: &'static str,
        #[source]
        cause: TemplateError,
    },
    /// An operator without its values, or with some too many.
    #[error("{field}: the expression for `{key}` has not the values of its operator")]
    Selector { field: &'static str, key: String },
    /// Not a duration of Go, or not a whole second at least.
    #[error("{0}: not a duration of at least 1s, such as 1h30m")]
    Duration(&'static str),
    /// Not a trust domain, or our own.
    #[error("federatesWith: `{0}` is not the name of another trust domain")]
    FederatesWith(String),
    /// A bound.
    #[error("{0}: at most {MOST}")]
    TooMany(&'static str),
    /// Not done here.
    #[error("autoPopulateDNSNames is not supported; name the DNS names in dnsNameTemplates")]
    AutoPopulate,
}

impl Coded for RuleError {
    fn code(&self) -> &'static str {
        "FNL1160"
    }
}

/// The class that an object says it is of.
pub(super) fn class_name(spec: &serde_json::Value) -> &str {
    spec.get("className")
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default()
}

impl Rule {
    /// Reads the `spec` of an object.
    pub(super) fn parse(
        of: RuleName,
        spec: serde_json::Value,
        own: &TrustDomain,
    ) -> Result<Self, RuleError> {
        let spec: Spec = serde_json::from_value(spec).map_err(RuleError::Spec)?;
        for (field, selector) in [
            ("podSelector", &spec.pod_selector),
            ("namespaceSelector", &spec.namespace_selector),
        ] {
            if let Some(Err(key)) = selector.as_ref().map(LabelSelector::check) {
                return Err(RuleError::Selector {
                    field,
                    key: key.to_owned(),
                });
            }
        }
        if spec.auto_populate_dns_names {
            return Err(RuleError::AutoPopulate);
        }
        Ok(Self {
            of,
            spiffe_id: template("spiffeIDTemplate", &spec.spiffe_id_template)?,
            dns_names: templates("dnsNameTemplates", &spec.dns_name_templates)?,
            workload_selectors: templates(
                "workloadSelectorTemplates",
                &spec.workload_selector_templates,
            )?,
            ttl: duration("ttl", spec.ttl.as_deref())?,
            jwt_ttl: duration("jwtTtl", spec.jwt_ttl.as_deref())?,
            federates_with: federates_with(&spec.federates_with, own)?,
            hint: spec.hint,
            admin: spec.admin,
            downstream: spec.downstream,
            fallback: spec.fallback,
            namespaces: spec.namespace_selector,
            pods: spec.pod_selector,
        })
    }

    /// The rule of a cluster without rules: `ns/<namespace>/sa/<service account>`, for whatever no other rule matches.
    pub(super) fn default() -> Self {
        let text = "spiffe://{{ .TrustDomain }}/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}";
        Self {
            of: RuleName {
                name: String::new(),
                uid: String::new(),
                created_at: SystemTime::UNIX_EPOCH,
                generation: 0,
            },
            spiffe_id: Template::parse(text).expect("our own template"),
            dns_names: Vec::new(),
            workload_selectors: Vec::new(),
            ttl: None,
            jwt_ttl: None,
            federates_with: BTreeSet::new(),
            hint: String::new(),
            admin: false,
            downstream: false,
            fallback: true,
            namespaces: None,
            pods: None,
        }
    }

    /// What goes first: rules of their own before fallbacks before the default, then the older, then by name.
    pub(super) fn preference(&self) -> impl Ord + use<'_> {
        (self.rank(), self.of.created_at, &self.of.name)
    }

    /// Only the matching rules of the lowest rank count.
    pub(super) fn rank(&self) -> u8 {
        match (self.fallback, self.of.uid.is_empty()) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        }
    }

    /// Whether it is for this pod, in a namespace with these labels.
    pub(super) fn matches(&self, pod: &PodFacts, namespace: &Labels) -> bool {
        let selects = |selector: &Option<LabelSelector>, labels| {
            selector.as_ref().is_none_or(|one| one.selects(labels))
        };
        selects(&self.namespaces, namespace) && selects(&self.pods, &pod.labels)
    }
}

fn template(field: &'static str, text: &str) -> Result<Template, RuleError> {
    Template::parse(text).map_err(|cause| RuleError::Template { field, cause })
}

fn templates(field: &'static str, texts: &[String]) -> Result<Vec<Template>, RuleError> {
    match texts.len() > MOST {
        true => Err(RuleError::TooMany(field)),
        false => texts.iter().map(|text| template(field, text)).collect(),
    }
}

fn federates_with(names: &[String], own: &TrustDomain) -> Result<BTreeSet<TrustDomain>, RuleError> {
    if names.len() > MOST {
        return Err(RuleError::TooMany("federatesWith"));
    }
    names
        .iter()
        .map(|name| match name.parse::<TrustDomain>() {
            Ok(other) if other != *own => Ok(other),
            _ => Err(RuleError::FederatesWith(name.clone())),
        })
        .collect()
}

/// A duration of Go, as `metav1.Duration` has it; zero means that nothing was said.
fn duration(field: &'static str, text: Option<&str>) -> Result<Option<Duration>, RuleError> {
    let Some(text) = text else {
        return Ok(None);
    };
    let read = go_duration(text).ok_or(RuleError::Duration(field))?;
    match read {
        Duration::ZERO => Ok(None),
        read if read.subsec_nanos() == 0 => Ok(Some(read)),
        _ => Err(RuleError::Duration(field)),
    }
}

/// Numbers with units, without a sign: `1h30m`, `90s`, `0`.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, seconds, nanos) = [
            ("ms", 0, 1_000_000),
            ("us", 0, 1_000),
            ("ns", 0, 1),
            ("h", 3600, 0),
            ("m", 60, 0),
            ("s", 1, 0),
        ]
        .into_iter()
        .find(|(unit, ..)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        let part = Duration::from_secs(number.checked_mul(seconds)?)
            .checked_add(Duration::from_nanos(number.checked_mul(nanos)?))?;
        total = total.checked_add(part)?;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests;
