//! Registries that fail, lie, stall and break off.

use super::*;

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
            Ok(image) => node.fetch(&image, 1).await.unwrap_err(),
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
    let progress: Arc<LayerProgress> = Arc::default();
    let arrived = async {
        while progress.received() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        ended = node.driver.fetch_layer(&resolved, 1, &progress) => panic!("{ended:?}"),
        () = arrived => {}
    }
    let error = node.fetch(&resolved, 1).await.unwrap_err();
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error:?}");
    node.nothing_is_left();
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
async fn https_is_not_given_up_for_http() {
    let (node, image) = (Node::new(), image());
    let server = Server::start(move |request, _| image.answer(request.resource()));
    let file = format!("server = \"https://{}\"\n", server.address);
    node.mirror("registry.example", &file);
    let error = node
        .pull("registry.example/a", &Credentials::Anonymous)
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Unavailable { .. }), "{error}");
}
