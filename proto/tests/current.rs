//! Proves that `src/gen` is what the `.proto` files say: it generates the code again and compares.
//! `UPDATE_GEN=1 cargo test -p proto --test current` writes the files instead.
//! It needs no `protoc`: protox parses, tonic-prost-build writes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use prost::Message;
use prost_types::FileDescriptorSet;

/// What gRPC reflection serves.
const DESCRIPTORS: &str = "descriptors.bin";

/// Messages that carry a key or a bearer token. Their `Debug` is written by hand in `src/redact.rs`.
const SECRET: &[&str] = &[
    ".X509SVID",
    ".JWTSVID",
    ".WITSVID",
    ".ValidateJWTSVIDRequest",
    ".envoy.config.core.v3.DataSource",
    ".envoy.service.discovery.v3.DiscoveryResponse",
    ".envoy.service.discovery.v3.Resource",
    ".spire.api.agent.delegatedidentity.v1.X509SVIDWithKey",
    ".spire.api.server.agent.v1.CreateJoinTokenRequest",
    ".spire.api.types.AttestationData",
    ".spire.api.types.JoinToken",
    ".spire.api.types.JWTSVID",
    ".spire.api.types.WITSVID",
];

#[test]
fn the_generated_code_is_what_the_proto_files_say() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let checked_in = home.join("src/gen");
    let fresh_dir = std::env::temp_dir().join(format!("proto-gen-{}", std::process::id()));
    fs::create_dir_all(&fresh_dir).expect("a temporary folder");
    generate(home, &fresh_dir);
    let fresh = contents(&fresh_dir);
    fs::remove_dir_all(&fresh_dir).expect("our own folder can be removed");

    if std::env::vars_os().any(|(name, value)| name == "UPDATE_GEN" && value == "1") {
        for old in contents(&checked_in)
            .keys()
            .filter(|name| !fresh.contains_key(*name))
        {
            fs::remove_file(checked_in.join(old)).expect("an outdated file can be removed");
        }
        for (name, text) in &fresh {
            fs::write(checked_in.join(name), text).expect("src/gen is writable");
        }
        return;
    }

    let known = contents(&checked_in);
    assert_eq!(
        known.keys().collect::<Vec<_>>(),
        fresh.keys().collect::<Vec<_>>(),
        "the list of generated files; run UPDATE_GEN=1 cargo test -p proto --test current"
    );
    for (name, text) in &fresh {
        assert!(
            known[name] == *text,
            "src/gen/{name} is out of date; run UPDATE_GEN=1 cargo test -p proto --test current"
        );
    }
}

fn generate(home: &Path, out: &Path) {
    let mut files = Vec::new();
    for top in ["spiffe", "spire", "finial", "envoy", "google", "grpc"] {
        proto_files(&home.join(top), &mut files);
    }
    files.sort();
    let descriptors = protox::compile(&files, [home]).expect("the .proto files are valid");
    fs::write(
        out.join(DESCRIPTORS),
        bare(descriptors.clone()).encode_to_vec(),
    )
    .expect("the temporary folder is writable");
    tonic_prost_build::configure()
        .btree_map(".")
        .skip_debug(SECRET.iter().copied())
        .codec_path("crate::codec::ExactCodec")
        .emit_rerun_if_changed(false)
        .out_dir(out)
        .compile_fds(descriptors)
        .expect("code can be generated");
}

/// The descriptors as reflection serves them: comments and places of the source stay here.
fn bare(mut descriptors: FileDescriptorSet) -> FileDescriptorSet {
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    descriptors
}

fn proto_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder of .proto files") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            proto_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "proto") {
            found.push(path);
        }
    }
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(dir)
        .expect("a folder of generated files")
        .map(|entry| {
            let path = entry.expect("a readable entry").path();
            let name = path
                .file_name()
                .expect("a file has a name")
                .to_string_lossy()
                .into_owned();
            (name, fs::read(&path).expect("a generated file"))
        })
        .collect()
}
