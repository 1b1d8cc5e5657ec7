//! What is asked about the daemon itself: version, namespaces, parts.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};
use tonic::{Request, Response, Status};

use super::{NAMESPACE, ReadError, Reader, no_filters};
use crate::proto::containerd::introspection::introspection_server::Introspection;
use crate::proto::containerd::introspection::{
    Plugin, PluginsRequest, PluginsResponse, ServerResponse,
};
use crate::proto::containerd::namespaces::namespaces_server::Namespaces;
use crate::proto::containerd::namespaces::{
    GetNamespaceRequest, GetNamespaceResponse, ListNamespacesRequest, ListNamespacesResponse,
    Namespace,
};
use crate::proto::containerd::types::Platform;
use crate::proto::containerd::version::VersionResponse;
use crate::proto::containerd::version::version_server::Version;

/// What stands where containerd has the commit that it was built from.
const REVISION: &str = "quiltd";
/// The kind of plugin that services are.
const SERVICE: &str = "io.containerd.grpc.v1";
/// The services, as containerd names them.
const SERVICES: [&str; 8] = [
    "containers",
    "content",
    "cri",
    "images",
    "introspection",
    "namespaces",
    "tasks",
    "version",
];

/// A UUID that a daemon keeps over restarts: of its root directory on this machine (machine-id(5)),
/// in the form that RFC 9562 leaves to applications (version 8).
pub(super) fn identity(root: &Path) -> String {
    let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
    let mut hash = Sha256::new();
    hash.update(b"quilt containerd uuid\0");
    hash.update(&machine);
    hash.update(root.as_os_str().as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

#[tonic::async_trait]
impl Version for Reader {
    /// Without a namespace too: it is about the daemon.
    async fn version(&self, _request: Request<()>) -> Result<Response<VersionResponse>, Status> {
        let answer = VersionResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            revision: REVISION.into(),
        };
        self.count("containerd.Version", async { Ok(answer) }).await
    }
}

#[tonic::async_trait]
impl Namespaces for Reader {
    async fn get(
        &self,
        request: Request<GetNamespaceRequest>,
    ) -> Result<Response<GetNamespaceResponse>, Status> {
        let name = request.into_inner().name;
        self.count("containerd.GetNamespace", async {
            if name == NAMESPACE {
                return Ok(GetNamespaceResponse {
                    namespace: Some(namespace()),
                });
            }
            Err(ReadError::NotFound {
                noun: "namespace",
                id: name,
            })
        })
        .await
    }

    async fn list(
        &self,
        request: Request<ListNamespacesRequest>,
    ) -> Result<Response<ListNamespacesResponse>, Status> {
        let filter = request.into_inner().filter;
        self.count("containerd.ListNamespaces", async {
            no_filters(&[filter])?;
            Ok(ListNamespacesResponse {
                namespaces: vec![namespace()],
            })
        })
        .await
    }
}

fn namespace() -> Namespace {
    Namespace {
        name: NAMESPACE.into(),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl Introspection for Reader {
    async fn plugins(
        &self,
        request: Request<PluginsRequest>,
    ) -> Result<Response<PluginsResponse>, Status> {
        let filters = request.into_inner().filters;
        self.count("containerd.Plugins", async {
            no_filters(&filters)?;
            let plugins = SERVICES.into_iter().map(|id| Plugin {
                r#type: SERVICE.into(),
                id: id.into(),
                platforms: vec![Platform {
                    os: "linux".into(),
                    architecture: architecture().into(),
                    ..Default::default()
                }],
                ..Default::default()
            });
            Ok(PluginsResponse {
                plugins: plugins.collect(),
            })
        })
        .await
    }

    async fn server(&self, _request: Request<()>) -> Result<Response<ServerResponse>, Status> {
        let answer = ServerResponse {
            uuid: self.identity.to_string(),
            pid: std::process::id().into(),
            // The inode of the namespace itself, not of the link to it.
            pidns: std::fs::metadata("/proc/self/ns/pid").map_or(0, |ns| ns.ino()),
        };
        self.count("containerd.Server", async { Ok(answer) }).await
    }
}

/// This machine's architecture, as Go and OCI name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_keeps_its_identity_and_shares_it_with_none() {
        let one = identity(Path::new("/var/lib/quilt"));
        assert_eq!(one, identity(Path::new("/var/lib/quilt")));
        assert_ne!(one, identity(Path::new("/var/lib/other")));
        let lengths: Vec<_> = one.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(one.as_bytes()[14], b'8', "the version, in {one}");
    }
}
