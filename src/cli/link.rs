//! From a command to the running daemon.

use std::future::Future;
use std::path::{Path, PathBuf};

use anyhow::Context;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::engine::Engine;
use crate::proto::admin::admin_client::AdminClient;
use crate::proto::cri::image_service_client::ImageServiceClient;

pub(super) type Client = AdminClient<Channel>;

/// Runs a command that talks.
pub(super) fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?
        .block_on(work)
}

/// Finds the daemon of a state directory and connects.
pub(super) async fn connect(state: &Path) -> anyhow::Result<Client> {
    Ok(AdminClient::new(
        channel(engine(state)?.admin_socket).await?,
    ))
}

fn engine(state: &Path) -> anyhow::Result<Engine> {
    Engine::read(state).with_context(|| {
        let state = state.display();
        format!("no daemon runs here: cannot read {state}/engine.json (--state names another)")
    })
}

async fn channel(socket: PathBuf) -> anyhow::Result<Channel> {
    let path = socket.clone();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .with_context(|| format!("cannot connect to {}", socket.display()))
}

/// Finds the daemon of a state directory and connects to its image service, as kubelet does.
pub(super) async fn images(state: &Path) -> anyhow::Result<ImageServiceClient<Channel>> {
    let endpoint = engine(state)?.endpoint;
    let socket = endpoint.strip_prefix("unix://").unwrap_or(&endpoint);
    Ok(ImageServiceClient::new(channel(socket.into()).await?))
}

/// An answer of the daemon, or its error without gRPC's wrapping.
pub(super) fn answer<T>(result: Result<tonic::Response<T>, tonic::Status>) -> anyhow::Result<T> {
    said(result.map(tonic::Response::into_inner))
}

/// What the daemon said, or its error without gRPC's wrapping.
pub(super) fn said<T>(result: Result<T, tonic::Status>) -> anyhow::Result<T> {
    result.map_err(|status| anyhow::anyhow!("{}", status.message()))
}
