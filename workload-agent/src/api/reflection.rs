//! gRPC reflection: which services a socket has and what their messages are, for `grpcurl` and its like.
//! Trusts the descriptors that are generated with the wire. Never names a service that this socket does not serve.

use tonic::server::NamedService;
use tonic_reflection::{
    pb,
    server::{
        Builder,
        v1::{ServerReflection, ServerReflectionServer},
        v1alpha,
    },
};

/// What the descriptors are built from is part of the program, and a test reads all of it.
const WELL_FORMED: &str = "the program's own descriptors can be read";

/// The names of the services of one socket, noted as they are added to it.
#[derive(Debug, Default)]
pub(crate) struct Served(Vec<&'static str>);

impl Served {
    /// Passes a service on and notes its name.
    pub(crate) fn note<S: NamedService>(&mut self, service: S) -> S {
        self.0.push(S::NAME);
        service
    }

    /// The present version of the service.
    pub(crate) fn present(&self) -> ServerReflectionServer<impl ServerReflection + use<>> {
        self.described().build_v1().expect(WELL_FORMED)
    }

    /// The version that older clients ask for.
    pub(crate) fn older(
        &self,
    ) -> v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection + use<>> {
        self.described().build_v1alpha().expect(WELL_FORMED)
    }

    fn described(&self) -> Builder<'static> {
        // Each version describes both, as one list of services names both.
        let builder = Builder::configure()
            .include_reflection_service(false)
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(pb::v1alpha::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.reflection.v1.ServerReflection")
            .with_service_name("grpc.reflection.v1alpha.ServerReflection");
        self.0
            .iter()
            .fold(builder, |builder, name| builder.with_service_name(*name))
    }
}
