//! gRPC server reflection (SPIFFE Workload Endpoint §7): which services the socket has, and what they look like.
//!
//! Described are the Workload API and Envoy's SDS, from the descriptors that `hanse-generate` wrote. As with every
//! other call but SDS, the security header is needed (`workload_api::check_header`).

use tonic_reflection::server::Builder;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};
use tonic_reflection::server::v1alpha;

/// `FileDescriptorSet`s of what the socket serves.
const DESCRIPTORS: [&[u8]; 2] = [
    include_bytes!("../wire/workload.binpb").as_slice(),
    include_bytes!("../wire/envoy.service.secret.v3.binpb").as_slice(),
];

fn builder() -> Builder<'static> {
    let builder = Builder::configure().include_reflection_service(false);
    DESCRIPTORS.into_iter().fold(builder, Builder::register_encoded_file_descriptor_set)
}

/// `grpc.reflection.v1.ServerReflection`
pub fn v1() -> ServerReflectionServer<impl ServerReflection> {
    builder().build_v1().expect("the descriptors in the tree are sound: a test reads them")
}

/// `grpc.reflection.v1alpha.ServerReflection`, for older tools.
pub fn v1alpha() -> v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection> {
    builder().build_v1alpha().expect("the descriptors in the tree are sound: a test reads them")
}
