//! Packet rules of others on a host of the test's own little network, loaded by the programs that
//! write them. Nothing is undone: the rules end with the host.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rtnetlink::{LinkBridge, LinkUnspec, LinkVeth};

use super::host::Host;

/// Runs a program in the host's network with this input; what it prints. It must succeed.
fn run(host: &Host, program: &str, arguments: &[&str], input: &str) -> String {
    let output = host.run(|| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{program}: {error}"));
        let mut stdin = child.stdin.take().expect("its input");
        // One that fails early reads no more.
        let _ended = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("a child of this process")
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Loads what `iptables-save` would have printed, in place of all such rules.
pub(crate) fn load_iptables(host: &Host, text: &str) {
    run(host, "iptables-nft-restore", &[], text);
}

/// One command of `iptables`.
pub(crate) fn iptables(host: &Host, arguments: &[&str]) {
    run(host, "iptables-nft", arguments, "");
}

/// Loads a file of `nft`, beside what is there.
pub(crate) fn load_nft(host: &Host, text: &str) {
    run(host, "nft", &["-f", "-"], text);
}

/// All rules of the host but those of one table: without counters, as they could be loaded again.
pub(crate) fn all_but(host: &Host, table: &str) -> String {
    let listed = run(host, "nft", &["--stateless", "list", "ruleset"], "");
    let mut kept = String::new();
    let mut ours = false;
    for line in listed.lines() {
        if line.starts_with("table ") {
            ours = line.contains(table);
        }
        if !ours {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// A host behind another one, as the containers of others are: on a bridge there that has the first
/// address of a network, with the second one for itself and a default route.
pub(crate) fn host_behind(
    host: &Host,
    bridge: &'static str,
    [own, its]: [Ipv4Addr; 2],
) -> Arc<Host> {
    let guest = Host::new();
    let descriptor = guest.descriptor();
    host.ask(move |handle| async move {
        let link = LinkBridge::new(bridge).up().build();
        handle.link().add(link).execute().await
    });
    let index = host.index(bridge);
    host.ask(move |handle| async move {
        handle
            .address()
            .add(index, own.into(), 16)
            .execute()
            .await?;
        let pair = LinkVeth::new("veth-guest", "inside").build();
        handle.link().add(pair).execute().await?;
        let away = LinkUnspec::new_with_name("inside").setns_by_fd(descriptor);
        handle.link().set(away.build()).execute().await?;
        let port = LinkUnspec::new_with_name("veth-guest")
            .controller(index)
            .up();
        handle.link().set(port.build()).execute().await
    });
    let index = guest.index("inside");
    guest.ask(move |handle| async move {
        let up = LinkUnspec::new_with_index(index).up().build();
        handle.link().set(up).execute().await?;
        handle.address().add(index, its.into(), 16).execute().await
    });
    guest.route((Ipv4Addr::UNSPECIFIED, 0), own);
    guest
}
