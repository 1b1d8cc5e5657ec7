//! Blobs that are kept beside their layers: found again, counted, used for repair and export, gone
//! with their layer; and believed only as far as their digest goes.

use super::*;

fn keeping() -> Node {
    let mut node = Node::new();
    node.configure(|config| config.keep_blobs = true);
    node
}

/// The image as the database's documents make it.
fn kept_image(node: &Node, image: &TestImage) -> ResolvedImage {
    let (name, manifest) = ("a.example/b:1".parse().unwrap(), image.manifest.clone());
    let kept = node
        .driver
        .kept_image(&name, manifest, image.config.clone());
    kept.unwrap()
}

/// The bytes of a kept blob, as an export gets them.
fn copied(node: &Node, kept: &ResolvedImage, layer: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut take = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        true
    };
    let whole = node.driver.copy_kept_blob(kept, layer, &mut take).unwrap();
    whole.map(|whole| {
        assert!(whole);
        bytes
    })
}

/// The files of a layer's kept blob.
fn pieces(node: &Node, kept: &ResolvedImage, layer: usize) -> Vec<std::path::PathBuf> {
    let fs = node.driver.layer_path(&kept.layers[layer].chain_id);
    let home = fs.parent().unwrap();
    let name = kept.layers[layer].digest.to_string().replace(':', "-");
    let found = fs::read_dir(home.join(name)).into_iter().flatten();
    let mut found: Vec<_> = found.map(|piece| piece.unwrap().path()).collect();
    found.sort();
    found
}

#[tokio::test]
async fn blobs_stay_with_their_layers_when_that_is_asked_for_and_go_with_them() {
    for keep_from in [u64::MAX, 1] {
        let (mut node, image) = (keeping(), image());
        node.configure(|config| config.keep_from_bytes = keep_from);
        let server = ranged(image.clone());
        let name = format!("{}/a", server.address);
        let pulled = node.pull(&name, &Credentials::Anonymous).await.unwrap();
        let kept = kept_image(&node, &image);
        for layer in 0..2 {
            assert!(node.driver.has_blob(&kept, layer));
            assert_eq!(
                copied(&node, &kept, layer),
                Some(image.layers[layer].clone())
            );
            let chain_id = &pulled.layers[layer].chain_id;
            let committed = node.driver.measure_layer(chain_id).unwrap();
            assert!(committed.size_bytes >= image.layers[layer].len() as u64);
            let seal = Some(&committed.seal.digest);
            let check = node.driver.check_layer(chain_id, seal, Depth::Whole);
            assert!(check.unwrap().compared.is_whole());
        }
        assert!(node.driver.list_downloads().unwrap().is_empty());
        for layer in pulled.layers.iter().rev() {
            node.driver.remove_layer(&layer.chain_id).unwrap();
        }
        node.nothing_is_left();
    }
}

#[tokio::test]
async fn nothing_is_kept_unless_it_is_asked_for() {
    let (node, image) = (Node::new(), image());
    let server = ranged(image.clone());
    let name = format!("{}/a", server.address);
    node.pull(&name, &Credentials::Anonymous).await.unwrap();
    let kept = kept_image(&node, &image);
    assert!(!node.driver.has_blob(&kept, 0));
    assert_eq!(copied(&node, &kept, 0), None);
    let error = node.fetch(&kept, 0).await.unwrap_err();
    assert!(matches!(error, ImageError::NotKept { .. }), "{error:?}");
}

#[tokio::test]
async fn a_broken_layer_is_made_of_its_blob_again_and_keeps_it() {
    let (node, image) = (keeping(), image());
    let server = ranged(image.clone());
    let name = format!("{}/a", server.address);
    let pulled = node.pull(&name, &Credentials::Anonymous).await.unwrap();
    let big = node.path(&pulled, 1, "big");
    let right = fs::read_to_string(&big).unwrap();
    fs::write(&big, "rotten").unwrap();
    let asked = server.requests().len();
    let kept = kept_image(&node, &image);
    let staged = node.fetch(&kept, 1).await.unwrap();
    let prepared = node.driver.prepare_layer(staged, &[], true).unwrap();
    let placed = node.driver.place_layers(vec![prepared]).unwrap();
    assert_eq!(
        server.requests().len(),
        asked,
        "the registry was not needed"
    );
    assert_eq!(node.text(&pulled, 1, "big"), right);
    assert_eq!(copied(&node, &kept, 1), Some(image.layers[1].clone()));
    for retired in node.driver.retired_layers().unwrap() {
        node.driver.remove_retired(&retired).unwrap();
    }
    // The files were shared with the broken layer, and stay.
    assert_eq!(copied(&node, &kept, 1), Some(image.layers[1].clone()));
    let (chain_id, seal) = (&placed[0].chain_id, Some(&placed[0].seal.digest));
    let check = node.driver.check_layer(chain_id, seal, Depth::Whole);
    assert!(check.unwrap().compared.is_whole());
}

#[tokio::test]
async fn a_spoilt_blob_is_found_and_used_for_nothing() {
    let change = |bytes: &mut Vec<u8>| bytes[1000] ^= 1;
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(2000);
    let longer = |bytes: &mut Vec<u8>| bytes.push(0);
    let spoil: [fn(&mut Vec<u8>); 3] = [change, cut, longer];
    for spoil in spoil {
        let (node, image) = (keeping(), image());
        let server = ranged(image.clone());
        let name = format!("{}/a", server.address);
        node.pull(&name, &Credentials::Anonymous).await.unwrap();
        let kept = kept_image(&node, &image);
        let files = pieces(&node, &kept, 1);
        let mut bytes = fs::read(&files[0]).unwrap();
        spoil(&mut bytes);
        fs::write(&files[0], bytes).unwrap();
        assert_eq!(copied(&node, &kept, 1), None);
        let error = node.fetch(&kept, 1).await.unwrap_err();
        let known = matches!(
            error,
            ImageError::DigestMismatch { .. }
                | ImageError::NotKept { .. }
                | ImageError::Unpack { .. }
        );
        assert!(known, "{error:?}");
        let chain_id = &kept.layers[1].chain_id;
        let seal = node.driver.measure_layer(chain_id).unwrap().seal.digest;
        let quick = node.driver.check_layer(chain_id, Some(&seal), Depth::Quick);
        assert!(quick.unwrap().compared.is_whole());
        let check = node.driver.check_layer(chain_id, Some(&seal), Depth::Whole);
        let compared = check.unwrap().compared;
        assert!(
            compared.differences[0].contains("kept blob"),
            "{compared:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_pulls_at_once_that_share_a_blob_none_loses_it() {
    let (node, image) = (Arc::new(keeping()), image());
    let server = ranged(image.clone());
    let pulls = ["a", "b", "c"].map(|name| {
        let (node, name) = (Arc::clone(&node), format!("{}/{name}", server.address));
        tokio::spawn(async move { node.pull(&name, &Credentials::Anonymous).await.map(drop) })
    });
    for pull in pulls {
        pull.await.unwrap().unwrap();
    }
    let kept = kept_image(&node, &image);
    for layer in 0..2 {
        assert_eq!(
            copied(&node, &kept, layer),
            Some(image.layers[layer].clone())
        );
    }
    assert!(node.driver.list_downloads().unwrap().is_empty());
}

#[tokio::test]
async fn a_pull_that_comes_too_late_leaves_its_blob_to_the_layer_that_is_there() {
    let (mut node, image) = (Node::new(), image());
    let server = ranged(image.clone());
    let name = format!("{}/a", server.address);
    node.pull(&name, &Credentials::Anonymous).await.unwrap();
    node.configure(|config| config.keep_blobs = true);
    let kept = kept_image(&node, &image);
    assert!(!node.driver.has_blob(&kept, 1));
    node.pull(&name, &Credentials::Anonymous).await.unwrap();
    for layer in 0..2 {
        assert_eq!(
            copied(&node, &kept, layer),
            Some(image.layers[layer].clone())
        );
    }
    // Another time there is nothing to leave.
    node.pull(&name, &Credentials::Anonymous).await.unwrap();
    assert!(node.driver.list_downloads().unwrap().is_empty());
}

#[tokio::test]
async fn the_blobs_of_an_archive_are_kept_as_well() {
    let (node, image) = (keeping(), image());
    let mut tar = Tar::default();
    for (name, bytes) in super::import::layout_files(&image) {
        tar = tar.entry(tar::EntryType::Regular, &name, "", &bytes);
    }
    let path = node.root.path().join("layout.tar");
    fs::write(&path, tar.end()).unwrap();
    for imported in node.driver.open_archive(&path).await.unwrap() {
        node.layers(&imported.image).await.unwrap();
    }
    let kept = kept_image(&node, &image);
    for layer in 0..2 {
        assert_eq!(
            copied(&node, &kept, layer),
            Some(image.layers[layer].clone())
        );
    }
}

#[test]
fn documents_that_do_not_belong_together_make_no_image() {
    let (node, image) = (keeping(), image());
    let name: Reference = "a.example/b:1".parse().unwrap();
    let other = br#"{"rootfs":{"diff_ids":[]}}"#.to_vec();
    let bad = node.driver.kept_image(&name, image.manifest.clone(), other);
    assert!(matches!(bad, Err(ImageError::Unsupported { .. })));
    let bad = node
        .driver
        .kept_image(&name, b"{}".to_vec(), image.config.clone());
    assert!(matches!(bad, Err(ImageError::Unsupported { .. })));
}

#[tokio::test]
async fn of_an_empty_blob_nothing_has_to_be_kept() {
    let node = keeping();
    let image = TestImage::of(&[Vec::new()]);
    let image = TestImage::with(image.config, vec![Vec::new()]);
    let server = ranged(image.clone());
    let name = format!("{}/a", server.address);
    let pulled = node.pull(&name, &Credentials::Anonymous).await.unwrap();
    assert!(node.driver.has_layer(&pulled.layers[0].chain_id));
    let kept = kept_image(&node, &image);
    assert!(copied(&node, &kept, 0).is_none_or(|bytes| bytes.is_empty()));
}
