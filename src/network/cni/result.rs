//! What plugins answer: the result of ADD, the list of versions, and error objects.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::request::INTERFACE;

/// Most addresses of a pod.
const ADDRESSES_MAX: usize = 64;
/// Most name servers, search domains and options of a result, each.
const NAMES_MAX: usize = 64;
/// Longest text of a plugin that is repeated.
const TEXT_MAX: usize = 1024;

#[derive(Deserialize)]
struct AddResult {
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
    #[serde(default)]
    ips: Option<Vec<Ip>>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct Ip {
    address: IpNet,
    #[serde(default)]
    interface: Option<i64>,
}

/// The pod's addresses in the result of ADD: those of its interface, and those that name none. The
/// first IPv4 address comes first, as kubelet's clients expect of a pod's main address; all others
/// follow in the order of the result.
///
/// # Errors
/// What is wrong with the result, in words.
pub fn addresses(result: &Value) -> Result<Vec<IpAddr>, String> {
    if !result.is_object() {
        return Err("it is no object".into());
    }
    let parsed = AddResult::deserialize(result).map_err(|error| error.to_string())?;
    let interfaces = parsed.interfaces.unwrap_or_default();
    let mut addresses = Vec::new();
    for ip in parsed.ips.unwrap_or_default() {
        let own = match ip.interface {
            None => true,
            Some(index) => {
                let index = usize::try_from(index).ok();
                let interface = index.and_then(|index| interfaces.get(index));
                let interface =
                    interface.ok_or("an address names an interface that is not there")?;
                interface.name == INTERFACE
                    && interface.sandbox.as_ref().is_some_and(|at| !at.is_empty())
            }
        };
        let address = ip.address.addr();
        if own && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.len() > ADDRESSES_MAX {
        return Err(format!("it has more than {ADDRESSES_MAX} addresses"));
    }
    if let Some(first) = addresses.iter().position(IpAddr::is_ipv4) {
        addresses[..=first].rotate_right(1);
    }
    Ok(addresses)
}

/// How a pod finds names, as its plugins have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers, the first one first.
    pub servers: Vec<String>,
    /// Domains to look in.
    pub searches: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

#[derive(Default, Deserialize)]
struct NamesResult {
    #[serde(default)]
    dns: Option<Names>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Names {
    nameservers: Option<Vec<String>>,
    domain: Option<String>,
    search: Option<Vec<String>>,
    options: Option<Vec<String>>,
}

/// The name servers in the result of ADD, with what belongs to them. `None`: it names no server, so
/// that what it says otherwise would be about the node's.
///
/// # Errors
/// What is wrong with the result, in words.
pub fn dns(result: &Value) -> Result<Option<Dns>, String> {
    let parsed = NamesResult::deserialize(result).map_err(|error| error.to_string())?;
    let names = parsed.dns.unwrap_or_default();
    let dns = Dns {
        servers: names.nameservers.unwrap_or_default(),
        searches: match names.search.unwrap_or_default() {
            // The local domain is looked in where no list says otherwise (resolv.conf(5)).
            list if list.is_empty() => names.domain.into_iter().filter(|d| !d.is_empty()).collect(),
            list => list,
        },
        options: names.options.unwrap_or_default(),
    };
    let lists = [&dns.servers, &dns.searches, &dns.options];
    if lists.into_iter().any(|list| list.len() > NAMES_MAX) {
        return Err(format!("its \"dns\" has more than {NAMES_MAX} entries"));
    }
    Ok((!dns.servers.is_empty()).then_some(dns))
}

#[derive(Deserialize)]
struct ErrorObject {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// The code and the words of an error object, if the text is one.
pub(super) fn error_object(text: &[u8]) -> Option<(u64, String)> {
    let object: ErrorObject = serde_json::from_slice(text).ok()?;
    let mut words = format!("code {}", object.code);
    for part in [&object.msg, &object.details] {
        if !part.is_empty() {
            words = format!("{words}: {}", harmless(part.as_bytes()));
        }
    }
    Some((object.code, words))
}

#[derive(Deserialize)]
struct Versions {
    #[serde(rename = "supportedVersions")]
    supported: Vec<String>,
}

/// The versions in the answer of VERSION.
pub(super) fn supported_versions(text: &[u8]) -> Option<Vec<String>> {
    let versions: Versions = serde_json::from_slice(text).ok()?;
    Some(versions.supported)
}

/// A plugin's text as it may be shown: bounded, on one line, without control characters.
pub(super) fn harmless(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut characters = line.chars().filter(|character| !character.is_control());
    let mut shown: String = characters.by_ref().take(TEXT_MAX).collect();
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}
