//! A further process in a running container, from clone to exec, in numbered steps.
//!
//! Runs in the child, which is born in the container's PID namespace and is not dumpable, so that
//! the container's processes, which see it from then on, cannot get at it.

use std::convert::Infallible;
use std::os::fd::AsFd;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{setsid, umask};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::capabilities::{self, Last, Sets};
use super::command::{self, Command};
use super::confine::Confinement;
use super::container::find_user;
use super::error::{At, LaunchError, stage};
use super::launch::{ProcessStreams, Target};
use super::limits::Inherited;
use super::plan::ExecPlan;
use super::protect::leave_keyring;
use super::root::Root;
use super::spawn::{Born, reached};
use super::user_namespace::{self, root_of};
use super::{cgroup_entry, channel, limits, terminal};

/// Joins the container of `target` and becomes the command.
pub(super) fn run(
    target: &Target,
    plan: &ExecPlan,
    inherited: &Inherited,
    streams: Option<ProcessStreams>,
    born: &Born<'_>,
) -> Result<Infallible, LaunchError> {
    let mut command = Command::new(&plan.args, &plan.env, &plan.environment_bytes)?;
    let sets = Sets::from_names(&plan.capabilities)?;

    // 1. A session of its own.
    umask(Mode::empty());
    setsid().at(stage::CLONE, || "begin a session")?;
    leave_keyring().at(stage::CLONE, || "leave the session keyring")?;

    // 2. Cgroups, limits, OOM score and confinement, by the node's paths.
    reached(stage::CGROUP);
    cgroup_entry::enter(&plan.cgroup, born.in_cgroup)?;
    limits::inherit(inherited)?;

    let profile = plan.apparmor_profile.as_deref();
    let confinement = Confinement::prepare(profile, plan.seccomp.as_ref())?;

    // 3. All namespaces at once, by the pidfd: the process that is joined is the one that was
    //    meant. With the mount namespace come its root and the working directory, with a user
    //    namespace the loss of all rights outside.
    reached(stage::NAMESPACE);
    let mut all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    if let Some(users) = &plan.users {
        let root = root_of(users).ok_or_else(|| {
            LaunchError::invalid(stage::PLAN, "the container's user namespace has no root")
        })?;
        if let Some(streams) = &streams {
            command::give_streams(streams, root)?;
        }
        all |= ThreadNameSpaceType::USER;
    }
    move_into_thread_name_spaces(target.pidfd.as_fd(), all).map_err(|errno| {
        let what = match errno {
            Errno::SRCH => "the container has ended",
            _ => "join the namespaces of the container",
        };
        LaunchError::refused(stage::NAMESPACE, what, errno)
    })?;
    if plan.users.is_some() {
        user_namespace::stay_protected()?;
        user_namespace::become_root()?;
    }
    let root = Root::of_this_process().at(stage::NAMESPACE, || "open the container's root")?;

    // 4. The terminal or the streams.
    let streams = match streams {
        Some(streams) => streams,
        None => {
            reached(stage::TERMINAL);
            let terminal = terminal::open(&root, None)?;
            channel::send_terminal(born.channel, &terminal.master)
                .at(stage::TERMINAL, || "hand over the terminal")?;
            terminal::into_streams(terminal.slave)?
        }
    };

    // 5. The user, by the files as they are now in the container, and what belongs to them.
    reached(stage::USER);
    let account = find_user(&root, &plan.user)?;
    if let Some(maps) = &plan.users {
        user_namespace::check(maps, &account.identity)?;
    }
    command.set_missing_home(&account.home);
    command::own_streams(&streams, account.identity.uid)?;
    reached(stage::CWD);
    command::enter_directory(&root, &plan.cwd)?;
    umask(Mode::from_raw_mode(0o022));

    // 6. The same end as a container's first process.
    channel::send_identity(born.channel, &account.identity)
        .at(stage::EXEC, || "report the user")?;
    command::install_streams(streams)?;
    let last = Last::of(&confinement, plan.no_new_privileges);
    capabilities::become_user(&account.identity, sets, last)?;
    reached(stage::EXEC);
    command.exec(&confinement)
}
