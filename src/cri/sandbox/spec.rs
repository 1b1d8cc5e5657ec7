//! From `PodSandboxConfig` to [`SandboxSpec`]: all checks, nothing touched.

use crate::cri::{CallError, user_namespace, validate};
use crate::lifecycle::address::{self, Requested};
use crate::lifecycle::bandwidth::Bandwidth;
use crate::lifecycle::egress;
use crate::lifecycle::hardware;
use crate::lifecycle::port::{Protocol, host_ports};
use crate::lifecycle::slice;
use crate::lifecycle::spec::{DnsSpec, Map, NamespaceMode, PortMapping, SandboxSpec};
use crate::proto::cri as v1;

/// Longest host name (RFC 1123 and sethostname(2): 64 with the final zero).
const HOSTNAME_MAX: usize = 63;

/// Checks a sandbox configuration. `field` is its path in the request.
pub(in crate::cri) fn from_config(
    field: &str,
    config: v1::PodSandboxConfig,
) -> Result<SandboxSpec, CallError> {
    let at = |name: &str| format!("{field}.{name}");
    let metadata = validate::required(&at("metadata"), config.metadata)?;
    let hostname = validate::word(&at("hostname"), config.hostname)?;
    if hostname.len() > HOSTNAME_MAX {
        let why = format!("has {} bytes, more than {HOSTNAME_MAX}", hostname.len());
        return Err(CallError::invalid(at("hostname"), why));
    }
    validate::no_windows(&at("windows"), config.windows.is_some())?;
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let namespaces = security.namespace_options.unwrap_or_default();
    no_target(&at("linux.security_context.namespace_options"), &namespaces)?;
    let annotations = validate::map(&at("annotations"), config.annotations)?;
    let spec = SandboxSpec {
        name: validate::name(&at("metadata.name"), metadata.name)?,
        namespace: validate::name(&at("metadata.namespace"), metadata.namespace)?,
        uid: validate::name(&at("metadata.uid"), metadata.uid)?,
        attempt: metadata.attempt,
        hostname,
        log_directory: validate::absolute_path_or_empty(
            &at("log_directory"),
            config.log_directory,
        )?,
        runtime_handler: String::new(),
        labels: validate::map(&at("labels"), config.labels)?,
        annotations,
        dns: match config.dns_config {
            Some(dns) => dns_spec(&at("dns_config"), dns)?,
            None => None,
        },
        port_mappings: validate::bounded(&at("port_mappings"), config.port_mappings)?
            .into_iter()
            .enumerate()
            .map(|(index, port)| port_mapping(&format!("{field}.port_mappings[{index}]"), port))
            .collect::<Result<_, _>>()?,
        cgroup_parent: cgroup_parent(&at("linux.cgroup_parent"), linux.cgroup_parent)?,
        sysctls: sysctls(
            &at("linux.sysctls"),
            validate::map(&at("linux.sysctls"), linux.sysctls)?,
        )?,
        network: pod_or_node(
            &at("linux.security_context.namespace_options.network"),
            namespaces.network,
        )?,
        pid: pid_mode(
            &at("linux.security_context.namespace_options.pid"),
            namespaces.pid,
        )?,
        ipc: pod_or_node(
            &at("linux.security_context.namespace_options.ipc"),
            namespaces.ipc,
        )?,
        privileged: security.privileged,
        users: user_namespace::of_options(
            &at("linux.security_context.namespace_options.userns_options"),
            namespaces.userns_options,
        )?,
    };
    together(&at, &spec)?;
    Ok(spec)
}

/// What has to fit together, or is written in annotations.
fn together(at: &impl Fn(&str) -> String, spec: &SandboxSpec) -> Result<(), CallError> {
    user_namespace::refuse_nodes(
        &at("linux.security_context.namespace_options"),
        spec.users.as_ref(),
        [("pid", &spec.pid), ("ipc", &spec.ipc)],
    )?;
    if let Err((name, why)) = Bandwidth::of(&spec.annotations) {
        return Err(CallError::invalid(
            at(&format!("annotations[{name:?}]")),
            why,
        ));
    }
    if let Err((one, other)) = host_ports(spec) {
        let why = format!(
            "port {one} of the node and {other} meet, and lead to {} and {}",
            one.container_port, other.container_port
        );
        return Err(CallError::invalid(at("port_mappings"), why));
    }
    network_annotations(&at("annotations"), spec)
}

/// Annotations that say something about the pod's own network. Where it has none they would mean
/// nothing, and whoever wrote them would not know.
fn network_annotations(field: &str, spec: &SandboxSpec) -> Result<(), CallError> {
    let refused = |name: &str, why: String| {
        let field = format!("{field}[{name:?}]");
        Err(CallError::invalid(field, why))
    };
    let annotations = &spec.annotations;
    if spec.network != NamespaceMode::Pod {
        let all = [address::REQUESTED, egress::EGRESS, hardware::MAC];
        let why = "cannot be met: the pod is in the node's network";
        return match all.into_iter().find(|name| annotations.contains_key(*name)) {
            Some(name) => refused(name, why.into()),
            // As Kubernetes' own plugins have it: the node is not limited for a pod.
            None => Ok(()),
        };
    }
    if let Err(why) = Requested::of(annotations) {
        return refused(address::REQUESTED, why);
    }
    if let Err(why) = hardware::requested(annotations) {
        return refused(hardware::MAC, why);
    }
    match egress::of(annotations) {
        Ok(_) => Ok(()),
        Err(why) => refused(egress::EGRESS, why),
    }
}

/// Checks a sandbox configuration that only comes along, as with CreateContainer.
pub(in crate::cri) fn check_config(
    field: &str,
    config: v1::PodSandboxConfig,
) -> Result<(), CallError> {
    from_config(field, config).map(drop)
}

fn dns_spec(field: &str, dns: v1::DnsConfig) -> Result<Option<DnsSpec>, CallError> {
    let words = |name: &str, value| {
        let field = format!("{field}.{name}");
        let value = validate::bounded(&field, value)?;
        value
            .into_iter()
            .map(|word| validate::name(&field, word))
            .collect::<Result<Vec<_>, _>>()
    };
    let spec = DnsSpec {
        servers: words("servers", dns.servers)?,
        searches: words("searches", dns.searches)?,
        options: words("options", dns.options)?,
    };
    // A message without content asks for nothing of its own.
    Ok((spec != DnsSpec::default()).then_some(spec))
}

fn port_mapping(field: &str, port: v1::PortMapping) -> Result<PortMapping, CallError> {
    for (name, value) in [
        ("container_port", port.container_port),
        ("host_port", port.host_port),
    ] {
        if !(0..=65535).contains(&value) {
            return Err(CallError::invalid(
                format!("{field}.{name}"),
                "is not a port",
            ));
        }
    }
    if port.host_port != 0 && port.container_port == 0 {
        let why = "is 0, and a port of the node would lead nowhere";
        return Err(CallError::invalid(format!("{field}.container_port"), why));
    }
    if Protocol::from_cri(port.protocol).is_none() {
        return Err(CallError::invalid(
            format!("{field}.protocol"),
            "is not a protocol",
        ));
    }
    if !port.host_ip.is_empty() && port.host_ip.parse::<std::net::IpAddr>().is_err() {
        return Err(CallError::invalid(
            format!("{field}.host_ip"),
            "is not an IP address",
        ));
    }
    Ok(PortMapping {
        protocol: port.protocol,
        container_port: port.container_port,
        host_port: port.host_port,
        host_ip: port.host_ip,
    })
}

/// A parent is a path, or a systemd slice by its name or its path; then its path. Whether it is one
/// of the driver's, [`of_driver`] says.
fn cgroup_parent(field: &str, value: String) -> Result<String, CallError> {
    let path = slice::parent(&value).map_err(|why| CallError::invalid(field, why))?;
    validate::absolute_path_or_empty(field, path)
}

/// Refuses the other driver's parents: what lies in a slice is systemd's to change, and to systemd
/// a path is nothing.
pub(super) fn of_driver(spec: &SandboxSpec, systemd: bool) -> Result<(), CallError> {
    let parent = &spec.cgroup_parent;
    let why = match (slice::is_slice(parent), systemd) {
        _ if parent.is_empty() => return Ok(()),
        (true, false) => "is a systemd slice, but this runtime's cgroup driver is cgroupfs",
        (false, true) => "is no systemd slice, but this runtime's cgroup driver is systemd",
        _ => return Ok(()),
    };
    Err(CallError::invalid("config.linux.cgroup_parent", why))
}

/// Sysctls that have a namespace (sysctl(8) groups `net.*`, `kernel.shm*`, `kernel.msg*`,
/// `kernel.sem`, `fs.mqueue.*`); others would change the node.
fn sysctls(field: &str, value: Map) -> Result<Map, CallError> {
    const NAMESPACED: [&str; 5] = [
        "net.",
        "kernel.shm",
        "kernel.msg",
        "kernel.sem",
        "fs.mqueue.",
    ];
    for (name, setting) in &value {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
        if !name.bytes().all(plain) || name.contains("..") || setting.contains(['\n', '\0']) {
            return Err(CallError::invalid(
                field,
                format!("{name:?} is not a sysctl"),
            ));
        }
        if !NAMESPACED
            .iter()
            .any(|prefix| name.replace('/', ".").starts_with(prefix))
        {
            let why = format!("{name:?} has no namespace: it would change the node");
            return Err(CallError::invalid(field, why));
        }
    }
    Ok(value)
}

/// A mode that is either the pod's or the node's.
pub(in crate::cri) fn pod_or_node(field: &str, mode: i32) -> Result<NamespaceMode, CallError> {
    match v1::NamespaceMode::try_from(mode) {
        Ok(v1::NamespaceMode::Pod) => Ok(NamespaceMode::Pod),
        Ok(v1::NamespaceMode::Node) => Ok(NamespaceMode::Node),
        _ => Err(CallError::invalid(field, "is neither POD nor NODE")),
    }
}

fn pid_mode(field: &str, mode: i32) -> Result<NamespaceMode, CallError> {
    match v1::NamespaceMode::try_from(mode) {
        Ok(v1::NamespaceMode::Container) => Ok(NamespaceMode::Container),
        Ok(v1::NamespaceMode::Target) => Err(CallError::invalid(
            field,
            "is TARGET, which only a container can ask for",
        )),
        _ => pod_or_node(field, mode),
    }
}

/// Only with mode TARGET is there a target.
pub(in crate::cri) fn no_target(
    field: &str,
    options: &v1::NamespaceOption,
) -> Result<(), CallError> {
    if options.target_id.is_empty() || options.pid == i32::from(v1::NamespaceMode::Target) {
        return Ok(());
    }
    let why = "is given, but pid is not TARGET";
    Err(CallError::invalid(format!("{field}.target_id"), why))
}
