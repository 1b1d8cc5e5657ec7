//! `quiltd image remove`

use anyhow::bail;

use crate::cli::{StateDir, link};
use crate::proto::cri::{ImageSpec, ImageStatusRequest, RemoveImageRequest};

#[derive(clap::Args)]
pub(in crate::cli) struct Remove {
    /// Names, ids, or beginnings of ids.
    #[arg(required = true)]
    images: Vec<String>,
    #[command(flatten)]
    daemon: StateDir,
}

/// Each by itself: one that cannot be removed keeps no other.
pub(super) async fn run(remove: &Remove) -> anyhow::Result<()> {
    let mut client = link::images(&remove.daemon.state).await?;
    let mut failed = 0;
    for name in &remove.images {
        let image = Some(ImageSpec {
            image: name.clone(),
            ..Default::default()
        });
        let asked = ImageStatusRequest {
            image: image.clone(),
            verbose: false,
        };
        // Removing what is not there is success to CRI; to a person it is a slip.
        let outcome = match link::answer(client.image_status(asked).await) {
            Ok(status) => match status.image {
                Some(found) => {
                    let removed = client.remove_image(RemoveImageRequest { image }).await;
                    link::answer(removed).map(|_| found.id)
                }
                None => Err(anyhow::anyhow!("there is no such image")),
            },
            Err(error) => Err(error),
        };
        match outcome {
            Ok(id) => println!("{id}"),
            Err(error) => {
                eprintln!("quiltd: {name}: {error:#}");
                failed += 1;
            }
        }
    }
    if failed > 0 {
        bail!(
            "{failed} of {} images were not removed",
            remove.images.len()
        );
    }
    Ok(())
}
