//! Cgroups that systemd makes: a container's is a transient scope in a slice of its own
//! (`lifecycle/slice.rs` says why), asked for over D-Bus (org.freedesktop.systemd1(5)).
//!
//! ```text
//! start:  StartTransientUnit(scope, Slice=, PIDs=, Delegate=), limits to the kernel's files, and
//!         the same to systemd, as properties
//! update: the kernel's files, then SetUnitProperties          end: StopUnit(slice)
//! ```
//!
//! The kernel's files are written by us, as without systemd: it refuses what it does not take, and
//! has limits that systemd knows nothing of. systemd is told afterwards what holds, so that it sets
//! nothing else when it is reloaded.
//!
//! Each piece of work has a connection of its own and is bounded in time.

mod bus;
mod holder;
mod message;
mod properties;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::CgroupError;
use crate::lifecycle::slice::Units;
use bus::Bus;
use message::{Body, Message, Method, Properties, Value};

pub use bus::BusError;
pub use holder::{Holder, hold};

/// Longest time for a piece of work: systemd starts and stops an empty unit in milliseconds, and
/// may be busy for seconds while it is reloaded.
const WITHIN: Duration = Duration::from_secs(10);
/// Where the system bus listens (D-Bus specification, "Well-known Message Bus Instances").
const SOCKET: &str = "/run/dbus/system_bus_socket";
/// The first version that knows all properties that are set here (`AllowedCPUs=`).
const VERSION_MIN: u32 = 244;

const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const START: Method = of_manager(MANAGER, "StartTransientUnit");
const STOP: Method = of_manager(MANAGER, "StopUnit");
const SET: Method = of_manager(MANAGER, "SetUnitProperties");
const GET: Method = of_manager("org.freedesktop.DBus.Properties", "Get");

const fn of_manager(interface: &'static str, name: &'static str) -> Method {
    Method {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface,
        name,
    }
}

/// The way to systemd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Systemd {
    socket: PathBuf,
    executable: PathBuf,
}

impl Systemd {
    /// The way over the system bus. `executable` is this program: a scope cannot be without a
    /// process, and until the container's comes one of ours is in it ([`hold`]).
    #[must_use]
    pub fn new(executable: PathBuf) -> Self {
        Self {
            socket: SOCKET.into(),
            executable,
        }
    }

    /// Asks systemd for its version, which is its first number.
    ///
    /// # Errors
    /// [`CgroupError::Systemd`] when it does not answer or is older than 244.
    pub fn version(&self) -> Result<u32, CgroupError> {
        let ask = || {
            let answer = version(&mut self.connect()?)?;
            let mut values = answer.values();
            let said = match values.signature().map_err(BusError::Malformed)?.as_str() {
                "s" => values.text().map_err(BusError::Malformed)?,
                _ => return Err(BusError::Malformed("has no text where the version is")),
            };
            let mut digits = said.split(|c: char| !c.is_ascii_digit());
            let number = digits.find(|part| !part.is_empty());
            match number.and_then(|number| number.parse().ok()) {
                Some(version) if version >= VERSION_MIN => Ok(version),
                _ => Err(BusError::TooOld(said)),
            }
        };
        ask().map_err(failed("ask for the version of", "systemd"))
    }

    /// Makes a container's scope, in its slice, with a process of ours in it. One that is left over
    /// from an earlier try is ended first.
    pub(super) fn start_scope(&self, units: &Units) -> Result<Holder, CgroupError> {
        let start = failed("start", &units.scope);
        let holder = Holder::spawn(&self.executable)?;
        let properties = vec![
            ("Description", Value::Text("container of quilt".into())),
            ("Slice", Value::Text(units.slice.clone())),
            ("PIDs", Value::Numbers(vec![holder.pid()])),
            ("Delegate", Value::Bool(true)),
            // It is not to be ended before everything else when the node goes down: kubelet and
            // the daemon end it.
            ("DefaultDependencies", Value::Bool(false)),
            ("CollectMode", Value::Text("inactive-or-failed".into())),
            // The default is a share of what the node can have.
            ("TasksMax", Value::Number(u64::MAX)),
        ];
        let properties = accounted(properties);
        match self.start(&units.scope, &properties) {
            Err(error) if error.is("UnitExists") => {
                self.stop(&units.slice)?;
                self.start(&units.scope, &properties).map_err(start)?;
            }
            other => other.map_err(start)?,
        }
        Ok(holder)
    }

    /// Makes a slice, for a pod whose client has made none.
    pub(super) fn start_slice(&self, name: &str) -> Result<(), CgroupError> {
        let properties = accounted(vec![("Description", Value::Text("pods of quilt".into()))]);
        match self.start(name, &properties) {
            Err(error) if error.is("UnitExists") => Ok(()),
            other => other.map_err(failed("start", name)),
        }
    }

    /// Stops a unit and all that is in it. One that is not there is stopped.
    pub(super) fn stop(&self, unit: &str) -> Result<(), CgroupError> {
        let stop = || {
            let mut body = Body::default();
            body.text(unit);
            body.text("replace");
            self.job(STOP, "ss", &body, unit)
        };
        match stop() {
            Err(error) if error.is("NoSuchUnit") => Ok(()),
            other => other.map_err(failed("stop", unit)),
        }
    }

    /// Tells systemd which limits hold in the cgroup of a unit, and sees to it that they still do
    /// afterwards. A unit that systemd does not know is nobody's to change.
    pub(super) fn tell(&self, unit: &str, dir: &Path) -> Result<(), CgroupError> {
        let held = properties::held(dir)?;
        let mut body = Body::default();
        body.text(unit);
        // For as long as the unit lives, as itself.
        body.bool(true);
        body.properties(&held.properties);
        let tell = || {
            let mut bus = self.connect()?;
            bus.call(SET, "sba(sv)", &body)?;
            // systemd puts them in force before it takes the next message, whatever that is.
            version(&mut bus).map(drop)
        };
        match tell() {
            Err(error) if error.is("NoSuchUnit") => Ok(()),
            Err(error) => Err(failed("tell the limits of", unit)(error)),
            Ok(()) => held.restore(dir),
        }
    }

    fn connect(&self) -> Result<Bus<'_>, BusError> {
        Bus::connect(&self.socket, WITHIN)
    }

    fn start(&self, unit: &str, properties: &Properties) -> Result<(), BusError> {
        let mut body = Body::default();
        body.text(unit);
        body.text("fail");
        body.properties(properties);
        body.no_structures();
        self.job(START, "ssa(sv)a(sa(sv))", &body, unit)
    }

    /// Asks for a job and waits until systemd has done it.
    fn job(
        &self,
        method: Method,
        signature: &str,
        body: &Body,
        unit: &str,
    ) -> Result<(), BusError> {
        let mut bus = self.connect()?;
        // The third value is the unit's name; others' jobs are not heard of.
        bus.listen(&format!(
            "type='signal',sender='org.freedesktop.systemd1',interface='{MANAGER}',\
             member='JobRemoved',arg2='{unit}'"
        ))?;
        let answer = bus.call(method, signature, body)?;
        let job = answer.values().text().map_err(BusError::Malformed)?;
        loop {
            let removed = bus.news("JobRemoved")?;
            let mut values = removed.values();
            let mut read = || {
                values.u32()?;
                let path = values.text()?;
                values.text()?;
                Ok((path, values.text()?))
            };
            let (path, how) = read().map_err(BusError::Malformed)?;
            match (path == job, how.as_str()) {
                (false, _) => {}
                (true, "done") => return Ok(()),
                (true, _) => return Err(BusError::NotDone(how)),
            }
        }
    }
}

/// Asks for the version, of which the answer holds the text.
fn version(bus: &mut Bus<'_>) -> Result<Message, BusError> {
    let mut body = Body::default();
    body.text(MANAGER);
    body.text("Version");
    bus.call(GET, "ss", &body)
}

/// With the controllers that containers get: limits are in force only where systemd counts.
fn accounted(mut properties: Properties) -> Properties {
    let names = [
        "CPUAccounting",
        "IOAccounting",
        "MemoryAccounting",
        "TasksAccounting",
    ];
    properties.extend(names.map(|name| (name, Value::Bool(true))));
    properties
}

fn failed(action: &'static str, unit: &str) -> impl FnOnce(BusError) -> CgroupError {
    let unit = unit.to_owned();
    move |source| CgroupError::Systemd {
        action,
        unit,
        source,
    }
}
