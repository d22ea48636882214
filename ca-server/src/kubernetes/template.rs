//! Decides what a template of a `ClusterSPIFFEID` says: Go's `text/template`, as far as identities need it.
//! Trusts the facts that it is given. Never renders a construct that it does not know, and never a fact that the pod or the node
//! writes about itself (decision 1001).

use mesh_identity::TrustDomain;

use super::facts::{NodeFacts, PodFacts, is_beyond_the_node};

/// The longest template.
const LONGEST: usize = 4096;

/// A template that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Field),
}

/// A fact that may stand in an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    TrustDomain,
    ClusterName,
    ClusterDomain,
    PodName,
    PodNamespace,
    PodUid,
    PodLabel(String),
    ServiceAccount,
    NodeName,
    NodeUid,
    NodeLabel(String),
}

/// Why a text is no template of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TemplateError {
    /// Bounded, since it is rendered for each pod.
    #[error("it is longer than {LONGEST} bytes")]
    TooLong,
    /// `{{` without `}}`.
    #[error("an action is not closed by `}}}}`")]
    NotClosed,
    /// An action of Go that is not in the subset.
    #[error("`{0}` is not supported: only fields and `index .PodMeta.Labels \"key\"` are")]
    Unsupported(String),
    /// Written by whoever may patch the pod.
    #[error("annotations are no source of identity")]
    Annotation,
    /// Written by the kubelet of the node.
    #[error(
        "the node itself may set the label `{0}`; only those below node-restriction.kubernetes.io/ are a source of identity"
    )]
    NodesOwnLabel(String),
}

/// Why a template gives nothing for a pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RenderError {
    /// The pod or node has no such label, or it is empty.
    #[error("{0} is missing or empty")]
    Missing(String),
    /// It would become several segments of a path, or none.
    #[error("the value of {0} cannot be one segment of a path")]
    NotASegment(String),
}

/// What a template is rendered with.
pub(super) struct Data<'a> {
    pub(super) trust_domain: &'a TrustDomain,
    pub(super) cluster: &'a str,
    pub(super) cluster_domain: &'a str,
    pub(super) pod: &'a PodFacts,
    pub(super) node: &'a NodeFacts,
}

impl Template {
    /// Reads a template.
    pub(super) fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > LONGEST {
            return Err(TemplateError::TooLong);
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, action)) = rest.split_once("{{") {
            // Go's marks for cutting blanks: `{{- ` and ` -}}`.
            let (before, action) = match action.strip_prefix("- ") {
                Some(action) => (before.trim_end(), action),
                None => (before, action),
            };
            let (action, after) = action.split_once("}}").ok_or(TemplateError::NotClosed)?;
            let (action, after) = match action.strip_suffix(" -") {
                Some(action) => (action, after.trim_start()),
                None => (action, after),
            };
            text_part(&mut parts, before);
            parts.push(Part::Field(Field::parse(action.trim())?));
            rest = after;
        }
        text_part(&mut parts, rest);
        Ok(Self { parts })
    }

    /// What it says for a pod. With `as_path`, each value must be one segment of a path: else a label could choose its levels.
    pub(super) fn render(&self, data: &Data<'_>, as_path: bool) -> Result<String, RenderError> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(fixed) => text.push_str(fixed),
                Part::Field(field) => {
                    let value = field.value(data).filter(|value| !value.is_empty());
                    let value = value.ok_or_else(|| RenderError::Missing(field.name()))?;
                    if as_path && !is_segment(value) {
                        return Err(RenderError::NotASegment(field.name()));
                    }
                    text.push_str(value);
                }
            }
        }
        Ok(text)
    }
}

fn text_part(parts: &mut Vec<Part>, text: &str) {
    if !text.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
}

/// SPIFFE ID, section 2.2: letters, digits, `-`, `.`, `_`, and not a step up or nowhere.
fn is_segment(value: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    value.bytes().all(allowed) && value != "." && value != ".."
}

impl Field {
    fn parse(action: &str) -> Result<Self, TemplateError> {
        let unsupported = || TemplateError::Unsupported(action.to_owned());
        if let Some(arguments) = action.strip_prefix("index ") {
            let (map, key) = arguments.trim().split_once(' ').ok_or_else(unsupported)?;
            let key = quoted(key.trim()).ok_or_else(unsupported)?;
            return Self::of_map(map, key).unwrap_or_else(|| Err(unsupported()));
        }
        if let Some((map, key)) = action.rsplit_once('.')
            && is_identifier(key)
            && let Some(field) = Self::of_map(map, key)
        {
            return field;
        }
        Ok(match action {
            ".TrustDomain" => Self::TrustDomain,
            ".ClusterName" => Self::ClusterName,
            ".ClusterDomain" => Self::ClusterDomain,
            ".PodMeta.Name" => Self::PodName,
            ".PodMeta.Namespace" => Self::PodNamespace,
            ".PodMeta.UID" => Self::PodUid,
            ".PodSpec.ServiceAccountName" => Self::ServiceAccount,
            ".PodSpec.NodeName" | ".NodeMeta.Name" => Self::NodeName,
            ".NodeMeta.UID" => Self::NodeUid,
            _ => return Err(unsupported()),
        })
    }

    /// A key of one of the maps; none if that is no map of ours.
    fn of_map(map: &str, key: &str) -> Option<Result<Self, TemplateError>> {
        Some(match map {
            ".PodMeta.Labels" => Ok(Self::PodLabel(key.to_owned())),
            ".NodeMeta.Labels" if is_beyond_the_node(key) => Ok(Self::NodeLabel(key.to_owned())),
            ".NodeMeta.Labels" => Err(TemplateError::NodesOwnLabel(key.to_owned())),
            ".PodMeta.Annotations" | ".NodeMeta.Annotations" => Err(TemplateError::Annotation),
            _ => return None,
        })
    }

    fn value<'a>(&self, data: &Data<'a>) -> Option<&'a str> {
        Some(match self {
            Self::TrustDomain => data.trust_domain.as_str(),
            Self::ClusterName => data.cluster,
            Self::ClusterDomain => data.cluster_domain,
            Self::PodName => &data.pod.name,
            Self::PodNamespace => &data.pod.namespace,
            Self::PodUid => &data.pod.uid,
            Self::PodLabel(key) => data.pod.labels.get(key)?,
            Self::ServiceAccount => &data.pod.service_account,
            Self::NodeName => &data.node.name,
            Self::NodeUid => &data.node.uid,
            Self::NodeLabel(key) => data.node.labels.get(key)?,
        })
    }

    fn name(&self) -> String {
        match self {
            Self::TrustDomain => "the trust domain".into(),
            Self::ClusterName => "the cluster's name".into(),
            Self::ClusterDomain => "the cluster's domain".into(),
            Self::PodName => "the pod's name".into(),
            Self::PodNamespace => "the pod's namespace".into(),
            Self::PodUid => "the pod's UID".into(),
            Self::PodLabel(key) => format!("the pod's label {key}"),
            Self::ServiceAccount => "the pod's service account".into(),
            Self::NodeName => "the node's name".into(),
            Self::NodeUid => "the node's UID".into(),
            Self::NodeLabel(key) => format!("the node's label {key}"),
        }
    }
}

/// A string of Go without escapes, in either kind of quotes.
fn quoted(text: &str) -> Option<&str> {
    let inside = ['"', '`']
        .iter()
        .find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))?;
    (!inside.contains(['"', '`', '\\'])).then_some(inside)
}

fn is_identifier(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !text.is_empty() && text.bytes().all(word) && !text.as_bytes()[0].is_ascii_digit()
}

#[cfg(test)]
mod tests;
