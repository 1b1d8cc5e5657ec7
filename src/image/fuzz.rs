//! Ways for a fuzzer into what parses strangers' bytes. Compiled for tests and fuzzers only.
//!
//! The targets of `fuzz/` call these, as do the tests below with damaged attacks of the corpus.
//! Each is right as long as it returns: a panic, an overflow, or a change outside of the directory
//! given is the finding.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use super::digest::Algorithm;
use super::hosts;
use super::manifest::{self, Document};
use super::reference::Reference;
use super::unpack::entries::Entries;
use super::unpack::{Limits, unpack};

/// What a fuzzer may use up in one go.
fn limits() -> Limits {
    Limits {
        unpacked_bytes: 4 << 20,
        ratio_from_bytes: 1 << 20,
        entries: 1000,
        depth: 40,
        lookups: 10_000,
        extension_bytes: 64 << 10,
        kept_name_bytes: 1 << 20,
        ..Limits::default()
    }
}

/// Reads every entry of an archive, and its data to the end.
pub fn archive(data: &[u8]) {
    let mut entries = Entries::new(data, limits().extension_bytes);
    for _ in 0..limits().entries {
        let Ok(Some(entry)) = entries.next() else {
            return;
        };
        let mut left = entry.size;
        while left > 0 {
            let Ok(chunk @ [_, ..]) = entries.data(left) else {
                break;
            };
            let length = chunk.len();
            entries.consume(length);
            left = left.saturating_sub(length as u64);
        }
    }
}

/// Unpacks a layer into `ground/fs`, made anew, beside `ground/outside`, whose one file must stay
/// what it is.
///
/// # Errors
/// When the ground cannot be prepared.
///
/// # Panics
/// When something outside has changed.
pub fn layer(data: &[u8], ground: &Path) -> io::Result<()> {
    let (into, outside) = (ground.join("fs"), ground.join("outside"));
    crate::sys::tree::remove_tree(&into)?;
    fs::create_dir(&into)?;
    if !outside.exists() {
        fs::create_dir(&outside)?;
        fs::write(outside.join("secret"), "secret")?;
    }
    let taken = AtomicU64::new(data.len() as u64);
    drop(unpack(
        data,
        &taken,
        &into,
        Algorithm::Sha256,
        &limits(),
        || (),
    ));
    let names = |dir: &Path| Ok::<_, io::Error>(fs::read_dir(dir)?.count());
    let secret = fs::read(outside.join("secret"))?;
    assert_eq!((names(ground)?, names(&outside)?), (2, 1), "an escape");
    assert_eq!(secret, b"secret", "an escape");
    Ok(())
}

/// Parses a manifest or index, and chooses from it.
pub fn manifest(data: &[u8]) {
    match Document::parse(data, "") {
        Ok(Document::Index(index)) => drop(index.choose().map(|chosen| chosen.size)),
        Ok(Document::Manifest(manifest)) => drop(manifest::layers(&manifest, Vec::new())),
        Err(error) => drop(error.to_string()),
    }
}

/// Parses the configuration of an image.
pub fn image_config(data: &[u8]) {
    drop(manifest::parse_config(data.to_vec()).map_err(|error| error.to_string()));
}

/// Parses a `hosts.toml`.
pub fn hosts_file(text: &str) {
    let path = Path::new("/nonexistent/example.org/hosts.toml");
    drop(hosts::parse(text, path, "example.org").map_err(|error| error.to_string()));
}

/// Parses a reference; what comes out must go in again and stay what it is.
///
/// # Panics
/// When it does not.
pub fn reference(text: &str) {
    let Ok(reference) = text.parse::<Reference>() else {
        return;
    };
    let again = reference.to_string().parse::<Reference>();
    assert_eq!(again.ok().as_ref(), Some(&reference), "{text:?}");
    drop((reference.familiar_name(), reference.repository()));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing;
    use super::super::unpack::corpus;
    use super::*;

    /// What each target begins with: name of the target, and input.
    fn seeds() -> Vec<(&'static str, Vec<u8>)> {
        const DIGEST: &str =
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let attacks = corpus::attacks();
        let small = attacks.iter().filter(|one| one.archive.len() < 64 << 10);
        let mut all: Vec<_> = small
            .flat_map(|one| {
                [
                    ("archive", one.archive.clone()),
                    ("layer", one.archive.clone()),
                ]
            })
            .collect();
        let packed = testing::gzip(&testing::Tar::default().file("a/b", "hello").end());
        all.push(("layer", packed));
        let descriptor = |kind: &str| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{DIGEST}","size":7}}"#
            )
        };
        let (config, blob) = (
            descriptor("config.v1+json"),
            descriptor("layer.v1.tar+gzip"),
        );
        let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{blob}]}}"#);
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            descriptor("manifest.v1+json")
        );
        all.push(("manifest", manifest.into()));
        all.push(("manifest", index.into()));
        let image = r#"{"os":"linux","config":{"Env":["A=b"],"Cmd":null,"Volumes":{"/v":{}},
            "ExposedPorts":{"80/tcp":{}},"Labels":{"a":"b"}},"rootfs":{"diff_ids":["#;
        all.push(("image_config", format!(r#"{image}"{DIGEST}"]}}}}"#).into()));
        let mirrors = "server = \"https://r.example\"\n[host.\"http://m.example:5000/v2/p\"]\n\
            capabilities = [\"pull\"]\nskip_verify = true\noverride_path = true\n\
            [host.\"http://m.example:5000/v2/p\".header]\nx-a = [\"b\"]\n";
        all.push(("hosts_file", mirrors.into()));
        all.push((
            "reference",
            format!("localhost:5000/a/b:tag@{DIGEST}").into(),
        ));
        all.push((
            "config",
            "[image]\nparallel_layers = 4\n[log]\nlevel = \"info\"\n".into(),
        ));
        all
    }

    /// Where `make fuzz` wants them, too.
    fn keep(number: usize, target: &str, input: &[u8]) {
        if let Some(directory) = std::env::var_os("QUILT_FUZZ_SEEDS") {
            let directory = Path::new(&directory).join(target);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(format!("seed-{number}")), input).unwrap();
        }
    }

    #[test]
    fn every_seed_is_taken_by_its_target() {
        let ground = tempfile::tempdir().unwrap();
        for (number, (target, input)) in seeds().into_iter().enumerate() {
            keep(number, target, &input);
            let text = String::from_utf8_lossy(&input);
            match target {
                "archive" => archive(&input),
                "layer" => layer(&input, ground.path()).unwrap(),
                "manifest" => {
                    Document::parse(&input, "").unwrap();
                    manifest(&input);
                }
                "image_config" => {
                    manifest::parse_config(input.clone()).unwrap();
                    image_config(&input);
                }
                "hosts_file" => {
                    hosts::parse(&text, Path::new("h"), "example.org").unwrap();
                    hosts_file(&text);
                }
                "reference" => {
                    text.parse::<Reference>().unwrap();
                    reference(&text);
                }
                "config" => {}
                other => panic!("no target {other}"),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn damaged_attacks_neither_panic_nor_escape(
            which in any::<prop::sample::Index>(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut layers = seeds();
            layers.retain(|(target, _)| *target == "layer");
            let mut bytes = which.get(&layers).1.clone();
            for (at, with) in damage {
                let at = at.index(bytes.len());
                bytes[at] = with;
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            archive(&bytes);
            let ground = tempfile::tempdir().unwrap();
            layer(&bytes, ground.path()).unwrap();
        }
    }
}
