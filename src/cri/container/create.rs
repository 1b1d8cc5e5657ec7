//! CreateContainer: the wish for a container in a ready sandbox.

use tonic::Code;

use crate::cdi;
use crate::cri::call::Deadline;
use crate::cri::{CallError, Front, sandbox, user_namespace, validate};
use crate::id::{ContainerId, ObjectKey};
use crate::lifecycle::block_io;
use crate::lifecycle::container::State;
use crate::lifecycle::process;
use crate::lifecycle::spec::{ContainerSpec, NamespaceMode};
use crate::proto::cri as v1;
use crate::state::StateError;
use crate::state::container::NewContainer;
use crate::state::image::Image;
use crate::state::image_volume::IMAGE_OF_A_VOLUME;
use crate::state::sandbox::Sandbox;
use crate::traces;

use super::{confinement, spec};

/// Creates a container, or finds the one that the same pod, name and attempt already has.
pub(in crate::cri) async fn create(
    front: Front,
    request: v1::CreateContainerRequest,
    deadline: Deadline,
) -> Result<v1::CreateContainerResponse, CallError> {
    let config = validate::required("config", request.config)?;
    let mut spec = spec::from_config("config", config)?;
    if let Some(config) = request.sandbox_config {
        sandbox::check_config("sandbox_config", config)?;
    }
    let sandbox_id = front
        .find_sandbox("pod_sandbox_id", request.pod_sandbox_id)
        .await?;
    let sandbox = front.store.sandbox(&sandbox_id).await?;
    let sandbox = sandbox.ok_or_else(|| CallError::NotFound {
        noun: "sandbox",
        id: sandbox_id.to_string(),
    })?;
    front.claim(Some(&sandbox));
    refuse_unlike(&spec, &sandbox)?;
    check_block_io(&front, &spec, &sandbox)?;
    let twin = front
        .store
        .container_twin(&sandbox_id, &spec.name, spec.attempt);
    if let Some(id) = twin.await? {
        // A retry: what it named may have changed since, its container has not.
        return answer(&front, id, deadline).await;
    }
    if spec.security.pid == NamespaceMode::Pod {
        // The pod decides: where it shares no PID namespace, each container has its own.
        spec.security.pid = sandbox.spec.pid.clone();
    }
    check_target(&front, &spec, &sandbox).await?;
    confinement::check(&spec.security).await?;
    check_devices(&front, &spec).await?;
    let image = front.find_image(&spec.image).await?;
    let image = image.ok_or_else(|| CallError::NotFound {
        noun: "image",
        id: spec.image.clone(),
    })?;
    name_image(&mut spec, &image);
    find_image_volumes(&front, &mut spec).await?;
    spec.process = process::resolve(&image.spec, &spec, &sandbox.hostname())
        .map_err(|error| CallError::invalid("config.command", error.to_string()))?;
    let id = ContainerId::random();
    let new = NewContainer {
        id,
        sandbox_id: sandbox.id.clone(),
        image_id: image.id,
        spec,
    };
    let id = front.desired.create_container(new).await;
    let id = id.map_err(|error| match error {
        StateError::NotFound { noun, id } if noun == IMAGE_OF_A_VOLUME => CallError::ImageVolume {
            code: Code::NotFound,
            field: "config.mounts".into(),
            why: format!("image {id:?} has just been removed: pull it again"),
        },
        error => error.into(),
    })?;
    answer(&front, id, deadline).await
}

/// A class that is not configured would be no limit at all.
fn check_block_io(front: &Front, spec: &ContainerSpec, sandbox: &Sandbox) -> Result<(), CallError> {
    let class = block_io::class_of(&spec.annotations, &sandbox.spec.annotations, &spec.name);
    match class.filter(|class| !front.info.block_io_classes.contains(*class)) {
        Some(class) => {
            let why = format!("no class of block I/O {class:?} is configured (cgroup.block_io)");
            Err(CallError::invalid("config.annotations", why))
        }
        None => Ok(()),
    }
}

/// Finds the images among the mounts. Whoever asks for one has pulled it first.
async fn find_image_volumes(front: &Front, spec: &mut ContainerSpec) -> Result<(), CallError> {
    for (index, mount) in spec.mounts.iter_mut().enumerate() {
        let Some(wanted) = &mut mount.image else {
            continue;
        };
        let failed = |code, why: String| CallError::ImageVolume {
            code,
            field: format!("config.mounts[{index}].image"),
            why,
        };
        let found = front.find_image(&wanted.image).await;
        let found = found.map_err(|error| failed(error.code(), error.to_string()))?;
        let image = found.ok_or_else(|| {
            let why = format!("image {:?} is not there: pull it first", wanted.image);
            failed(Code::NotFound, why)
        })?;
        wanted.image_id = image.id;
    }
    Ok(())
}

/// Waits until the container is there.
async fn answer(
    front: &Front,
    id: ContainerId,
    deadline: Deadline,
) -> Result<v1::CreateContainerResponse, CallError> {
    traces::about(id.as_str());
    let key = ObjectKey::Container(id.clone());
    front
        .wait_for("container", key, deadline, || created(front, &id))
        .await?;
    Ok(v1::CreateContainerResponse {
        container_id: id.into(),
    })
}

async fn created(front: &Front, id: &ContainerId) -> Result<Option<()>, CallError> {
    let Some(container) = front.store.container(id).await? else {
        let failure = front.store.last_failure(id.as_str()).await?;
        let withdrawn = || CallError::Withdrawn {
            noun: "container",
            id: id.to_string(),
        };
        return Err(failure.map_or_else(withdrawn, CallError::Failed));
    };
    match container.state {
        State::Preparing => Ok(None),
        State::Error => Err(CallError::Failed(
            container.error.unwrap_or_else(|| "unknown".into()),
        )),
        _ => Ok(Some(())),
    }
}

/// CDI devices have to be described. They are looked for again when the container is started.
async fn check_devices(front: &Front, spec: &ContainerSpec) -> Result<(), CallError> {
    if spec.cdi_devices.is_empty() {
        return Ok(());
    }
    let (directories, wanted) = (front.info.cdi_directories.clone(), spec.cdi_devices.clone());
    let found = tokio::task::spawn_blocking(move || cdi::find(&directories, &wanted));
    let found = found
        .await
        .map_err(|error| CallError::Failed(error.to_string()))?;
    found.map(drop).map_err(|error| CallError::Missing {
        field: "config.CDI_devices".into(),
        why: format!("cannot be had: {error}"),
    })
}

/// A container may look into another of its own pod, while that one runs.
async fn check_target(
    front: &Front,
    spec: &ContainerSpec,
    sandbox: &Sandbox,
) -> Result<(), CallError> {
    let NamespaceMode::Target(id) = &spec.security.pid else {
        return Ok(());
    };
    let field = "config.linux.security_context.namespace_options.target_id".to_owned();
    let target = match ContainerId::try_from(id.clone()) {
        Ok(id) => front.store.container(&id).await?,
        Err(_) => None,
    };
    let why = match target.filter(|target| target.sandbox_id == sandbox.id) {
        None => format!("is {id}, which is no container of this sandbox"),
        Some(target) if target.state != State::Running => {
            format!("is {id}, which does not run")
        }
        Some(_) => return Ok(()),
    };
    Err(CallError::Missing { field, why })
}

/// A container shares its sandbox' namespaces; it cannot ask for more of the node than its sandbox
/// has.
fn refuse_unlike(spec: &ContainerSpec, sandbox: &Sandbox) -> Result<(), CallError> {
    let modes = [
        ("pid", &spec.security.pid, &sandbox.spec.pid),
        ("network", &spec.security.network, &sandbox.spec.network),
        ("ipc", &spec.security.ipc, &sandbox.spec.ipc),
    ];
    for (name, own, pod) in modes {
        if *own == NamespaceMode::Node && *pod != NamespaceMode::Node {
            let field = format!("config.linux.security_context.namespace_options.{name}");
            return Err(CallError::invalid(
                field,
                "is NODE, but the sandbox' is not",
            ));
        }
    }
    user_namespace::refuse_other(
        "config.linux.security_context.namespace_options.userns_options",
        spec.security.users.as_ref(),
        sandbox.spec.users.as_ref(),
    )?;
    if spec.security.privileged && !sandbox.spec.privileged {
        let why = "the sandbox is not privileged";
        return Err(CallError::invalid(
            "config.linux.security_context.privileged",
            why,
        ));
    }
    Ok(())
}

fn name_image(spec: &mut ContainerSpec, image: &Image) {
    let named = image.tags.first().or(image.digests.first());
    spec.image_name = named.unwrap_or(&spec.image).clone();
    // What PullImage answers, as the interface demands of both.
    spec.image_ref = image.id.clone();
}
