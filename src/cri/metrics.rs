//! ListMetricDescriptors, ListPodSandboxMetrics and StreamPodSandboxMetrics (KEP-2371): what
//! kubelet shows at `/metrics/cadvisor`, under cAdvisor's names, from the sampler's newest figures.

use std::borrow::Cow;
use std::sync::Arc;

use super::call::Deadline;
use super::pieces::pieces;
use super::sandbox::stats::ready_pods;
use super::{CallError, Front};
use crate::lifecycle::slice;
use crate::lifecycle::spec::ContainerSpec;
use crate::lifecycle::usage::Interface;
use crate::proto::cri as v1;
use crate::proto::cri::MetricType;
use crate::proto::metric::{Labels, Metric};
use crate::state::container::Container;
use crate::state::sample::{FileSystem, LayerUsage, PodSample, Sample};
use crate::state::sandbox::Sandbox;

mod families;

use families::{OF_CONTAINERS, OF_PODS};

/// Labels that every metric has: the cgroup, the id, and who it is for Kubernetes.
const LABELS: [&str; 6] = ["id", "name", "image", "pod", "namespace", "container"];
/// What cAdvisor calls the container of what a pod has as a whole.
const POD: &str = "POD";

/// All metrics of one name. `F` is what they are read from.
struct Family<F: ?Sized> {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    /// Labels beyond [`LABELS`].
    labels: &'static [&'static str],
    read: fn(&F, &mut Values),
}

const fn counter<F: ?Sized>(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    read: fn(&F, &mut Values),
) -> Family<F> {
    Family {
        name,
        help,
        kind: MetricType::Counter,
        labels,
        read,
    }
}

const fn gauge<F: ?Sized>(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    read: fn(&F, &mut Values),
) -> Family<F> {
    Family {
        kind: MetricType::Gauge,
        ..counter(name, help, labels, read)
    }
}

/// The values of one family, each with the values of its own labels.
#[derive(Default)]
struct Values(Vec<(Vec<String>, u64)>);

impl Values {
    fn put(&mut self, labels: &[&str], value: u64) {
        let labels = labels.iter().map(|&label| label.to_owned());
        self.0.push((labels.collect(), value));
    }

    /// A single value; none if the kernel does not count it.
    fn one(&mut self, value: Option<u64>) {
        if let Some(value) = value {
            self.put(&[], value);
        }
    }
}

/// What the metrics of a container are read from.
struct OfContainer {
    spec: Arc<ContainerSpec>,
    /// ns since 1970.
    started_at: Option<i64>,
    sample: Arc<Sample>,
    layer: Option<LayerUsage>,
    file_system: FileSystem,
}

/// The names, with their labels.
pub(super) async fn descriptors(
    _front: Front,
    _request: v1::ListMetricDescriptorsRequest,
    _deadline: Deadline,
) -> Result<v1::ListMetricDescriptorsResponse, CallError> {
    let descriptor = |name: &str, help: &str, labels: &[&str]| v1::MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: LABELS
            .iter()
            .chain(labels)
            .map(|&label| label.to_owned())
            .collect(),
    };
    let of_containers = OF_CONTAINERS.iter();
    let of_containers = of_containers.map(|f| descriptor(f.name, f.help, f.labels));
    let of_pods = OF_PODS.iter();
    let of_pods = of_pods.map(|f| descriptor(f.name, f.help, f.labels));
    Ok(v1::ListMetricDescriptorsResponse {
        descriptors: of_containers.chain(of_pods).collect(),
    })
}

/// The values, of pods that are ready.
pub(super) async fn list(
    front: Front,
    _request: v1::ListPodSandboxMetricsRequest,
    _deadline: Deadline,
) -> Result<v1::ListPodSandboxMetricsResponse, CallError> {
    let pod_metrics = all(&front).await?;
    Ok(v1::ListPodSandboxMetricsResponse { pod_metrics })
}

/// The same, in pieces.
pub(super) async fn in_pieces(
    front: Front,
    _request: v1::StreamPodSandboxMetricsRequest,
    _deadline: Deadline,
) -> Result<Vec<v1::StreamPodSandboxMetricsResponse>, CallError> {
    Ok(pieces(all(&front).await?, |pod_sandbox_metrics| {
        v1::StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        }
    }))
}

async fn all(front: &Front) -> Result<Vec<v1::PodSandboxMetrics>, CallError> {
    let pods = ready_pods(front, None).await?;
    let pods = pods.iter();
    Ok(pods
        .map(|(pod, members)| of_pod(front, pod, members))
        .collect())
}

fn of_pod(front: &Front, pod: &Sandbox, members: &[Container]) -> v1::PodSandboxMetrics {
    let samples = front.store.samples();
    let mut metrics = Vec::new();
    if let Some(sample) = samples.pod(&pod.id) {
        let id = (pod.id.as_str(), POD, "");
        let labels = labels(pod, id);
        read(OF_PODS, sample.as_ref(), sample.at, &labels, &mut metrics);
    }
    let members = members.iter().map(|container| {
        let mut metrics = Vec::new();
        if let Some(sample) = samples.get(&container.id) {
            let of = OfContainer {
                spec: Arc::clone(&container.spec),
                started_at: container.started_at,
                sample,
                layer: samples.layer(&container.id),
                file_system: samples.file_system(),
            };
            let spec = &container.spec;
            let id = (
                container.id.as_str(),
                spec.name.as_str(),
                spec.image_name.as_str(),
            );
            read(
                OF_CONTAINERS,
                &of,
                of.sample.at,
                &labels(pod, id),
                &mut metrics,
            );
        }
        v1::ContainerMetrics {
            container_id: container.id.to_string(),
            metrics,
        }
    });
    v1::PodSandboxMetrics {
        pod_sandbox_id: pod.id.to_string(),
        container_metrics: members.collect(),
        metrics,
    }
}

/// The values of [`LABELS`], for the container or pod with this id, name and image.
fn labels(pod: &Sandbox, (id, name, image): (&str, &str, &str)) -> Labels {
    let spec = &pod.spec;
    let cgroup = slice::member(&spec.cgroup_parent, id);
    let owned = [id, image, &spec.name, &spec.namespace, name].map(str::to_owned);
    let [id, image, pod, namespace, name] = owned;
    Labels::new(&[cgroup, id, image, pod, namespace, name])
}

fn read<F>(families: &[Family<F>], from: &F, at: i64, common: &Labels, metrics: &mut Vec<Metric>) {
    let mut values = Values::default();
    for family in families {
        (family.read)(from, &mut values);
        metrics.extend(values.0.drain(..).map(|(own, value)| Metric {
            name: Cow::Borrowed(family.name),
            timestamp: at,
            metric_type: family.kind.into(),
            common: common.clone(),
            label_values: own,
            value: Some(v1::UInt64Value { value }),
        }));
    }
}
