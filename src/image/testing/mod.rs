//! What several tests of images are made of. Compiled for tests only.

use std::io::Write;

use tar::{EntryType, Header};

/// Builds archives, also such as no honest writer would.
#[derive(Default)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    /// A ustar header; the caller may change it, and then sets the checksum again.
    pub(crate) fn header(kind: EntryType, name: &[u8], link: &[u8], size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(size);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_cksum();
        header
    }

    pub(crate) fn raw(mut self, header: &Header, data: &[u8]) -> Self {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn zeros(mut self, bytes: usize) -> Self {
        self.0.resize(self.0.len() + bytes, 0);
        self
    }

    pub(crate) fn entry(self, kind: EntryType, name: &str, link: &str, data: &[u8]) -> Self {
        let header = Self::header(kind, name.as_bytes(), link.as_bytes(), data.len() as u64);
        self.raw(&header, data)
    }

    pub(crate) fn file(self, name: &str, data: &str) -> Self {
        self.entry(EntryType::Regular, name, "", data.as_bytes())
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"")
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, b"")
    }

    /// A PAX header for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length.to_string().len() + rest > length {
                length += 1;
            }
            write!(data, "{length} {key}=").unwrap();
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.entry(EntryType::XHeader, "pax", "", &data)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// Compresses with gzip.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) mod server;

use std::collections::HashMap;

use super::digest::Digest;

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
            "config": descriptor(super::manifest::OCI_CONFIG, &config),
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
                    .header("content-type", super::manifest::OCI_MANIFEST),
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
