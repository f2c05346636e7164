// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! firecracker-rs-sdk boots Linux, with its console in a file.

use std::fs;
use std::io::Write;
use std::thread;
use std::time::Duration;

use firecracker_rs_sdk::firecracker::FirecrackerOption;
use firecracker_rs_sdk::instance::Instance;
use firecracker_rs_sdk::models::{BootSource, MachineConfiguration};
use mini_vmm_clients::{Linux, Place};

fn state(vm: &mut Instance) -> String {
    format!("{:?}", vm.describe_instance().unwrap().state)
}

fn main() {
    let linux = Linux::from_arguments();
    let dir = tempfile::tempdir().unwrap();
    let (socket, console) = (dir.path().join("api"), dir.path().join("console"));
    let mut option = FirecrackerOption::new(linux.firecracker);
    option.api_sock(&socket).stdout(&console);
    let mut vm = option.build().unwrap();
    vm.start_vmm().unwrap();
    vm.put_machine_configuration(&MachineConfiguration {
        cpu_template: None,
        smt: None,
        mem_size_mib: 512,
        track_dirty_pages: None,
        vcpu_count: linux.cpus.into(),
        huge_pages: None,
    })
    .unwrap();
    vm.put_guest_boot_source(&BootSource {
        boot_args: Some(linux.line),
        initrd_path: Some(linux.initrd),
        kernel_image_path: linux.kernel,
    })
    .unwrap();
    vm.start().unwrap();
    let printed = || fs::read(&console).unwrap();
    while !Linux::is_ready(&printed()) {
        assert!(socket.exists(), "{}", String::from_utf8_lossy(&printed()));
        thread::sleep(Duration::from_millis(100));
    }
    vm.pause().unwrap();
    assert_eq!(state(&mut vm), "Paused");
    vm.resume().unwrap();
    assert_eq!(state(&mut vm), "Running");
    vm.stop().unwrap();
    Place::wait_for_the_end(&socket);
    std::io::stdout().write_all(&printed()).unwrap();
}
