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

#[cfg(test)]
mod tests {
    use super::*;

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
