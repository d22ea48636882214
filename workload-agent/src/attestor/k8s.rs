//! Decides which pod and container a process is in, from the cgroup that the kernel says it is in.
//! Trusts the levels that the kubelet and the container runtime made, and whoever may write above them: node root.
//! Never looks for a pod deeper than where kubelet puts one: a container may make cgroups of any name below its own.

use mesh_identity::Selector;

/// The container that a process is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodProcess {
    /// The UID of the pod; of a static pod the hash of its file.
    pub(super) pod_uid: String,
    /// The id of the container, without the runtime's name.
    pub(super) container_id: String,
}

/// Why a process that is in a pod, or looks like it, gets no `k8s:` facts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAPodProcess {
    /// Its controllers are in different containers.
    #[error("its cgroups name different containers")]
    Contradiction,
    /// In the pod's cgroup, but in no container of it.
    #[error("its cgroup is in a pod and in no container")]
    NoContainer,
    /// Not a text of lines with two colons.
    #[error("its cgroup file has another form")]
    Form,
}

/// Finds the pod of a process.
#[derive(Debug)]
pub struct K8sAttestor {
    /// What stands before the kubelet's levels on this node.
    prefix: Vec<String>,
}

impl K8sAttestor {
    /// Learns from the agent's own cgroup where this node's kubelet puts its pods. An agent outside of any pod: at the root.
    pub fn on_this_node() -> Self {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::beside(&own)
    }

    /// The same from the agent's own cgroup file.
    fn beside(own: &str) -> Self {
        let prefix = lines(own)
            .filter_map(|line| own_prefix(line?))
            .next()
            .unwrap_or_default();
        Self { prefix }
    }

    /// The facts of a process with this cgroup file, none if it is in no pod.
    pub(super) fn facts(&self, cgroup: &[u8]) -> Result<Vec<Selector>, NotAPodProcess> {
        let text = std::str::from_utf8(cgroup).map_err(|_| NotAPodProcess::Form)?;
        let found = self.find(text)?.map(|found| {
            vec![
                selector("pod-uid", &found.pod_uid),
                selector("container-id", &found.container_id),
            ]
        });
        Ok(found.unwrap_or_default())
    }

    /// The pod and container that a cgroup file names. On hosts with several hierarchies those that name one must agree; a
    /// container that may write one of them could otherwise choose its pod there.
    pub(super) fn find(&self, text: &str) -> Result<Option<PodProcess>, NotAPodProcess> {
        let mut found: Option<Place> = None;
        for line in lines(text) {
            let path = line.ok_or(NotAPodProcess::Form)?;
            let Some(place) = self.place(path) else {
                continue;
            };
            if found.as_ref().is_some_and(|other| *other != place) {
                return Err(NotAPodProcess::Contradiction);
            }
            found = Some(place);
        }
        match found {
            None => Ok(None),
            Some((pod_uid, Some(container_id))) => Ok(Some(PodProcess {
                pod_uid,
                container_id,
            })),
            Some((_, None)) => Err(NotAPodProcess::NoContainer),
        }
    }

    fn place(&self, path: &str) -> Option<Place> {
        let segments = segments(path);
        // Seen from the agent's own cgroup namespace: the agent is in a pod, so what lies outside of it begins somewhere among
        // the kubelet's levels.
        let up = segments.iter().take_while(|one| **one == "..").count();
        if up > 0 {
            return below_some_level(&segments[up..]);
        }
        let (above, rest) = segments.split_at_checked(self.prefix.len())?;
        (above == self.prefix).then(|| below_root(rest)).flatten()
    }
}

/// A pod's UID and the container, if the path goes that far.
type Place = (String, Option<String>);

/// The paths of a cgroup file; `None` for a line of another form. An empty last line is no line.
fn lines(text: &str) -> impl Iterator<Item = Option<&str>> {
    text.lines().map(|line| {
        let mut fields = line.splitn(3, ':');
        let number = fields.next()?;
        fields.next()?;
        let path = fields.next()?;
        (number.parse::<u32>().is_ok() && path.starts_with('/')).then_some(path)
    })
}

fn segments(path: &str) -> Vec<&str> {
    path.split('/').filter(|one| !one.is_empty()).collect()
}

/// What stands before the kubelet's levels in the agent's own path. Nothing is nested in the agent's container but the agent,
/// so here the deepest place is the one: a kubelet may itself run in a pod.
fn own_prefix(path: &str) -> Option<Vec<String>> {
    let segments = segments(path);
    let at = (0..segments.len()).rev().find(|at| {
        KUBELET_ROOTS.contains(&segments[*at]) && below_root(&segments[*at..]).is_some()
    })?;
    Some(segments[..at].iter().map(|one| (*one).to_owned()).collect())
}

/// The tops of a kubelet's tree; the last two of one with a cgroup root of its own, as kind's.
const KUBELET_ROOTS: [&str; 4] = ["kubepods", "kubepods.slice", "kubelet", "kubelet.slice"];

fn below_root(segments: &[&str]) -> Option<Place> {
    let (first, rest) = segments.split_first()?;
    // Without systemd in the runtime's configuration, but in the kubelet's: the slice is the runtime's word for a place.
    if let Some(place) = colon_form(first) {
        return Some(place);
    }
    match (*first, rest) {
        ("system.slice", [service, one, ..]) if is_runtime(service) => colon_form(one),
        ("kubepods" | "kubepods.slice", rest) => below_root_levels(rest),
        ("kubelet", ["kubepods", rest @ ..])
        | ("kubelet.slice", ["kubelet-kubepods.slice", rest @ ..]) => below_root_levels(rest),
        _ => None,
    }
}

/// Below `kubepods`: the class of service, which a guaranteed pod has not, then the pod.
fn below_root_levels(rest: &[&str]) -> Option<Place> {
    match rest {
        [class, rest @ ..] if is_class(class) => below_class(rest),
        _ => below_class(rest),
    }
}

fn below_class(rest: &[&str]) -> Option<Place> {
    let (pod, rest) = rest.split_first()?;
    if let Some(place) = colon_form(pod) {
        return Some(place);
    }
    let pod = pod_uid(pod)?;
    Some((pod, rest.first().and_then(|one| container_id(one))))
}

/// After some steps upwards it is not known how many levels are left.
fn below_some_level(rest: &[&str]) -> Option<Place> {
    below_root(rest)
        .or_else(|| match rest {
            ["kubelet-kubepods.slice", rest @ ..] => below_root_levels(rest),
            _ => None,
        })
        .or_else(|| below_root_levels(rest))
}

fn is_class(segment: &str) -> bool {
    matches!(
        segment,
        "burstable"
            | "besteffort"
            | "kubepods-burstable.slice"
            | "kubepods-besteffort.slice"
            | "kubelet-kubepods-burstable.slice"
            | "kubelet-kubepods-besteffort.slice"
    )
}

fn is_runtime(service: &str) -> bool {
    matches!(
        service.strip_suffix(".service"),
        Some(
            "containerd"
                | "crio"
                | "docker"
                | "kubelet"
                | "k3s"
                | "k3s-agent"
                | "rke2-server"
                | "rke2-agent"
        )
    )
}

/// `pod<uid>` of the kubelet's cgroupfs driver, or the slice of its systemd driver, which writes `_` for `-`.
fn pod_uid(segment: &str) -> Option<String> {
    let uid = match segment.strip_prefix("pod") {
        Some(uid) => uid.to_owned(),
        None => slice_uid(segment.strip_suffix(".slice")?)?,
    };
    is_uid(&uid).then_some(uid)
}

fn slice_uid(name: &str) -> Option<String> {
    let name = name.strip_prefix("kubelet-").unwrap_or(name);
    let name = name.strip_prefix("kubepods-")?;
    let name = name
        .strip_prefix("burstable-")
        .or_else(|| name.strip_prefix("besteffort-"))
        .unwrap_or(name);
    Some(name.strip_prefix("pod")?.replace('_', "-"))
}

/// A UUID; of a static pod the 32 hexadecimal digits of its hash.
fn is_uid(text: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match text.len() {
        32 => text.bytes().all(hex),
        36 => text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => hex(byte),
        }),
        _ => false,
    }
}

/// `<id>`, or `<runtime>-<id>.scope`. The monitor of CRI-O has a scope too, and is not in the container.
fn container_id(segment: &str) -> Option<String> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let id = ["cri-containerd-", "crio-", "docker-"]
        .iter()
        .find_map(|runtime| name.strip_prefix(runtime))
        .unwrap_or(name);
    is_container_id(id).then(|| id.to_owned())
}

fn is_container_id(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// `<slice of the pod>:<runtime>:<id>`.
fn colon_form(segment: &str) -> Option<Place> {
    let mut parts = segment.split(':');
    let (slice, runtime, id) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || !matches!(runtime, "cri-containerd" | "crio" | "docker") {
        return None;
    }
    let uid = slice_uid(slice.strip_suffix(".slice")?)?;
    is_uid(&uid).then(|| (uid, is_container_id(id).then(|| id.to_owned())))
}

fn selector(name: &str, value: &str) -> Selector {
    Selector::new("k8s", &format!("{name}:{value}")).expect("checked digits are a selector")
}

#[cfg(test)]
mod tests;
