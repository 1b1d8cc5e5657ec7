//! `quiltd metrics`

use std::path::Path;

use super::link;
use crate::proto::admin::MetricsRequest;

pub(super) async fn run(state: &Path) -> anyhow::Result<()> {
    let mut client = link::connect(state).await?;
    let page = link::answer(client.metrics(MetricsRequest {}).await)?;
    print!("{}", page.text);
    Ok(())
}
