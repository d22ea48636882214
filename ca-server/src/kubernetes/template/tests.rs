//! Templates as people write them, and as nobody should.

use std::time::SystemTime;

use super::*;

fn pod() -> PodFacts {
    PodFacts {
        namespace: "shop".into(),
        name: "web-1".into(),
        uid: "6b2a".into(),
        labels: [
            ("app", "web"),
            ("up", ".."),
            ("path", "a/b"),
            ("empty", ""),
            ("a.b/c", "dotted"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into(),
        service_account: "cashier".into(),
        node_name: "node-1".into(),
        created_at: SystemTime::UNIX_EPOCH,
        barred: None,
    }
}

fn node() -> NodeFacts {
    NodeFacts {
        name: "node-1".into(),
        uid: "77".into(),
        labels: [(
            "node-restriction.kubernetes.io/zone".to_owned(),
            "blue".to_owned(),
        )]
        .into(),
    }
}

fn render(text: &str, as_path: bool) -> Result<String, RenderError> {
    let data = Data {
        trust_domain: &"example.org".parse().unwrap(),
        cluster: "prod",
        cluster_domain: "cluster.local",
        pod: &pod(),
        node: &node(),
    };
    Template::parse(text).unwrap().render(&data, as_path)
}

#[test]
fn the_fields_that_people_write_are_rendered_as_go_does() {
    for (template, expected) in [
        (
            "spiffe://{{ .TrustDomain }}/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}",
            "spiffe://example.org/ns/shop/sa/cashier",
        ),
        ("{{.TrustDomain}}", "example.org"),
        (
            "{{ .ClusterName }}-{{ .ClusterDomain }}",
            "prod-cluster.local",
        ),
        ("{{ .PodMeta.Name }}/{{ .PodMeta.UID }}", "web-1/6b2a"),
        ("{{ .PodMeta.Labels.app }}", "web"),
        ("{{ index .PodMeta.Labels \"app\" }}", "web"),
        ("{{ index .PodMeta.Labels `a.b/c` }}", "dotted"),
        ("{{index .PodMeta.Labels  \"app\"}}", "web"),
        (
            "{{ .PodSpec.NodeName }}={{ .NodeMeta.Name }}/{{ .NodeMeta.UID }}",
            "node-1=node-1/77",
        ),
        (
            "{{ index .NodeMeta.Labels \"node-restriction.kubernetes.io/zone\" }}",
            "blue",
        ),
        ("a {{- .PodMeta.Name -}} b", "aweb-1b"),
        ("a  {{- .ClusterName }} b", "aprod b"),
        ("a {{ .ClusterName -}}  b", "a prodb"),
        ("no action } { at all", "no action } { at all"),
        ("", ""),
    ] {
        assert_eq!(render(template, false).unwrap(), expected, "{template}");
    }
}

#[test]
fn what_is_not_in_the_subset_is_refused_with_its_words() {
    for action in [
        "if .PodMeta.Labels",
        "range .PodMeta.Labels",
        ".PodMeta.Name | printf \"%s\"",
        "printf \"%s\" .PodMeta.Name",
        "index .PodMeta.Labels .PodMeta.Name",
        "index .PodMeta.Labels \"a\\\"b\"",
        "index .PodMeta.Labels \"a\" \"b\"",
        "index .PodSpec.Containers 0",
        ".PodMeta.Labels",
        ".PodMeta.Labels.",
        ".PodMeta.Labels.a-b",
        ".PodMeta.GenerateName",
        ".NodeSpec.ProviderID",
        ".podmeta.name",
        "$x := 1",
        "/* comment */",
        "template \"x\"",
        "-.TrustDomain",
        "",
    ] {
        let refused = Template::parse(&format!("spiffe://x/{{{{ {action} }}}}"));
        assert!(
            matches!(refused, Err(TemplateError::Unsupported(_))),
            "{action}: {refused:?}"
        );
    }
    assert_eq!(
        Template::parse("a{{ .TrustDomain }"),
        Err(TemplateError::NotClosed)
    );
    assert_eq!(
        Template::parse(&"x".repeat(LONGEST + 1)),
        Err(TemplateError::TooLong)
    );
}

#[test]
fn k11_annotations_and_labels_that_the_node_sets_are_no_identity() {
    for action in [
        "index .PodMeta.Annotations \"team\"",
        ".PodMeta.Annotations.team",
        "index .NodeMeta.Annotations \"x\"",
    ] {
        assert_eq!(
            Template::parse(&format!("{{{{ {action} }}}}")),
            Err(TemplateError::Annotation)
        );
    }
    for label in [
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
        "node-restriction.kubernetes.io",
    ] {
        let refused = Template::parse(&format!("{{{{ index .NodeMeta.Labels \"{label}\" }}}}"));
        assert_eq!(refused, Err(TemplateError::NodesOwnLabel(label.to_owned())));
    }
}

#[test]
fn a_value_is_one_segment_of_a_path_or_nothing() {
    let label = |key: &str| format!("x/{{{{ .PodMeta.Labels.{key} }}}}");
    for key in ["up", "path"] {
        assert!(
            matches!(render(&label(key), true), Err(RenderError::NotASegment(_))),
            "{key}"
        );
        assert!(render(&label(key), false).is_ok());
    }
    for key in ["empty", "unknown"] {
        assert!(
            matches!(render(&label(key), true), Err(RenderError::Missing(_))),
            "{key}"
        );
        assert!(
            matches!(render(&label(key), false), Err(RenderError::Missing(_))),
            "{key}"
        );
    }
}
