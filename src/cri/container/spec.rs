//! From `ContainerConfig` to [`ContainerSpec`]: all checks, nothing touched.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::cdi;
use crate::cri::{CallError, user_namespace, validate};
use crate::lifecycle::signal;
use crate::lifecycle::spec::{
    ContainerSpec, DeviceSpec, ImageMount, MountSpec, Propagation, Resources,
};
use crate::proto::cri as v1;

use super::security;

/// Checks a container configuration. `field` is its path in the request.
pub(in crate::cri) fn from_config(
    field: &str,
    config: v1::ContainerConfig,
) -> Result<ContainerSpec, CallError> {
    let at = |name: &str| format!("{field}.{name}");
    let metadata = validate::required(&at("metadata"), config.metadata)?;
    let image = validate::required(&at("image"), config.image)?;
    validate::no_windows(&at("windows"), config.windows.is_some())?;
    validate::default_handler(&at("image.runtime_handler"), &image.runtime_handler)?;
    let annotations = validate::map(&at("annotations"), config.annotations)?;
    let names: Vec<String> = validate::bounded(&at("CDI_devices"), config.cdi_devices)?
        .into_iter()
        .map(|device| device.name)
        .collect();
    let cdi_devices = cdi::requested(&names, &annotations)
        .map_err(|(place, why)| CallError::invalid(at(&place), why))?;
    let linux = config.linux.unwrap_or_default();
    let (environment, environment_bytes) = environment(&at("envs"), config.envs)?;
    Ok(ContainerSpec {
        name: validate::name(&at("metadata.name"), metadata.name)?,
        attempt: metadata.attempt,
        image: image_name(&at("image.image"), image.image)?,
        user_specified_image: image.user_specified_image,
        command: validate::words(&at("command"), config.command)?,
        args: validate::words(&at("args"), config.args)?,
        working_dir: validate::absolute_path_or_empty(&at("working_dir"), config.working_dir)?,
        environment,
        environment_bytes,
        mounts: validate::bounded(&at("mounts"), config.mounts)?
            .into_iter()
            .enumerate()
            .map(|(index, mount)| mount_spec(&format!("{field}.mounts[{index}]"), mount))
            .collect::<Result<_, _>>()?,
        devices: validate::bounded(&at("devices"), config.devices)?
            .into_iter()
            .enumerate()
            .map(|(index, device)| device_spec(&format!("{field}.devices[{index}]"), device))
            .collect::<Result<_, _>>()?,
        labels: validate::map(&at("labels"), config.labels)?,
        annotations,
        cdi_devices,
        log_path: validate::relative_path_or_empty(&at("log_path"), config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: resources(&at("linux.resources"), linux.resources.unwrap_or_default())?,
        security: security::from_context(
            &at("linux.security_context"),
            linux.security_context.unwrap_or_default(),
        )?,
        stop_signal: stop_signal(&at("stop_signal"), config.stop_signal)?,
        ..Default::default()
    })
}

fn image_name(field: &str, value: String) -> Result<String, CallError> {
    if value.is_empty() {
        return Err(CallError::invalid(field, "is missing"));
    }
    validate::words(field, vec![value]).map(|mut words| words.remove(0))
}

/// The environment; values that are no UTF-8 apart, in base64. Of two of a name the later counts.
type Environment = (Vec<(String, String)>, Vec<(String, String)>);

fn environment(field: &str, envs: Vec<v1::KeyValue>) -> Result<Environment, CallError> {
    let mut size = 0;
    let envs = validate::bounded(field, envs)?;
    let (mut texts, mut bytes) = (Vec::with_capacity(envs.len()), Vec::new());
    for (index, env) in envs.into_iter().enumerate() {
        let at = |why: String| CallError::invalid(format!("{field}[{index}]"), why);
        if env.key.is_empty() || env.key.contains(['=', '\0']) || env.value.contains(&0) {
            let why = "is not NAME=value: an empty name, an \"=\" in it, or a zero byte";
            return Err(at(why.into()));
        }
        let own = env.key.len() + 1 + env.value.len();
        validate::word_length(own).map_err(at)?;
        size += own;
        if size > 1024 * 1024 {
            return Err(CallError::invalid(field, "is larger than 1 MiB in all"));
        }
        bytes.retain(|(key, _)| *key != env.key);
        match String::from_utf8(env.value) {
            Ok(value) => texts.push((env.key, value)),
            Err(error) => {
                texts.retain(|(key, _)| *key != env.key);
                bytes.push((env.key, STANDARD.encode(error.as_bytes())));
            }
        }
    }
    Ok((texts, bytes))
}

/// What a mount may be told beyond read-only (CRI 1.37, KEP-5855).
const MOUNT_OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

fn mount_options(field: &str, options: Vec<String>) -> Result<Vec<String>, CallError> {
    for option in validate::bounded(field, options.iter().collect())? {
        if !MOUNT_OPTIONS.contains(&option.as_str()) {
            let why = format!("{option:?} is none of {}", MOUNT_OPTIONS.join(", "));
            return Err(CallError::invalid(field, why));
        }
    }
    Ok(options)
}

fn mount_spec(field: &str, mount: v1::Mount) -> Result<MountSpec, CallError> {
    let at = |name: &str| format!("{field}.{name}");
    let ids = user_namespace::of_mount(field, mount.uid_mappings, mount.gid_mappings)?;
    let propagation = match v1::MountPropagation::try_from(mount.propagation) {
        Ok(v1::MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(v1::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(v1::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => return Err(CallError::invalid(at("propagation"), "is unknown")),
    };
    if mount.recursive_read_only && !(mount.readonly && propagation == Propagation::Private) {
        let why = "needs readonly and private propagation";
        return Err(CallError::invalid(at("recursive_read_only"), why));
    }
    let (host_path, image) = match mount.image {
        Some(image) => {
            if !mount.host_path.is_empty() {
                let why = "an image and a host path exclude each other";
                return Err(CallError::image_volume(at("host_path"), why));
            }
            if !mount.readonly {
                let why = "is false, but an image is always mounted read-only";
                return Err(CallError::image_volume(at("readonly"), why));
            }
            let image = image_mount(&at("image"), image, mount.image_sub_path)?;
            (String::new(), Some(image))
        }
        None if mount.image_sub_path.is_empty() => {
            let path = validate::absolute_path(&at("host_path"), mount.host_path)?;
            (path, None)
        }
        None => {
            let why = "is given without an image";
            return Err(CallError::image_volume(at("image_sub_path"), why));
        }
    };
    Ok(MountSpec {
        container_path: validate::absolute_path(&at("container_path"), mount.container_path)?,
        host_path,
        read_only: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        propagation,
        options: mount_options(&at("mount_options"), mount.mount_options)?,
        image,
        ids,
    })
}

fn image_mount(
    field: &str,
    image: v1::ImageSpec,
    sub_path: String,
) -> Result<ImageMount, CallError> {
    let volume = |error: CallError| match error {
        CallError::Invalid { field, why } => CallError::image_volume(field, why),
        error => error,
    };
    let handler = format!("{field}.runtime_handler");
    validate::default_handler(&handler, &image.runtime_handler).map_err(volume)?;
    let sub_field = format!("{field}_sub_path");
    Ok(ImageMount {
        image: image_name(&format!("{field}.image"), image.image).map_err(volume)?,
        user_specified_image: image.user_specified_image,
        sub_path: validate::relative_path_or_empty(&sub_field, sub_path).map_err(volume)?,
        image_id: String::new(),
    })
}

fn device_spec(field: &str, device: v1::Device) -> Result<DeviceSpec, CallError> {
    let at = |name: &str| format!("{field}.{name}");
    if device
        .permissions
        .bytes()
        .any(|letter| !b"rwm".contains(&letter))
    {
        let why = format!(
            "{:?} holds more than \"r\", \"w\" and \"m\"",
            device.permissions
        );
        return Err(CallError::invalid(at("permissions"), why));
    }
    Ok(DeviceSpec {
        container_path: validate::absolute_path(&at("container_path"), device.container_path)?,
        host_path: validate::absolute_path(&at("host_path"), device.host_path)?,
        permissions: device.permissions,
    })
}

/// Checks limits.
pub(in crate::cri) fn resources(
    field: &str,
    value: v1::LinuxContainerResources,
) -> Result<Resources, CallError> {
    let at = |name: &str| format!("{field}.{name}");
    let not_negative = |name: &str, value: i64| {
        if value < 0 {
            return Err(CallError::invalid(at(name), format!("{value} is negative")));
        }
        Ok(value)
    };
    if !(-1000..=1000).contains(&value.oom_score_adj) {
        return Err(CallError::invalid(
            at("oom_score_adj"),
            "is not between -1000 and 1000",
        ));
    }
    for (name, list) in [
        ("cpuset_cpus", &value.cpuset_cpus),
        ("cpuset_mems", &value.cpuset_mems),
    ] {
        if list
            .bytes()
            .any(|b| !(b.is_ascii_digit() || b == b',' || b == b'-'))
        {
            return Err(CallError::invalid(
                at(name),
                format!("{list:?} is not a list of numbers"),
            ));
        }
    }
    let unified = validate::map(&at("unified"), value.unified)?;
    if let Some(name) = unified
        .keys()
        .find(|name| name.contains(['/', '\0']) || name.is_empty())
    {
        return Err(CallError::invalid(
            at("unified"),
            format!("{name:?} is not a cgroup file"),
        ));
    }
    Ok(Resources {
        cpu_period_us: not_negative("cpu_period", value.cpu_period)?,
        cpu_quota_us: value.cpu_quota,
        cpu_shares: not_negative("cpu_shares", value.cpu_shares)?,
        memory_limit_bytes: not_negative("memory_limit_in_bytes", value.memory_limit_in_bytes)?,
        memory_swap_limit_bytes: value.memory_swap_limit_in_bytes,
        oom_score_adj: value.oom_score_adj,
        cpuset_cpus: value.cpuset_cpus,
        cpuset_mems: value.cpuset_mems,
        hugepage_limits: validate::bounded(&at("hugepage_limits"), value.hugepage_limits)?
            .into_iter()
            .map(|limit| (limit.page_size, limit.limit))
            .collect(),
        unified,
    })
}

fn stop_signal(field: &str, value: i32) -> Result<Option<i32>, CallError> {
    let signal = v1::Signal::try_from(value)
        .map_err(|_| CallError::invalid(field, format!("{value} is not a signal")))?;
    if signal == v1::Signal::RuntimeDefault {
        return Ok(None);
    }
    let name = signal
        .as_str_name()
        .replace("PLUS", "+")
        .replace("MINUS", "-");
    let number = signal::parse(name.strip_prefix("SIGNAL_").unwrap_or(&name));
    number
        .map(Some)
        .ok_or_else(|| CallError::invalid(field, format!("{name} is not a signal")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_interface_has_a_number() {
        for value in 1..=65 {
            assert!(
                stop_signal("s", value).expect("a signal").is_some(),
                "{value}"
            );
        }
        assert_eq!(stop_signal("s", 0).expect("the default"), None);
        assert_eq!(stop_signal("s", 23).expect("SIGTERM"), Some(15));
        assert_eq!(stop_signal("s", 36).expect("SIGRTMIN+1"), Some(35));
    }

    #[test]
    fn a_bad_mount_is_named_by_its_place() {
        let mount = v1::Mount {
            container_path: "/ok".into(),
            host_path: "relative".into(),
            ..Default::default()
        };
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: "c".into(),
                attempt: 0,
            }),
            image: Some(v1::ImageSpec {
                image: "i".into(),
                ..Default::default()
            }),
            mounts: vec![mount],
            ..Default::default()
        };
        let error = from_config("config", config).expect_err("a relative path");
        assert!(
            error
                .to_string()
                .starts_with("config.mounts[0].host_path: "),
            "{error}"
        );
    }
}
