//! A pod's life: run, ask, list, stop, remove, and each of them twice.

use tonic::Code;

use crate::support::cri::*;
use crate::support::pod::{exited, labels, shell};
use crate::support::{Node, eventually};

/// Ids are 64 lowercase hexadecimal digits: cAdvisor finds containers by that form.
pub(crate) fn is_id(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[tokio::test]
async fn a_pod_lives_from_run_to_remove() {
    let node = Node::start().await;
    let pod = node.pod("life").await;
    assert!(is_id(&pod.id), "{}", pod.id);

    let status = node
        .cri
        .pod_status(&pod.id)
        .await
        .expect("PodSandboxStatus");
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(status.id, pod.id);
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!(status.labels, pod.config.labels);
    assert_eq!(status.annotations, pod.config.annotations);
    assert!(status.created_at > 0);
    let ip: std::net::Ipv4Addr = pod.ip().await.parse().expect("an IPv4 address");
    assert!(
        node.names.contains(ip),
        "{ip} is not in {}",
        node.names.subnet()
    );

    node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
    let status = node
        .cri
        .pod_status(&pod.id)
        .await
        .expect("PodSandboxStatus");
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);

    node.cri
        .remove_pod(&pod.id)
        .await
        .expect("RemovePodSandbox");
    let gone = node
        .cri
        .pod_status(&pod.id)
        .await
        .expect_err("a removed pod has no status");
    assert_eq!(gone.code(), Code::NotFound, "{gone}");
    assert!(
        node.cri
            .list_pods(None)
            .await
            .expect("ListPodSandbox")
            .is_empty()
    );
}

#[tokio::test]
async fn stopping_and_removing_twice_is_no_error() {
    let node = Node::start().await;
    let pod = node.pod("twice").await;
    for _ in 0..2 {
        node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
    }
    for _ in 0..2 {
        node.cri
            .remove_pod(&pod.id)
            .await
            .expect("RemovePodSandbox");
    }
    node.cri
        .stop_pod(&pod.id)
        .await
        .expect("StopPodSandbox of what is gone");
    node.cri
        .stop_pod("a-name-nobody-gave")
        .await
        .expect("StopPodSandbox of what never was");
    node.cri
        .remove_pod("a-name-nobody-gave")
        .await
        .expect("RemovePodSandbox of what never was");
}

#[tokio::test]
async fn stopping_a_pod_stops_its_containers_and_removing_it_removes_them() {
    let node = Node::start().await;
    let pod = node.pod("owner").await;
    let running = pod.idle("running").await;
    let created = pod.create(&shell("created", "true")).await;

    node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
    let status = exited(&node.cri, &running).await;
    assert!(status.finished_at > 0, "{status:?}");

    node.cri
        .remove_pod(&pod.id)
        .await
        .expect("RemovePodSandbox");
    for id in [&running, &created] {
        let gone = node.cri.status(id).await.expect_err("removed with its pod");
        assert_eq!(gone.code(), Code::NotFound, "{gone}");
    }
}

#[tokio::test]
async fn a_running_pod_can_be_removed_at_once() {
    let node = Node::start().await;
    let pod = node.pod("forced").await;
    pod.idle("main").await;
    node.cri
        .remove_pod(&pod.id)
        .await
        .expect("RemovePodSandbox of a running pod");
    assert!(
        node.cri
            .list(None)
            .await
            .expect("ListContainers")
            .is_empty()
    );
}

#[tokio::test]
async fn the_same_request_again_gets_the_same_pod() {
    let node = Node::start().await;
    let config = node.pod_config("again");
    let (first, second) = tokio::join!(node.cri.run_pod(&config), node.cri.run_pod(&config));
    let first = first.expect("RunPodSandbox");
    assert_eq!(first, second.expect("RunPodSandbox at the same time"));
    assert_eq!(
        first,
        node.cri
            .run_pod(&config)
            .await
            .expect("RunPodSandbox afterwards")
    );
    assert_eq!(
        node.cri
            .list_pods(None)
            .await
            .expect("ListPodSandbox")
            .len(),
        1
    );

    let mut next = config.clone();
    next.metadata.as_mut().expect("metadata").attempt = 1;
    let other = node
        .cri
        .run_pod(&next)
        .await
        .expect("RunPodSandbox of the next attempt");
    assert_ne!(first, other);
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels_nothing() {
    let node = Node::start().await;
    let config = node.pod_config("abandoned");
    let call = node.cri.run_pod(&config);
    // Long enough to be sent, too short to be answered: the rest goes on without a caller.
    let _gone = tokio::time::timeout(std::time::Duration::from_millis(2), call).await;
    let id = node
        .cri
        .run_pod(&config)
        .await
        .expect("the retry joins or gets the result");
    let pods = node.cri.list_pods(None).await.expect("ListPodSandbox");
    assert_eq!(pods.iter().map(|pod| &pod.id).collect::<Vec<_>>(), [&id]);
}

#[tokio::test]
async fn pods_are_listed_by_id_prefix_state_and_labels() {
    let node = Node::start().await;
    let (one, two) = (node.pod("one").await, node.pod("two").await);
    let list = async |filter| {
        let pods = node
            .cri
            .list_pods(Some(filter))
            .await
            .expect("ListPodSandbox");
        let mut names: Vec<_> = pods
            .into_iter()
            .map(|p| p.metadata.expect("metadata").name)
            .collect();
        names.sort();
        names.join(" ")
    };
    let by_id = |id: &str| PodSandboxFilter {
        id: id.into(),
        ..Default::default()
    };
    let by_labels = |pairs: &[(&str, &str)]| PodSandboxFilter {
        label_selector: labels(pairs),
        ..Default::default()
    };
    assert_eq!(list(PodSandboxFilter::default()).await, "one two");
    assert_eq!(list(by_id(&one.id)).await, "one");
    assert_eq!(list(by_id(&one.id[..13])).await, "one");
    assert_eq!(list(by_id("ffffffffffffff")).await, "");
    assert_eq!(list(by_labels(&[("app", "two")])).await, "two");
    assert_eq!(list(by_labels(&[("app", "two"), ("absent", "")])).await, "");
    let both = PodSandboxFilter {
        id: two.id.clone(),
        label_selector: labels(&[("app", "one")]),
        ..Default::default()
    };
    assert_eq!(list(both).await, "", "conditions are joined by and");
    let status = node
        .cri
        .pod_status(&one.id[..16])
        .await
        .expect("a unique prefix is enough");
    assert_eq!(status.id, one.id);
}

#[tokio::test]
async fn many_pods_at_once_each_get_an_address_of_their_own() {
    let node = Node::start().await;
    let configs: Vec<_> = (0..20)
        .map(|n| node.pod_config(&format!("many-{n}")))
        .collect();
    let runs = configs.iter().map(|config| node.cri.run_pod(config));
    let mut ips = Vec::new();
    for id in futures_util::future::join_all(runs).await {
        let status = node.cri.pod_status(&id.expect("RunPodSandbox")).await;
        ips.push(
            status
                .expect("PodSandboxStatus")
                .network
                .expect("a network")
                .ip,
        );
    }
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), 20, "{ips:?}");
}

#[tokio::test]
async fn an_address_comes_back_when_its_pod_is_stopped() {
    // A /24 has 253 addresses for pods; more lives than that must pass through it. Ten pods prove
    // the return of each address by the rows, which the end of every test counts.
    let node = Node::start().await;
    for round in 0..10 {
        let pod = node.pod(&format!("round-{round}")).await;
        node.cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
        let freed = || async {
            let status = node
                .cri
                .pod_status(&pod.id)
                .await
                .expect("PodSandboxStatus");
            (status.state() == PodSandboxState::SandboxNotready).then_some(())
        };
        eventually("the pod is not ready", freed).await;
        node.cri
            .remove_pod(&pod.id)
            .await
            .expect("RemovePodSandbox");
    }
}
