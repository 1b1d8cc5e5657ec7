//! A further process in a container of a runtime, in the driver: `exec`.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs;

use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilitiesBuilder, Process, ProcessBuilder, UserBuilder,
};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::getpid;

use super::super::capabilities;
use super::super::cgroup_entry;
use super::super::channel;
use super::super::command;
use super::super::container::find_user;
use super::super::error::{At, LaunchError, stage};
use super::super::launch::{ProcessStreams, Target};
use super::super::limits::Inherited;
use super::super::plan::{CgroupEntry, ExecPlan, ExternalRuntime};
use super::super::root::Root;
use super::super::spawn::{Born, reached};
use super::super::user::Account;
use super::super::user_namespace;
use super::console::Console;
use super::create::tell;
use super::driver::{Driver, as_errno, end_children};
use crate::sys::ownership::write_private;
use crate::sys::process::exit_now;

/// Has the runtime start the process, and ends when the shim knows it.
pub(super) fn run(
    target: &Target,
    plan: &ExecPlan,
    runtime: &ExternalRuntime,
    inherited: &Inherited,
    streams: Option<ProcessStreams>,
    born: &Born<'_>,
) -> Result<Infallible, LaunchError> {
    reached(stage::RUNTIME);
    let driver = Driver::begin(runtime)?;
    match exec(&driver, target, plan, inherited, streams, born) {
        Ok(()) => exit_now(0),
        Err(error) => {
            end_children();
            Err(error)
        }
    }
}

fn exec(
    driver: &Driver<'_>,
    target: &Target,
    plan: &ExecPlan,
    inherited: &Inherited,
    streams: Option<ProcessStreams>,
    born: &Born<'_>,
) -> Result<(), LaunchError> {
    let runtime = driver.runtime;
    driver.refuse_bytes(&plan.environment_bytes)?;
    let account = account(target, plan)?;
    let own = getpid();
    let names = [format!("exec-{own}.json"), format!("exec-{own}.pid")];
    let [process_file, pid_file] = &names;
    let process = process(plan, &account, inherited, streams.is_none());
    let process = process.map_err(|error| LaunchError::invalid(stage::RUNTIME, error))?;
    let json = serde_json::to_vec(&process);
    let json = json.map_err(|error| LaunchError::invalid(stage::RUNTIME, error))?;
    write_private(process_file.as_ref(), &json)
        .map(drop)
        .map_err(as_errno)
        .at(stage::RUNTIME, || "write the process down")?;
    let console = match streams {
        Some(streams) => {
            match &plan.users {
                Some(maps) => {
                    let owner = user_namespace::check(maps, &account.identity)?;
                    command::give_streams(&streams, owner)?;
                }
                None => command::own_streams(&streams, account.identity.uid)?,
            }
            command::install_streams(streams)?;
            None
        }
        None => Some(Console::listen(format!("exec-{own}.sock"))?),
    };
    enter_leaf(&plan.cgroup)?;
    let mut arguments: Vec<&OsStr> = vec![
        "--detach".as_ref(),
        "--process".as_ref(),
        process_file.as_ref(),
        "--pid-file".as_ref(),
        pid_file.as_ref(),
    ];
    if let Some(console) = &console {
        arguments.extend::<[&OsStr; 2]>(["--console-socket".as_ref(), console.name.as_ref()]);
    }
    arguments.push(runtime.id.as_ref());
    let called = driver.call("exec", &arguments, console.is_none());
    let found = called.and_then(|()| driver.process(pid_file));
    for name in &names {
        let _ = fs::remove_file(name);
    }
    let (pid, pidfd) = found?;
    if let Some(leaf) = &plan.cgroup.unified_dir {
        // Where the runtime has put it into the container's own. One that has ended needs no place.
        let _ = fs::write(leaf.join("cgroup.procs"), pid.as_raw_nonzero().to_string());
    }
    let what = || "tell of the process";
    if let Some(console) = console {
        let master = console.receive(driver.until())?;
        channel::send_terminal(born.channel, &master).at(stage::RUNTIME, what)?;
    }
    tell(born, &account.identity, pid, &pidfd)
}

/// Beside hierarchies of cgroup v1, some runtimes leave the unified one alone: what they start is
/// born in the leaf that we are in. Where the unified one is all there is, what we do would count
/// as the container's, and the command is moved when it runs.
fn enter_leaf(cgroup: &CgroupEntry) -> Result<(), LaunchError> {
    if cgroup.v1_tasks_files.is_empty() {
        return Ok(());
    }
    let leaf = CgroupEntry {
        oom_counter: None,
        unified_dir: cgroup.unified_dir.clone(),
        v1_tasks_files: Vec::new(),
    };
    cgroup_entry::enter(&leaf, false)
}

/// Who the process runs as, by the files that the container has now.
fn account(target: &Target, plan: &ExecPlan) -> Result<Account, LaunchError> {
    reached(stage::USER);
    let path = format!("/proc/{}/root", target.pid);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, &path, flags, Mode::empty());
    let root = root.at(stage::USER, || "open the container's root")?;
    find_user(&Root::at(root), &plan.user)
}

/// The process as an OCI runtime takes it (`process.json`).
fn process(
    plan: &ExecPlan,
    account: &Account,
    inherited: &Inherited,
    terminal: bool,
) -> Result<Process, oci_spec::OciSpecError> {
    let names = plan.capabilities.iter();
    let all = names.map(|name| name.trim_start_matches("CAP_").parse::<Capability>());
    let all: Capabilities = all
        .collect::<Result<_, _>>()
        .map_err(|error| oci_spec::OciSpecError::Other(error.to_string()))?;
    let none = Capabilities::new();
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(all.clone())
        .permitted(all.clone())
        .effective(all)
        .inheritable(none.clone())
        .ambient(none)
        .build()?;
    let capabilities = capabilities::of_this_node(&capabilities);
    let user = UserBuilder::default()
        .uid(account.identity.uid)
        .gid(account.identity.gid)
        .additional_gids(account.identity.groups.clone())
        .build()?;
    let mut environment = plan.env.clone();
    if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
        environment.push(format!("HOME={}", String::from_utf8_lossy(&account.home)));
    }
    let mut process = ProcessBuilder::default()
        .terminal(terminal)
        .args(plan.args.clone())
        .env(environment)
        .cwd(&plan.cwd)
        .user(user)
        .capabilities(capabilities)
        .rlimits(inherited.rlimits()?)
        .no_new_privileges(plan.no_new_privileges);
    if let Some(score) = inherited.oom_score_adj() {
        process = process.oom_score_adj(score);
    }
    if let Some(profile) = &plan.apparmor_profile {
        process = process.apparmor_profile(profile);
    }
    process.build()
}
