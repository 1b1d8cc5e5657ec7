//! Manifests and configurations, byte for byte: a client makes of them how large an image is and
//! for which platform. Layers are unpacked here, and no content.

use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::{Asked, ReadError, Reader, timestamp};
use crate::proto::containerd::content::content_server::Content;
use crate::proto::containerd::content::{
    Info, InfoRequest, InfoResponse, ReadContentRequest, ReadContentResponse,
};

/// Bytes in a message.
const PIECE: usize = 1 << 20;

#[tonic::async_trait]
impl Content for Reader {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        self.call("containerd.ContentInfo", request, info).await
    }

    type ReadStream = BoxStream<ReadContentResponse>;

    async fn read(
        &self,
        request: Request<ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let answer = self.call("containerd.ReadContent", request, read).await?;
        Ok(answer.map(|pieces| {
            Box::pin(tokio_stream::iter(pieces.into_iter().map(Ok))) as Self::ReadStream
        }))
    }
}

async fn document(reader: &Reader, here: bool, digest: &str) -> Result<(Vec<u8>, i64), ReadError> {
    let found = match here {
        true => reader.store.document(digest).await?,
        false => None,
    };
    found.ok_or_else(|| ReadError::NotFound {
        noun: "content",
        id: digest.to_owned(),
    })
}

async fn info(reader: Reader, asked: Asked<InfoRequest>) -> Result<InfoResponse, ReadError> {
    let digest = asked.message.digest;
    let (content, created_at) = document(&reader, asked.here, &digest).await?;
    Ok(InfoResponse {
        info: Some(Info {
            digest,
            size: i64::try_from(content.len()).unwrap_or(i64::MAX),
            created_at: Some(timestamp(created_at)),
            updated_at: Some(timestamp(created_at)),
            ..Default::default()
        }),
    })
}

async fn read(
    reader: Reader,
    asked: Asked<ReadContentRequest>,
) -> Result<Vec<ReadContentResponse>, ReadError> {
    let ReadContentRequest {
        digest,
        offset,
        size,
    } = asked.message;
    let (content, _) = document(&reader, asked.here, &digest).await?;
    let Some(wanted) = part(&content, offset, size) else {
        return Err(ReadError::Range {
            digest,
            offset,
            size,
            length: content.len(),
        });
    };
    let mut at = offset;
    let pieces = wanted.chunks(PIECE).map(|piece| {
        let answer = ReadContentResponse {
            offset: at,
            data: piece.to_vec(),
        };
        at += i64::try_from(piece.len()).unwrap_or(0);
        answer
    });
    Ok(pieces.collect())
}

/// So many bytes from there on, as far as there are; 0 is all.
fn part(content: &[u8], offset: i64, size: i64) -> Option<&[u8]> {
    let from = content.get(usize::try_from(offset).ok()?..)?;
    match usize::try_from(size).ok()? {
        0 => Some(from),
        size => Some(&from[..size.min(from.len())]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_lies_within_the_whole() {
        assert_eq!(part(b"abcdef", 0, 0), Some(&b"abcdef"[..]));
        assert_eq!(part(b"abcdef", 2, 2), Some(&b"cd"[..]));
        assert_eq!(part(b"abcdef", 4, 100), Some(&b"ef"[..]));
        assert_eq!(part(b"abcdef", 6, 0), Some(&b""[..]));
        for (offset, size) in [(7, 0), (-1, 0), (0, -1), (i64::MAX, 1)] {
            assert_eq!(part(b"abcdef", offset, size), None, "{offset} {size}");
        }
    }
}
