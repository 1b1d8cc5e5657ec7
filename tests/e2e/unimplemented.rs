//! Every call of the API is routed: what is not there yet says so by its name.

use quilt::proto::cri::runtime_service_client::RuntimeServiceClient;
use quilt::proto::cri::*;
use tonic::Code;

use crate::support::Node;
use crate::support::client::request;

/// Calls a method with an empty message, and keeps its name as the API writes it with its error.
macro_rules! outcomes {
    ($client:expr, $($method:ident($message:ident) = $name:literal),+ $(,)?) => {{
        let mut client = $client;
        [$(($name, client.$method(request($message::default())).await.map(drop))),+]
    }};
}

#[tokio::test]
async fn what_is_not_there_yet_says_so_by_its_name() {
    let node = Node::start().await;
    let runtime = RuntimeServiceClient::new(node.cri.channel());
    let of_the_runtime = outcomes!(
        runtime,
        checkpoint_container(CheckpointContainerRequest) = "CheckpointContainer",
        checkpoint_pod(CheckpointPodRequest) = "CheckpointPod",
        restore_pod(RestorePodRequest) = "RestorePod",
    );
    for (name, outcome) in of_the_runtime {
        let error = outcome.expect_err("it is not there yet");
        assert_eq!(error.code(), Code::Unimplemented, "{name}: {error}");
        assert!(
            error.message().contains(name),
            "{name} is not named: {error}"
        );
    }
}
