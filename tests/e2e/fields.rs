//! `docs/fields.md` against the descriptors of the API: every field of a pod and of a container has
//! its row, every row its field, and what is called refused is refused, by its name.

use std::collections::BTreeSet;

use quilt::proto::cri::runtime_service_client::RuntimeServiceClient;
use quilt::proto::cri::{CreateContainerRequest, RunPodSandboxRequest};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::Node;
use crate::support::client::request;
use crate::support::pod::shell;
use crate::support::protojson::Api;

static PAGE: &str = include_str!("../../docs/fields.md");

/// The rows of a section: field and state.
fn rows(section: &str) -> Vec<(String, String)> {
    let begin = PAGE.find(&format!("\n## {section}\n")).expect("a section");
    let text = &PAGE[begin + 4..];
    let text = &text[..text.find("\n## ").unwrap_or(text.len())];
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split('|');
        let field = cells.next()?.trim().trim_end_matches('`').to_owned();
        Some((field, cells.next()?.trim().to_owned()))
    };
    text.lines().filter_map(row).collect()
}

/// What a row covers: a field, or with `.*` all below one.
fn covers(row: &str, field: &str) -> bool {
    match row.strip_suffix(".*") {
        Some(above) => field
            .strip_prefix(above)
            .is_some_and(|rest| rest.starts_with('.')),
        None => row == field,
    }
}

#[test]
fn every_field_has_one_row_and_every_row_a_field() {
    let api = Api::load();
    for message in ["PodSandboxConfig", "ContainerConfig"] {
        let rows = rows(message);
        let fields = api.fields(message);
        assert!(rows.len() > 20 && fields.len() > 60, "{message}");
        for field in &fields {
            let own = rows.iter().filter(|(row, _)| covers(row, field)).count();
            assert_eq!(own, 1, "{message}.{field} has {own} rows in docs/fields.md");
        }
        for (row, state) in &rows {
            assert!(
                fields.iter().any(|field| covers(row, field)),
                "{row} of docs/fields.md is no field of {message}"
            );
            assert!(
                ["honoured", "refused", "ignored"].contains(&state.as_str()),
                "{row}: {state}"
            );
        }
    }
}

/// A message with nothing but `field` set, to something else than its default.
fn with(field: &str) -> Value {
    let (name, rest) = field.split_once('.').unwrap_or((field, ""));
    let (name, repeated) = match name.strip_suffix("[]") {
        Some(name) => (name, true),
        None => (name, false),
    };
    let value = match (rest, name) {
        ("*" | "", "windows") => json!({}),
        ("*", "CDI_devices") => json!({"name": "vendor.com/device=one"}),
        ("*", _) => json!({"host_id": 1, "length": 1}),
        ("", _) => json!("something"),
        // What is below an image is looked at only if the mount could be one.
        (rest, "mounts") => {
            let mut mount = with(rest);
            merge(&mut mount, json!({"readonly": true}));
            mount
        }
        (rest, _) => with(rest),
    };
    let value = if repeated { json!([value]) } else { value };
    json!({ name: value })
}

/// Puts what `change` has into `base`.
fn merge(base: &mut Value, change: Value) {
    match (base, change) {
        (Value::Object(base), Value::Object(change)) => {
            for (key, value) in change {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, change) => *base = change,
    }
}

#[tokio::test]
async fn what_is_called_refused_is_refused_by_its_name() {
    let node = Node::start().await;
    let api = Api::load();
    let pod = node.pod("fields").await;
    let mut runtime = RuntimeServiceClient::new(node.cri.channel());
    let mut seen = BTreeSet::new();
    for message in ["PodSandboxConfig", "ContainerConfig"] {
        for (row, _) in rows(message).iter().filter(|(_, state)| state == "refused") {
            let mut config = with(row);
            let outcome = if message == "PodSandboxConfig" {
                let metadata = json!({"name": "n", "namespace": "s", "uid": "u"});
                merge(&mut config, json!({"metadata": metadata}));
                let wire = api.encode("RunPodSandboxRequest", &json!({"config": config}));
                let message: RunPodSandboxRequest = decode(&wire.expect("a request"));
                runtime.run_pod_sandbox(request(message)).await.map(drop)
            } else {
                let like = shell("refused", "true");
                let image = like.image.expect("an image").image;
                let given = json!({"metadata": {"name": "refused"}, "image": {"image": image}});
                merge(&mut config, given);
                let whole = json!({"pod_sandbox_id": pod.id, "config": config});
                let wire = api.encode("CreateContainerRequest", &whole);
                let message: CreateContainerRequest = decode(&wire.expect("a request"));
                runtime.create_container(request(message)).await.map(drop)
            };
            let Err(error) = outcome else {
                panic!("{message}.{row} is called refused, and is not");
            };
            let refusals = [Code::InvalidArgument, Code::Unimplemented];
            assert!(refusals.contains(&error.code()), "{row}: {error}");
            let names: Vec<_> = row
                .split(['.', '['])
                .filter(|part| part.len() > 2)
                .collect();
            let name = names.last().expect("a name");
            assert!(error.message().contains(name), "{row}: {error}");
            seen.insert(row.clone());
        }
    }
    assert!(seen.len() > 3, "{seen:?}");
}

fn decode<M: prost::Message + Default>(wire: &[u8]) -> M {
    M::decode(wire).expect("a message of the API")
}
