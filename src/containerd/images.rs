//! Images, one for each of their names.

use tonic::{Request, Response, Status};

use super::{Asked, ReadError, Reader, no_filters, timestamp};
use crate::proto::containerd::images::images_server::Images;
use crate::proto::containerd::images::{
    GetImageRequest, GetImageResponse, Image, ListImagesRequest, ListImagesResponse,
};
use crate::proto::containerd::types::Descriptor;
use crate::state::named::NamedImage;

/// What a manifest is that does not say so (OCI image specification, manifest).
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[tonic::async_trait]
impl Images for Reader {
    async fn get(
        &self,
        request: Request<GetImageRequest>,
    ) -> Result<Response<GetImageResponse>, Status> {
        self.call("containerd.GetImage", request, get).await
    }

    async fn list(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        self.call("containerd.ListImages", request, list).await
    }
}

async fn get(reader: Reader, asked: Asked<GetImageRequest>) -> Result<GetImageResponse, ReadError> {
    let name = asked.message.name;
    let found = match asked.here {
        true => reader.store.named_images(Some(&name)).await?,
        false => Vec::new(),
    };
    match found.into_iter().next() {
        Some(row) => Ok(GetImageResponse {
            image: Some(image(row)),
        }),
        None => Err(ReadError::NotFound {
            noun: "image",
            id: name,
        }),
    }
}

async fn list(
    reader: Reader,
    asked: Asked<ListImagesRequest>,
) -> Result<ListImagesResponse, ReadError> {
    no_filters(&asked.message.filters)?;
    let found = match asked.here {
        true => reader.store.named_images(None).await?,
        false => Vec::new(),
    };
    Ok(ListImagesResponse {
        images: found.into_iter().map(image).collect(),
    })
}

fn image(row: NamedImage) -> Image {
    let media_type = row.media_type.filter(|media_type| !media_type.is_empty());
    Image {
        name: row.name,
        labels: [("io.cri-containerd.image".into(), "managed".into())].into(),
        target: Some(Descriptor {
            media_type: media_type.unwrap_or_else(|| MANIFEST.into()),
            digest: row.manifest_digest,
            size: row.manifest_bytes,
            ..Default::default()
        }),
        created_at: Some(timestamp(row.created_at)),
        updated_at: Some(timestamp(row.created_at)),
    }
}
