//! What a plugin is told: its configuration with what the runtime adds (specification, "Deriving
//! request configuration from plugin configuration"), and the arguments of an attachment.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::error::CniError;
use super::list::{NetworkList, Plugin};

/// The name of a pod's interface, as kubelet and everybody else expects it.
pub const INTERFACE: &str = "eth0";

/// A pod's place in a network.
#[derive(Debug, Clone, Copy)]
pub struct Attachment<'a> {
    /// Whose it is: the pod sandbox' id.
    pub container_id: &'a str,
    /// Its network namespace; `None` when that is gone, which only DEL can bear.
    pub netns: Option<&'a Path>,
    /// `CNI_ARGS`, as [`arguments`] makes them.
    pub arguments: &'a str,
    /// What plugins may want to be told of it, by capability.
    pub capabilities: &'a Map<String, Value>,
}

/// `CNI_ARGS`: words joined by `=` and `;`, which therefore none may hold.
///
/// # Errors
/// [`CniError::Argument`] for a value that would read as something else.
pub fn arguments(pairs: &[(&'static str, &str)]) -> Result<String, CniError> {
    let mut words = Vec::with_capacity(pairs.len());
    for (name, value) in pairs {
        if value.contains([';', '=', '\0', '\n']) {
            return Err(CniError::Argument {
                what: name,
                value: (*value).to_owned(),
                why: "it holds a character that separates arguments",
            });
        }
        words.push(format!("{name}={value}"));
    }
    Ok(words.join(";"))
}

/// Names of this beginning are the runtime's.
const RESERVED: &str = "cni.dev/";

/// What every request has.
fn base(list: &NetworkList, plugin: &Plugin) -> Map<String, Value> {
    let mut config = plugin.config.clone();
    config.retain(|key, _| !key.starts_with(RESERVED));
    config.insert("name".into(), list.name.clone().into());
    config.insert("cniVersion".into(), list.version.as_str().into());
    config.remove("capabilities");
    config
}

fn text(config: Map<String, Value>) -> Vec<u8> {
    Value::Object(config).to_string().into_bytes()
}

/// The request of ADD, DEL and CHECK.
pub(super) fn of_attachment(
    list: &NetworkList,
    plugin: &Plugin,
    attachment: &Attachment<'_>,
    previous: Option<&Value>,
) -> Vec<u8> {
    let mut config = base(list, plugin);
    config.remove("runtimeConfig");
    let told: Map<String, Value> = attachment
        .capabilities
        .iter()
        .filter(|(name, _)| plugin.capabilities.contains(*name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !told.is_empty() {
        config.insert("runtimeConfig".into(), told.into());
    }
    config.remove("prevResult");
    if let Some(previous) = previous {
        config.insert("prevResult".into(), previous.clone());
    }
    text(config)
}

/// The request of GC: which attachments are still valid.
pub(super) fn of_collection(list: &NetworkList, plugin: &Plugin, valid: &[String]) -> Vec<u8> {
    let mut config = base(list, plugin);
    let valid: Vec<_> = valid
        .iter()
        .map(|id| json!({ "containerID": id, "ifname": INTERFACE }))
        .collect();
    // The second name is that of the first programs that knew GC.
    config.insert("cni.dev/valid-attachments".into(), valid.clone().into());
    config.insert("cni.dev/attachments".into(), valid.into());
    text(config)
}

/// The request of STATUS.
pub(super) fn of_status(list: &NetworkList, plugin: &Plugin) -> Vec<u8> {
    text(base(list, plugin))
}
