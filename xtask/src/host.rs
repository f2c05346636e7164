// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What this host can do.

use std::fs::{self, File};

/// Whether /dev/kvm can be opened; the error tells why not.
pub fn kvm() -> Result<(), String> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map(drop)
        .map_err(|error| format!("/dev/kvm can't be used: {error}"))
}

/// Whether stock kernels run on this host's /dev/kvm; the error tells why not. A KVM without a virtualization extension
/// runs guests in an instruction emulator, which can't run them.
pub fn hardware_kvm() -> Result<(), String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !has_extension(&cpus) {
        return Err("this CPU has no svm or vmx".to_owned());
    }
    kvm()
}

fn has_extension(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| flag == "svm" || flag == "vmx")
        })
}

/// Whether this host has a default route, without which passt does not start.
pub fn has_default_route() -> bool {
    let read = |name| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    has_default_route_4(&read("route")) || has_default_route_6(&read("ipv6_route"))
}

/// The same for IPv4, from the text of /proc/net/route.
fn has_default_route_4(routes: &str) -> bool {
    let mut routes = routes.lines().map(|line| line.split_whitespace());
    routes.any(|mut words| (words.nth(1), words.nth(5)) == (Some("00000000"), Some("00000000")))
}

/// The same for IPv6, from the text of /proc/net/ipv6_route. On `lo` is a route that refuses what no other one takes.
fn has_default_route_6(routes: &str) -> bool {
    let mut routes = routes.lines().map(|line| line.split_whitespace());
    routes.any(|mut words| {
        let is_default = words.next().is_some_and(|to| to.bytes().all(|c| c == b'0'))
            && words.next() == Some("00");
        is_default && words.last() != Some("lo")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_are_told_from_others() {
        let title =
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
        let near = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let far = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert!(has_default_route_4(&[title, near, far].concat()));
        assert!(!has_default_route_4(&[title, near].concat()));
        let (any, zeros) = ("0".repeat(32), "00000000000000000000000000000000");
        let line = |to: &str, length, device| {
            format!(
                "{to} {length} {any} 00 {zeros} 00000400 00000003 00000000 00000003     {device}\n"
            )
        };
        let refusing = line(&any, "00", "lo");
        let near = line(&any.replacen('0', "f", 1), "40", "eth0");
        assert!(!has_default_route_6(&[refusing.clone(), near].concat()));
        assert!(has_default_route_6(
            &[refusing, line(&any, "00", "eth0")].concat()
        ));
        assert!(!has_default_route_6(&line(&any, "40", "eth0")));
    }

    #[test]
    fn extension_is_a_flag_of_its_own() {
        assert!(has_extension("model\nflags\t\t: fpu svm sse\n"));
        assert!(has_extension("flags\t\t: fpu vmx\n"));
        assert!(!has_extension(
            "flags\t\t: fpu svm_lock\nvmx flags\t: ept\n"
        ));
        assert!(!has_extension(""));
    }
}
