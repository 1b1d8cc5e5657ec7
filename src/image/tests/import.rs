//! Archives, good and bad.

use super::*;

async fn import(node: &Node, path: &Path) -> Result<Vec<ImportedImage>, ImageError> {
    let found = node.driver.open_archive(path).await?;
    for imported in &found {
        node.layers(&imported.image).await?;
    }
    Ok(found)
}

/// The files of an OCI layout with one image under three names.
pub(super) fn layout_files(image: &TestImage) -> Vec<(String, Vec<u8>)> {
    let manifest = Digest::sha256(&image.manifest);
    let entry = |name: &str| {
        serde_json::json!({
            "mediaType": manifest::OCI_MANIFEST, "digest": manifest, "size": image.manifest.len(),
            "annotations": { "org.opencontainers.image.ref.name": name },
        })
    };
    let names = ["docker.io/library/a:1", "b.example/c:2", "latest"];
    let index = serde_json::json!({ "manifests": names.map(entry) }).to_string();
    let mut files = vec![
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".to_owned(), index.into_bytes()),
    ];
    for bytes in image.blobs.values().chain([&image.manifest]) {
        files.push((
            format!("blobs/sha256/{}", Digest::sha256(bytes).hex()),
            bytes.clone(),
        ));
    }
    files
}

#[tokio::test]
async fn an_oci_layout_is_imported_from_directory_and_tar() {
    let image = image();
    let node = Node::new();
    let files = layout_files(&image);
    let layout = node.root.path().join("layout");
    let mut tar = Tar::default();
    for (name, bytes) in &files {
        fs::create_dir_all(layout.join(name).parent().unwrap()).unwrap();
        fs::write(layout.join(name), bytes).unwrap();
        tar = tar.entry(tar::EntryType::Regular, name, "", bytes);
    }
    let tar = tar.end();
    fs::write(node.root.path().join("layout.tar"), &tar).unwrap();
    fs::write(node.root.path().join("layout.tar.gz"), gzip(&tar)).unwrap();
    for name in ["layout", "layout.tar", "layout.tar.gz"] {
        let node = Node {
            driver: Node::new().driver,
            root: tempfile::tempdir().unwrap(),
        };
        drop(node);
        let fresh = Node::new();
        let found = import(&fresh, &layout.with_file_name(name)).await.unwrap();
        assert_eq!(found.len(), 1, "{name}");
        let names: Vec<_> = found[0]
            .references
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, ["docker.io/library/a:1", "b.example/c:2"]);
        assert_eq!(found[0].image.image_id, Digest::sha256(&image.config));
        assert_eq!(fresh.text(&found[0].image, 0, "etc/name"), "bottom");
        drop(found);
        for layer in fresh.driver.list_layers().unwrap() {
            fresh.driver.remove_layer(&layer).unwrap();
        }
        fresh.nothing_is_left();
    }
    // One bit of one blob.
    let mut damaged = tar.clone();
    let at = damaged
        .windows(6)
        .position(|bytes| bytes == b"SIGINT")
        .unwrap();
    damaged[at] ^= 1;
    fs::write(node.root.path().join("damaged.tar"), &damaged).unwrap();
    let error = import(&node, &node.root.path().join("damaged.tar"))
        .await
        .unwrap_err();
    assert!(
        matches!(error, ImageError::DigestMismatch { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_docker_archive_is_imported_with_its_tags() {
    let node = Node::new();
    let bottom = Tar::default().file("a", "1").end();
    let same = bottom.clone();
    let top = Tar::default().file("b", "2").end();
    let diff_ids = [&bottom, &same, &top].map(|tar| Digest::sha256(tar));
    let config = serde_json::json!({
        "os": "linux", "config": { "Entrypoint": ["/a"] }, "rootfs": { "diff_ids": diff_ids },
    })
    .to_string();
    let list = serde_json::json!([{
        "Config": "abc.json",
        "RepoTags": ["busybox:1", "b.example/x:y"],
        "Layers": ["l1/layer.tar", "l2/layer.tar", "l3/layer.tar"],
    }]);
    let archive = Tar::default()
        .dir("l1/")
        .entry(tar::EntryType::Regular, "l1/layer.tar", "", &bottom)
        .symlink("l2/layer.tar", "../l1/layer.tar")
        .entry(tar::EntryType::Regular, "l3/layer.tar", "", &gzip(&top))
        .file("abc.json", &config)
        .file("repositories", "{}")
        .file("manifest.json", &list.to_string())
        .end();
    let path = node.root.path().join("saved.tar");
    fs::write(&path, &archive).unwrap();
    let found = import(&node, &path).await.unwrap();
    let names: Vec<_> = found[0]
        .references
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names, ["docker.io/library/busybox:1", "b.example/x:y"]);
    let image = &found[0].image;
    assert_eq!(image.image_id, Digest::sha256(config.as_bytes()));
    assert_eq!(image.layers.len(), 3);
    assert_eq!(node.text(image, 1, "a") + &node.text(image, 2, "b"), "12");
}

#[tokio::test]
async fn what_is_no_archive_is_refused() {
    let node = Node::new();
    let root = node.root.path();
    fs::write(root.join("text"), "hello".repeat(1000)).unwrap();
    fs::write(root.join("other.tar"), Tar::default().file("a", "b").end()).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    let link = serde_json::json!([{ "Config": "../../etc/passwd", "Layers": [] }]).to_string();
    fs::create_dir(root.join("evil")).unwrap();
    fs::write(root.join("evil/manifest.json"), &link).unwrap();
    let linked = serde_json::json!([{ "Config": "link", "Layers": [] }]).to_string();
    fs::create_dir(root.join("linked")).unwrap();
    fs::write(root.join("linked/manifest.json"), &linked).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.join("linked/link")).unwrap();
    for name in ["text", "other.tar", "empty", "evil", "linked", "missing"] {
        let error = import(&node, &root.join(name)).await.unwrap_err();
        let refused = matches!(error, ImageError::Archive { .. } | ImageError::Read { .. });
        assert!(refused, "{name}: {error:?}");
    }
    node.nothing_is_left();
}
