//! The reader against a shim that the test plays.

use std::os::fd::AsFd;

use super::*;
use crate::shim::protocol::ProcessKind;
use crate::sys::seqpacket;

fn id() -> ProcessId {
    ProcessId::try_from("chatty").unwrap()
}

fn loss(lines: u64) -> FromShim {
    FromShim::LogLoss(LogLoss {
        id: id(),
        lines,
        bytes: 10 * lines,
        why: "No space left on device".into(),
    })
}

fn exit() -> ExitRecord {
    ExitRecord {
        sequence: 1,
        id: id(),
        kind: ProcessKind::Container,
        code: 3,
        signal: None,
        lost: false,
        at_ns: 1,
        oom_kills: None,
    }
}

/// Sends a message as soon as there is room for it.
async fn say(shim: &OwnedFd, message: &FromShim) {
    let bytes = encode(message).unwrap();
    while let Err(error) = seqpacket::send(shim.as_fd(), &bytes, &[]) {
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
        tokio::task::yield_now().await;
    }
}

/// One message a second from a container that loses lines for minutes, while whoever handles events
/// is busy: the exit behind them all must find room.
#[tokio::test]
async fn losses_that_nobody_takes_leave_room_for_exits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = seqpacket::listen(&path, 1).unwrap();
    let socket = Socket::connect(&path).unwrap();
    let shim = seqpacket::accept(listener.as_fd()).unwrap().unwrap();
    let shared = Arc::new(Shared {
        socket,
        waiting: Mutex::default(),
    });
    let (events, mut receiver) = mpsc::channel(EVENTS_WAITING);
    tokio::spawn(read(Arc::clone(&shared), events));
    let many = u64::try_from(2 * EVENTS_WAITING).unwrap();
    for lines in 1..=many {
        say(&shim, &loss(lines)).await;
    }
    say(&shim, &FromShim::Exited(exit())).await;
    drop(shim);
    let mut told = Vec::new();
    while let Some(event) = receiver.recv().await {
        told.push(event);
    }
    let expected = [
        ShimEvent::LogLoss,
        ShimEvent::Exited(exit()),
        ShimEvent::Disconnected,
    ];
    assert_eq!(told, expected);
    // The newest is kept, which has them all.
    let kept: Vec<_> = shared.waiting().losses.values().cloned().collect();
    let FromShim::LogLoss(newest) = loss(many) else {
        unreachable!("it is a loss");
    };
    assert_eq!(kept, [newest]);
}
