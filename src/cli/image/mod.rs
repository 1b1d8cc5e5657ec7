//! `quiltd image …`: pulling, listing and removing as clients of CRI do it; looking into images;
//! and images as files.

mod check;
mod export;
mod find;
mod import;
mod inspect;
mod layout;
mod progress;
mod pull;
mod remove;
mod watch;

use std::process::ExitCode;

use super::{images, link, output};

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
    /// Compare images on the disk with what they were: 0 all whole or repaired, 1 something is
    /// damaged, 2 it could not be checked.
    Check(check::Check),
}

/// Ends as the command that it is says.
pub(super) fn run(image: &Image) -> anyhow::Result<ExitCode> {
    match image {
        Image::Check(check) => Ok(check::run(check)),
        other => link::block_on(ask(other)).map(|()| ExitCode::SUCCESS),
    }
}

async fn ask(image: &Image) -> anyhow::Result<()> {
    match image {
        Image::Pull(pull) => pull::run(pull).await,
        Image::List(reading) => images::run(reading).await,
        Image::Inspect(inspect) => inspect::run(inspect).await,
        Image::Remove(remove) => remove::run(remove).await,
        Image::Import(import) => import::run(import).await,
        Image::Export(export) => export::run(export).await,
        // It has exit statuses of its own.
        Image::Check(_) => Ok(()),
    }
}
