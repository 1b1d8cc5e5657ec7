//! Lists that are streamed in pieces, for clients whose nodes hold more than one message can carry
//! (KEP-5825: gRPC clients take 4 MiB, kubelet 16 MiB).

use prost::Message;
use tonic::codegen::BoxStream;
use tonic::{Response, Status};

/// Bytes after which a message is full. One item alone may be greater.
const PIECE_BYTES: usize = 512 << 10;
/// Items after which it is.
const PIECE_ITEMS: usize = 256;

/// Deals items out to messages, in their order; no message is empty.
pub(super) fn pieces<T: Message, P>(
    items: impl IntoIterator<Item = T>,
    message: impl Fn(Vec<T>) -> P,
) -> Vec<P> {
    let mut pieces = Vec::new();
    let (mut piece, mut bytes) = (Vec::new(), 0);
    for item in items {
        let length = item.encoded_len();
        if !piece.is_empty() && (bytes + length > PIECE_BYTES || piece.len() == PIECE_ITEMS) {
            pieces.push(message(std::mem::take(&mut piece)));
            bytes = 0;
        }
        bytes += length;
        piece.push(item);
    }
    if !piece.is_empty() {
        pieces.push(message(piece));
    }
    pieces
}

/// Answers a call with its pieces, one after the other.
pub(super) fn streamed<P: Send + 'static>(pieces: Response<Vec<P>>) -> Response<BoxStream<P>> {
    pieces.map(|pieces| {
        let stream = tokio_stream::iter(pieces.into_iter().map(Ok::<P, Status>));
        Box::pin(stream) as BoxStream<P>
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(items: &[usize]) -> Vec<usize> {
        let items = items.iter().map(|length| "x".repeat(*length));
        pieces(items, |piece| piece.len())
    }

    #[test]
    fn a_message_is_full_by_bytes_or_by_items_and_never_empty() {
        assert_eq!(lengths(&[]), Vec::<usize>::new());
        assert_eq!(lengths(&[1; 600]), [256, 256, 88]);
        assert_eq!(lengths(&[200 << 10; 5]), [2, 2, 1]);
        assert_eq!(lengths(&[5, 700 << 10, 5]), [1, 1, 1]);
    }
}
