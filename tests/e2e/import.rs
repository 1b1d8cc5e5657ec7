//! `quiltd image import FILE`: images that come as files.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::image::from_image;
use crate::support::image::{descriptor, to_bytes};
use crate::support::layer::digest;
use crate::support::log::contents;
use crate::support::pod::exited;
use crate::support::{Node, registry};

/// The pieces of a pushed image as an OCI layout, named by an annotation.
pub(crate) fn oci_layout(dir: &Path, name: &str) {
    let image = registry().pushed("zstd:latest");
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a directory of the test");
    let layers = image.layers.iter().map(|layer| &layer.blob);
    for blob in layers.chain([&image.config, &image.manifest]) {
        fs::write(blobs.join(&digest(blob)["sha256:".len()..]), blob).expect("a blob");
    }
    let mut entry = descriptor(image.dialect.manifest(), &image.manifest);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(dir.join("index.json"), to_bytes(&index)).expect("an index");
    let version = json!({"imageLayoutVersion": "1.0.0"});
    fs::write(dir.join("oci-layout"), to_bytes(&version)).expect("a marker");
}

/// What `docker save` writes: plain layers, the configuration, and a list of them.
pub(crate) fn docker_archive(path: &Path, name: &str) {
    let image = registry().pushed("plain:latest");
    let mut tar = tar::Builder::new(fs::File::create(path).expect("a file of the test"));
    let mut add = |path: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, bytes).expect("an entry");
    };
    // The second layer was pushed packed; the archive may hold it so.
    let layers: Vec<_> = (0..image.layers.len())
        .map(|n| format!("layer{n}/layer.tar"))
        .collect();
    for (path, layer) in layers.iter().zip(&image.layers) {
        add(path, &layer.blob);
    }
    let config = format!("{}.json", &image.id()["sha256:".len()..]);
    add(&config, &image.config);
    let list = json!([{"Config": config, "RepoTags": [name], "Layers": layers}]);
    add("manifest.json", &to_bytes(&list));
    tar.finish().expect("an archive");
}

/// Imports a file, finds the image by its name, and runs it.
async fn imports(node: &Node, file: &Path, name: &str, id: &str, mark: &str) {
    let output = node.operate(&["image", "import", &file.display().to_string()]);
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    assert!(
        said.contains(name),
        "the command says what it imported: {said}"
    );
    let image = node
        .cri
        .image_status(name)
        .await
        .expect("ImageStatus")
        .expect("present");
    assert_eq!(image.id, id);
    assert_eq!(image.repo_tags, [name]);
    let pod = node.pod(mark).await;
    let config = from_image("main", name, "cat /etc/mark");
    let container = pod.run(&config).await;
    exited(&node.cri, &container).await;
    assert_eq!(contents(&pod.log(&config), "stdout"), [mark]);
}

#[tokio::test]
async fn an_oci_layout_is_imported_as_a_directory_and_as_a_tar() {
    let node = Node::start().await;
    let id = registry().pushed("zstd:latest").id();
    let dir = node.path("layout");
    oci_layout(&dir, "imported.example/from/dir:1");
    imports(&node, &dir, "imported.example/from/dir:1", &id, "zstd").await;
    node.cri.remove_image(&id).await.expect("RemoveImage");

    let dir = node.path("layout-for-tar");
    oci_layout(&dir, "imported.example/from/tar:2");
    let file: PathBuf = node.path("layout.tar");
    let mut tar = tar::Builder::new(fs::File::create(&file).expect("a file of the test"));
    tar.append_dir_all(".", &dir).expect("a directory");
    tar.finish().expect("an archive");
    imports(&node, &file, "imported.example/from/tar:2", &id, "zstd").await;
}

#[tokio::test]
async fn a_docker_archive_is_imported() {
    let node = Node::start().await;
    let file = node.path("saved.tar");
    docker_archive(&file, "imported.example/saved:3");
    let id = registry().pushed("plain:latest").id();
    imports(&node, &file, "imported.example/saved:3", &id, "plain").await;
}

#[tokio::test]
async fn what_is_no_image_is_refused_with_its_name_and_nothing_is_kept() {
    let node = Node::start().await;
    let file = node.path("text.tar");
    fs::write(&file, "this is not an archive").expect("a file of the test");
    let missing = node.path("not-there.tar");
    for path in [file, missing] {
        let path = path.display().to_string();
        let output = node.operate(&["image", "import", &path]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(errors.contains(&path), "the error names the file: {errors}");
    }
    assert!(node.cri.list_images().await.expect("ListImages").is_empty());
}
