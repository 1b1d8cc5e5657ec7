//! Who makes the cgroups: as configured, and not another than the one that has made those which are
//! there.

use std::path::Path;

use anyhow::Context;

use crate::cgroup::{CgroupConfig, Cgroups, Driver, Systemd};
use crate::lifecycle::slice;
use crate::reconcile::Back;
use crate::state::node::CGROUP_DRIVER;
use crate::state::sandbox::SandboxFilter;

/// The node's hierarchies, with systemd to make cgroups in them if that is configured.
pub(super) async fn find(config: &CgroupConfig, executable: &Path) -> anyhow::Result<Cgroups> {
    let (driver, executable) = (config.driver, executable.to_owned());
    let find = move || {
        let found = Cgroups::probe(Path::new("/sys/fs/cgroup"))?;
        match driver {
            Driver::Cgroupfs => Ok(found),
            Driver::Systemd => found.with_systemd(Systemd::new(executable)),
        }
    };
    let found = tokio::task::spawn_blocking(find).await?;
    found.with_context(|| {
        let driver = driver.as_str();
        format!("cgroup.driver is {driver:?}, which this node does not have; see quiltd doctor")
    })
}

/// Refuses to look for the cgroups of pods that are up where another driver has not put them.
pub(super) async fn keep_driver(back: &Back, driver: Driver) -> anyhow::Result<()> {
    let recorded = back.store.fact(CGROUP_DRIVER).await?;
    let ready = SandboxFilter {
        ready: Some(true),
        ..Default::default()
    };
    let pods = back.store.sandboxes(&ready).await?;
    let changed = recorded.is_some_and(|recorded| recorded != driver.as_str());
    let elsewhere = pods.iter().filter(|pod| {
        let parent = &pod.spec.cgroup_parent;
        match parent.is_empty() {
            true => changed,
            false => slice::is_slice(parent) != (driver == Driver::Systemd),
        }
    });
    let elsewhere = elsewhere.count();
    anyhow::ensure!(
        elsewhere == 0,
        "cgroup.driver is {:?}, but {elsewhere} pods are up whose cgroups the other driver has \
         made: set it back, stop them (kubectl drain; crictl stopp), and then change it",
        driver.as_str(),
    );
    Ok(back.observed.record_cgroup_driver(driver.as_str()).await?)
}
