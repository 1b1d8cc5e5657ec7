//! The admin API, on a socket of its own that only root can open: what operators' commands ask.

pub mod endpoint;
mod image_check;
mod metrics;

use std::path::PathBuf;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::engine::Engine;
use crate::lifecycle::difference::Difference;
use crate::proto::admin as v1;
use crate::state::node::LAST_REBUILD;
use crate::state::{StateError, Store};

pub use image_check::ImageCheck;
pub use metrics::MetricsPage;

/// Most rows of one answer.
const LIMIT_MAX: u32 = 10_000;

/// Id and names of each image of an archive, or why it could not be loaded.
pub type Imported = Result<Vec<(String, Vec<String>)>, String>;

/// An image to be loaded from a file, for the back.
pub struct Import {
    /// The layout or archive.
    pub path: PathBuf,
    /// Name for an image that the archive does not name.
    pub reference: Option<String>,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Imported>,
}

/// One thing in which the node differs from the database, and what has become of that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedDifference {
    /// What differs.
    pub difference: Difference,
    /// Whether it was mended.
    pub mended: bool,
    /// Why not, if that was tried and is known; else empty.
    pub error: String,
}

/// All differences and the time the check took (ns), or why it could not be made.
pub type Checked = Result<(Vec<CheckedDifference>, i64), String>;

/// A check that the back is asked for.
pub struct Check {
    /// Whether to mend.
    pub repair: bool,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Checked>,
}

/// What answers admin commands.
pub struct AdminService {
    store: Store,
    engine: Engine,
    state_dir: PathBuf,
    imports: mpsc::Sender<Import>,
    checks: mpsc::Sender<Check>,
    image_checks: mpsc::Sender<ImageCheck>,
    metrics: MetricsPage,
}

impl AdminService {
    /// Joins what the service needs.
    #[must_use]
    pub fn new(
        store: Store,
        engine: Engine,
        state_dir: PathBuf,
        imports: mpsc::Sender<Import>,
        (checks, image_checks): (mpsc::Sender<Check>, mpsc::Sender<ImageCheck>),
        metrics: MetricsPage,
    ) -> Self {
        Self {
            store,
            engine,
            state_dir,
            imports,
            checks,
            image_checks,
            metrics,
        }
    }
}

fn internal(error: StateError) -> Status {
    Status::internal(error.to_string())
}

fn limit(asked: u32, default: u32) -> u32 {
    if asked == 0 {
        default
    } else {
        asked.min(LIMIT_MAX)
    }
}

fn going_down() -> Status {
    Status::unavailable("the daemon is shutting down")
}

#[tonic::async_trait]
impl v1::admin_server::Admin for AdminService {
    async fn info(
        &self,
        _request: Request<v1::InfoRequest>,
    ) -> Result<Response<v1::InfoResponse>, Status> {
        let last_rebuild = self.store.fact(LAST_REBUILD).await.map_err(internal)?;
        Ok(Response::new(v1::InfoResponse {
            last_rebuild: last_rebuild.unwrap_or_default(),
            storage_problem: self.store.storage_problem().unwrap_or_default(),
            version: self.engine.version.clone(),
            pid: i32::try_from(self.engine.pid).unwrap_or_default(),
            started_at_ns: self.engine.started_at_ns,
            endpoint: self.engine.endpoint.clone(),
            root: self.engine.root.display().to_string(),
            state: self.state_dir.display().to_string(),
        }))
    }

    async fn metrics(
        &self,
        _request: Request<v1::MetricsRequest>,
    ) -> Result<Response<v1::MetricsResponse>, Status> {
        let text = self.metrics.text().await;
        Ok(Response::new(v1::MetricsResponse { text }))
    }

    async fn import_image(
        &self,
        request: Request<v1::ImportImageRequest>,
    ) -> Result<Response<v1::ImportImageResponse>, Status> {
        let request = request.into_inner();
        let path = PathBuf::from(&request.path);
        if !path.is_absolute() {
            return Err(Status::invalid_argument("path: is not an absolute path"));
        }
        let reference = Some(request.reference).filter(|reference| !reference.is_empty());
        let (answer, answered) = oneshot::channel();
        let import = Import {
            path,
            reference,
            answer,
        };
        self.imports.send(import).await.map_err(|_| going_down())?;
        let images = answered.await.map_err(|_| going_down())?;
        let images = images
            .map_err(Status::failed_precondition)?
            .into_iter()
            .map(|(image_id, references)| v1::ImportedImage {
                image_id,
                references,
            })
            .collect();
        Ok(Response::new(v1::ImportImageResponse { images }))
    }

    async fn list_operations(
        &self,
        request: Request<v1::ListOperationsRequest>,
    ) -> Result<Response<v1::ListOperationsResponse>, Status> {
        let request = request.into_inner();
        let limit = limit(request.limit, 50);
        let found = self
            .store
            .operations(&request.object_id, limit)
            .await
            .map_err(internal)?;
        let operations = found
            .into_iter()
            .map(|operation| v1::Operation {
                kind: operation.kind,
                object_id: operation.object_id,
                started_at_ns: operation.started_at,
                duration_ns: operation.duration_ns,
                error: operation.error.unwrap_or_default(),
                stages: operation
                    .stages
                    .into_iter()
                    .map(|(name, duration_ns)| v1::Stage { name, duration_ns })
                    .collect(),
            })
            .collect();
        Ok(Response::new(v1::ListOperationsResponse { operations }))
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        let request = request.into_inner();
        let limit = limit(request.limit, 200);
        let found = self
            .store
            .events(&request.object_id, request.after_sequence, limit)
            .await
            .map_err(internal)?;
        let events = found
            .into_iter()
            .map(|event| v1::Event {
                sequence: event.sequence,
                at_ns: event.at,
                object_id: event.object_id,
                kind: event.kind,
                message: event.message,
            })
            .collect();
        Ok(Response::new(v1::ListEventsResponse { events }))
    }

    async fn check(
        &self,
        request: Request<v1::CheckRequest>,
    ) -> Result<Response<v1::CheckResponse>, Status> {
        let repair = request.into_inner().repair;
        let (answer, answered) = oneshot::channel();
        let check = Check { repair, answer };
        self.checks.send(check).await.map_err(|_| going_down())?;
        let checked = answered.await.map_err(|_| going_down())?;
        let (differences, duration_ns) = checked.map_err(Status::internal)?;
        let differences = differences
            .into_iter()
            .map(|checked| v1::Difference {
                kind: checked.difference.kind.as_str().into(),
                resource: checked.difference.thing.as_str().into(),
                name: checked.difference.name,
                owner: checked.difference.owner,
                detail: checked.difference.detail,
                repair: checked.difference.repair.text().into(),
                mended: checked.mended,
                error: checked.error,
            })
            .collect();
        Ok(Response::new(v1::CheckResponse {
            differences,
            duration_ns,
        }))
    }

    async fn check_images(
        &self,
        request: Request<v1::CheckImagesRequest>,
    ) -> Result<Response<BoxStream<v1::CheckedImagePart>>, Status> {
        let (check, parts) = ImageCheck::of(request.into_inner());
        let sent = self.image_checks.send(check).await;
        sent.map_err(|_| going_down())?;
        let parts = ReceiverStream::new(parts).map(image_check::message);
        Ok(Response::new(Box::pin(parts)))
    }

    async fn inventory(
        &self,
        _request: Request<v1::InventoryRequest>,
    ) -> Result<Response<v1::InventoryResponse>, Status> {
        let rows = self.store.count_rows().await.map_err(internal)?;
        Ok(Response::new(v1::InventoryResponse {
            rows: rows.into_iter().collect(),
        }))
    }
}
