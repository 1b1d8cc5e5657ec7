//! `quiltd image …`: what operators do with images, with and without a registry.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::image::from_image;
use crate::support::faults::Faults;
use crate::support::layer::digest;
use crate::support::log::contents;
use crate::support::node::quiltd;
use crate::support::operator::{column, complained, said};
use crate::support::pod::exited;
use crate::support::{Node, eventually, registry};

/// `quiltd image …` for a node, to be changed before it runs.
fn image(node: &Node, arguments: &[&str]) -> Command {
    let mut command = Command::new(quiltd());
    command.arg("image").args(arguments);
    command.arg("--state").arg(node.names.state());
    command
}

pub(crate) fn export(node: &Node, name: &str, to: &str) -> Output {
    let config = node.path("config.toml").display().to_string();
    let mut command = image(node, &["export", name, "--output", to, "--config", &config]);
    command.output().expect("quiltd runs")
}

/// The members of a tar, by an independent reader.
pub(crate) fn members(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().expect("a tar");
    let members = entries.map(|entry| {
        let mut entry = entry.expect("a member");
        let name = entry.path().expect("a path").display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("its content");
        (name, content)
    });
    members.collect()
}

fn no_part_is_left(dir: &Path) {
    let names = fs::read_dir(dir).expect("a directory").flatten();
    let parts: Vec<_> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".part"))
        .collect();
    assert_eq!(parts, Vec::<String>::new());
}

/// What is told of an image that a container runs, by its name and by the beginning of its id.
fn inspection_tells_all(node: &Node, name: &str, container: &str) {
    let pushed = registry().pushed("zstd:latest");
    let whole: Value =
        serde_json::from_str(&said(&node.operate(&["image", "inspect", name]))).expect("JSON");
    assert_eq!(whole["id"], json!(pushed.id()));
    assert_eq!(
        column(&whole["used_by"], "container_id"),
        [container.to_owned()]
    );
    assert_eq!(column(&whole["used_by"], "used_as"), ["rootfs"]);
    let diff_ids: Vec<_> = pushed
        .layers
        .iter()
        .map(|layer| layer.diff_id.clone())
        .collect();
    assert_eq!(column(&whole["layers"], "diff_id"), diff_ids);
    assert_eq!(whole["config"]["rootfs"]["diff_ids"], json!(diff_ids));
    assert_eq!(whole["manifest"]["config"]["digest"], json!(pushed.id()));
    let short = &pushed.id()["sha256:".len()..][..12];
    let by_id = said(&node.operate(&["image", "inspect", short]));
    assert!(by_id.contains(&pushed.id()));
    assert!(said(&node.operate(&["image", "list"])).contains(name));
}

#[tokio::test]
async fn an_image_is_exported_as_its_registry_has_it_and_comes_back() {
    let mut node = Node::start().await;
    let name = registry().image("zstd:latest");
    let pushed = registry().pushed("zstd:latest");
    let output = node.operate(&["image", "pull", &name]);
    assert_eq!(said(&output).trim(), pushed.id());
    // No daemon is needed.
    assert!(node.terminate().success());
    let file = node.path("exported.tar");
    let shown = file.display().to_string();
    let output = export(&node, &name, &shown);
    said(&output);
    let progress = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        progress.matches("done").count(),
        pushed.layers.len(),
        "{progress}"
    );
    let whole = fs::read(&file).expect("the file");
    let found = members(&whole);
    let index: Value = serde_json::from_slice(&found["index.json"]).expect("JSON");
    let manifests = index["manifests"].as_array().expect("manifests");
    assert_eq!(manifests.len(), 1);
    assert_eq!(manifests[0]["digest"], json!(pushed.digest()));
    assert_eq!(
        manifests[0]["annotations"]["io.containerd.image.name"],
        json!(name)
    );
    let blobs: Vec<_> = found
        .iter()
        .filter(|(path, _)| path.starts_with("blobs/"))
        .collect();
    for (path, blob) in &blobs {
        assert_eq!(path.replace("blobs/sha256/", "sha256:"), digest(blob));
    }
    assert_eq!(blobs.len(), pushed.layers.len() + 2);
    let to_pipe = export(&node, &name, "-");
    assert!(to_pipe.status.success());
    assert_eq!(to_pipe.stdout, whole, "the same to standard output");
    no_part_is_left(&node.path(""));

    node.restart().await;
    assert_eq!(
        said(&node.operate(&["image", "remove", &name])).trim(),
        pushed.id()
    );
    assert_eq!(
        node.cri.image_status(&name).await.expect("ImageStatus"),
        None
    );
    let import = image(&node, &["import", "-"])
        .stdin(fs::File::open(&file).expect("the file"))
        .output();
    let text = said(&import.expect("quiltd runs"));
    assert_eq!(text.trim(), format!("{} {name}", pushed.id()));
    let pod = node.pod("back").await;
    let config = from_image("main", &name, "cat /etc/mark");
    let container = pod.run(&config).await;
    exited(&node.cri, &container).await;
    assert_eq!(contents(&pod.log(&config), "stdout"), ["zstd"]);
    let staging = fs::read_dir(node.names.root().join("staging")).expect("staging");
    assert_eq!(staging.count(), 0, "the copy of standard input is gone");
    inspection_tells_all(&node, &name, &container);
}

#[tokio::test]
async fn what_no_registry_has_cannot_be_exported_and_leaves_no_file() {
    let node = Node::start().await;
    let name = registry().image("never-pushed/saved:1");
    let saved = node.path("saved.tar");
    crate::import::docker_archive(&saved, &name);
    said(&node.operate(&["image", "import", &saved.display().to_string()]));
    let file = node.path("exported.tar");
    let text = complained(&export(&node, &name, &file.display().to_string()));
    assert!(text.contains("only its registry has it"), "{text}");
    assert!(!file.exists());
    no_part_is_left(&node.path(""));
    let text = complained(&export(&node, "not/there:1", &file.display().to_string()));
    assert!(text.contains("not/there:1"), "{text}");
}

#[tokio::test]
async fn each_image_is_removed_by_itself_and_a_slip_is_told() {
    let node = Node::start().await;
    let (one, two) = (
        registry().image("schema2:latest"),
        registry().image("plain:latest"),
    );
    for name in [&one, &two] {
        said(&node.operate(&["image", "pull", name]));
    }
    let output = node.operate(&["image", "remove", &one, "not/there:1", &two]);
    let removed = String::from_utf8_lossy(&output.stdout).into_owned();
    let text = complained(&output);
    assert!(
        text.contains("not/there:1: there is no such image"),
        "{text}"
    );
    assert!(text.contains("1 of 3 images"), "{text}");
    assert_eq!(removed.lines().count(), 2);
    assert_eq!(node.cri.list_images().await.expect("ListImages"), []);
    let missing = registry().image("nothing:here");
    let text = complained(&node.operate(&["image", "pull", &missing]));
    assert!(text.contains("nothing"), "{text}");
}

#[tokio::test]
async fn an_interrupted_import_is_given_up() {
    let mut node = Node::prepare("");
    let faults = Faults::of(&mut node);
    node.restart().await;
    let file = node.path("saved.tar");
    crate::import::docker_archive(&file, "imported.example/held:1");
    let file = file.display().to_string();
    faults.hold("image.layer_fetched", "*1");
    let mut command = image(&node, &["import", &file]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("quiltd runs");
    faults.reached("image.layer_fetched").await;
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    kill(pid, Signal::SIGINT).expect("a child of this process");
    let ended = eventually("the command ends", || {
        let ended = child.try_wait().expect("a child of this process");
        async move { ended }
    });
    assert!(!ended.await.success());
    // One import at a time: the next one would wait for the first for a minute.
    said(&node.operate(&["image", "import", &file]));
    let images = node.cri.list_images().await.expect("ListImages");
    assert_eq!(images.len(), 1);
    node.cri
        .remove_image(&images[0].id)
        .await
        .expect("RemoveImage");
    eventually("no layer is left", || async {
        let rows = node.ask(&["db", "query", "SELECT chain_id FROM layers"]);
        rows.as_array().is_some_and(Vec::is_empty).then_some(())
    })
    .await;
}
