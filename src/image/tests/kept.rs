//! Large blobs: kept while they come, taken up by the next process, fetched in pieces side by side.

use super::*;
use crate::image::download::PIECE_BYTES;

const PIECE: usize = PIECE_BYTES as usize;

/// One layer of three pieces, the last one short; what is in it does not compress.
fn image() -> TestImage {
    let mut state = 1u64;
    let mut noise = vec![0; 2 * PIECE + 500_000];
    for word in noise.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
    let tar = Tar::default().entry(tar::EntryType::Regular, "noise", "", &noise);
    TestImage::of(&[tar.end()])
}

fn is_layer(request: &Request) -> bool {
    request.resource().contains("/blobs/") && request.header("range").is_some()
}

/// Asked-for ranges of the layer, in the order of the requests.
fn ranges(server: &Server) -> Vec<String> {
    let requests = server.requests();
    let of_layer = requests.iter().filter(|request| is_layer(request));
    of_layer
        .filter_map(|request| request.header("range").map(str::to_owned))
        .collect()
}

impl Node {
    /// The same directories with a driver that knows nothing: a new process.
    fn reborn(self) -> Self {
        let Self { root, driver } = self;
        drop(driver);
        Self::at(root)
    }

    fn downloads(&self) -> std::path::PathBuf {
        self.root.path().join("lib/downloads")
    }

    fn nothing_is_kept(&self) {
        assert!(self.driver.list_downloads().unwrap().is_empty());
    }
}

async fn resolved(node: &Node, server: &Server) -> ResolvedImage {
    let name = format!("{}/a", server.address).parse().unwrap();
    let resolved = node.driver.resolve(&name, &Credentials::Anonymous).await;
    resolved.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_comes_in_pieces_and_nothing_is_kept_of_it_in_the_end() {
    let (node, image) = (Node::new(), image());
    let layer = image.layers[0].clone();
    let server = ranged(image);
    let pulled = resolved(&node, &server).await;
    node.layers(&pulled).await.unwrap();
    let mut asked = ranges(&server);
    asked.sort();
    let last = layer.len() - 1;
    let mut expected = [
        format!("bytes=0-{}", PIECE - 1),
        format!("bytes={PIECE}-{}", 2 * PIECE - 1),
        format!("bytes={}-{last}", 2 * PIECE),
    ];
    expected.sort();
    assert_eq!(asked, expected);
    node.nothing_is_kept();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_is_asked_for_everything_again_and_that_is_enough() {
    let (node, image) = (Node::new(), image());
    let broken = AtomicU64::new(0);
    let server = Server::start(move |request, _| {
        let response = image.answer(request.resource());
        match is_layer(request) && broken.fetch_add(1, Ordering::SeqCst) == 0 {
            true => response.cut_after(PIECE + 1000),
            false => response,
        }
    });
    let pulled = resolved(&node, &server).await;
    node.layers(&pulled).await.unwrap();
    assert_eq!(ranges(&server).len(), 2, "{:?}", ranges(&server));
    node.nothing_is_kept();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_process_goes_on_where_the_last_one_was() {
    let (node, image) = (Node::new(), image());
    let stalled = std::sync::atomic::AtomicBool::new(true);
    let stalled = Arc::new(stalled);
    let (served, holds) = (image.clone(), Arc::clone(&stalled));
    let server = Server::start(move |request, _| {
        let response = served.answer(request.resource());
        if !is_layer(request) {
            return response;
        }
        let second = request
            .header("range")
            .is_some_and(|range| range.starts_with(&format!("bytes={PIECE}-")));
        match second && holds.load(Ordering::SeqCst) {
            true => response.ranged(request).cut_after(300_000).stall(),
            false => response.ranged(request),
        }
    });
    let pulled = resolved(&node, &server).await;
    let progress: Arc<LayerProgress> = Arc::default();
    let (first, third) = (PIECE as u64, (image.layers[0].len() - 2 * PIECE) as u64);
    let enough = async {
        while progress.received() < first + third + 300_000 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        ended = node.driver.fetch_layer(&pulled, 0, &progress) => panic!("{ended:?}"),
        () = enough => {}
    }
    stalled.store(false, Ordering::SeqCst);
    node.nothing_is_left();
    let node = node.reborn();
    let before = ranges(&server).len();
    let pulled = resolved(&node, &server).await;
    assert_eq!(
        node.driver.kept_bytes(&pulled.layers[0]),
        first + third + 300_000
    );
    let progress = Arc::default();
    let staged = node.driver.fetch_layer(&pulled, 0, &progress).await;
    node.commit(staged.unwrap()).unwrap();
    let rest = format!("bytes={}-{}", PIECE + 300_000, 2 * PIECE - 1);
    assert_eq!(ranges(&server)[before..], [rest]);
    assert_eq!(progress.kept(), first + third + 300_000);
    assert_eq!(progress.received(), image.layers[0].len() as u64);
    node.nothing_is_kept();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_power_failure_has_spoilt_is_fetched_again_from_nothing() {
    let (node, image) = (Node::new(), image());
    let layer = image.layers[0].clone();
    let digest = Digest::sha256(&layer);
    let directory = node.downloads().join(digest.to_string().replace(':', "-"));
    fs::create_dir_all(&directory).unwrap();
    // The first piece is zeros, the second is a stranger's, the third is right.
    fs::write(directory.join("000000000000"), vec![0; PIECE]).unwrap();
    fs::write(directory.join("000000800000"), vec![1; PIECE + 1]).unwrap();
    fs::write(directory.join("000001000000"), &layer[2 * PIECE..]).unwrap();
    let server = ranged(image);
    let pulled = resolved(&node, &server).await;
    node.layers(&pulled).await.unwrap();
    node.nothing_is_kept();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_blob_that_is_not_its_digest_is_refused_and_not_kept() {
    let (node, image) = (Node::new(), image());
    let other = TestImage::of(&[Tar::default()
        .entry(tar::EntryType::Regular, "other", "", &vec![7; 40 << 20])
        .end()]);
    let mut evil = other.layers[0].clone();
    evil.resize(image.layers[0].len(), 0);
    let server = Server::start(move |request, _| match is_layer(request) {
        true => Response::ok(&evil).ranged(request),
        false => image.answer(request.resource()),
    });
    let pulled = resolved(&node, &server).await;
    let error = node.layers(&pulled).await.unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::DigestMismatch { .. } | ImageError::Unpack { .. }
        ),
        "{error:?}"
    );
    node.nothing_is_left();
    node.nothing_is_kept();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_images_with_one_layer_may_be_pulled_at_once() {
    let (node, image) = (Arc::new(Node::new()), image());
    let server = ranged(image);
    let pulls = ["a", "b", "c"].map(|name| {
        let (node, name) = (Arc::clone(&node), format!("{}/{name}", server.address));
        tokio::spawn(async move { node.pull(&name, &Credentials::Anonymous).await.map(drop) })
    });
    for pull in pulls {
        pull.await.unwrap().unwrap();
    }
    node.nothing_is_kept();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_come_stays_when_this_node_cannot_take_it() {
    let (node, image) = (Node::new(), image());
    let size = image.layers[0].len() as u64;
    let server = ranged(image);
    let pulled = resolved(&node, &server).await;
    let staging = node.root.path().join("lib/staging");
    fs::remove_dir(&staging).unwrap();
    let error = node.fetch(&pulled, 0).await.unwrap_err();
    assert!(matches!(error, ImageError::Store { .. }), "{error:?}");
    assert_eq!(node.driver.kept_bytes(&pulled.layers[0]), size);
    fs::create_dir(&staging).unwrap();
    let before = ranges(&server).len();
    node.layers(&pulled).await.unwrap();
    assert_eq!(ranges(&server).len(), before, "it was here");
    node.nothing_is_kept();
}
