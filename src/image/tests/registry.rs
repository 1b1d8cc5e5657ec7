//! A pull from Debian's `docker-registry`.

use super::*;

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
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]);
        let client = client.build().unwrap();
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
