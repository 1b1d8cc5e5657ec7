//! Pieces that come in any order, twice, wrong, or not at all.

use super::*;

fn noise(bytes: u64) -> Vec<u8> {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn write(download: &Arc<Download>, at: u64, data: &[u8]) {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for part in data.chunks(100_000) {
                sender.blocking_send(Bytes::copy_from_slice(part)).unwrap();
            }
            drop(sender);
        });
        let writer = download.writer(at);
        writer.run(receiver, &LayerProgress::default()).unwrap();
    });
}

fn read(download: &Arc<Download>) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    Follower::new(Arc::clone(download), Arc::default()).read_to_end(&mut all)?;
    Ok(all)
}

#[test]
fn pieces_come_in_any_order_and_stay_when_the_process_goes() {
    let root = tempfile::tempdir().unwrap();
    let blob = noise(2 * PIECE_BYTES + 5);
    let (digest, size) = (Digest::sha256(&blob), blob.len() as u64);
    let half = usize::try_from(PIECE_BYTES / 2).unwrap();
    let second = usize::try_from(PIECE_BYTES).unwrap();
    let downloads = Downloads::open(root.path()).unwrap();
    let download = downloads.take(&digest, size).unwrap().unwrap();
    assert!(downloads.take(&digest, size).unwrap().is_none(), "busy");
    write(&download, PIECE_BYTES, &blob[second..2 * second]);
    write(&download, 0, &blob[..half]);
    downloads.remove(&digest).unwrap();
    drop(download);

    let downloads = Downloads::open(root.path()).unwrap();
    assert_eq!(downloads.list().unwrap(), std::slice::from_ref(&digest));
    let download = downloads.take(&digest, size).unwrap().unwrap();
    assert_eq!(download.received(), PIECE_BYTES + half as u64);
    let missing = download.missing();
    assert_eq!(
        missing.iter().map(|part| part.from).collect::<Vec<_>>(),
        [half as u64, 2 * PIECE_BYTES]
    );
    let reader = Arc::clone(&download);
    let reading = std::thread::spawn(move || read(&reader).unwrap());
    write(&download, half as u64, &blob[half..second]);
    write(&download, 2 * PIECE_BYTES, &blob[2 * second..]);
    assert!(download.missing().is_empty());
    assert!(reading.join().unwrap() == blob, "another content");
    download.discard().unwrap();
    assert!(downloads.list().unwrap().is_empty());
}

#[test]
fn what_is_not_its_digest_never_ends_well_and_can_begin_anew() {
    let root = tempfile::tempdir().unwrap();
    let blob = noise(1000);
    let downloads = Downloads::open(root.path()).unwrap();
    let download = downloads.take(&Digest::sha256(&blob), 1000).unwrap();
    let download = download.unwrap();
    write(&download, 0, &[0; 1000]);
    read(&download).unwrap_err();
    assert_eq!(download.wrong(), Some(Digest::sha256(&[0; 1000])));
    download.reopen().unwrap();
    write(&download, 0, &blob[..10]);
    // An answer with the whole blob replaces what is there of a piece.
    write(&download, 0, &blob);
    assert_eq!(read(&download).unwrap(), blob);
}

#[test]
fn who_waits_for_more_than_will_come_gets_an_error() {
    let root = tempfile::tempdir().unwrap();
    let downloads = Downloads::open(root.path()).unwrap();
    let download = downloads.take(&Digest::sha256(b"x"), 20).unwrap().unwrap();
    write(&download, 0, b"0123456789");
    let reader = Arc::clone(&download);
    let reading = std::thread::spawn(move || read(&reader));
    download.close();
    let error = reading.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
}
