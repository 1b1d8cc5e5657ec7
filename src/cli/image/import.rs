//! `quiltd image import`

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::watch::watch;
use crate::cli::link;
use crate::cli::output::Format;
use crate::cli::place::Place;
use crate::proto::admin::ImportImageRequest;

/// The name under which the daemon tells the progress of an import.
const IMPORT: &str = "import";

#[derive(clap::Args)]
pub(in crate::cli) struct Import {
    /// The layout or archive; `-` is an archive from standard input.
    file: PathBuf,
    /// Name for an image that the archive does not name.
    #[arg(long, visible_alias = "name")]
    reference: Option<String>,
    #[command(flatten)]
    place: Place,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Interrupted, the command goes, and the daemon gives the import up.
pub(super) async fn run(import: &Import) -> anyhow::Result<()> {
    let mut client = link::connect(import.place.state()).await?;
    let spooled = match import.file == Path::new("-") {
        true => Some(Spooled::from_stdin(&import.place.root()?)?),
        false => None,
    };
    let file = spooled.as_ref().map_or(&import.file, |spooled| &spooled.0);
    // The daemon has another working directory.
    let path = std::fs::canonicalize(file)
        .with_context(|| format!("cannot open {}", import.file.display()))?;
    let path = path.into_os_string().into_string();
    let path = path.map_err(|path| anyhow::anyhow!("{path:?} is not UTF-8"))?;
    let request = ImportImageRequest {
        path,
        reference: import.reference.clone().unwrap_or_default(),
    };
    let work = watch(&import.place, IMPORT, client.import_image(request));
    let answer = tokio::select! {
        answer = work => answer,
        _ = tokio::signal::ctrl_c() => {
            anyhow::bail!("interrupted: the daemon gives the import up")
        }
    };
    let images = link::answer(answer)?.images;
    match import.output {
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

/// A copy of standard input beside the images, where there is room for them if anywhere; it goes
/// with this value, or with the daemon's next start.
struct Spooled(PathBuf);

impl Spooled {
    fn from_stdin(root: &Path) -> anyhow::Result<Self> {
        let path = root.join(format!("staging/import-{}.tar", std::process::id()));
        let shown = path.display().to_string();
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).open(&path);
        let mut file = file.with_context(|| format!("cannot make {shown}"))?;
        let spooled = Self(path);
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        io::copy(&mut io::stdin().lock(), &mut file)
            .with_context(|| format!("cannot copy standard input to {shown}"))?;
        Ok(spooled)
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        // What stays is emptied out of `staging` when the daemon starts.
        let _ = std::fs::remove_file(&self.0);
    }
}
