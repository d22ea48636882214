//! Paths as kubelets and runtimes make them, paths as others would like them to be, and processes in a real cgroup.

use proptest::prelude::*;

use super::{
    super::{AttestError, glance::Glance, process::Process},
    *,
};

const UID: &str = "6b2a6f0c-0b4c-4b5e-9d43-3f2f7a1c9e10";
const VICTIM: &str = "00000000-1111-2222-3333-444444444444";

fn id() -> String {
    "0123456789abcdef".repeat(4)
}

fn other_id() -> String {
    "fedcba9876543210".repeat(4)
}

fn slice(uid: &str) -> String {
    uid.replace('-', "_")
}

fn node() -> K8sAttestor {
    K8sAttestor::beside("0::/system.slice/workload-agent.service\n")
}

fn found(path: &str) -> Option<PodProcess> {
    node().find(&format!("0::{path}\n")).unwrap()
}

fn the_pod() -> Option<PodProcess> {
    Some(PodProcess {
        pod_uid: UID.into(),
        container_id: id(),
    })
}

#[test]
fn each_layout_of_kubelets_and_runtimes_names_its_pod_and_container() {
    let (uid, id) = (slice(UID), id());
    for path in [
        format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice/cri-containerd-{id}.scope"
        ),
        format!(
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice/crio-{id}.scope"
        ),
        format!("/kubepods.slice/kubepods-pod{uid}.slice/cri-containerd-{id}.scope"),
        format!("/kubepods.slice/kubepods-pod{uid}.slice/crio-{id}.scope/container/init.scope"),
        format!("/kubepods.slice/kubepods-pod{uid}.slice/docker-{id}.scope"),
        format!("/kubepods/besteffort/pod{UID}/{id}"),
        format!("/kubepods/burstable/pod{UID}/crio-{id}"),
        format!("/kubepods/pod{UID}/{id}"),
        format!("/kubepods-burstable-pod{uid}.slice:cri-containerd:{id}"),
        format!(
            "/system.slice/containerd.service/kubepods-burstable-pod{uid}.slice:cri-containerd:{id}"
        ),
        format!(
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{uid}.slice/cri-containerd-{id}.scope"
        ),
        format!("/kubelet/kubepods/burstable/pod{UID}/{id}"),
        format!(
            "/../../kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice/cri-containerd-{id}.scope"
        ),
        format!(
            "/../../../kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice/cri-containerd-{id}.scope"
        ),
        format!("/../../kubelet-kubepods-burstable-pod{uid}.slice/cri-containerd-{id}.scope"),
        format!("/../../pod{UID}/{id}"),
    ] {
        assert_eq!(found(&path), the_pod(), "{path}");
    }
}

#[test]
fn the_pods_of_kind_lie_below_what_the_agents_own_path_begins_with() {
    let (uid, id) = (slice(UID), id());
    let above = format!(
        "/docker/{}/kubelet.slice/kubelet-kubepods.slice",
        other_id()
    );
    let own = format!(
        "0::{above}/kubelet-kubepods-pod{}.slice/cri-containerd-{}.scope\n",
        slice(VICTIM),
        other_id()
    );
    let pod = format!(
        "{above}/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{uid}.slice/cri-containerd-{id}.scope"
    );
    assert_eq!(
        K8sAttestor::beside(&own).find(&format!("0::{pod}\n")),
        Ok(the_pod())
    );
    // Without that, nobody knows that the kubelet is there.
    assert_eq!(found(&pod), None);
}

#[test]
fn a_kubelet_in_a_pod_is_told_from_the_one_outside() {
    let id = id();
    let outer = format!("/kubepods/burstable/pod{VICTIM}/{}", other_id());
    let own = format!(
        "0::{outer}/kubelet/kubepods/pod{}/{}\n",
        "f".repeat(32),
        other_id()
    );
    let inner = format!("0::{outer}/kubelet/kubepods/besteffort/pod{UID}/{id}\n");
    assert_eq!(K8sAttestor::beside(&own).find(&inner), Ok(the_pod()));
}

#[test]
fn a_static_pod_is_named_by_its_hash() {
    let hash = "0123456789abcdef0123456789abcdef";
    let pod = found(&format!("/kubepods/burstable/pod{hash}/{}", id()));
    assert_eq!(pod.unwrap().pod_uid, hash);
}

#[test]
fn k4_what_a_container_nests_below_its_own_cgroup_does_not_count() {
    let (own, victim) = (slice(UID), slice(VICTIM));
    let container = format!(
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{own}.slice/cri-containerd-{}.scope",
        id()
    );
    for nested in [
        format!("x-pod{victim}.slice/cri-containerd-{}.scope", other_id()),
        format!(
            "kubepods.slice/kubepods-pod{victim}.slice/cri-containerd-{}.scope",
            other_id()
        ),
        format!("kubepods/pod{VICTIM}/{}", other_id()),
        format!(
            "kubepods-burstable-pod{victim}.slice:cri-containerd:{}",
            other_id()
        ),
    ] {
        assert_eq!(
            found(&format!("{container}/{nested}")),
            the_pod(),
            "{nested}"
        );
    }
}

#[test]
fn what_a_user_of_the_node_may_name_is_no_pod() {
    let (victim, id) = (slice(VICTIM), id());
    for path in [
        format!(
            "/user.slice/user-1000.slice/user@1000.service/kubepods.slice/kubepods-pod{victim}.slice/cri-containerd-{id}.scope"
        ),
        format!(
            "/user.slice/user-1000.slice/user@1000.service/x-pod{victim}.slice/cri-containerd-{id}.scope"
        ),
        format!("/system.slice/builder.service/kubepods-pod{victim}.slice:cri-containerd:{id}"),
        format!(
            "/../../../../user.slice/user-1000.slice/kubepods.slice/kubepods-pod{victim}.slice/cri-containerd-{id}.scope"
        ),
        format!("/kubepods.slice/other.slice/kubepods-pod{victim}.slice/cri-containerd-{id}.scope"),
        format!("/docker/{id}"),
        "/".into(),
        "/system.slice/sshd.service".into(),
    ] {
        assert_eq!(found(&path), None, "{path}");
    }
}

#[test]
fn a_process_in_a_pod_and_in_no_container_of_it_is_refused() {
    let uid = slice(UID);
    for path in [
        format!("/kubepods.slice/kubepods-pod{uid}.slice"),
        format!(
            "/kubepods.slice/kubepods-pod{uid}.slice/crio-conmon-{}.scope",
            id()
        ),
        format!("/kubepods/pod{UID}/init.scope"),
        format!("/kubepods/pod{UID}/{}", &id()[..63]),
        format!("/kubepods/pod{UID}/{}", id().to_uppercase()),
    ] {
        let refused = node().find(&format!("0::{path}\n"));
        assert_eq!(refused, Err(NotAPodProcess::NoContainer), "{path}");
    }
}

#[test]
fn hierarchies_that_name_a_container_must_agree_and_others_do_not_count() {
    let own = format!("/kubepods/burstable/pod{UID}/{}", id());
    let other = format!("/kubepods/burstable/pod{VICTIM}/{}", other_id());
    let hybrid = format!(
        "12:pids:{own}\n11:memory:{own}\n3:cpuset:/\n2:cpu,cpuacct:{own}\n1:name=systemd:{own}\n0::/system.slice/containerd.service\n"
    );
    assert_eq!(node().find(&hybrid), Ok(the_pod()));
    let unified = format!("4:memory:/box\n1:cpu:/\n0::{own}\n");
    assert_eq!(node().find(&unified), Ok(the_pod()));
    for text in [
        format!("2:cpu:{own}\n0::{other}\n"),
        format!(
            "2:cpu:{own}\n1:memory:{}\n",
            own.replace(&id(), &other_id())
        ),
        format!("2:cpu:/kubepods/burstable/pod{UID}\n0::{own}\n"),
    ] {
        assert_eq!(
            node().find(&text),
            Err(NotAPodProcess::Contradiction),
            "{text}"
        );
    }
}

#[test]
fn a_file_of_another_form_is_refused() {
    for text in ["0:/kubepods", "x::/a", "0::a", "0::/a\n\n0::/b", "nothing"] {
        assert_eq!(node().find(text), Err(NotAPodProcess::Form), "{text:?}");
    }
    assert_eq!(node().find(""), Ok(None));
}

/// Segments as kubelets, runtimes and the hostile write them.
fn segment() -> impl Strategy<Value = String> {
    let uid = prop_oneof![
        Just(UID.to_owned()),
        Just(VICTIM.to_owned()),
        Just(slice(UID)),
        Just(slice(VICTIM))
    ];
    let id = prop_oneof![Just(id()), Just(other_id()), "[0-9a-f]{60,66}"];
    prop_oneof![
        Just("kubepods.slice".to_owned()),
        Just("kubepods".to_owned()),
        Just("..".to_owned()),
        Just("kubelet.slice".to_owned()),
        Just("system.slice".to_owned()),
        Just("burstable".to_owned()),
        Just("kubepods-burstable.slice".to_owned()),
        uid.clone().prop_map(|uid| format!("pod{uid}")),
        uid.clone()
            .prop_map(|uid| format!("kubepods-burstable-pod{uid}.slice")),
        (uid, id.clone())
            .prop_map(|(uid, id)| format!("kubepods-pod{uid}.slice:cri-containerd:{id}")),
        id.clone()
            .prop_map(|id| format!("cri-containerd-{id}.scope")),
        id,
        "[ -~]{0,20}",
    ]
}

proptest! {
    #[test]
    fn whatever_is_appended_to_a_containers_cgroup_it_stays_that_container(more in prop::collection::vec(segment(), 0..8)) {
        let path = format!("0::/kubepods/burstable/pod{UID}/{}/{}\n", id(), more.join("/"));
        prop_assert_eq!(node().find(&path), Ok(the_pod()));
    }

    #[test]
    fn any_text_gives_an_answer_whose_parts_are_hexadecimal(text in prop_oneof![
        "\\PC{0,200}",
        prop::collection::vec(prop::collection::vec(segment(), 0..8), 0..4)
            .prop_map(|lines| lines.iter().map(|path| format!("0::/{}\n", path.join("/"))).collect()),
    ]) {
        if let Ok(Some(found)) = node().find(&text) {
            prop_assert!(is_uid(&found.pod_uid) && is_container_id(&found.container_id));
            prop_assert!(text.contains(&found.container_id));
        }
    }

    #[test]
    fn a_path_that_does_not_begin_with_the_kubelets_levels_names_no_pod(first in "[a-z.-]{1,20}", more in prop::collection::vec(segment(), 0..8)) {
        prop_assume!(!KUBELET_ROOTS.contains(&first.as_str()) && first != "system.slice" && first != "..");
        prop_assert_eq!(node().find(&format!("0::/{first}/{}\n", more.join("/"))), Ok(None));
    }
}

#[tokio::test]
async fn a_process_of_a_pods_cgroup_gets_the_facts_and_one_that_is_gone_gets_none() {
    let Some(cgroup) = Cgroup::make() else {
        eprintln!("skipped: no cgroup2 tree that may be written here");
        return;
    };
    let mut child = std::process::Command::new("/bin/sleep")
        .arg("600")
        .spawn()
        .unwrap();
    std::fs::write(cgroup.leaf.join("cgroup.procs"), child.id().to_string()).unwrap();
    let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
    let facts = node().facts(&Glance::at(&process).unwrap().cgroup).unwrap();
    let expected = [
        selector("pod-uid", &cgroup.uid),
        selector("container-id", &id()),
    ];
    assert_eq!(facts, expected);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(Glance::at(&process), Err(AttestError::Gone)));
}

/// A pod's place in the real tree, removed when dropped.
struct Cgroup {
    uid: String,
    pod: std::path::PathBuf,
    leaf: std::path::PathBuf,
}

impl Cgroup {
    fn make() -> Option<Self> {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .find(|root| {
                std::path::Path::new(root)
                    .join("cgroup.controllers")
                    .exists()
            })?;
        let uid = format!("{:08x}-0000-4000-8000-00000000abcd", std::process::id());
        let pod = std::path::Path::new(root).join(format!("kubepods/pod{uid}"));
        let leaf = pod.join(id());
        std::fs::create_dir_all(&leaf).ok()?;
        Some(Self { uid, pod, leaf })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A cgroup can be removed some moments after its last process was.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.leaf).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        std::fs::remove_dir(&self.pod).ok();
        if let Some(above) = self.pod.parent() {
            std::fs::remove_dir(above).ok();
        }
    }
}
