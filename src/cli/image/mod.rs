//! `quiltd image …`: pulling, listing and removing as clients of CRI do it; looking into images;
//! and images as files.

mod export;
mod find;
mod import;
mod inspect;
mod layout;
mod progress;
mod pull;
mod remove;
mod watch;

use super::{images, output};

#[derive(clap::Subcommand)]
pub(super) enum Image {
    /// Pull an image, as kubelet would.
    Pull(pull::Pull),
    /// List images (the same as `quiltd images`).
    List(output::Reading),
    /// Tell everything about an image: its configuration, layers, names, and who uses it (JSON).
    Inspect(inspect::Inspect),
    /// Remove images with all their names; layers that a container stands on stay.
    Remove(remove::Remove),
    /// Load images from a file: an OCI layout (directory or tar) or a docker archive.
    Import(import::Import),
    /// Write images to a file: an OCI layout as a tar, the same bytes as in their registry.
    Export(export::Export),
}

pub(super) async fn run(image: &Image) -> anyhow::Result<()> {
    match image {
        Image::Pull(pull) => pull::run(pull).await,
        Image::List(reading) => images::run(reading).await,
        Image::Inspect(inspect) => inspect::run(inspect).await,
        Image::Remove(remove) => remove::run(remove).await,
        Image::Import(import) => import::run(import).await,
        Image::Export(export) => export::run(export).await,
    }
}
