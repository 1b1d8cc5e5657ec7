//! `quiltd explain`: the life of a pod, a container or an image, from the database alone.

mod story;

use std::io::Write;

use anyhow::bail;

use super::find;
use super::output::{Format, Reading, stdout};
use story::Story;

#[derive(clap::Args)]
pub(super) struct Explain {
    /// Id of a pod, container or image, or its beginning; a name ([namespace/]pod,
    /// [[namespace/]pod/]container); or the reference of an image. Without it: the newest of
    /// everything.
    id: Option<String>,
    #[command(flatten)]
    reading: Reading,
}

pub(super) async fn run(explain: &Explain) -> anyhow::Result<()> {
    let mut inspector = explain.reading.place.open().await?;
    // One moment for all that is read, however much happens meanwhile.
    inspector.hold_still().await?;
    let story = match &explain.id {
        None => Story::of_all(&mut inspector).await?,
        Some(name) => {
            let found = find::find(&mut inspector, name).await?;
            let [object] = found.as_slice() else {
                if found.is_empty() {
                    bail!("no pod, container or image is, or was, called {name:?}");
                }
                let list: Vec<_> = found.iter().map(|object| object.to_string()).collect();
                bail!("{name:?} may be one of several:\n  {}", list.join("\n  "));
            };
            Story::of(&mut inspector, object).await?
        }
    };
    let mut out = stdout();
    match explain.reading.output {
        Format::Json => writeln!(out, "{}", story.json())?,
        Format::Table => story.tell(&mut out)?,
    }
    Ok(out.flush()?)
}
