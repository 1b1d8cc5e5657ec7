//! What containers and pods use, as the interface puts it.

use crate::lifecycle::usage::{Interface, POD_INTERFACE, Pressure, Stall, Usage};
use crate::proto::cri as v1;

pub(super) fn number(value: Option<u64>) -> Option<v1::UInt64Value> {
    value.map(|value| v1::UInt64Value { value })
}

/// `at` is when it was measured (ns since 1970), `rate` the CPU time used per second (ns/s).
pub(super) fn cpu(at: i64, rate: Option<u64>, usage: &Usage) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: number(usage.cpu_usage_ns),
        usage_nano_cores: number(rate),
        psi: usage.cpu_pressure.map(pressure),
    }
}

pub(super) fn memory(at: i64, usage: &Usage) -> v1::MemoryUsage {
    v1::MemoryUsage {
        timestamp: at,
        working_set_bytes: number(usage.memory_working_set_bytes),
        available_bytes: number(usage.memory_available_bytes),
        usage_bytes: number(usage.memory_usage_bytes),
        rss_bytes: number(usage.memory_rss_bytes),
        page_faults: number(usage.page_faults),
        major_page_faults: number(usage.major_page_faults),
        psi: usage.memory_pressure.map(pressure),
    }
}

pub(super) fn swap(at: i64, usage: &Usage) -> Option<v1::SwapUsage> {
    usage.swap_usage_bytes.map(|bytes| v1::SwapUsage {
        timestamp: at,
        swap_available_bytes: None,
        swap_usage_bytes: number(Some(bytes)),
    })
}

pub(super) fn io(at: i64, usage: &Usage) -> Option<v1::IoUsage> {
    usage.io_pressure.map(|io| v1::IoUsage {
        timestamp: at,
        psi: Some(pressure(io)),
    })
}

fn pressure(pressure: Pressure) -> v1::PsiStats {
    let data = |stall: Stall| {
        Some(v1::PsiData {
            total: stall.total_us,
            avg10: stall.avg10,
            avg60: stall.avg60,
            avg300: stall.avg300,
        })
    };
    v1::PsiStats {
        full: data(pressure.full),
        some: data(pressure.some),
    }
}

/// The default interface is the one with the pod's addresses, or the first: the kernel may list
/// tunnels before it. Without any there is no network usage: kubelet does not survive one without
/// a default interface.
pub(super) fn network(at: i64, interfaces: &[Interface]) -> Option<v1::NetworkUsage> {
    let usage = |interface: &Interface| v1::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: number(Some(interface.received.bytes)),
        rx_errors: number(Some(interface.received.errors)),
        tx_bytes: number(Some(interface.sent.bytes)),
        tx_errors: number(Some(interface.sent.errors)),
    };
    let is_default = |one: &Interface| one.name == POD_INTERFACE;
    let at_default = interfaces.iter().position(is_default).unwrap_or(0);
    let default = interfaces.get(at_default)?;
    let others = interfaces.iter().enumerate();
    let others = others.filter(|(place, _)| *place != at_default);
    Some(v1::NetworkUsage {
        timestamp: at,
        default_interface: Some(usage(default)),
        interfaces: others.map(|(_, one)| usage(one)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_interface_is_the_pods_own_wherever_the_kernel_lists_it() {
        let named = |names: &[&str]| -> Vec<Interface> {
            let one = |name: &&str| Interface {
                name: (*name).into(),
                ..Interface::default()
            };
            names.iter().map(one).collect()
        };
        let told = |names: &[&str]| {
            let usage = network(7, &named(names))?;
            let others = usage.interfaces.into_iter().map(|one| one.name);
            Some((usage.default_interface?.name, others.collect::<Vec<_>>()))
        };
        assert_eq!(
            told(&["tunl0", "eth0", "net1"]),
            Some(("eth0".into(), vec!["tunl0".into(), "net1".into()]))
        );
        assert_eq!(told(&["net1"]), Some(("net1".into(), vec![])));
        assert_eq!(told(&[]), None);
    }
}
