//! From `LinuxContainerSecurityContext` to [`Security`].

use crate::cri::sandbox::{no_target, pod_or_node};
use crate::cri::{CallError, user_namespace, validate};
use crate::id::ContainerId;
use crate::lifecycle::spec::{NamespaceMode, Profile, Security};
use crate::proto::cri as v1;

pub(super) fn from_context(
    field: &str,
    context: v1::LinuxContainerSecurityContext,
) -> Result<Security, CallError> {
    let at = |name: &str| format!("{field}.{name}");
    // Deprecated since 1.19 and 1.30; a client that fills them in means them.
    #[expect(deprecated, reason = "an old client's only way to name its profiles")]
    let (seccomp_path, apparmor_name) = (context.seccomp_profile_path, context.apparmor_profile);
    let namespaces = context.namespace_options.unwrap_or_default();
    no_target(&at("namespace_options"), &namespaces)?;
    let capabilities = context.capabilities.unwrap_or_default();
    let run_as_user = id(&at("run_as_user"), context.run_as_user)?;
    let run_as_group = id(&at("run_as_group"), context.run_as_group)?;
    if run_as_group.is_some() && run_as_user.is_none() && context.run_as_username.is_empty() {
        let why = "needs run_as_user or run_as_username";
        return Err(CallError::invalid(at("run_as_group"), why));
    }
    if run_as_user.is_some() && !context.run_as_username.is_empty() {
        return Err(CallError::invalid(
            at("run_as_username"),
            "excludes run_as_user",
        ));
    }
    let policy = v1::SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy)
        .map_err(|_| CallError::invalid(at("supplemental_groups_policy"), "is unknown"))?;
    for gid in &context.supplemental_groups {
        if u32::try_from(*gid).is_err() {
            let why = format!("{gid} is not a group id");
            return Err(CallError::invalid(at("supplemental_groups"), why));
        }
    }
    Ok(Security {
        privileged: context.privileged,
        run_as_user,
        run_as_username: validate::word(&at("run_as_username"), context.run_as_username)?,
        run_as_group,
        supplemental_groups: validate::bounded(
            &at("supplemental_groups"),
            context.supplemental_groups,
        )?,
        supplemental_groups_strict: policy == v1::SupplementalGroupsPolicy::Strict,
        readonly_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        add_capabilities: capability_names(
            &at("capabilities.add_capabilities"),
            capabilities.add_capabilities,
        )?,
        drop_capabilities: capability_names(
            &at("capabilities.drop_capabilities"),
            capabilities.drop_capabilities,
        )?,
        add_ambient_capabilities: capability_names(
            &at("capabilities.add_ambient_capabilities"),
            capabilities.add_ambient_capabilities,
        )?,
        masked_paths: paths(&at("masked_paths"), context.masked_paths)?,
        readonly_paths: paths(&at("readonly_paths"), context.readonly_paths)?,
        pid: pid(&at("namespace_options"), &namespaces)?,
        network: pod_or_node(&at("namespace_options.network"), namespaces.network)?,
        ipc: pod_or_node(&at("namespace_options.ipc"), namespaces.ipc)?,
        users: user_namespace::of_options(
            &at("namespace_options.userns_options"),
            namespaces.userns_options,
        )?,
        selinux: context
            .selinux_options
            .is_some_and(|options| options != v1::SeLinuxOption::default()),
        seccomp: seccomp(&at("seccomp"), context.seccomp, seccomp_path)?,
        apparmor: apparmor(&at("apparmor"), context.apparmor, apparmor_name)?,
    })
}

/// What old clients wrote as a string comes as the last argument.
fn seccomp(
    field: &str,
    profile: Option<v1::SecurityProfile>,
    old: String,
) -> Result<Option<Profile>, CallError> {
    let profile = self::profile(field, profile, old)?;
    if let Some(Profile::Localhost(path)) = &profile {
        validate::absolute_path(&format!("{field}.localhost_ref"), path.clone())?;
    }
    Ok(profile)
}

fn apparmor(
    field: &str,
    profile: Option<v1::SecurityProfile>,
    old: String,
) -> Result<Option<Profile>, CallError> {
    let profile = self::profile(field, profile, old)?;
    if let Some(Profile::Localhost(name)) = &profile
        && (name.contains(char::is_control) || name.len() > 255)
    {
        let why = "is longer than 255 bytes, or holds a control character";
        return Err(CallError::invalid(format!("{field}.localhost_ref"), why));
    }
    Ok(profile)
}

fn profile(
    field: &str,
    profile: Option<v1::SecurityProfile>,
    old: String,
) -> Result<Option<Profile>, CallError> {
    use v1::security_profile::ProfileType;
    let reference = |name: &str| {
        let name = name.strip_prefix("localhost/").unwrap_or(name);
        let field = format!("{field}.localhost_ref");
        validate::name(&field, name.to_owned()).map(Profile::Localhost)
    };
    let Some(profile) = profile else {
        return match old.as_str() {
            "" => Ok(None),
            "runtime/default" | "docker/default" => Ok(Some(Profile::RuntimeDefault)),
            "unconfined" => Ok(Some(Profile::Unconfined)),
            _ => reference(&old).map(Some),
        };
    };
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(Some(Profile::RuntimeDefault)),
        Ok(ProfileType::Unconfined) => Ok(Some(Profile::Unconfined)),
        Ok(ProfileType::Localhost) => reference(&profile.localhost_ref).map(Some),
        Err(_) => Err(CallError::invalid(
            format!("{field}.profile_type"),
            "is unknown",
        )),
    }
}

fn id(field: &str, value: Option<v1::Int64Value>) -> Result<Option<i64>, CallError> {
    let Some(v1::Int64Value { value }) = value else {
        return Ok(None);
    };
    match u32::try_from(value) {
        Ok(_) => Ok(Some(value)),
        Err(_) => Err(CallError::invalid(
            field,
            format!("{value} is not a user or group id"),
        )),
    }
}

/// Capabilities as Kubernetes writes them: without `CAP_`, or `ALL`. An unknown one is an error,
/// not a silent nothing.
fn capability_names(field: &str, names: Vec<String>) -> Result<Vec<String>, CallError> {
    let mut known = Vec::with_capacity(names.len());
    for name in validate::bounded(field, names)? {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if short != "ALL" && !crate::lifecycle::capability::ALL.contains(&short) {
            return Err(CallError::invalid(
                field,
                format!("{name:?} is not a capability"),
            ));
        }
        known.push(short.to_owned());
    }
    Ok(known)
}

fn paths(field: &str, paths: Vec<String>) -> Result<Vec<String>, CallError> {
    let paths = validate::bounded(field, paths)?;
    paths
        .into_iter()
        .map(|path| validate::absolute_path(field, path))
        .collect()
}

fn pid(field: &str, options: &v1::NamespaceOption) -> Result<NamespaceMode, CallError> {
    match v1::NamespaceMode::try_from(options.pid) {
        Ok(v1::NamespaceMode::Container) => Ok(NamespaceMode::Container),
        Ok(v1::NamespaceMode::Target) => {
            let target = ContainerId::try_from(options.target_id.clone());
            let target = target
                .map_err(|why| CallError::invalid(format!("{field}.target_id"), why.to_string()))?;
            Ok(NamespaceMode::Target(target.into()))
        }
        _ => pod_or_node(&format!("{field}.pid"), options.pid),
    }
}
