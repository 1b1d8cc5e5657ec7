//! The generated protobuf and gRPC code. Only the front, the admin commands and tests may use it.
#![expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated from proto/, which carries the documentation"
)]

/// CRI v1, as kubelet speaks it.
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// The admin API of `quiltd`.
pub mod admin {
    tonic::include_proto!("quilt.admin.v1");
}
