// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! firecracker-rs-sdk boots Linux. Its console prints to a file, and reads a FIFO.

use std::fs::{self, File};
use std::io::Write;
use std::mem;
use std::process::Command;
use std::thread;
use std::time::Duration;

use firecracker_rs_sdk::firecracker::FirecrackerOption;
use firecracker_rs_sdk::instance::Instance;
use firecracker_rs_sdk::models::{BootSource, Drive, MachineConfiguration};
use mini_vmm_clients::{Linux, Place};

fn state(vm: &mut Instance) -> String {
    format!("{:?}", vm.describe_instance().unwrap().state)
}

fn describe(vm: &mut Instance, linux: &Linux) {
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
        boot_args: Some(linux.line.clone()),
        initrd_path: Some(linux.initrd.clone()),
        kernel_image_path: linux.kernel.clone(),
    })
    .unwrap();
    if let Some(disk) = &linux.disk {
        vm.put_guest_drive_by_id(&Drive {
            drive_id: "rootfs".into(),
            partuuid: None,
            is_root_device: true,
            cache_type: None,
            is_read_only: false,
            path_on_host: disk.clone(),
            rate_limiter: None,
            io_engine: None,
            socket: None,
        })
        .unwrap();
    }
}

fn main() {
    let linux = Linux::from_arguments();
    let dir = tempfile::tempdir().unwrap();
    let [socket, console, keys] = ["api", "console", "keys"].map(|name| dir.path().join(name));
    let made = Command::new("mkfifo").arg(&keys).status().unwrap();
    assert!(made.success());
    // Nobody waits for the other end of a FIFO that is open for both.
    let mut keyboard = File::options().read(true).write(true).open(&keys).unwrap();
    let mut option = FirecrackerOption::new(&linux.firecracker);
    option.api_sock(&socket).stdin(&keys).stdout(&console);
    let mut vm = option.build().unwrap();
    vm.start_vmm().unwrap();
    describe(&mut vm, &linux);
    vm.start().unwrap();
    let printed = || fs::read(&console).unwrap();
    let mut command = Linux::COMMAND.as_bytes();
    while !linux.is_ready(&printed()) {
        assert!(socket.exists(), "{}", String::from_utf8_lossy(&printed()));
        if linux.wants_a_command(&printed()) {
            keyboard.write_all(mem::take(&mut command)).unwrap();
        }
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
