//! A stream of bytes inside binary messages, as `SPDY/3.1+portforward.k8s.io` has it.

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio_tungstenite::tungstenite::Message;

use super::{LINGER, upgrade};

/// What may be on its way in either direction.
const BUFFER_BYTES: usize = 64 * 1024;
/// What goes into one message at most.
const PIECE_MAX_BYTES: usize = 32 * 1024;

/// The bytes inside the messages on `io`; the end of either is that of the other.
pub async fn tunnel<I>(io: I) -> DuplexStream
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut to, mut from) = upgrade(io).await.split();
    let (inside, outside) = duplex(BUFFER_BYTES);
    let (mut read, mut write) = tokio::io::split(outside);
    tokio::spawn(async move {
        let inwards = async {
            while let Some(Ok(message)) = from.next().await {
                match message {
                    Message::Binary(bytes) => {
                        if write.write_all(&bytes).await.is_err() {
                            break;
                        }
                    }
                    Message::Ping(_) | Message::Pong(_) => {}
                    // Text carries no bytes, and an end is one.
                    _ => break,
                }
            }
            // The reader inside finds its end.
            let _ = write.shutdown().await;
        };
        let outwards = async {
            let mut buffer = vec![0; PIECE_MAX_BYTES];
            while let Ok(length @ 1..) = read.read(&mut buffer).await {
                let message = Message::Binary(Bytes::copy_from_slice(&buffer[..length]));
                if to.send(message).await.is_err() {
                    return;
                }
            }
            // What is inside has said goodbye already.
            let _ = to.send(Message::Close(None)).await;
        };
        tokio::pin!(inwards);
        tokio::pin!(outwards);
        tokio::select! {
            () = &mut inwards => outwards.await,
            // The client agrees, or has had its time: it must not hold what is over.
            () = &mut outwards => drop(tokio::time::timeout(LINGER, inwards).await),
        }
    });
    inside
}
