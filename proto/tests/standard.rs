//! Proves that `spiffe/workload/workloadapi.proto` is the SPIFFE Workload API and nothing more: the facts of the standard's
//! own `.proto` (spiffe.io, SPIFFE_Workload_API), field by field, beside what ours compiles to.

use std::{collections::BTreeSet, path::Path};

/// Method, request, response, whether the response is a stream.
const METHODS: &[(&str, &str, &str, bool)] = &[
    (
        "FetchX509SVID",
        ".X509SVIDRequest",
        ".X509SVIDResponse",
        true,
    ),
    (
        "FetchX509Bundles",
        ".X509BundlesRequest",
        ".X509BundlesResponse",
        true,
    ),
    ("FetchJWTSVID", ".JWTSVIDRequest", ".JWTSVIDResponse", false),
    (
        "FetchJWTBundles",
        ".JWTBundlesRequest",
        ".JWTBundlesResponse",
        true,
    ),
    (
        "ValidateJWTSVID",
        ".ValidateJWTSVIDRequest",
        ".ValidateJWTSVIDResponse",
        false,
    ),
    ("FetchWITSVID", ".WITSVIDRequest", ".WITSVIDResponse", true),
    (
        "FetchWITBundles",
        ".WITBundlesRequest",
        ".WITBundlesResponse",
        true,
    ),
];

/// `message.field=number type`, with `*` for a repeated one; the entry of a map is named by its field.
const FIELDS: &[&str] = &[
    "JWTBundlesResponse.BundlesEntry.key=1 String",
    "JWTBundlesResponse.BundlesEntry.value=2 Bytes",
    "JWTBundlesResponse.bundles=1 Message .JWTBundlesResponse.BundlesEntry*",
    "JWTSVID.hint=3 String",
    "JWTSVID.spiffe_id=1 String",
    "JWTSVID.svid=2 String",
    "JWTSVIDRequest.audience=1 String*",
    "JWTSVIDRequest.spiffe_id=2 String",
    "JWTSVIDResponse.svids=1 Message .JWTSVID*",
    "ValidateJWTSVIDRequest.audience=1 String",
    "ValidateJWTSVIDRequest.svid=2 String",
    "ValidateJWTSVIDResponse.claims=2 Message .google.protobuf.Struct",
    "ValidateJWTSVIDResponse.spiffe_id=1 String",
    "WITBundlesResponse.BundlesEntry.key=1 String",
    "WITBundlesResponse.BundlesEntry.value=2 String",
    "WITBundlesResponse.bundles=1 Message .WITBundlesResponse.BundlesEntry*",
    "WITSVID.hint=4 String",
    "WITSVID.spiffe_id=1 String",
    "WITSVID.wit_svid=2 String",
    "WITSVID.wit_svid_key=3 String",
    "WITSVIDRequest.spiffe_id=1 String",
    "WITSVIDResponse.svids=1 Message .WITSVID*",
    "X509BundlesResponse.BundlesEntry.key=1 String",
    "X509BundlesResponse.BundlesEntry.value=2 Bytes",
    "X509BundlesResponse.bundles=2 Message .X509BundlesResponse.BundlesEntry*",
    "X509BundlesResponse.crl=1 Bytes*",
    "X509SVID.bundle=4 Bytes",
    "X509SVID.hint=5 String",
    "X509SVID.spiffe_id=1 String",
    "X509SVID.x509_svid=2 Bytes",
    "X509SVID.x509_svid_key=3 Bytes",
    "X509SVIDResponse.FederatedBundlesEntry.key=1 String",
    "X509SVIDResponse.FederatedBundlesEntry.value=2 Bytes",
    "X509SVIDResponse.crl=2 Bytes*",
    "X509SVIDResponse.federated_bundles=3 Message .X509SVIDResponse.FederatedBundlesEntry*",
    "X509SVIDResponse.svids=1 Message .X509SVID*",
];

#[test]
fn wep_21_wapi_3_wapi_32_the_workload_api_is_the_standards_and_nothing_is_added_to_it() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let set = protox::compile([home.join("spiffe/workload/workloadapi.proto")], [home])
        .expect("the .proto file is valid");
    let file = set
        .file
        .iter()
        .find(|file| file.name().ends_with("workloadapi.proto"))
        .expect("the file itself is in the set");
    assert_eq!(file.package(), "", "the service stands in no package");

    let [service] = file.service.as_slice() else {
        panic!("one service");
    };
    assert_eq!(service.name(), "SpiffeWorkloadAPI");
    let methods: Vec<_> = service
        .method
        .iter()
        .map(|method| {
            assert!(!method.client_streaming(), "{}", method.name());
            (
                method.name(),
                method.input_type(),
                method.output_type(),
                method.server_streaming(),
            )
        })
        .collect();
    assert_eq!(methods, METHODS);

    let mut fields = BTreeSet::new();
    for message in &file.message_type {
        collect(message.name(), &message.field, &mut fields);
        for nested in &message.nested_type {
            let name = format!("{}.{}", message.name(), nested.name());
            collect(&name, &nested.field, &mut fields);
        }
    }
    assert_eq!(
        fields,
        FIELDS.iter().map(|&field| field.to_owned()).collect()
    );
}

fn collect(
    message: &str,
    fields: &[prost_types::FieldDescriptorProto],
    into: &mut BTreeSet<String>,
) {
    use prost_types::field_descriptor_proto::{Label, Type};
    for field in fields {
        let kind = match field.r#type() {
            Type::Message => format!("Message {}", field.type_name()),
            other => format!("{other:?}"),
        };
        let many = match field.label() {
            Label::Repeated => "*",
            _ => "",
        };
        into.insert(format!(
            "{message}.{}={} {kind}{many}",
            field.name(),
            field.number()
        ));
    }
}

#[test]
fn wep_21_what_is_ours_stands_in_packages_of_our_own() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![home.join("finial")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of .proto files") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a .proto file is text");
            assert!(
                text.lines().any(|line| line.starts_with("package finial.")),
                "{}",
                path.display()
            );
            seen += 1;
        }
    }
    assert!(seen > 0);
}
