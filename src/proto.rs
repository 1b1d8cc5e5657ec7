//! The generated protobuf and gRPC code. Only the front, the admin commands and tests may use it.
#![expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated from proto/, which carries the documentation"
)]

pub mod metric;

/// CRI v1, as kubelet speaks it.
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// The admin API of `quiltd`.
pub mod admin {
    tonic::include_proto!("quilt.admin.v1");
}

/// The part of OpenTelemetry's protocol by which spans are sent.
pub mod otlp {
    tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
}

/// The part of containerd's own API that readers use.
pub mod containerd {
    #[expect(unreachable_pub, reason = "generated, and named anew below")]
    mod tree {
        include!(concat!(env!("OUT_DIR"), "/containerd.rs"));
    }
    pub use tree::containerd::services::containers::v1 as containers;
    pub use tree::containerd::services::content::v1 as content;
    pub use tree::containerd::services::images::v1 as images;
    pub use tree::containerd::services::introspection::v1 as introspection;
    pub use tree::containerd::services::namespaces::v1 as namespaces;
    pub use tree::containerd::services::tasks::v1 as tasks;
    pub use tree::containerd::services::version::v1 as version;
    pub use tree::containerd::types;
    pub use tree::containerd::v1::types as task;
}
