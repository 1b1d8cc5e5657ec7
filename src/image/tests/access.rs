//! Who may pull: tokens that expire, credentials of a file, hosts that are not meant, and proxies.

use super::*;

/// Serves an image to whoever comes with this `Authorization`; asks all others for Basic.
fn guarded(image: TestImage, accepted: &'static str) -> Server {
    Server::start(move |request, _| match request.header("authorization") {
        Some(shown) if shown == accepted => image.answer(request.resource()),
        _ => Response::status(401).header("www-authenticate", "Basic realm=\"r\""),
    })
}

/// `user:secret`, as Basic has it.
const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

#[tokio::test]
async fn a_token_that_expires_in_the_middle_is_replaced() {
    let (node, image) = (Node::new(), image());
    let tokens = AtomicU64::new(0);
    let uses = AtomicU64::new(0);
    let server = Server::start(move |request, _| {
        if request.resource() == "/token" {
            let number = tokens.fetch_add(1, Ordering::SeqCst);
            return Response::ok(format!("{{\"access_token\":\"T{number}\"}}").as_bytes());
        }
        let current = tokens.load(Ordering::SeqCst);
        let valid = format!("Bearer T{}", current.wrapping_sub(1));
        // Each token opens two requests.
        let shown = request.header("authorization").unwrap_or_default();
        if current > 0 && shown == valid && uses.fetch_add(1, Ordering::SeqCst) % 3 < 2 {
            return image.answer(request.resource());
        }
        let host = request.header("host").unwrap();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"reg\"");
        Response::status(401).header("www-authenticate", &challenge)
    });
    let name = format!("{}/a", server.address).parse().unwrap();
    let pulled = node.driver.resolve(&name, &Credentials::Anonymous).await;
    let pulled = pulled.unwrap();
    for layer in 0..2 {
        let staged = node.fetch(&pulled, layer).await.unwrap();
        node.commit(staged).unwrap();
    }
    let tokens = server.requests();
    let tokens = tokens.iter().filter(|each| each.resource() == "/token");
    assert_eq!(tokens.count(), 2);
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let (node, image) = (Node::new(), image());
    let server = Server::start(move |request, _| {
        if request.resource() == "/token" {
            assert_eq!(request.method, "POST");
            return Response::ok(br#"{"access_token":"A"}"#);
        }
        match request.header("authorization") {
            Some("Bearer A") => image.answer(request.resource()),
            _ => {
                let host = request.header("host").unwrap();
                let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"reg\"");
                Response::status(401).header("www-authenticate", &challenge)
            }
        }
    });
    let name = format!("{}/a", server.address);
    let token = Credentials::IdentityToken("refresh".into());
    node.pull(&name, &token).await.unwrap();
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let (node, image) = (Node::new(), image());
    let server = guarded(image, "Bearer mine");
    let name = format!("{}/a", server.address);
    let token = Credentials::RegistryToken("mine".into());
    node.pull(&name, &token).await.unwrap();
}

#[tokio::test]
async fn the_operators_file_opens_what_comes_without_credentials_and_is_read_anew() {
    let (mut node, image) = (Node::new(), image());
    let server = guarded(image, BASIC);
    let file = node.root.path().join("config.json");
    node.configure(|config| config.credentials_file = Some(file.clone()));
    let name = format!("{}/team/a", server.address);
    let anonymous = Credentials::Anonymous;
    let error = node.pull(&name, &anonymous).await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    // The most particular entry is wrong; the next one is tried, too.
    let host = server.address;
    let auths = format!(
        r#"{{"auths": {{"{host}/team": {{"username": "user", "password": "old"}},
            "http://{host}": {{"auth": "dXNlcjpzZWNyZXQ="}}}}}}"#
    );
    fs::write(&file, auths).unwrap();
    node.pull(&name, &anonymous).await.unwrap();
    // Credentials that came with the pull stand for themselves.
    let wrong = Credentials::Password {
        username: "user".into(),
        password: "wrong".into(),
    };
    let error = node.pull(&name, &wrong).await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    fs::write(&file, "{\"auths\": 7}").unwrap();
    let error = node.pull(&name, &anonymous).await.unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
}

#[tokio::test]
async fn credentials_for_another_server_are_not_shown() {
    let (node, image) = (Node::new(), image());
    let server = guarded(image, BASIC);
    let name = format!("{}/a", server.address).parse().unwrap();
    for (meant, open) in [
        (format!("https://{}/v1/", server.address), true),
        (server.address.to_string(), true),
        ("https://other.example".to_owned(), false),
    ] {
        let given = Given {
            credentials: password(),
            server: Some(meant),
        };
        let resolved = node.driver.lookup(&name, &given).unwrap().resolve().await;
        assert_eq!(resolved.is_ok(), open, "{given:?}");
    }
    let shown = server.requests();
    let shown = shown
        .iter()
        .filter(|each| each.header("authorization") == Some(BASIC));
    // Manifest and configuration, of the two pulls that may.
    assert_eq!(shown.count(), 4);
}

#[tokio::test]
async fn hosts_are_reached_through_the_proxy_and_this_machine_is_not() {
    let (mut node, image) = (Node::new(), image());
    let served = image.clone();
    let direct = Server::start(move |request, _| served.answer(request.resource()));
    let proxy = Server::start(move |request, _| {
        // RFC 9112, 3.2.2: a proxy is told the whole address.
        match request.path.strip_prefix("http://far.example") {
            Some(path) => image.answer(path.split('?').next().unwrap_or_default()),
            None => Response::status(400),
        }
    });
    node.configure(|config| {
        config.tries = 1;
        config.proxies = Proxies {
            http: Some(format!("http://{}", proxy.address)),
            https: None,
            except: Some("10.0.0.0/8,near.example".into()),
        }
    });
    for host in ["far.example", "near.example", "10.255.0.1:1"] {
        node.mirror(host, &format!("server = \"http://{host}\"\n"));
    }
    let anonymous = Credentials::Anonymous;
    node.pull("far.example/a", &anonymous).await.unwrap();
    let through = proxy.requests().len();
    assert!(through >= 4, "{through}");
    node.pull(&format!("{}/a", direct.address), &anonymous)
        .await
        .unwrap();
    for host in ["near.example", "10.255.0.1:1"] {
        // Whoever may live there has no such image.
        let name = format!("{host}/a");
        node.pull(&name, &anonymous).await.unwrap_err();
    }
    assert_eq!(proxy.requests().len(), through);
}

#[tokio::test]
async fn a_digest_is_asked_for_alone() {
    let (node, image) = (Node::new(), image());
    let digest = Digest::sha256(&image.manifest);
    let claimed = digest.to_string();
    let server = Server::start(move |request, _| {
        let response = image.answer(request.resource());
        response.header("docker-content-digest", &claimed)
    });
    let ask = async |name: String| {
        let given = Given::default();
        let lookup = node.driver.lookup(&name.parse().unwrap(), &given).unwrap();
        lookup.digest().await
    };
    let found = ask(format!("{}/a", server.address)).await;
    assert_eq!(found, Some(digest));
    // By a digest that is another one.
    let other = Digest::sha256(b"other");
    assert_eq!(ask(format!("{}/a@{other}", server.address)).await, None);
    assert!(server.requests().iter().all(|each| each.method == "HEAD"));
}
