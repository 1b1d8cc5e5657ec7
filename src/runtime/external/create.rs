//! A container of a runtime, in the driver: rootfs, bundle, `create`, `start`.

use std::convert::Infallible;
use std::ffi::OsStr;

use rustix::process::Pid;

use super::super::channel;
use super::super::command;
use super::super::container::find_user;
use super::super::error::{At, LaunchError, stage};
use super::super::launch::ProcessStreams;
use super::super::plan::{ExternalRuntime, LaunchPlan};
use super::super::root::Root;
use super::super::rootfs::{self, OverlayInterface, Site};
use super::super::scratch::move_to;
use super::super::spawn::{Born, reached};
use super::super::user::Identity;
use super::super::user_namespace::{self, Users};
use super::bundle;
use super::console::Console;
use super::driver::{Driver, enter_cgroups};
use crate::sys::process::exit_now;

/// In the bundle: where the runtime writes the process id.
const PID_FILE: &str = "pid";

/// Has the runtime start the container, and ends when the shim knows its process.
pub(super) fn run(
    plan: &LaunchPlan,
    runtime: &ExternalRuntime,
    overlay: OverlayInterface,
    streams: Option<ProcessStreams>,
    born: &Born<'_>,
) -> Result<Infallible, LaunchError> {
    reached(stage::RUNTIME);
    let mut driver = Driver::begin(runtime)?;
    match create(&driver, plan, overlay, streams, born) {
        Ok(()) => exit_now(0),
        Err(error) => {
            driver.abandon();
            Err(error)
        }
    }
}

fn create(
    driver: &Driver<'_>,
    plan: &LaunchPlan,
    overlay: OverlayInterface,
    streams: Option<ProcessStreams>,
    born: &Born<'_>,
) -> Result<(), LaunchError> {
    let runtime = driver.runtime;
    driver.refuse_bytes(&plan.environment_bytes)?;
    // 1. What a launch that was cut short has left.
    if runtime.root.join(&runtime.id).exists() {
        driver.delete()?;
    }

    // 2. The rootfs, which nobody sees but us and the container. Whose files are shown as whose is
    //    done here, where the node's root can: not every runtime knows how.
    reached(stage::ROOTFS);
    let users = Users::in_plan(&plan.spec)?;
    let users = users.as_ref();
    let site = Site {
        users: users.map(Users::namespace),
        ..Site::of_node(plan, overlay)
    };
    bundle::keep_mounts_inside(&plan.rootfs.mount_point)?;
    let sources = bundle::mount_sources(plan, site, users)?;
    if let Some(users) = users {
        rootfs::give_upper(&plan.rootfs, users.root()?)?;
    }
    let tree = rootfs::assemble(&plan.rootfs, site)?;
    move_to(&tree, &plan.rootfs.mount_point)?;
    let root = Root::at(tree);

    // 3. Who it runs as, by the files of the image, and the bundle that says so.
    reached(stage::USER);
    let account = find_user(&root, &plan.user)?;
    drop(root);
    let owner = match users {
        Some(users) => Some(user_namespace::check(users.maps(), &account.identity)?),
        None => None,
    };
    bundle::write(plan, runtime, &account, &sources)?;

    // 4. The streams become ours, and with that the runtime's.
    let console = match streams {
        Some(streams) => {
            match owner {
                Some(owner) => command::give_streams(&streams, owner)?,
                None => command::own_streams(&streams, account.identity.uid)?,
            }
            command::install_streams(streams)?;
            None
        }
        None => Some(Console::listen("console.sock".to_owned())?),
    };

    // 5. The runtime's turn.
    reached(stage::RUNTIME);
    let bundle = runtime.bundle.as_os_str();
    let mut arguments: Vec<&OsStr> = vec![
        "--bundle".as_ref(),
        bundle,
        "--pid-file".as_ref(),
        PID_FILE.as_ref(),
    ];
    if let Some(console) = &console {
        arguments.extend::<[&OsStr; 2]>(["--console-socket".as_ref(), console.name.as_ref()]);
    }
    arguments.push(runtime.id.as_ref());
    driver.call("create", &arguments, console.is_none())?;
    let (pid, pidfd) = driver.process(PID_FILE)?;
    let terminal = console.map(|console| console.receive(driver.until()));
    let terminal = terminal.transpose()?;
    enter_cgroups(pid, &plan.cgroup)?;
    driver.call("start", &[runtime.id.as_ref()], false)?;

    // 6. Everything at once: whoever reads half of it reads none.
    let what = || "tell of the process";
    if let Some(master) = terminal {
        channel::send_terminal(born.channel, &master).at(stage::RUNTIME, what)?;
    }
    tell(born, &account.identity, pid, &pidfd)
}

/// Tells the shim whose process this is from now on.
pub(super) fn tell(
    born: &Born<'_>,
    identity: &Identity,
    pid: Pid,
    pidfd: impl std::os::fd::AsFd,
) -> Result<(), LaunchError> {
    let what = || "tell of the process";
    channel::send_identity(born.channel, identity).at(stage::RUNTIME, what)?;
    let pid = pid.as_raw_nonzero().get();
    channel::send_process(born.channel, pid, pidfd).at(stage::RUNTIME, what)
}
