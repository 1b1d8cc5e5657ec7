//! Pulling and importing for real, from servers that behave and servers that do not.

mod access;
mod blobs;
mod faults;
mod import;
mod kept;
mod mirrors;
mod native;
mod pull;
mod registry;
mod stack;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::testing::server::{Request, Response, Server};
use super::testing::{Tar, TestImage, gzip};
use super::*;

/// Serves an image, and of what is asked for by ranges just these.
fn ranged(image: TestImage) -> Server {
    Server::start(move |request, _| image.answer(request.resource()).ranged(request))
}

fn is_layer(request: &Request, image: &TestImage) -> bool {
    request
        .resource()
        .ends_with(&Digest::sha256(&image.layers[1]).to_string())
}

struct Node {
    root: tempfile::TempDir,
    driver: ImageDriver,
}

impl Node {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    fn at(root: tempfile::TempDir) -> Self {
        let config = ImageConfig {
            certs_d: root.path().join("certs.d"),
            stall_timeout: Duration::from_millis(700),
            first_wait: Duration::from_millis(1),
            ..ImageConfig::default()
        };
        let driver = ImageDriver::new(&root.path().join("lib"), config).unwrap();
        Self { root, driver }
    }

    /// A driver that is configured otherwise, in the same place.
    fn configure(&mut self, change: impl FnOnce(&mut ImageConfig)) {
        let mut config = self.driver.config.clone();
        change(&mut config);
        self.driver = ImageDriver::new(&self.root.path().join("lib"), config).unwrap();
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

    async fn fetch(&self, image: &ResolvedImage, layer: usize) -> Result<StagedLayer, ImageError> {
        let progress = Arc::default();
        self.driver.fetch_layer(image, layer, &progress).await
    }

    async fn layers(&self, image: &ResolvedImage) -> Result<(), ImageError> {
        let fetches = (0..image.layers.len()).map(|at| self.fetch(image, at));
        for staged in futures_util::future::join_all(fetches).await {
            self.commit(staged?)?;
        }
        Ok(())
    }

    /// Makes one layer count.
    fn commit(&self, staged: StagedLayer) -> Result<(), ImageError> {
        let prepared = self.driver.prepare_layer(staged, &[], false)?;
        self.driver.place_layers(vec![prepared]).map(drop)
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
