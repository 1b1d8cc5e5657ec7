//! `quiltd info`

use std::path::Path;

use super::link;
use crate::proto::admin::InfoRequest;

pub(super) async fn run(state: &Path) -> anyhow::Result<()> {
    let mut client = link::connect(state).await?;
    let info = link::answer(client.info(InfoRequest {}).await)?;
    println!("version   {}", info.version);
    println!("pid       {}", info.pid);
    println!("endpoint  {}", info.endpoint);
    println!("root      {}", info.root);
    println!("state     {}", info.state);
    for (name, text) in [
        ("rebuilt", info.last_rebuild),
        ("trouble", info.storage_problem),
    ] {
        if !text.is_empty() {
            println!("{name:9} {text}");
        }
    }
    Ok(())
}
