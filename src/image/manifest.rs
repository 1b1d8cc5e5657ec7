//! Manifests, indexes and image configurations: parsed from hostile JSON, checked, and reduced to
//! what Quilt needs.
//!
//! Understands OCI image manifests and indexes (image-spec) and Docker's schema 2 manifests and
//! lists. Pure: where the bytes come from, and that their digest is right, is the caller's part.
//! Refuses what cannot run: schema 1, artifacts, foreign layers, other operating systems.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::digest::{Digest, chain_id};
use super::platform::{self, Platform};

/// Largest manifest, index or configuration accepted (distribution-spec: registries may limit
/// manifests to 4 MiB).
pub(crate) const DOCUMENT_MAX: u64 = 4 << 20;
/// Most layers of one image: overlayfs takes 500 lower directories.
const LAYERS_MAX: usize = 500;
/// Largest blob of one layer, compressed: no more may come out of it.
const LAYER_BYTES_MAX: u64 = 128 << 30;
/// Platforms named when none of them fits.
const OFFERED_SHOWN: usize = 20;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The `Accept` header of a manifest request.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

const LAYERS: [&str; 5] = [
    OCI_LAYER,
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];
/// Also written by BuildKit, though Docker never specified it.
const DOCKER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// Why a document is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of the expected shape.
    #[error("{what} does not parse")]
    Json {
        /// Which document.
        what: &'static str,
        /// Where it stops.
        source: serde_json::Error,
    },
    /// A well-formed document that this runtime does not run.
    #[error("{0}")]
    Unsupported(String),
    /// A document that contradicts itself.
    #[error("{0}")]
    Inconsistent(String),
}

/// A reference by digest from one document to another (image-spec, descriptor).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    platform: Option<Platform>,
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    /// Whether what it names may run here: it says so, or says nothing.
    pub(crate) fn fits(&self) -> bool {
        platform::rank(self.platform.as_ref()).is_some()
    }

    /// Whether what came under this descriptor's digest is as long as it says.
    pub(crate) fn check_size(&self, what: &str, bytes: &[u8]) -> Result<(), ManifestError> {
        let (said, actual) = (self.size, bytes.len() as u64);
        if said == actual {
            return Ok(());
        }
        let text = format!("{what} has {actual} bytes, and what names it says {said}");
        Err(ManifestError::Inconsistent(text))
    }
}

/// A manifest or an index.
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

/// Enough of any document to tell what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: Option<u32>,
    #[serde(default)]
    media_type: String,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Parses what a registry calls `content_type`; the document's own words win over that.
    pub(crate) fn parse(bytes: &[u8], content_type: &str) -> Result<Self, ManifestError> {
        let json = |source| ManifestError::Json {
            what: "manifest",
            source,
        };
        let probe: Probe = serde_json::from_slice(bytes).map_err(json)?;
        let content_type = content_type.split(';').next().unwrap_or_default().trim();
        if probe.schema_version == Some(1)
            || probe.fs_layers.is_some()
            || content_type.starts_with(DOCKER_SCHEMA_1)
        {
            let text = "image has a Docker schema 1 manifest, which is obsolete; push it again \
                        with a current tool";
            return Err(ManifestError::Unsupported(text.to_owned()));
        }
        // The same bytes must not be a manifest to one reader and an index to another.
        if probe.manifests.is_some() && (probe.layers.is_some() || probe.config.is_some()) {
            let text = "document is both a manifest and an index";
            return Err(ManifestError::Inconsistent(text.to_owned()));
        }
        let media_type = match (probe.media_type.as_str(), probe.manifests.is_some()) {
            ("", true) => OCI_INDEX,
            ("", false) => OCI_MANIFEST,
            (own, _) => own,
        };
        match media_type {
            OCI_INDEX | DOCKER_LIST => {
                Ok(Self::Index(serde_json::from_slice(bytes).map_err(json)?))
            }
            OCI_MANIFEST | DOCKER_MANIFEST => {
                let manifest: Manifest = serde_json::from_slice(bytes).map_err(json)?;
                manifest.check()?;
                Ok(Self::Manifest(manifest))
            }
            other => {
                let text = format!("manifest of type {other:?} is not an image");
                Err(ManifestError::Unsupported(text))
            }
        }
    }
}

impl Manifest {
    fn check(&self) -> Result<(), ManifestError> {
        let config = self.config.media_type.as_str();
        if config != OCI_CONFIG && config != DOCKER_CONFIG {
            let text =
                format!("configuration of type {config:?} makes this an artifact, not an image");
            return Err(ManifestError::Unsupported(text));
        }
        if self.config.size > DOCUMENT_MAX {
            let text = format!("configuration of {} bytes is over 4 MiB", self.config.size);
            return Err(ManifestError::Unsupported(text));
        }
        if self.layers.len() > LAYERS_MAX {
            let text = format!("{} layers are more than {LAYERS_MAX}", self.layers.len());
            return Err(ManifestError::Unsupported(text));
        }
        for layer in &self.layers {
            let kind = layer.media_type.as_str();
            if kind.contains("foreign") || kind.contains("nondistributable") {
                let text = format!("layer {} is foreign, and not in the registry", layer.digest);
                return Err(ManifestError::Unsupported(text));
            }
            if kind.ends_with("+encrypted") {
                let text = format!("layer {} is encrypted", layer.digest);
                return Err(ManifestError::Unsupported(text));
            }
            if layer.size > LAYER_BYTES_MAX {
                let (digest, size) = (&layer.digest, layer.size);
                let text = format!("layer {digest} of {size} bytes is over 128 GiB");
                return Err(ManifestError::Unsupported(text));
            }
            if !LAYERS.contains(&kind) && kind != DOCKER_ZSTD {
                let text = format!("layer {} has the unknown type {kind:?}", layer.digest);
                return Err(ManifestError::Unsupported(text));
            }
        }
        Ok(())
    }
}

impl Index {
    /// The manifest for this machine: the first that names the platform, else one that names none.
    pub(crate) fn choose(&self) -> Result<&Descriptor, ManifestError> {
        let manifests = self.manifests.iter().filter(|each| {
            matches!(
                each.media_type.as_str(),
                OCI_MANIFEST | DOCKER_MANIFEST | OCI_INDEX | ""
            )
        });
        let ranked =
            manifests.filter_map(|each| Some((platform::rank(each.platform.as_ref())?, each)));
        ranked
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, each)| each)
            .ok_or_else(|| {
                let offered = self.manifests.iter().map(|each| match &each.platform {
                    None => "unknown".to_owned(),
                    Some(platform) => platform.to_string(),
                });
                // An index may list thousands; a message may not.
                let offered = offered.take(OFFERED_SHOWN).collect::<Vec<_>>().join(", ");
                let this = platform::this();
                let text = format!("no manifest for {this} among [{offered}]");
                ManifestError::Unsupported(text)
            })
    }
}

/// What an image says about how to run it (image-spec, config).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfigSummary {
    /// The configuration as it was served: its digest is the image id.
    pub json: Vec<u8>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Arguments that come first.
    pub entrypoint: Vec<String>,
    /// Arguments that follow, unless others are given.
    pub cmd: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty is root.
    pub user: String,
    /// Empty is `/`.
    pub working_dir: String,
    /// Name or number; empty is `SIGTERM`.
    pub stop_signal: String,
    /// Free text.
    pub labels: BTreeMap<String, String>,
    /// Paths that the image wants kept outside of its layers.
    pub volumes: Vec<String>,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    config: Option<RunConfig>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

/// Parses a configuration: how to run the image, and the diff ids of its layers.
pub(crate) fn parse_config(
    json: Vec<u8>,
) -> Result<(ImageConfigSummary, Vec<Digest>), ManifestError> {
    let file: ConfigFile = serde_json::from_slice(&json).map_err(|source| ManifestError::Json {
        what: "image configuration",
        source,
    })?;
    let other_os = !file.os.is_empty() && file.os != "linux";
    let other_machine =
        !file.architecture.is_empty() && file.architecture != platform::architecture();
    if other_os || other_machine {
        let (os, machine) = (&file.os, &file.architecture);
        let text = format!(
            "image is for {os}/{machine}; this node is {}",
            platform::this()
        );
        return Err(ManifestError::Unsupported(text));
    }
    let run = file.config.unwrap_or_default();
    let summary = ImageConfigSummary {
        json,
        env: run.env.unwrap_or_default(),
        entrypoint: run.entrypoint.unwrap_or_default(),
        cmd: run.cmd.unwrap_or_default(),
        user: run.user.unwrap_or_default(),
        working_dir: run.working_dir.unwrap_or_default(),
        stop_signal: run.stop_signal.unwrap_or_default(),
        labels: run.labels.unwrap_or_default(),
        volumes: run.volumes.unwrap_or_default().into_keys().collect(),
        exposed_ports: run.exposed_ports.unwrap_or_default().into_keys().collect(),
    };
    Ok((summary, file.rootfs.diff_ids.unwrap_or_default()))
}

/// One layer of an image, as downloaded and as unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDescriptor {
    /// Digest of the blob as served.
    pub digest: Digest,
    /// Digest of the tar stream inside.
    pub diff_id: Digest,
    /// Identity of this layer on top of those below it.
    pub chain_id: Digest,
    /// As the manifest says.
    pub media_type: String,
    /// Bytes of the blob.
    pub size: u64,
}

/// Joins the manifest's layers with the configuration's diff ids.
pub(crate) fn layers(
    manifest: &Manifest,
    diff_ids: Vec<Digest>,
) -> Result<Vec<LayerDescriptor>, ManifestError> {
    let (blobs, diffs) = (manifest.layers.len(), diff_ids.len());
    if blobs != diffs {
        let text = format!("manifest has {blobs} layers and configuration {diffs} diff ids");
        return Err(ManifestError::Inconsistent(text));
    }
    let mut parent = None;
    let joined = manifest.layers.iter().zip(diff_ids).map(|(blob, diff_id)| {
        let chain = chain_id(parent.as_ref(), &diff_id);
        parent = Some(chain.clone());
        LayerDescriptor {
            digest: blob.digest.clone(),
            diff_id,
            chain_id: chain,
            media_type: blob.media_type.clone(),
            size: blob.size,
        }
    });
    Ok(joined.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str, platform: &str) -> String {
        let platform = match platform.split_once('/') {
            None => String::new(),
            Some((os, rest)) => {
                let (machine, variant) = rest.split_once('/').unwrap_or((rest, ""));
                format!(
                    r#","platform":{{"os":"{os}","architecture":"{machine}",
                    "variant":"{variant}"}}"#
                )
            }
        };
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{HEX}","size":7{platform}}}"#)
    }

    fn manifest(config: &str, layer: &str) -> String {
        let (config, layer) = (descriptor(config, ""), descriptor(layer, ""));
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#)
    }

    fn index(platforms: &[&str]) -> String {
        let list: Vec<_> = platforms
            .iter()
            .map(|each| descriptor(OCI_MANIFEST, each))
            .collect();
        format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, list.join(","))
    }

    fn refusal(document: &str, content_type: &str) -> String {
        match Document::parse(document.as_bytes(), content_type) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{document} was accepted"),
        }
    }

    #[test]
    fn both_families_of_manifests_are_understood() {
        for (config, layer) in [(OCI_CONFIG, LAYERS[1]), (DOCKER_CONFIG, LAYERS[4])] {
            let document = Document::parse(manifest(config, layer).as_bytes(), "").unwrap();
            let Document::Manifest(manifest) = document else {
                panic!("not a manifest")
            };
            assert_eq!(manifest.layers.len(), 1);
        }
    }

    #[test]
    fn what_is_no_runnable_image_is_refused_with_a_reason() {
        let helm = "application/vnd.cncf.helm.config.v1+json";
        assert!(refusal(&manifest(helm, OCI_LAYER), "").contains("artifact"));
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        assert!(refusal(&manifest(DOCKER_CONFIG, foreign), "").contains("foreign"));
        assert!(refusal(&manifest(OCI_CONFIG, "text/plain"), "").contains("unknown type"));
        let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
        assert!(refusal(&manifest(OCI_CONFIG, encrypted), "").contains("encrypted"));
        let kept_back = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
        assert!(refusal(&manifest(OCI_CONFIG, kept_back), "").contains("foreign"));
        let huge = manifest(OCI_CONFIG, OCI_LAYER).replace("\"size\":7", "\"size\":99999999999999");
        assert!(refusal(&huge, "").contains("is over"));
        let one = r#"{"schemaVersion":1,"fsLayers":[]}"#;
        assert!(refusal(one, "").contains("schema 1"));
        let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert!(refusal("{}", signed).contains("schema 1"));
        assert!(refusal("<html>", "text/html").contains("does not parse"));
        let both = r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert!(refusal(both, "").contains("both"));
    }

    #[test]
    fn the_index_gives_the_manifest_for_this_machine() {
        let own = platform::this();
        let choose = |platforms: &[&str]| {
            let document = Document::parse(index(platforms).as_bytes(), "").unwrap();
            let Document::Index(index) = document else {
                panic!("not an index")
            };
            index
                .choose()
                .map(|each| {
                    each.platform
                        .as_ref()
                        .map_or("unknown".into(), ToString::to_string)
                })
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            choose(&["linux/s390x", "unknown/unknown", &own]).unwrap(),
            own
        );
        assert_eq!(choose(&["", &own]).unwrap(), own);
        assert_eq!(choose(&["linux/s390x", ""]).unwrap(), "unknown");
        let error = choose(&["windows/amd64", "linux/s390x", "linux/amd64/v9"]).unwrap_err();
        assert!(
            error.contains(&own) && error.contains("linux/s390x"),
            "{error}"
        );
    }

    #[test]
    fn a_configuration_with_nulls_is_an_empty_one() {
        let json = r#"{"config":{"Env":null,"Cmd":["sh"],"Volumes":{"/data":{}}},"rootfs":{}}"#;
        let (summary, diff_ids) = parse_config(json.as_bytes().to_vec()).unwrap();
        assert_eq!(
            (summary.cmd, summary.volumes),
            (vec!["sh".to_owned()], vec!["/data".to_owned()])
        );
        assert!(summary.env.is_empty() && diff_ids.is_empty());
        let other = br#"{"os":"linux","architecture":"s390x","rootfs":{}}"#;
        assert!(
            parse_config(other.to_vec())
                .unwrap_err()
                .to_string()
                .contains("linux/s390x")
        );
    }

    #[test]
    fn layers_and_diff_ids_must_pair() {
        let text = manifest(OCI_CONFIG, OCI_LAYER);
        let Ok(Document::Manifest(manifest)) = Document::parse(text.as_bytes(), "") else {
            panic!("not a manifest");
        };
        assert!(layers(&manifest, Vec::new()).is_err());
        let diff_id = Digest::sha256(b"tar");
        let joined = layers(&manifest, vec![diff_id.clone()]).unwrap();
        assert_eq!(joined[0].chain_id, diff_id);
    }
}
