//! Pulled images: every form a registry serves, by every name, whole or not at all.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use tonic::Code;

use crate::support::log::contents;
use crate::support::pod::{container, shell};
use crate::support::proxy::{Fault, Proxy};
use crate::support::{Node, cri::*, eventually, registry};

/// A container of another image.
pub(crate) fn from_image(name: &str, image: &str, script: &str) -> ContainerConfig {
    let mut config = shell(name, script);
    config.image = Some(ImageSpec {
        image: image.into(),
        ..Default::default()
    });
    config
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_known_by_all_its_names() {
    let node = Node::start().await;
    let name = registry().image("busybox:latest");
    let pushed = registry().pushed("busybox:latest");
    let image_ref = node.cri.pull(&name).await.expect("PullImage");
    let by_digest = registry().image(&format!("busybox@{}", pushed.digest()));
    for known_as in [name.as_str(), &pushed.id(), &image_ref, &by_digest] {
        let image = node.cri.image_status(known_as).await.expect("ImageStatus");
        let image = image.unwrap_or_else(|| panic!("{known_as} is not known"));
        assert_eq!(
            image.id,
            pushed.id(),
            "the id is the digest of the configuration"
        );
        assert_eq!(image.repo_tags, [name.as_str()]);
        assert_eq!(image.repo_digests, [by_digest.as_str()]);
        assert!(image.size > 0);
    }
    let images = node.cri.list_images().await.expect("ListImages");
    assert_eq!(images.len(), 1);
    assert_eq!(
        node.cri.pull(&name).await.expect("PullImage again"),
        image_ref
    );
}

#[tokio::test]
async fn an_image_is_pulled_by_digest() {
    let node = Node::start().await;
    let pushed = registry().pushed("schema2:latest");
    let name = registry().image(&format!("schema2@{}", pushed.digest()));
    node.cri.pull(&name).await.expect("PullImage");
    let image = node
        .cri
        .image_status(&name)
        .await
        .expect("ImageStatus")
        .expect("present");
    assert_eq!(image.id, pushed.id());
    assert_eq!(image.repo_tags, Vec::<String>::new());
    assert_eq!(image.repo_digests, [name]);
}

#[tokio::test]
async fn every_manifest_and_layer_form_runs() {
    let node = Node::start().await;
    let pod = node.pod("forms").await;
    // Docker schema 2 with gzip, an OCI index with zstd, a Docker list with a plain tar.
    for form in ["schema2", "zstd", "plain"] {
        let name = registry().image(&format!("{form}:latest"));
        node.cri.pull(&name).await.expect("PullImage");
        let image = node
            .cri
            .image_status(&name)
            .await
            .expect("ImageStatus")
            .expect("present");
        assert_eq!(image.id, registry().pushed(&format!("{form}:latest")).id());
        let config = from_image(form, &name, "cat /etc/mark; ls /foreign 2>/dev/null");
        let id = pod.run(&config).await;
        crate::support::pod::exited(&node.cri, &id).await;
        assert_eq!(contents(&pod.log(&config), "stdout"), [form]);
    }
}

#[tokio::test]
async fn layers_hide_link_and_own_as_they_say() {
    let node = Node::start().await;
    let pod = node.pod("layered").await;
    let name = registry().image("layered:latest");
    node.cri.pull(&name).await.expect("PullImage");
    let script = "echo $(cat /data/keep) $(ls -A /data) $(ls -A /opaque)
        echo $(cat /linked/a) $(cat /linked/b) $(($(stat -c '%h' /bin/sh) > 100))
        echo $(stat -c '%u:%g %a' /owned) $(stat -c '%a' /setuid /data) $(cat /data/deep/file)
        ls -a / | grep wh";
    let config = from_image("main", &name, script);
    let id = pod.run(&config).await;
    crate::support::pod::exited(&node.cri, &id).await;
    let lines = contents(&pod.log(&config), "stdout");
    assert_eq!(
        lines,
        [
            "kept deep keep new",
            "one inode one inode 1",
            "1234:4321 640 4755 750 deep"
        ]
    );

    let noted = find(&node.names.root().join("layers"), "noted").expect("the layer on the disk");
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(&noted, "user.note", &mut value).expect("the attribute");
    assert_eq!(&value[..length], b"from a layer");
    assert_eq!(
        fs::metadata(&noted).expect("the file").mtime(),
        1_700_000_000
    );
}

/// A file by its name, somewhere below a directory.
fn find(below: &std::path::Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(below).ok()?.flatten() {
        let path = entry.path();
        if entry.file_name() == name {
            return Some(path);
        }
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if let Some(found) = is_dir.then(|| find(&path, name)).flatten() {
            return Some(found);
        }
    }
    None
}

#[tokio::test]
async fn the_user_of_an_image_is_told_as_number_or_name() {
    let node = Node::start().await;
    let name = registry().image("configured:latest");
    node.cri.pull(&name).await.expect("PullImage");
    let image = node
        .cri
        .image_status(&name)
        .await
        .expect("ImageStatus")
        .expect("present");
    assert_eq!((image.uid, image.username.as_str()), (None, "tester"));
}

#[tokio::test]
async fn what_is_not_there_is_no_error_to_ask_for_and_one_to_pull() {
    let node = Node::start().await;
    let missing = registry().image("nothing:here");
    assert_eq!(
        node.cri.image_status(&missing).await.expect("ImageStatus"),
        None
    );
    let absent_id = format!("sha256:{}", "0".repeat(64));
    assert_eq!(
        node.cri
            .image_status(&absent_id)
            .await
            .expect("ImageStatus"),
        None
    );
    let error = node.cri.pull(&missing).await.expect_err("nothing to pull");
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(
        error.message().contains("nothing"),
        "the error names the image: {error}"
    );
    node.cri
        .remove_image(&missing)
        .await
        .expect("RemoveImage of what is not there");
    node.cri
        .remove_image(&absent_id)
        .await
        .expect("RemoveImage of what is not there");
    // Nobody listens on port 1.
    let error = node
        .cri
        .pull("127.0.0.1:1/some/image:tag")
        .await
        .expect_err("no registry");
    assert!(
        error.message().contains("127.0.0.1:1"),
        "the error names the host: {error}"
    );
    let error = node
        .cri
        .pull("Not/A valid*name")
        .await
        .expect_err("no reference");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
}

#[tokio::test]
async fn removing_by_one_tag_removes_all_tags_of_the_image() {
    let node = Node::start().await;
    let names = ["busybox:latest", "busybox:second", "copies/busybox:latest"];
    let names = names.map(|name| registry().image(name));
    for name in &names {
        node.cri.pull(name).await.expect("PullImage");
    }
    let images = node.cri.list_images().await.expect("ListImages");
    assert_eq!(images.len(), 1, "one image under three names");
    let mut tags = images[0].repo_tags.clone();
    tags.sort();
    let mut expected = names.clone();
    expected.sort();
    assert_eq!(tags, expected);
    assert_eq!(images[0].repo_digests.len(), 2, "one digest per repository");
    node.cri.remove_image(&names[1]).await.expect("RemoveImage");
    for name in &names {
        assert_eq!(
            node.cri.image_status(name).await.expect("ImageStatus"),
            None,
            "{name}"
        );
    }
    eventually("its layers are gone from the disk", || async {
        let layers = fs::read_dir(node.names.root().join("layers")).ok()?;
        (layers.count() == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn layers_shared_by_two_images_stay_for_the_other() {
    let node = Node::start().await;
    let pod = node.pod("sharing").await;
    let (base, other) = (
        registry().image("busybox:latest"),
        registry().image("schema2:latest"),
    );
    node.cri.pull(&other).await.expect("PullImage");
    node.cri.remove_image(&base).await.expect("RemoveImage");
    let id = pod.run(&from_image("main", &other, "cat /etc/mark")).await;
    assert_eq!(
        crate::support::pod::exited(&node.cri, &id).await.exit_code,
        0
    );
}

#[tokio::test]
async fn an_image_in_use_goes_without_harm_to_its_containers() {
    let node = Node::start().await;
    let pod = node.pod("in-use").await;
    let id = pod.idle("main").await;
    let created = pod
        .create(&container("later", &["cat", "/etc/passwd"]))
        .await;
    let name = registry().image("busybox:latest");
    // Either it is refused, or it is gone by name and its layers live as long as the containers.
    if node.cri.remove_image(&name).await.is_ok() {
        assert_eq!(
            node.cri.image_status(&name).await.expect("ImageStatus"),
            None
        );
    }
    assert!(
        node.cri
            .output(&id, "/bin/cat /etc/passwd")
            .await
            .starts_with("root")
    );
    node.cri
        .start(&created)
        .await
        .expect("a container created before");
    assert_eq!(
        crate::support::pod::exited(&node.cri, &created)
            .await
            .exit_code,
        0
    );
}

#[tokio::test]
async fn a_half_pulled_image_never_shows() {
    let mut node = Node::start().await;
    let proxy = Proxy::start(&registry().address, Fault::Hold);
    let name = format!("{}/large:latest", proxy.address);
    let pull = tokio::spawn({
        let (cri, name) = (node.cri.clone(), name.clone());
        async move { cri.pull(&name).await }
    });
    let proxy = tokio::task::spawn_blocking(move || {
        proxy.wait_until_holding();
        proxy
    });
    let proxy = proxy.await.expect("the proxy holds");
    assert!(
        node.cri.list_images().await.expect("ListImages").is_empty(),
        "half an image shows"
    );
    node.kill();
    pull.await
        .expect("the caller")
        .expect_err("its daemon is dead");
    node.restart().await;
    assert!(
        node.cri.list_images().await.expect("ListImages").is_empty(),
        "half an image shows"
    );
    assert_eq!(
        node.cri.image_status(&name).await.expect("ImageStatus"),
        None
    );
    proxy.release();
    node.cri
        .pull(&name)
        .await
        .expect("PullImage after the restart");
    let image = node
        .cri
        .image_status(&name)
        .await
        .expect("ImageStatus")
        .expect("present");
    assert_eq!(image.id, registry().pushed("large:latest").id());
}

#[tokio::test]
async fn pulls_of_one_image_at_once_join() {
    let node = Node::start().await;
    let name = registry().image("large:latest");
    let pulls = futures_util::future::join_all((0..5).map(|_| node.cri.pull(&name))).await;
    let mut refs: Vec<_> = pulls
        .into_iter()
        .map(|pull| pull.expect("PullImage"))
        .collect();
    refs.dedup();
    assert_eq!(refs.len(), 1, "{refs:?}");
    assert_eq!(node.cri.list_images().await.expect("ListImages").len(), 1);
}

#[tokio::test]
async fn a_changed_byte_is_noticed_and_nothing_is_kept() {
    let node = Node::start().await;
    let proxy = Proxy::start(&registry().address, Fault::Flip);
    let name = format!("{}/large:latest", proxy.address);
    node.cri
        .pull(&name)
        .await
        .expect_err("the digest does not match");
    assert!(node.cri.list_images().await.expect("ListImages").is_empty());
}
