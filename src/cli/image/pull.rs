//! `quiltd image pull`: CRI's PullImage, while the rows of its progress are shown.

use super::watch::watch;
use crate::cli::link;
use crate::cli::place::Place;
use crate::image::Reference;
use crate::proto::cri::{AuthConfig, ImageSpec, PullImageRequest};

#[derive(clap::Args)]
pub(in crate::cli) struct Pull {
    /// Name of the image.
    image: String,
    /// USER:PASSWORD for the registry. Other users of the node see it while this runs; the
    /// daemon's own credentials file serves as well.
    #[arg(long)]
    creds: Option<String>,
    #[command(flatten)]
    place: Place,
}

pub(super) async fn run(pull: &Pull) -> anyhow::Result<()> {
    let reference: Reference = pull.image.parse()?;
    let reference = reference.to_string();
    let auth = pull.creds.as_ref().map(|creds| {
        let (username, password) = creds.split_once(':').unwrap_or((creds, ""));
        AuthConfig {
            username: username.to_owned(),
            password: password.to_owned(),
            ..Default::default()
        }
    });
    let request = PullImageRequest {
        image: Some(ImageSpec {
            image: reference.clone(),
            user_specified_image: pull.image.clone(),
            ..Default::default()
        }),
        auth,
        sandbox_config: None,
    };
    let mut client = link::images(pull.place.state()).await?;
    let work = client.pull_image(request);
    let pulled = link::answer(watch(&pull.place, &reference, work).await)?;
    println!("{}", pulled.image_ref);
    Ok(())
}
