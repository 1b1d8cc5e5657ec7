//! Pulls that succeed, and what is sent to whom on the way.

use super::*;

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
async fn the_list_of_a_layers_entries_is_of_what_the_disk_has() {
    let node = Node::new();
    let sparse: [(&str, &[u8]); 2] = [
        ("GNU.sparse.map", b"0,1,4000000,1"),
        ("GNU.sparse.size", b"4000001"),
    ];
    // Hashes are taken while files are written; those that are replaced, linked, sparse or removed
    // again must not be believed afterwards.
    let bottom = Tar::default()
        .file("first", "one content")
        .file("second", "another")
        .file("first", "replaced")
        .file("third", "takes a free inode")
        .link("again", "second")
        .dir("gone/")
        .file("gone/file", "x")
        .file("gone", "now a file")
        .pax(&sparse)
        .file("holes", "xy")
        .file("empty", "")
        .end();
    let top = Tar::default()
        .link("copied", "third")
        .file("own", "y")
        .end();
    let image = TestImage::of(&[bottom, top]);
    let server = Server::start(move |request, _| image.answer(request.resource()));
    let name = format!("{}/a", server.address);
    let pulled = node.pull(&name, &Credentials::Anonymous).await.unwrap();
    for layer in &pulled.layers {
        let committed = node.driver.measure_layer(&layer.chain_id).unwrap();
        let seal = Some(&committed.seal.digest);
        let whole = node.driver.check_layer(&layer.chain_id, seal, Depth::Whole);
        let compared = whole.unwrap().compared;
        assert!(compared.is_whole(), "{:?}", compared.differences);
        assert!(compared.bytes_read > 0);
    }
}
