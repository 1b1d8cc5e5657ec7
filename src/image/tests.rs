//! Pulling and importing for real, from servers that behave and servers that do not.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::testing::server::{Request, Response, Server};
use super::testing::{Tar, TestImage, gzip};
use super::*;

struct Node {
    root: tempfile::TempDir,
    driver: ImageDriver,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let config = ImageConfig {
            certs_d: root.path().join("certs.d"),
            stall_timeout: Duration::from_millis(700),
            first_wait: Duration::from_millis(1),
            ..ImageConfig::default()
        };
        let driver = ImageDriver::new(&root.path().join("lib"), config).unwrap();
        Self { root, driver }
    }

    /// Puts hosts.toml for `host`.
    fn mirror(&self, host: &str, file: &str) {
        let directory = self.root.path().join("certs.d").join(host);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("hosts.toml"), file).unwrap();
    }

    async fn pull(
        &self,
        reference: &str,
        credentials: &Credentials,
    ) -> Result<ResolvedImage, ImageError> {
        let image = self
            .driver
            .resolve(&reference.parse().unwrap(), credentials)
            .await?;
        self.layers(&image).await?;
        Ok(image)
    }

    async fn layers(&self, image: &ResolvedImage) -> Result<(), ImageError> {
        let fetches = (0..image.layers.len()).map(|at| self.driver.fetch_layer(image, at, &|_| ()));
        for staged in futures_util::future::join_all(fetches).await {
            self.driver.commit_layer(staged?)?;
        }
        Ok(())
    }

    fn path(&self, image: &ResolvedImage, layer: usize, name: &str) -> std::path::PathBuf {
        self.driver
            .layer_path(&image.layers[layer].chain_id)
            .join(name)
    }

    fn text(&self, image: &ResolvedImage, layer: usize, name: &str) -> String {
        fs::read_to_string(self.path(image, layer, name)).unwrap()
    }

    /// Waits until staging is empty: abandoned layers are deleted behind our back.
    fn nothing_is_left(&self) {
        assert!(self.driver.list_layers().unwrap().is_empty());
        let staging = self.root.path().join("lib/staging");
        for _ in 0..2000 {
            if fs::read_dir(&staging).unwrap().next().is_none() {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        panic!(
            "staging still has {:?}",
            fs::read_dir(&staging).unwrap().next()
        );
    }
}

fn image() -> TestImage {
    let bottom = Tar::default()
        .dir("etc/")
        .file("etc/name", "bottom")
        .file("etc/gone", "x")
        .end();
    // A linear congruential generator: does not compress much.
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(33 + (state >> 24) as u8 % 89)
    };
    let noise: String = (0..400_000).map(|_| random()).collect();
    let top = Tar::default()
        .file("etc/.wh.gone", "")
        .file("big", &noise)
        .end();
    TestImage::of(&[bottom, top])
}

fn password() -> Credentials {
    Credentials::Password {
        username: "user".into(),
        password: "secret".into(),
    }
}

#[tokio::test]
async fn an_image_is_pulled_whole() {
    let (node, image) = (Node::new(), image());
    let served = image.clone();
    let server = Server::start(move |request, _| served.answer(request.resource()));
    let name = format!("{}/a/b", server.address);
    let pulled = node.pull(&name, &Credentials::Anonymous).await.unwrap();
    assert_eq!(pulled.image_id, Digest::sha256(&image.config));
    assert_eq!(pulled.manifest_digest, Digest::sha256(&image.manifest));
    assert_eq!(
        pulled.repo_digest().to_string(),
        format!("{name}@{}", pulled.manifest_digest)
    );
    assert_eq!(pulled.config.cmd, ["/bin/sh"]);
    assert_eq!(
        (
            pulled.config.user.as_str(),
            pulled.config.stop_signal.as_str()
        ),
        ("1:2", "SIGINT")
    );
    assert_eq!(node.text(&pulled, 0, "etc/name"), "bottom");
    assert!(node.path(&pulled, 1, "etc/gone").metadata().unwrap().rdev() == 0);
    assert_eq!(node.driver.list_layers().unwrap().len(), 2);
    // Again, by digest and by a tag that comes with one: nothing new to store.
    let digest = pulled.repo_digest().to_string();
    node.pull(&digest, &Credentials::Anonymous).await.unwrap();
    assert_eq!(node.driver.list_layers().unwrap().len(), 2);
    for layer in &pulled.layers {
        node.driver.remove_layer(&layer.chain_id).unwrap();
        node.driver.remove_layer(&layer.chain_id).unwrap();
        assert!(!node.driver.has_layer(&layer.chain_id));
    }
    node.nothing_is_left();
}

#[tokio::test]
async fn pulls_may_run_as_tasks_of_their_own() {
    let (node, image) = (Arc::new(Node::new()), image());
    let server = Server::start(move |request, _| image.answer(request.resource()));
    let name = format!("{}/a", server.address);
    let tasks = (0..3).map(|_| {
        let (node, name) = (Arc::clone(&node), name.clone());
        tokio::spawn(async move { node.pull(&name, &Credentials::Anonymous).await.map(drop) })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap().unwrap();
    }
    assert_eq!(node.driver.list_layers().unwrap().len(), 2);
}

#[tokio::test]
async fn a_token_is_fetched_once_and_sent_with_every_request() {
    let (node, image) = (Node::new(), image());
    let server = Server::start(move |request, _| {
        if request.resource() == "/token" {
            assert_eq!(
                request.header("authorization"),
                Some("Basic dXNlcjpzZWNyZXQ=")
            );
            assert!(
                request.path.contains("scope=repository%3Aa%3Apull"),
                "{}",
                request.path
            );
            return Response::ok(br#"{"token":"T1"}"#);
        }
        match request.header("authorization") {
            Some("Bearer T1") => image.answer(request.resource()),
            _ => {
                let host = request.header("host").unwrap();
                let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"reg\"");
                Response::status(401).header("www-authenticate", &challenge)
            }
        }
    });
    node.pull(&format!("{}/a", server.address), &password())
        .await
        .unwrap();
    let tokens = server
        .requests()
        .iter()
        .filter(|each| each.resource() == "/token")
        .count();
    assert_eq!(tokens, 1);
}

#[tokio::test]
async fn basic_authentication_and_its_refusal() {
    let (node, image) = (Node::new(), image());
    let server = Server::start(move |request, _| match request.header("authorization") {
        Some("Basic dXNlcjpzZWNyZXQ=") => image.answer(request.resource()),
        _ => Response::status(401).header("www-authenticate", "Basic realm=\"r\""),
    });
    let name = format!("{}/a", server.address);
    node.pull(&name, &password()).await.unwrap();
    let wrong = Credentials::Password {
        username: "user".into(),
        password: "wrong".into(),
    };
    for refused in [Credentials::Anonymous, wrong] {
        let error = node.pull(&name, &refused).await.unwrap_err();
        assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
        assert!(!error.to_string().contains("wrong"));
    }
}

#[tokio::test]
async fn a_server_that_fails_at_first_is_asked_again() {
    let (node, image) = (Node::new(), image());
    let server = Server::start(move |request, before| match before {
        0 => Response::status(500),
        1 => Response::status(429).header("retry-after", "0"),
        2 => Response::status(503),
        _ => image.answer(request.resource()),
    });
    node.pull(&format!("{}/a", server.address), &Credentials::Anonymous)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_server_that_always_fails_is_given_up() {
    let node = Node::new();
    let server = Server::start(|_, _| Response::status(502));
    let name = format!("{}/a", server.address);
    let error = node.pull(&name, &Credentials::Anonymous).await.unwrap_err();
    assert!(
        matches!(error, ImageError::Unavailable { .. }) && error.is_temporary(),
        "{error}"
    );
    assert_eq!(server.requests().len(), 5);
    assert!(error.to_string().contains(&name) && error.to_string().contains("502"));
    let dead = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = node
        .pull(&format!("{dead}/a"), &Credentials::Anonymous)
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
}

fn is_layer(request: &Request, image: &TestImage) -> bool {
    request
        .resource()
        .ends_with(&Digest::sha256(&image.layers[1]).to_string())
}

#[tokio::test]
async fn a_broken_blob_is_taken_up_where_it_broke() {
    for ranges in [true, false] {
        let (node, image) = (Node::new(), image());
        let served = image.clone();
        let broken = AtomicU64::new(0);
        let server = Server::start(move |request, _| {
            let response = served.answer(request.resource());
            if !is_layer(request, &served) {
                return response;
            }
            let response = if ranges {
                response.ranged(request)
            } else {
                response
            };
            match broken.fetch_add(1, Ordering::SeqCst) {
                0 => response.cut_after(100_000),
                1 => response.cut_after(120_000).stall(),
                _ => response,
            }
        });
        let pulled = node
            .pull(&format!("{}/a", server.address), &Credentials::Anonymous)
            .await;
        assert_eq!(node.text(&pulled.unwrap(), 1, "big").len(), 400_000);
        let asked: Vec<_> = server
            .requests()
            .into_iter()
            .filter(|r| is_layer(r, &image))
            .collect();
        assert_eq!(asked.len(), 3, "ranges: {ranges}");
        assert_eq!(asked[1].header("range"), Some("bytes=100000-"));
    }
}

#[tokio::test]
async fn content_that_is_not_what_its_digest_says_counts_for_nothing() {
    for swap in ["manifest", "config", "layer"] {
        let (node, image) = (Node::new(), image());
        let served = image.clone();
        let server = Server::start(move |request, _| {
            let resource = request.resource();
            let is = |bytes: &[u8]| resource.ends_with(&Digest::sha256(bytes).to_string());
            let other = gzip(&Tar::default().file("evil", "x").end());
            match swap {
                "manifest" if is(&served.manifest) => Response::ok(&served.config),
                "config" if is(&served.config) => Response::ok(b"{\"rootfs\":{}}"),
                "layer" if is(&served.layers[1]) => {
                    let mut other = other;
                    other.resize(served.layers[1].len(), 0);
                    Response::ok(&other)
                }
                _ => served.answer(resource),
            }
        });
        let digest = Digest::sha256(&image.manifest);
        let name = format!("{}/a@{digest}", server.address);
        let resolved = node
            .driver
            .resolve(&name.parse().unwrap(), &Credentials::Anonymous)
            .await;
        let error = match resolved {
            Err(error) => error,
            Ok(image) => node
                .driver
                .fetch_layer(&image, 1, &|_| ())
                .await
                .unwrap_err(),
        };
        let expected = matches!(error, ImageError::DigestMismatch { .. })
            || swap == "layer" && matches!(error, ImageError::Unpack { .. });
        assert!(expected, "{swap}: {error:?}");
        node.nothing_is_left();
    }
}

#[tokio::test]
async fn a_layer_with_a_false_diff_id_is_refused() {
    let node = Node::new();
    let honest = Tar::default().file("a", "x").end();
    let mut image = TestImage::of(std::slice::from_ref(&honest));
    image = TestImage::with(
        image.config,
        vec![gzip(&Tar::default().file("b", "y").end())],
    );
    let server = Server::start(move |request, _| image.answer(request.resource()));
    let error = node
        .pull(&format!("{}/a", server.address), &Credentials::Anonymous)
        .await;
    let error = error.unwrap_err();
    assert!(
        matches!(error, ImageError::DigestMismatch { .. }),
        "{error:?}"
    );
    node.nothing_is_left();
}

#[tokio::test]
async fn an_abandoned_pull_leaves_nothing() {
    let (node, image) = (Node::new(), image());
    let served = image.clone();
    let server = Server::start(move |request, _| match is_layer(request, &served) {
        true => served.answer(request.resource()).cut_after(150_000).stall(),
        false => served.answer(request.resource()),
    });
    let name = format!("{}/a", server.address).parse().unwrap();
    let resolved = node
        .driver
        .resolve(&name, &Credentials::Anonymous)
        .await
        .unwrap();
    let arrived = tokio::sync::Notify::new();
    let progress = |_| arrived.notify_one();
    tokio::select! {
        ended = node.driver.fetch_layer(&resolved, 1, &progress) => panic!("{ended:?}"),
        () = arrived.notified() => {}
    }
    let error = node
        .driver
        .fetch_layer(&resolved, 1, &|_| ())
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error:?}");
    node.nothing_is_left();
}

#[tokio::test]
async fn credentials_stay_with_the_host_that_asked_for_them() {
    let (node, image) = (Node::new(), image());
    let served = image.clone();
    let storage = Server::start(move |request, _| served.answer(request.resource()));
    let elsewhere = storage.address;
    let server = Server::start(move |request, _| match request.header("authorization") {
        None => Response::status(401).header("www-authenticate", "Basic realm=\"r\""),
        Some(_) if request.resource().contains("/blobs/") => {
            let target = format!("http://{elsewhere}{}", request.path);
            Response::status(307).header("location", &target)
        }
        Some(_) => image.answer(request.resource()),
    });
    node.pull(&format!("{}/a", server.address), &password())
        .await
        .unwrap();
    let seen = storage.requests();
    assert!(seen.len() >= 3, "{seen:?}");
    assert!(
        seen.iter()
            .all(|each| each.header("authorization").is_none())
    );
}

#[tokio::test]
async fn endless_redirects_and_endless_manifests_end() {
    let node = Node::new();
    let circle =
        Server::start(|request, _| Response::status(302).header("location", &request.path));
    let error = node
        .pull(&format!("{}/a", circle.address), &Credentials::Anonymous)
        .await;
    assert!(
        matches!(error, Err(ImageError::Protocol { .. })),
        "{error:?}"
    );
    let large = Server::start(|_, _| Response::ok(&vec![b' '; 5 << 20]));
    let error = node
        .pull(&format!("{}/a", large.address), &Credentials::Anonymous)
        .await;
    assert!(error.unwrap_err().to_string().contains("longer than"));
}

#[tokio::test]
async fn missing_images_and_other_machines_have_errors_of_their_own() {
    let node = Node::new();
    let served = image();
    let server = Server::start(move |request, _| match request.resource() {
        "/v2/old/manifests/latest" => Response::ok(br#"{"schemaVersion":1,"fsLayers":[]}"#),
        path => served.answer(path),
    });
    let name = format!("{}/a:none", server.address);
    let error = node.pull(&name, &Credentials::Anonymous).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains(&name), "{error}");
    let error = node
        .pull(&format!("{}/old", server.address), &Credentials::Anonymous)
        .await;
    assert!(matches!(error, Err(ImageError::Unsupported { .. })));
}

#[tokio::test]
async fn mirrors_stand_in_for_hosts_that_cannot_be_reached() {
    let (node, image) = (Node::new(), image());
    let empty = Server::start(|_, _| Response::status(404));
    let mirror = Server::start(move |request, _| image.answer(request.resource()));
    let file = format!(
        "server = \"http://{0}\"\n[host.\"http://{0}\"]\n[host.\"http://{1}\"]\n",
        empty.address, mirror.address
    );
    node.mirror("registry.example", &file);
    let pulled = node
        .pull("registry.example/a/b", &Credentials::Anonymous)
        .await
        .unwrap();
    assert!(
        pulled
            .repo_digest()
            .to_string()
            .starts_with("registry.example/a/b@sha256:")
    );
    assert!(
        mirror
            .requests()
            .iter()
            .all(|each| each.path.contains("ns=registry.example"))
    );
}

#[tokio::test]
async fn an_index_leads_to_this_machine_and_names_the_repo_digest() {
    let (node, image) = (Node::new(), image());
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            { "mediaType": manifest::OCI_MANIFEST, "digest": Digest::sha256(b"other"), "size": 5,
              "platform": { "os": "linux", "architecture": "s390x" } },
            { "mediaType": manifest::OCI_MANIFEST, "digest": Digest::sha256(&image.manifest),
              "size": image.manifest.len(),
              "platform": { "os": "linux", "architecture": architecture } },
        ],
    });
    let index = index.to_string().into_bytes();
    let (served, top) = (image.clone(), index.clone());
    let server = Server::start(move |request, _| match request.resource() {
        "/v2/a/manifests/latest" => Response::ok(&top),
        path => served.answer(path),
    });
    let name = format!("{}/a", server.address);
    let pulled = node.pull(&name, &Credentials::Anonymous).await.unwrap();
    assert_eq!(pulled.repo_digest_of_index, Digest::sha256(&index));
    assert_eq!(pulled.manifest_digest, Digest::sha256(&image.manifest));
}

#[tokio::test]
async fn undescribed_directories_and_links_take_what_lies_below() {
    let node = Node::new();
    let mut private = Tar::header(tar::EntryType::Directory, b"srv/", b"", 0);
    private.set_mode(0o2750);
    private.set_uid(7);
    private.set_cksum();
    let bottom = Tar::default()
        .raw(&private, b"")
        .file("srv/tool", "tool")
        .dir("tmp/")
        .end();
    let middle = Tar::default()
        .file("new/.wh.x", "")
        .file(".wh.tmp", "")
        .end();
    let top = Tar::default()
        .file("srv/added", "x")
        .link("bin/tool", "srv/tool")
        .link("bin/again", "bin/tool")
        .file("tmp/file", "x")
        .end();
    let image = TestImage::of(&[bottom, middle, top]);
    let server = Server::start(move |request, _| image.answer(request.resource()));
    let pulled = node
        .pull(&format!("{}/a", server.address), &Credentials::Anonymous)
        .await
        .unwrap();
    let meta = |name: &str| node.path(&pulled, 2, name).symlink_metadata().unwrap();
    let srv = meta("srv");
    assert_eq!(
        (srv.mode() & 0o7777, srv.uid(), srv.mtime()),
        (0o2750, 7, 1_000_000)
    );
    assert_eq!(meta("tmp").mode() & 0o7777, 0o755);
    assert_eq!(node.text(&pulled, 2, "bin/again"), "tool");
    assert_eq!(meta("bin/tool").ino(), meta("srv/tool").ino());
    assert_eq!(meta("srv/tool").nlink(), 3);
    assert_eq!(meta("bin/tool").mtime(), 1_000_000);
}

#[tokio::test]
async fn a_link_to_nothing_fails_the_layer() {
    let node = Node::new();
    let bottom = Tar::default().file("etc/passwd", "x").end();
    let middle = Tar::default().file("etc/.wh.passwd", "").end();
    let top = Tar::default().link("steal", "etc/passwd").end();
    let image = TestImage::of(&[bottom, middle, top]);
    let server = Server::start(move |request, _| image.answer(request.resource()));
    let name = format!("{}/a", server.address);
    let error = node.pull(&name, &Credentials::Anonymous).await.unwrap_err();
    let ImageError::Store {
        source: LayerError::Settle { source, .. },
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    assert!(matches!(source, SettleError::LinkTarget { .. }));
    assert_eq!(node.driver.list_layers().unwrap().len(), 2);
}

#[tokio::test]
async fn layers_are_committed_from_the_bottom() {
    let (node, image) = (Node::new(), image());
    let server = Server::start(move |request, _| image.answer(request.resource()));
    let name = format!("{}/a", server.address).parse().unwrap();
    let image = node
        .driver
        .resolve(&name, &Credentials::Anonymous)
        .await
        .unwrap();
    let top = node.driver.fetch_layer(&image, 1, &|_| ()).await.unwrap();
    let error = node.driver.commit_layer(top).unwrap_err();
    let missing = matches!(
        error,
        ImageError::Store {
            source: LayerError::ParentMissing { .. },
            ..
        }
    );
    assert!(missing, "{error:?}");
    node.nothing_is_left();
}

#[test]
fn what_a_dead_process_left_is_cleared() {
    let node = Node::new();
    let lib = node.root.path().join("lib");
    fs::create_dir_all(lib.join("staging/layer-1-1/fs/a")).unwrap();
    fs::create_dir_all(lib.join("layers/not-a-digest")).unwrap();
    node.driver.clear_staging().unwrap();
    node.nothing_is_left();
    assert_eq!(
        fs::metadata(lib.join("layers"))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o700
    );
}

async fn import(node: &Node, path: &Path) -> Result<Vec<ImportedImage>, ImageError> {
    let found = node.driver.open_archive(path).await?;
    for imported in &found {
        node.layers(&imported.image).await?;
    }
    Ok(found)
}

#[tokio::test]
async fn an_oci_layout_is_imported_from_directory_and_tar() {
    let image = image();
    let node = Node::new();
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

/// Debian's `docker-registry`, on a free port, with its storage in a directory of ours.
struct RealRegistry {
    child: std::process::Child,
    address: String,
    _storage: tempfile::TempDir,
}

impl RealRegistry {
    async fn start() -> Self {
        let storage = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let config = storage.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"{address}\"}}\n",
            storage.path().join("data").display()
        );
        fs::write(&config, text).unwrap();
        let child = std::process::Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("docker-registry, of Debian's package of that name");
        let registry = Self {
            child,
            address,
            _storage: storage,
        };
        for _ in 0..1000 {
            if tokio::net::TcpStream::connect(&registry.address)
                .await
                .is_ok()
            {
                return registry;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("docker-registry does not listen");
    }

    async fn push(&self, repository: &str, image: &TestImage) {
        let client = super::clients::Clients::new(Duration::from_secs(5))
            .plain()
            .unwrap();
        let base = format!("http://{}/v2/{repository}", self.address);
        for (digest, bytes) in &image.blobs {
            let started = client
                .post(format!("{base}/blobs/uploads/"))
                .send()
                .await
                .unwrap();
            let location = started.headers()["location"].to_str().unwrap();
            let mut url = started.url().join(location).unwrap();
            url.query_pairs_mut()
                .append_pair("digest", &digest.to_string());
            let put = client.put(url).body(bytes.clone()).send().await.unwrap();
            assert_eq!(put.status(), 201);
        }
        let put = client.put(format!("{base}/manifests/latest"));
        let put = put
            .header("content-type", manifest::OCI_MANIFEST)
            .body(image.manifest.clone());
        let put = put.send().await.unwrap();
        assert_eq!(put.status(), 201, "{}", put.text().await.unwrap());
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
async fn a_real_registry_serves_a_real_image() {
    let (node, registry) = (Node::new(), RealRegistry::start().await);
    let shell = fs::read("/bin/sh").unwrap();
    let bottom = Tar::default()
        .entry(tar::EntryType::Regular, "bin/sh", "", &shell)
        .end();
    let top = Tar::default()
        .file("etc/motd", "hello")
        .file("bin/.wh.none", "")
        .end();
    let mut image = TestImage::of(&[bottom.clone(), top.clone()]);
    // One layer of each compression; the registry stores what it is given.
    let layers = vec![zstd::encode_all(&bottom[..], 3).unwrap(), gzip(&top)];
    image = TestImage::with(image.config, layers);
    let typed = String::from_utf8(image.manifest.clone()).unwrap();
    image.manifest = typed.replacen("tar+gzip", "tar+zstd", 1).into_bytes();
    registry.push("library/demo", &image).await;
    // Under its own name, and as the mirror of a host that is not reachable.
    let file = format!(
        "[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        registry.address
    );
    node.mirror("docker.io", &file);
    for name in [
        format!("{}/library/demo", registry.address),
        "demo".to_owned(),
    ] {
        let pulled = node.pull(&name, &Credentials::Anonymous).await.unwrap();
        assert_eq!(fs::read(node.path(&pulled, 0, "bin/sh")).unwrap(), shell);
        assert_eq!(node.text(&pulled, 1, "etc/motd"), "hello");
        let digest = pulled.repo_digest().to_string();
        let again = node.pull(&digest, &Credentials::Anonymous).await.unwrap();
        assert_eq!(again.image_id, pulled.image_id);
    }
    let error = node
        .pull(
            &format!("{}/none", registry.address),
            &Credentials::Anonymous,
        )
        .await;
    assert!(
        matches!(error, Err(ImageError::NotFound { .. })),
        "{error:?}"
    );
}
