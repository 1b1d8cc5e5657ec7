//! Who may speak to the shim, and how it is found.

use super::*;

#[tokio::test]
async fn a_new_daemon_replaces_the_old_one_and_waiting_requests_fail_at_once() {
    let node = Node::new();
    let (old, mut old_events) = node.connect().await;
    let (new, _events) = node.connect().await;
    assert_eq!(
        timeout(BOUND, old_events.recv()).await.unwrap(),
        Some(ShimEvent::Disconnected)
    );
    assert!(matches!(
        old.ping().await,
        Err(ShimClientError::Disconnected)
    ));
    new.ping().await.unwrap();

    // A stopped shim answers nobody; a killed one ends every wait.
    kill_process(pid(new.shim_pid()), Signal::STOP).unwrap();
    let hasty = new.with_timeout(Duration::from_millis(50));
    assert!(matches!(
        hasty.ping().await,
        Err(ShimClientError::Timeout { .. })
    ));
    let waiting = tokio::spawn({
        let new = new.clone();
        async move { new.ping().await }
    });
    tokio::task::yield_now().await;
    kill_process(pid(new.shim_pid()), Signal::KILL).unwrap();
    let ended = timeout(BOUND, waiting).await.unwrap().unwrap();
    assert!(matches!(ended, Err(ShimClientError::Disconnected)));
}

#[tokio::test]
async fn nonsense_closes_its_own_connection_and_nothing_else() {
    use crate::sys::seqpacket;
    let node = Node::new();
    let (shim, _events) = node.connect().await;
    let path = node.state().join(SOCKET_NAME);
    for nonsense in [
        b"{".as_slice(),
        br#"{"hello":{"version":999}}"#,
        br#"{"request":{"number":1,"request":"ping"}}"#,
        &[0xff; 60_000],
    ] {
        let socket = seqpacket::connect(&path).unwrap();
        let (stdin, stdout) = pipe();
        seqpacket::send(socket.as_fd(), nonsense, &[stdin, stdout]).unwrap();
        let mut buffer = [0; 1000];
        let mut answer = Vec::new();
        until("the connection is closed", || {
            match seqpacket::receive(socket.as_fd(), &mut buffer) {
                Ok(received) => {
                    answer.extend_from_slice(&buffer[..received.len]);
                    received.len == 0
                }
                Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
            }
        })
        .await;
        let incompatible = memchr::memmem::find(&answer, b"incompatible").is_some();
        assert_eq!(incompatible, nonsense.starts_with(b"{\"hello"));
    }
    shim.ping().await.unwrap();
}

#[tokio::test]
async fn many_starters_start_one_shim() {
    let node = Node::new();
    let starters = (0..8).map(|_| node.connect());
    let clients = futures_util::future::join_all(starters).await;
    let pids: Vec<i32> = clients.iter().map(|(shim, _)| shim.shim_pid()).collect();
    assert!(pids.windows(2).all(|pair| pair[0] == pair[1]), "{pids:?}");
    drop(clients);
    node.shim_ends(pids[0]).await;
    let nothing = ShimClient::connect_or_start(&node.state(), Path::new("/bin/false")).await;
    assert!(matches!(nothing, Err(ShimClientError::Start { .. })));
}

#[tokio::test]
async fn a_shim_gives_nothing_away() {
    let node = Node::new();
    let (shim, _events) = node.connect().await;
    let proc = PathBuf::from(format!("/proc/{}", shim.shim_pid()));
    let stat = fs::read_to_string(proc.join("stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let threads = fields[17];
    assert_eq!(
        (threads, fields[3]),
        ("1", fields[2]),
        "one thread; its session is its group's"
    );
    assert_ne!(fields[1], std::process::id().to_string(), "not our child");
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
    for (fd, target) in [("0", "/dev/null"), ("1", "/dev/null")] {
        assert_eq!(
            fs::read_link(proc.join("fd").join(fd)).unwrap(),
            Path::new(target)
        );
    }
    let socket = node.state().join(SOCKET_NAME);
    assert_eq!(
        fs::metadata(socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let own = node.state().join("shim");
    assert_eq!(
        fs::metadata(own).unwrap().permissions().mode() & 0o777,
        0o700
    );
}
