//! Interfaces of the node that a test makes, changes and removes, over netlink.

use std::fs;
use std::path::Path;

use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth};

use super::leftover::run_apart;

/// Asks the kernel for something, on a thread that may wait.
fn ask<F: Future<Output = Result<(), rtnetlink::Error>> + Send>(
    what: String,
    work: impl FnOnce(Handle) -> F + Send + 'static,
) {
    run_apart(async move {
        let (connection, handle, _) = rtnetlink::new_connection().expect("a netlink socket");
        tokio::spawn(connection);
        work(handle).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    });
}

fn add(what: &str, message: LinkMessage) {
    ask(format!("add {what}"), |handle| async move {
        handle.link().add(message).execute().await
    });
}

fn change(what: &str, message: LinkMessage) {
    ask(format!("change {what}"), |handle| async move {
        handle.link().set(message).execute().await
    });
}

/// A pair of two ends, both on the node.
pub(crate) fn add_veth(name: &str, peer: &str) {
    add(name, LinkVeth::new(name, peer).build());
}

/// A bridge.
pub(crate) fn add_bridge(name: &str) {
    add(name, LinkBridge::new(name).build());
}

/// Marks an interface.
pub(crate) fn mark(name: &str, alias: &str) {
    fs::write(format!("/sys/class/net/{name}/ifalias"), alias).expect("an alias");
}

/// Makes an interface a port of a bridge.
pub(crate) fn attach(name: &str, bridge: &str) {
    let message = LinkUnspec::new_with_index(index(name));
    change(name, message.controller(index(bridge)).build());
}

/// Sets an interface down.
pub(crate) fn set_down(name: &str) {
    change(name, LinkUnspec::new_with_index(index(name)).down().build());
}

/// Removes an interface; one that is not there is no error.
pub(crate) fn delete(name: &str) {
    if exists(name) {
        let index = index(name);
        ask(format!("delete {name}"), move |handle| async move {
            handle.link().del(index).execute().await
        });
    }
}

/// Whether there is an interface of this name.
pub(crate) fn exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// The ports of a bridge.
pub(crate) fn ports(bridge: &str) -> Vec<String> {
    let ports = fs::read_dir(format!("/sys/class/net/{bridge}/brif"));
    let names = ports.into_iter().flatten().flatten();
    names
        .map(|port| port.file_name().to_string_lossy().into_owned())
        .collect()
}

fn index(name: &str) -> u32 {
    let text = fs::read_to_string(format!("/sys/class/net/{name}/ifindex"));
    let text = text.unwrap_or_else(|error| panic!("{name}: {error}"));
    text.trim().parse().expect("an index")
}
