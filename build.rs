//! Compiles `proto/` into the gRPC code of `src/proto.rs`, in pure Rust: no `protoc` is needed.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["proto/cri/api.proto", "proto/quilt/admin/v1/admin.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Tests walk the descriptors: every field of the API, by name and number.
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        // What we do not answer yet is routed all the same: UNIMPLEMENTED is an answer.
        .generate_default_stubs(true)
        // There are ten thousand of them in an answer.
        .extern_path(".runtime.v1.Metric", "crate::proto::metric::Metric")
        .compile_fds(descriptors)?;
    tonic_prost_build::configure().compile_fds(protox::compile(
        ["proto/opentelemetry/trace.proto"],
        ["proto"],
    )?)?;
    let services = [
        "version",
        "containers",
        "tasks",
        "namespaces",
        "images",
        "content",
        "introspection",
    ];
    let files = services.map(|service| format!("proto/containerd/{service}.proto"));
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        // Its packages name each other by their place in one tree.
        .include_file("containerd.rs")
        .compile_fds(protox::compile(files, ["proto"])?)?;
    Ok(())
}
