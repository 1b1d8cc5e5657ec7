//! Images made of layers: configurations and manifests in both dialects, and lists of them.

use serde_json::{Value, json};

use super::layer::{Layer, Packing, digest};

/// Who wrote the manifest: the two have the same shape and different media types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Oci,
    Docker,
}

/// An image ready to be pushed.
pub(crate) struct Image {
    pub(crate) dialect: Dialect,
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) manifest: Vec<u8>,
}

impl Dialect {
    pub(crate) fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    pub(crate) fn list(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self, packing: Packing) -> &'static str {
        match (self, packing) {
            (Self::Oci, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Oci, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Self::Docker, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
            (Self::Docker, Packing::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Self::Docker, Packing::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
    }
}

impl Image {
    /// An image for this machine. `settings` is the `config` object of the image configuration.
    pub(crate) fn new(dialect: Dialect, layers: &[Layer], settings: &Value) -> Self {
        Self::for_architecture(dialect, layers, settings, architecture())
    }

    /// An image that says it is for `architecture`.
    pub(crate) fn for_architecture(
        dialect: Dialect,
        layers: &[Layer],
        settings: &Value,
        architecture: &str,
    ) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
        let config = to_bytes(&json!({
            "architecture": architecture,
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }));
        let descriptors: Vec<_> = layers
            .iter()
            .map(|layer| descriptor(dialect.layer(layer.packing), &layer.blob))
            .collect();
        let manifest = to_bytes(&json!({
            "schemaVersion": 2,
            "mediaType": dialect.manifest(),
            "config": descriptor(dialect.config(), &config),
            "layers": descriptors,
        }));
        Self {
            dialect,
            config,
            layers: layers.to_vec(),
            manifest,
        }
    }

    /// CRI's image id: the digest of the configuration.
    pub(crate) fn id(&self) -> String {
        digest(&self.config)
    }

    /// The digest that names this image in a reference.
    pub(crate) fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// A list of images by architecture.
    pub(crate) fn list(dialect: Dialect, images: &[(&Self, &str)]) -> Vec<u8> {
        let entry = |(image, architecture): &(&Self, &str)| {
            let mut entry = descriptor(image.dialect.manifest(), &image.manifest);
            entry["platform"] = json!({"architecture": architecture, "os": "linux"});
            entry
        };
        let manifests: Vec<_> = images.iter().map(entry).collect();
        to_bytes(&json!({
            "schemaVersion": 2,
            "mediaType": dialect.list(),
            "manifests": manifests,
        }))
    }
}

/// The name that images use for this machine's processor.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Media type, size and digest of a blob.
pub(crate) fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "size": blob.len(), "digest": digest(blob)})
}

pub(crate) fn to_bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON in memory")
}
