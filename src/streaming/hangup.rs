//! Learning that a client has gone while nobody reads from it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

use crate::sys::async_fd;

/// How long what a client has left behind may be read once it is gone. A connection that is read to
/// its end does not come to this.
const LEFTOVERS: Duration = Duration::from_secs(2);

/// A second descriptor of a connection, which is only looked at.
#[derive(Debug)]
pub(super) struct Hangup(AsyncFd<OwnedFd>);

impl Hangup {
    /// Watches the connection of `stream`.
    pub(super) fn of(stream: &TcpStream) -> io::Result<Self> {
        async_fd::register(stream.as_fd().try_clone_to_owned()?).map(Self)
    }

    /// Waits until the client has gone, and a while longer: what it sent before may still be on its
    /// way to where it belongs.
    pub(super) async fn wait(self) {
        self.closed().await;
        tokio::time::sleep(LEFTOVERS).await;
    }

    /// Waits until the client has closed the connection or lost it.
    async fn closed(&self) {
        loop {
            let Ok(mut ready) = self.0.ready(Interest::READABLE).await else {
                return;
            };
            if ready.ready().is_read_closed() || is_broken(self.0.get_ref()) {
                return;
            }
            // New bytes, which are not ours to read: only the next change is of interest.
            ready.clear_ready();
        }
    }
}

/// A reset connection may show as readable alone.
fn is_broken(socket: &OwnedFd) -> bool {
    let mut byte = [0];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(socket, &mut byte, flags) {
        Ok((_, length)) => length == 0,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn unread_bytes_do_not_hide_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let hangup = Hangup::of(&server).unwrap();
        let waiting = tokio::spawn(async move { hangup.closed().await });
        client.write_all(b"unread").await.unwrap();
        server.readable().await.unwrap();
        assert!(!waiting.is_finished());
        drop(client);
        let bound = Duration::from_secs(20);
        tokio::time::timeout(bound, waiting).await.unwrap().unwrap();
    }
}
