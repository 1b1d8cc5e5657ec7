//! An OCI image layout (image-spec, "Image Layout") as a tar that is written front to back.

use std::collections::BTreeSet;
use std::io::{self, Write};

use serde_json::{Value, json};

use crate::image::Digest;

/// Name of an image in a layout's index, as containerd and we read it.
const FULL_NAME: &str = "io.containerd.image.name";
/// The same for tools that know the specification alone.
const NAME: &str = "org.opencontainers.image.ref.name";
const BLOCK: u64 = 512;

/// A manifest in the index: media type, digest, length, and the names of the image.
pub(super) struct Entry {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) names: Vec<String>,
}

/// The tar.
pub(super) struct Layout<W: Write> {
    to: W,
    /// Blobs that are in it, each once.
    written: BTreeSet<Digest>,
    /// Bytes of the member that are still to come, and of zeros after it.
    left: u64,
    padding: u64,
}

impl<W: Write> Layout<W> {
    /// Begins a layout with these images.
    pub(super) fn begin(to: W, images: &[&Entry]) -> io::Result<Self> {
        let mut layout = Self {
            to,
            written: BTreeSet::new(),
            left: 0,
            padding: 0,
        };
        let version = json!({"imageLayoutVersion": "1.0.0"});
        layout.member("oci-layout", version.to_string().as_bytes())?;
        layout.member("index.json", index(images).to_string().as_bytes())?;
        Ok(layout)
    }

    fn member(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.header(name, bytes.len() as u64)?;
        self.write(bytes)?;
        self.close()
    }

    fn header(&mut self, name: &str, size: u64) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        self.to.write_all(header.as_bytes())?;
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
        Ok(())
    }

    /// Begins a blob; `false` when it is in the layout already.
    pub(super) fn blob(&mut self, digest: &Digest, size: u64) -> io::Result<bool> {
        if !self.written.insert(digest.clone()) {
            return Ok(false);
        }
        let name = format!("blobs/{}", digest.to_string().replace(':', "/"));
        self.header(&name, size)?;
        Ok(true)
    }

    /// The next bytes of the blob.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let more = "more bytes than were announced";
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| io::Error::other(more))?;
        self.to.write_all(bytes)
    }

    /// Ends the blob, all of which has been written.
    pub(super) fn close(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::other("fewer bytes than were announced"));
        }
        let zeros = [0; BLOCK as usize];
        let padding = usize::try_from(self.padding).unwrap_or(0);
        self.padding = 0;
        self.to.write_all(&zeros[..padding])
    }

    /// Ends the tar and gives the writer back.
    pub(super) fn end(mut self) -> io::Result<W> {
        self.to.write_all(&[0; 2 * BLOCK as usize])?;
        self.to.flush()?;
        Ok(self.to)
    }
}

/// One descriptor for each name; one without a name for an image that has none.
fn index(images: &[&Entry]) -> Value {
    let mut manifests = Vec::new();
    for image in images {
        let bare = json!({"mediaType": image.media_type, "digest": image.digest,
            "size": image.size});
        if image.names.is_empty() {
            manifests.push(bare.clone());
        }
        for name in &image.names {
            let mut named = bare.clone();
            named["annotations"] = json!({FULL_NAME: name, NAME: name});
            manifests.push(named);
        }
    }
    json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests})
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_tar_library_reads_what_was_written_and_each_blob_is_there_once() {
        let (one, two) = (vec![7; 512], vec![8; 513]);
        let entry = Entry {
            media_type: "m".into(),
            digest: Digest::sha256(&one),
            size: 512,
            names: vec!["a.b/c:1".into(), "a.b/c:2".into()],
        };
        let mut layout = Layout::begin(Vec::new(), &[&entry]).expect("in memory");
        for blob in [&one, &two, &one] {
            let new = layout.blob(&Digest::sha256(blob), blob.len() as u64);
            if new.expect("in memory") {
                layout.write(blob).expect("in memory");
                layout.close().expect("in memory");
            }
        }
        let bytes = layout.end().expect("in memory");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut members = Vec::new();
        for member in archive.entries().expect("a tar") {
            let mut member = member.expect("a member");
            let name = member.path().expect("a path").display().to_string();
            let mut content = Vec::new();
            member.read_to_end(&mut content).expect("its content");
            members.push((name, content));
        }
        let names: Vec<_> = members.iter().map(|(name, _)| name.as_str()).collect();
        let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::sha256(bytes).hex());
        assert_eq!(
            names,
            ["oci-layout", "index.json", &blob(&one), &blob(&two)]
        );
        assert_eq!((&members[2].1, &members[3].1), (&one, &two));
        let index: Value = serde_json::from_slice(&members[1].1).expect("JSON");
        let named = index["manifests"].as_array().expect("a list").iter();
        let named: Vec<_> = named.map(|m| m["annotations"][NAME].as_str()).collect();
        assert_eq!(named, [Some("a.b/c:1"), Some("a.b/c:2")]);
    }

    #[test]
    fn a_blob_of_another_length_is_an_error() {
        let mut layout = Layout::begin(Vec::new(), &[]).expect("in memory");
        layout.blob(&Digest::sha256(b""), 3).expect("in memory");
        assert!(layout.write(b"four").is_err());
        assert!(layout.close().is_err());
    }
}
