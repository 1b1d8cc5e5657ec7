//! `quiltd image …`

use std::path::PathBuf;

use anyhow::Context;

use super::output::Format;
use super::{Asking, link};
use crate::proto::admin::ImportImageRequest;

#[derive(clap::Subcommand)]
pub(super) enum Image {
    /// Load an image from a file: an OCI layout (directory or tar) or a docker archive.
    Import(Import),
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

pub(super) async fn run(image: &Image) -> anyhow::Result<()> {
    let Image::Import(import) = image;
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
