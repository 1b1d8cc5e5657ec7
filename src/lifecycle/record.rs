//! Copies of rows on disk, for the one case that the database is lost: what a pod, a container and
//! an image are. Never read otherwise; the database is the one truth.
//!
//! A record is JSON with a version. What is read is as hostile as any input: whoever reads one gets
//! it only when its name, its ids, its digests and its numbers fit each other.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::digest::{self, Algorithm, Digest};
use super::reference::Reference;
use super::spec::{ContainerSpec, ImageSpec, SandboxSpec};
use crate::id::{ContainerId, SandboxId};

/// The form that this version writes, and the only one it reads.
const VERSION: u32 = 1;
/// Longest record in bytes: the longest request, twice.
pub const RECORD_MAX_BYTES: u64 = 32 * 1024 * 1024;
/// Layers of one image at most.
const LAYERS_MAX: usize = 500;

/// A record that cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum BadRecord {
    /// Not JSON of this form.
    #[error("it cannot be parsed")]
    Form(#[source] serde_json::Error),
    /// Another version wrote it.
    #[error("it has version {0}, and {VERSION} is known")]
    Version(u32),
    /// A field cannot be what it is.
    #[error("{field} is {found:?}: {why}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

fn bad(field: &'static str, found: impl ToString, why: &'static str) -> BadRecord {
    let found = found.to_string().chars().take(128).collect();
    BadRecord::Field { field, found, why }
}

/// What has a record.
pub trait Record: Serialize + DeserializeOwned {
    /// Whether the parts fit each other, and the name under which the record was found.
    ///
    /// # Errors
    /// [`BadRecord`] with the first part that does not.
    fn check(&self, name: &str) -> Result<(), BadRecord>;
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    record: T,
}

#[derive(Deserialize)]
struct Head {
    version: u32,
}

/// The text of a record.
///
/// # Errors
/// When it has no JSON form, which no record of this program lacks.
pub fn encode<T: Record>(record: &T) -> Result<Vec<u8>, BadRecord> {
    let version = VERSION;
    serde_json::to_vec(&Envelope { version, record }).map_err(BadRecord::Form)
}

/// The record in a text that was found under `name`: an id, or the hexadecimal part of one.
///
/// # Errors
/// [`BadRecord`] when it is none, of another version, or inconsistent.
pub fn decode<T: Record>(name: &str, text: &[u8]) -> Result<T, BadRecord> {
    let head: Head = serde_json::from_slice(text).map_err(BadRecord::Form)?;
    if head.version != VERSION {
        return Err(BadRecord::Version(head.version));
    }
    let Envelope { record, .. }: Envelope<T> =
        serde_json::from_slice(text).map_err(BadRecord::Form)?;
    record.check(name)?;
    Ok(record)
}

/// A sandbox: in its directory, from before its namespaces are made until they are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Its id.
    pub id: SandboxId,
    /// What was asked for.
    pub spec: SandboxSpec,
    /// Its address, if it has a network of its own.
    pub address: Option<AddressRecord>,
    /// How plugins connect it, if they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentRecord>,
    /// The boot of the node in which it was made.
    pub boot_id: String,
    /// When it was asked for, ns since 1970.
    pub created_at: i64,
    /// When it was set up, ns since 1970; `None` while it is being set up.
    pub ready_at: Option<i64>,
    /// When it began to be taken down, ns since 1970; `None` while it is wanted.
    pub stopping_at: Option<i64>,
    /// PID 1 of a shared PID namespace, with its start time in clock ticks.
    pub init: Option<(i32, u64)>,
}

/// What plugins were told to connect a pod; empty as long as none was called.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentRecord {
    /// The network.
    pub network: String,
    /// The list that ADD was called with, JSON.
    pub config: String,
    /// What plugins were told of the pod, JSON.
    pub parameters: String,
    /// The last plugin's answer, JSON; `None` while nobody knows how far they have come.
    pub result: Option<String>,
    /// The pod's addresses in it, the main one first.
    pub addresses: Vec<IpAddr>,
}

/// An address that was given out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRecord {
    /// The pod's.
    pub address: Ipv4Addr,
    /// Bits of the subnet's mask.
    pub prefix_length: u8,
    /// The bridge's.
    pub gateway: Ipv4Addr,
    /// The bridge.
    pub bridge: String,
    /// The node's end of the link.
    pub host_link: String,
    /// The pod's end.
    pub pod_link: String,
    /// The IPv6 address, for a pod that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Given>,
}

/// An IPv6 address that was given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Given {
    /// The pod's.
    pub address: Ipv6Addr,
    /// Bits of the subnet's mask.
    pub prefix_length: u8,
    /// The bridge's.
    pub gateway: Ipv6Addr,
}

impl Ipv6Given {
    fn check(&self) -> Result<(), BadRecord> {
        let subnet = Ipv6Net::new(self.gateway, self.prefix_length)
            .map_err(|_| bad("ipv6.prefix_length", self.prefix_length, "it is too long"))?;
        if subnet.contains(&self.address) && self.address != self.gateway {
            return Ok(());
        }
        let why = "it is not the gateway's neighbour";
        Err(bad("ipv6.address", self.address, why))
    }
}

impl Record for SandboxRecord {
    fn check(&self, name: &str) -> Result<(), BadRecord> {
        if self.id.as_str() != name {
            return Err(bad(
                "id",
                self.id.as_str(),
                "the directory has another name",
            ));
        }
        time("created_at", self.created_at)?;
        for at in self.ready_at.iter().chain(&self.stopping_at) {
            time("ready_at or stopping_at", *at)?;
        }
        if let Some((pid, _)) = self.init.filter(|(pid, _)| *pid <= 1) {
            return Err(bad("init", pid, "no pod's init has this number"));
        }
        let Some(address) = &self.address else {
            return Ok(());
        };
        if address.host_link != host_link(&self.id) {
            return Err(bad("host_link", &address.host_link, "it is another pod's"));
        }
        if !(8..=30).contains(&address.prefix_length) {
            return Err(bad(
                "prefix_length",
                address.prefix_length,
                "no pod network has it",
            ));
        }
        let mask = u32::MAX << (32 - address.prefix_length);
        if u32::from(address.address) & mask != u32::from(address.gateway) & mask
            || address.address == address.gateway
        {
            return Err(bad(
                "address",
                address.address,
                "it is not the gateway's neighbour",
            ));
        }
        address.ipv6.as_ref().map_or(Ok(()), Ipv6Given::check)
    }
}

/// The name of the node's end of a pod's link.
#[must_use]
pub fn host_link(id: &SandboxId) -> String {
    format!("q{}", id.short())
}

/// A container: in its directory, for as long as that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub sandbox_id: SandboxId,
    /// Id of its image.
    pub image_id: String,
    /// What was asked for.
    pub spec: ContainerSpec,
    /// When it was asked for, ns since 1970.
    pub created_at: i64,
    /// The image layers it stands on, from the base up.
    pub layers: Vec<LayerRecord>,
    /// The images it mounts, each once.
    #[serde(default)]
    pub volumes: Vec<VolumeRecord>,
}

/// An image that a container mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Id of the image.
    pub image_id: String,
    /// Its layers, from the base up.
    pub layers: Vec<LayerRecord>,
}

impl Record for ContainerRecord {
    fn check(&self, name: &str) -> Result<(), BadRecord> {
        if self.id.as_str() != name {
            return Err(bad(
                "id",
                self.id.as_str(),
                "the directory has another name",
            ));
        }
        time("created_at", self.created_at)?;
        sha256("image_id", &self.image_id)?;
        for volume in &self.volumes {
            sha256("volumes", &volume.image_id)?;
            check_layers(&volume.layers)?;
        }
        let mut images: Vec<_> = self.volumes.iter().map(|volume| &volume.image_id).collect();
        let all = images.len();
        images.sort_unstable();
        images.dedup();
        if images.len() < all {
            return Err(bad("volumes", all, "an image is named twice"));
        }
        check_layers(&self.layers)
    }
}

/// An unpacked layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Digest of it and all below it.
    pub chain_id: String,
    /// Digest of its uncompressed tar.
    pub diff_id: String,
    /// Digest of the blob it came from.
    pub digest: String,
    /// Bytes on disk.
    pub size_bytes: i64,
    /// Inodes on disk.
    pub inodes: i64,
    /// When it was first wanted, ns since 1970.
    pub created_at: i64,
    /// Digest of the list of its entries; `None` where there is none.
    #[serde(default)]
    pub seal: Option<String>,
    /// Entries in that list.
    #[serde(default)]
    pub entries: Option<i64>,
}

/// An image, while it has a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// `sha256:` and the digest of its config.
    pub id: String,
    /// Digest of its manifest.
    pub manifest_digest: String,
    /// What it says of its containers.
    pub spec: ImageSpec,
    /// Bytes of its unpacked layers.
    pub size_bytes: i64,
    /// Whether it is never collected.
    pub pinned: bool,
    /// When it came, ns since 1970.
    pub created_at: i64,
    /// Its layers, from the base up.
    pub layers: Vec<LayerRecord>,
    /// Its names.
    pub references: Vec<ReferenceRecord>,
    /// Annotations of its manifest.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The name or the file it came by.
    #[serde(default)]
    pub pulled_as: Option<String>,
    /// Its manifest, byte for byte; both documents are JSON, and so UTF-8.
    #[serde(default)]
    pub manifest: Option<String>,
    /// Its configuration, byte for byte.
    #[serde(default)]
    pub config: Option<String>,
}

/// A name of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceRecord {
    /// Normalised; with a tag or a digest.
    pub name: String,
    /// Whether it is a digest: such a name never moves.
    pub is_digest: bool,
    /// When it came to stand for this image, ns since 1970.
    pub updated_at: i64,
}

impl Record for ImageRecord {
    fn check(&self, name: &str) -> Result<(), BadRecord> {
        let id = sha256("id", &self.id)?;
        if id.hex() != name {
            return Err(bad("id", &self.id, "the file has another name"));
        }
        let manifest = self
            .manifest_digest
            .parse::<Digest>()
            .map_err(|_| bad("manifest_digest", &self.manifest_digest, "it is no digest"))?;
        for (field, digest, text) in [
            ("manifest", &manifest, &self.manifest),
            ("config", &id, &self.config),
        ] {
            if text
                .as_ref()
                .is_some_and(|text| !digest.matches(text.as_bytes()))
            {
                return Err(bad(field, digest, "its content has another digest"));
            }
        }
        time("created_at", self.created_at)?;
        if self.size_bytes < 0 {
            return Err(bad("size_bytes", self.size_bytes, "it is negative"));
        }
        for reference in &self.references {
            let parsed: Result<Reference, _> = reference.name.parse();
            let same = parsed.is_ok_and(|parsed| parsed.to_string() == reference.name);
            if !same {
                return Err(bad(
                    "references",
                    &reference.name,
                    "it is no normalised name",
                ));
            }
            time("updated_at", reference.updated_at)?;
        }
        check_layers(&self.layers)
    }
}

/// Each chain id must follow from the one below it and the layer's own digest, so no record can put
/// a directory where it does not belong.
fn check_layers(layers: &[LayerRecord]) -> Result<(), BadRecord> {
    if layers.len() > LAYERS_MAX {
        return Err(bad("layers", layers.len(), "that many no image has"));
    }
    let mut below: Option<Digest> = None;
    for layer in layers {
        let diff_id: Digest = layer
            .diff_id
            .parse()
            .map_err(|_| bad("diff_id", &layer.diff_id, "it is no digest"))?;
        layer
            .digest
            .parse::<Digest>()
            .map_err(|_| bad("digest", &layer.digest, "it is no digest"))?;
        let chain_id = digest::chain_id(below.as_ref(), &diff_id);
        if chain_id.to_string() != layer.chain_id {
            return Err(bad(
                "chain_id",
                &layer.chain_id,
                "it does not follow from its layers",
            ));
        }
        if layer.size_bytes < 0 || layer.inodes < 0 {
            return Err(bad("size_bytes", layer.size_bytes, "it is negative"));
        }
        if let Some(seal) = &layer.seal {
            sha256("seal", seal)?;
        }
        time("created_at", layer.created_at)?;
        below = Some(chain_id);
    }
    Ok(())
}

fn sha256(field: &'static str, text: &str) -> Result<Digest, BadRecord> {
    let digest: Result<Digest, _> = text.parse();
    digest
        .ok()
        .filter(|digest| digest.algorithm() == Algorithm::Sha256)
        .ok_or_else(|| bad(field, text, "it is no sha256 digest"))
}

fn time(field: &'static str, ns: i64) -> Result<(), BadRecord> {
    if ns > 0 {
        return Ok(());
    }
    Err(bad(field, ns, "no clock of this node showed it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layer(below: Option<&LayerRecord>, number: u8) -> LayerRecord {
        let diff_id = Digest::sha256(&[number]);
        let below: Option<Digest> = below.map(|b| b.chain_id.parse().expect("a digest"));
        LayerRecord {
            chain_id: digest::chain_id(below.as_ref(), &diff_id).to_string(),
            diff_id: diff_id.to_string(),
            digest: Digest::sha256(&[number, 1]).to_string(),
            size_bytes: 10,
            inodes: 2,
            seal: Some(format!("sha256:{}", "5".repeat(64))),
            entries: Some(3),
            created_at: 5,
        }
    }

    fn image() -> (String, ImageRecord) {
        let id = Digest::sha256(b"config");
        let base = layer(None, 1);
        let top = layer(Some(&base), 2);
        let record = ImageRecord {
            id: id.to_string(),
            manifest_digest: Digest::sha256(b"manifest").to_string(),
            spec: ImageSpec::default(),
            size_bytes: 20,
            pinned: false,
            annotations: BTreeMap::from([("a".into(), "b".into())]),
            pulled_as: Some("a".into()),
            manifest: Some("manifest".into()),
            config: Some("config".into()),
            created_at: 7,
            layers: vec![base, top],
            references: vec![ReferenceRecord {
                name: "docker.io/library/busybox:latest".into(),
                is_digest: false,
                updated_at: 8,
            }],
        };
        (id.hex().to_owned(), record)
    }

    fn sandbox() -> SandboxRecord {
        let id = SandboxId::random();
        SandboxRecord {
            address: Some(AddressRecord {
                address: Ipv4Addr::new(10, 1, 2, 9),
                prefix_length: 24,
                gateway: Ipv4Addr::new(10, 1, 2, 1),
                bridge: "quilt0".into(),
                host_link: host_link(&id),
                pod_link: "eth0".into(),
                ipv6: Some(Ipv6Given {
                    address: "fd00::9".parse().expect("an address"),
                    prefix_length: 64,
                    gateway: "fd00::1".parse().expect("an address"),
                }),
            }),
            id,
            spec: SandboxSpec::default(),
            attachment: None,
            boot_id: "b".into(),
            created_at: 1,
            ready_at: Some(2),
            stopping_at: None,
            init: None,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (name, record) = image();
        let text = encode(&record).expect("JSON");
        assert_eq!(
            decode::<ImageRecord>(&name, &text).expect("a record"),
            record
        );
        let record = sandbox();
        let text = encode(&record).expect("JSON");
        let read: SandboxRecord = decode(record.id.as_str(), &text).expect("a record");
        assert_eq!(read, record);
        let other = SandboxId::random();
        let error = decode::<SandboxRecord>(other.as_str(), &text).expect_err("another's");
        assert!(error.to_string().contains("another name"), "{error}");
    }

    #[test]
    fn a_record_whose_parts_do_not_fit_is_refused() {
        let refused = |change: &dyn Fn(&mut ImageRecord)| {
            let (name, mut record) = image();
            change(&mut record);
            let text = encode(&record).expect("JSON");
            decode::<ImageRecord>(&name, &text).is_err()
        };
        assert!(!refused(&|_| {}));
        assert!(refused(&|record| record.layers.swap(0, 1)));
        assert!(refused(
            &|record| record.layers[1].chain_id = "../../etc".into()
        ));
        assert!(refused(&|record| record.layers[0].size_bytes = -1));
        assert!(refused(
            &|record| record.references[0].name = "busybox".into()
        ));
        assert!(refused(&|record| record.created_at = 0));
        assert!(refused(
            &|record| record.id = Digest::sha256(b"other").to_string()
        ));

        let refused = |change: &dyn Fn(&mut SandboxRecord)| {
            let mut record = sandbox();
            let name = record.id.to_string();
            change(&mut record);
            decode::<SandboxRecord>(&name, &encode(&record).expect("JSON")).is_err()
        };
        fn address(record: &mut SandboxRecord) -> &mut AddressRecord {
            record.address.as_mut().expect("an address")
        }
        assert!(!refused(&|_| {}));
        assert!(refused(&|record| record.init = Some((1, 5))));
        assert!(refused(&|record| address(record).host_link = "eth0".into()));
        assert!(refused(&|record| address(record).prefix_length = 33));
        let ipv6 = |prefix_length, gateway: &str| {
            let gateway = gateway.parse().expect("an address");
            let address = "fd00::9".parse().expect("an address");
            Some(Ipv6Given {
                address,
                prefix_length,
                gateway,
            })
        };
        assert!(refused(
            &|record| address(record).ipv6 = ipv6(129, "fd00::1")
        ));
        assert!(refused(&|record| address(record).ipv6 = ipv6(64, "fd01::1")));
        assert!(refused(&|record| address(record).ipv6 = ipv6(64, "fd00::9")));
        assert!(!refused(&|record| address(record).ipv6 = None));
        assert!(refused(
            &|record| address(record).address = Ipv4Addr::new(8, 8, 8, 8)
        ));
    }

    #[test]
    fn another_version_is_told_from_garbage() {
        let (name, record) = image();
        let text = String::from_utf8(encode(&record).expect("JSON")).expect("text");
        let newer = text.replacen("\"version\":1", "\"version\":2", 1);
        let error = decode::<ImageRecord>(&name, newer.as_bytes()).expect_err("newer");
        assert!(matches!(error, BadRecord::Version(2)), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(
            name in ".{0,80}",
            text: Vec<u8>,
            cut in any::<prop::sample::Index>(),
        ) {
            prop_assert!(decode::<ContainerRecord>(&name, &text).is_err());
            let (name, record) = image();
            let whole = encode(&record).expect("JSON");
            let cut = cut.index(whole.len());
            prop_assert!(decode::<ImageRecord>(&name, &whole[..cut]).is_err());
        }
    }
}
