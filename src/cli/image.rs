//! `quiltd image …`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use super::image_check::Check;
use super::output::Format;
use super::{Asking, image_check, link};
use crate::proto::admin::ImportImageRequest;

#[derive(clap::Subcommand)]
pub(super) enum Image {
    /// Load an image from a file: an OCI layout (directory or tar) or a docker archive.
    Import(Import),
    /// Compare images on the disk with what they were: 0 all whole or repaired, 1 something is
    /// damaged, 2 it could not be checked.
    Check(Check),
}

#[derive(clap::Args)]
pub(super) struct Import {
    /// The layout or archive.
    file: PathBuf,
    /// Name for an image that the archive does not name.
    #[arg(long)]
    reference: Option<String>,
    #[command(flatten)]
    asking: Asking,
}

/// Ends as the command that it is says.
pub(super) fn run(image: &Image) -> anyhow::Result<ExitCode> {
    match image {
        Image::Import(import) => link::block_on(load(import)).map(|()| ExitCode::SUCCESS),
        Image::Check(check) => Ok(image_check::run(check)),
    }
}

async fn load(import: &Import) -> anyhow::Result<()> {
    // The daemon has another working directory.
    let path = std::fs::canonicalize(&import.file)
        .with_context(|| format!("cannot open {}", import.file.display()))?;
    let path = path.into_os_string().into_string();
    let path = path.map_err(|path| anyhow::anyhow!("{path:?} is not UTF-8"))?;
    let mut client = link::connect(&import.asking.daemon.state).await?;
    let request = ImportImageRequest {
        path,
        reference: import.reference.clone().unwrap_or_default(),
    };
    let images = link::answer(client.import_image(request).await)?.images;
    match import.asking.output {
        Format::Json => {
            let images: Vec<_> = images
                .iter()
                .map(|image| serde_json::json!({"id": image.image_id, "tags": image.references}))
                .collect();
            println!("{}", serde_json::Value::from(images));
        }
        Format::Table => {
            for image in images {
                println!("{} {}", image.image_id, image.references.join(" "));
            }
        }
    }
    Ok(())
}
