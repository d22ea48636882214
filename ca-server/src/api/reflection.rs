//! gRPC reflection: which services this server has and what their messages are, for `grpcurl` and its like.
//! Trusts the descriptors that are generated with the wire, and the permit table for what is served.
//! Never shows a service without a row, and never decides who may ask: the guard does.

use tonic_reflection::pb;
use tonic_reflection::server::Builder;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};
use tonic_reflection::server::v1alpha;

use super::permit;

/// What the descriptors are built from is part of the program, and a test reads all of it.
const WELL_FORMED: &str = "the program's own descriptors can be read";

/// The present version of the service.
pub(super) fn present() -> ServerReflectionServer<impl ServerReflection> {
    described().build_v1().expect(WELL_FORMED)
}

/// The version that older clients ask for.
pub(super) fn older() -> v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection> {
    described().build_v1alpha().expect(WELL_FORMED)
}

fn described() -> Builder<'static> {
    // Each version describes both, as one list of services names both.
    let builder = Builder::configure()
        .include_reflection_service(false)
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(pb::v1alpha::FILE_DESCRIPTOR_SET);
    permit::services()
        .into_iter()
        .fold(builder, |builder, service| {
            builder.with_service_name(service)
        })
}
