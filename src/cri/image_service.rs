//! The 6 calls of ImageService, one line each.

use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::pieces::streamed;
use super::{Front, image};
use crate::proto::cri as v1;

#[tonic::async_trait]
impl v1::image_service_server::ImageService for Front {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        self.call("ListImages", request, image::list::list).await
    }
    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<BoxStream<v1::StreamImagesResponse>>, Status> {
        let pieces = self.call("StreamImages", request, image::list::in_pieces);
        Ok(streamed(pieces.await?))
    }
    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        self.call("ImageStatus", request, image::status::status)
            .await
    }
    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        self.call("PullImage", request, image::pull::pull).await
    }
    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        self.call("RemoveImage", request, image::remove::remove)
            .await
    }
    async fn image_fs_info(
        &self,
        request: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        self.call("ImageFsInfo", request, image::fs_info::fs_info)
            .await
    }
}
