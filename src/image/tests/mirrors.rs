//! Mirrors that serve something else: the next host is asked, and it is said once.

use super::*;

const HOST: &str = "registry.example";

/// `HOST` is served by a mirror, and behind it by an honest server.
fn behind(node: &Node, mirror: &Server, image: &TestImage) -> Server {
    let honest = ranged(image.clone());
    let (mirror, server) = (mirror.address, honest.address);
    let file = format!(
        "server = \"http://{server}\"\n\
         [host.\"http://{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    );
    node.mirror(HOST, &file);
    honest
}

/// Serves what `change` makes of each right answer to a request for the larger layer.
fn lying(
    image: &TestImage,
    change: impl Fn(Response, &Request) -> Response + Send + Sync + 'static,
) -> Server {
    let image = image.clone();
    Server::start(move |request, _| {
        let response = image.answer(request.resource());
        match is_layer(request, &image) {
            true => change(response, request),
            false => response,
        }
    })
}

/// Pulls by whatever name, and gives the hosts that were found to be wrong.
async fn pull(node: &Node, name: &str) -> Vec<String> {
    let (reference, given) = (name.parse().unwrap(), Given::default());
    let lookup = node.driver.lookup(&reference, &given).unwrap();
    let image = lookup.resolve().await.unwrap();
    node.layers(&image).await.unwrap();
    assert_eq!(node.text(&image, 1, "big").len(), 400_000);
    assert!(node.driver.list_downloads().unwrap().is_empty());
    let wrong = lookup.wrong_hosts();
    wrong.into_iter().map(|(host, _)| host).collect()
}

/// The same layer with other content.
fn other(image: &TestImage) -> Vec<u8> {
    let noise = "x".repeat(399_999);
    let mut other = gzip(&Tar::default().file("big", &noise).end());
    other.resize(image.layers[1].len(), 0);
    other
}

/// What every case is tried with: blobs that are streamed, and blobs that are kept while they come.
async fn both_ways(
    change: impl Fn(&TestImage, Response, &Request) -> Response + Clone + Send + Sync + 'static,
    asked: usize,
    blamed: bool,
) {
    for keep_from in [u64::MAX, 1] {
        let (mut node, image) = (Node::new(), image());
        node.configure(|config| {
            config.keep_from_bytes = keep_from;
            // None of these answers stalls, however busy the machine is.
            config.stall_timeout = Duration::from_secs(20);
        });
        let (served, change) = (image.clone(), change.clone());
        let mirror = lying(&image, move |response, request| {
            change(&served, response, request)
        });
        let honest = behind(&node, &mirror, &image);
        let wrong = pull(&node, &format!("{HOST}/a")).await;
        let expected = match blamed {
            true => vec![mirror.address.to_string()],
            false => vec![],
        };
        assert_eq!(wrong, expected, "kept from {keep_from}");
        let of = |server: &Server| {
            let requests = server.requests();
            requests
                .iter()
                .filter(|each| is_layer(each, &image))
                .count()
        };
        assert_eq!(of(&mirror), asked, "kept from {keep_from}");
        assert!(of(&honest) >= 1);
    }
}

#[tokio::test]
async fn another_blob_is_fetched_from_the_next_host() {
    let swap =
        |image: &TestImage, _, request: &Request| Response::ok(&other(image)).ranged(request);
    both_ways(swap, 1, true).await;
}

#[tokio::test]
async fn what_cannot_even_be_unpacked_is_fetched_from_the_next_host() {
    let noise = |image: &TestImage, _, request: &Request| {
        Response::ok(&vec![7; image.layers[1].len()]).ranged(request)
    };
    both_ways(noise, 1, true).await;
}

#[tokio::test]
async fn a_wrong_host_is_known_also_when_it_was_given_up_before_its_end() {
    let begun = |image: &TestImage, _, request: &Request| {
        let noise = Response::ok(&vec![7; image.layers[1].len()]);
        // More than a block of the unpacker's, and less than everything.
        noise.ranged(request).cut_after(300_000).stall()
    };
    both_ways(begun, 1, true).await;
}

#[tokio::test]
async fn a_blob_that_is_too_long_is_fetched_from_the_next_host() {
    let longer = |image: &TestImage, _, _: &Request| {
        Response::ok(&[&image.layers[1][..], &[0; 1000]].concat())
    };
    both_ways(longer, 1, true).await;
}

#[tokio::test]
async fn a_blob_that_is_too_short_is_gone_on_with_at_the_next_host() {
    let shorter = |image: &TestImage, _, request: &Request| {
        let part = Response::ok(&image.layers[1]);
        part.ranged(request).cut_after(50_000)
    };
    both_ways(shorter, 2, false).await;
}

#[tokio::test]
async fn a_wrong_beginning_that_another_host_went_on_with_is_found_out() {
    // Its first answer breaks off, its second fails: the next host brings the rest. Only when each
    // is asked alone is it clear who was wrong.
    let begun = |image: &TestImage, _, request: &Request| match request.header("range") {
        Some(range) if !range.starts_with("bytes=0-") => Response::status(500),
        _ => Response::ok(&other(image))
            .ranged(request)
            .cut_after(100_000),
    };
    for keep_from in [u64::MAX, 1] {
        let (mut node, image) = (Node::new(), image());
        node.configure(|config| config.keep_from_bytes = keep_from);
        let served = image.clone();
        let mirror = lying(&image, move |response, request| {
            begun(&served, response, request)
        });
        let _honest = behind(&node, &mirror, &image);
        pull(&node, &format!("{HOST}/a")).await;
    }
}

#[tokio::test]
async fn a_wrong_manifest_is_fetched_from_the_next_host() {
    let (node, image) = (Node::new(), image());
    let served = image.clone();
    let mirror = Server::start(move |request, _| match request.resource() {
        path if path.contains("/manifests/") => Response::ok(&served.config),
        path => served.answer(path),
    });
    let _honest = behind(&node, &mirror, &image);
    let digest = Digest::sha256(&image.manifest);
    let wrong = pull(&node, &format!("{HOST}/a@{digest}")).await;
    assert_eq!(wrong, [mirror.address.to_string()]);
}

#[tokio::test]
async fn when_every_host_is_wrong_each_was_asked_once_and_the_pull_fails() {
    for keep_from in [u64::MAX, 1] {
        let (mut node, image) = (Node::new(), image());
        node.configure(|config| config.keep_from_bytes = keep_from);
        let servers: Vec<Server> = (0..3)
            .map(|_| {
                let evil = other(&image);
                lying(&image, move |_, request| {
                    Response::ok(&evil).ranged(request)
                })
            })
            .collect();
        let [one, two, three] = [0, 1, 2].map(|at: usize| servers[at].address);
        let file = format!(
            "server = \"http://{three}\"\n[host.\"http://{one}\"]\n[host.\"http://{two}\"]\n"
        );
        node.mirror(HOST, &file);
        let name = format!("{HOST}/a").parse().unwrap();
        let resolved = node.driver.resolve(&name, &Credentials::Anonymous).await;
        let error = node.fetch(&resolved.unwrap(), 1).await.unwrap_err();
        // Whichever is noticed first.
        let known = error.is_wrong_content() || matches!(error, ImageError::Unpack { .. });
        assert!(known, "{error:?}");
        for server in &servers {
            let requests = server.requests();
            let asked = requests.iter().filter(|each| is_layer(each, &image));
            assert_eq!(asked.count(), 1, "kept from {keep_from}");
        }
        node.nothing_is_left();
        assert!(node.driver.list_downloads().unwrap().is_empty());
    }
}
