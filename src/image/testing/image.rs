//! An image as a registry holds it.

use std::collections::HashMap;

use super::super::digest::Digest;
use super::super::manifest;
use super::{gzip, server};

/// An image as a registry holds it: documents and blobs by digest.
#[derive(Clone, Default)]
pub(crate) struct TestImage {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    /// Blobs as they are stored, bottom layer first.
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) blobs: HashMap<Digest, Vec<u8>>,
}

impl TestImage {
    /// An OCI image of gzip layers, made of these tars.
    pub(crate) fn of(tars: &[Vec<u8>]) -> Self {
        let layers: Vec<Vec<u8>> = tars.iter().map(|tar| gzip(tar)).collect();
        let diff_ids: Vec<Digest> = tars.iter().map(|tar| Digest::sha256(tar)).collect();
        let config = serde_json::json!({
            "os": "linux",
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "config": { "Cmd": ["/bin/sh"], "Env": ["A=b"], "User": "1:2", "StopSignal": "SIGINT" },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        Self::with(config.to_string().into_bytes(), layers)
    }

    /// The image of a configuration and layers as stored.
    pub(crate) fn with(config: Vec<u8>, layers: Vec<Vec<u8>>) -> Self {
        let descriptor = |kind: &str, bytes: &[u8]| {
            let digest = Digest::sha256(bytes);
            serde_json::json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
        };
        let gzipped = "application/vnd.oci.image.layer.v1.tar+gzip";
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": descriptor(manifest::OCI_CONFIG, &config),
            "layers": layers.iter().map(|l| descriptor(gzipped, l)).collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string().into_bytes();
        let all = layers.iter().chain([&config]);
        let blobs = all
            .map(|bytes| (Digest::sha256(bytes), bytes.clone()))
            .collect();
        Self {
            manifest,
            config,
            layers,
            blobs,
        }
    }

    /// What a plain registry answers.
    pub(crate) fn answer(&self, path: &str) -> server::Response {
        let Some((_, name)) = path.rsplit_once('/') else {
            return server::Response::status(404);
        };
        if path.contains("/manifests/") {
            let known = name == "latest" || name == Digest::sha256(&self.manifest).to_string();
            return match known {
                true => server::Response::ok(&self.manifest)
                    .header("content-type", manifest::OCI_MANIFEST),
                false => server::Response::status(404),
            };
        }
        let blob = name
            .parse()
            .ok()
            .and_then(|digest: Digest| self.blobs.get(&digest));
        blob.map_or_else(
            || server::Response::status(404),
            |blob| server::Response::ok(blob),
        )
    }
}
