// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! firecracker-rs-sdk: HTTP/1.0 on one connection.

use std::fs;
use std::path::Path;

use firecracker_rs_sdk::firecracker::FirecrackerOption;
use firecracker_rs_sdk::instance::Instance;
use firecracker_rs_sdk::models::{
    BackendType, BootSource, Drive, MachineConfiguration, MemoryBackend, SnapshotCreateParams,
    SnapshotLoadParams, SnapshotType,
};
use mini_vmm_clients::{DOWN, Place};

/// A process without a machine, whose guest prints to `console`.
fn process(place: &Place, socket: &Path, console: &Path) -> Instance {
    let mut option = FirecrackerOption::new(place.path("firecracker"));
    option.api_sock(socket).id("sdk-1").stdout(console);
    let mut vm = option.build().unwrap();
    vm.start_vmm().unwrap();
    vm
}

fn describe(vm: &mut Instance, place: &Place) {
    vm.put_machine_configuration(&MachineConfiguration {
        cpu_template: None,
        smt: None,
        mem_size_mib: 32,
        track_dirty_pages: None,
        vcpu_count: 1,
        huge_pages: None,
    })
    .unwrap();
    vm.put_guest_boot_source(&BootSource {
        boot_args: Some("console=ttyS0 reboot=k panic=1 pci=off".into()),
        initrd_path: None,
        kernel_image_path: place.path("kernel"),
    })
    .unwrap();
    vm.put_guest_drive_by_id(&Drive {
        drive_id: "rootfs".into(),
        partuuid: None,
        is_root_device: true,
        cache_type: None,
        is_read_only: false,
        path_on_host: place.path("disk"),
        rate_limiter: None,
        io_engine: None,
        socket: None,
    })
    .unwrap();
}

fn state(vm: &mut Instance) -> String {
    format!("{:?}", vm.describe_instance().unwrap().state)
}

#[test]
fn a_machine_is_created_started_paused_resumed_queried_and_ended() {
    let Some(place) = Place::new("firecracker-rs-sdk") else {
        return;
    };
    let socket = place.path("api");
    let mut vm = process(&place, &socket, &place.path("console"));
    let version = vm.get_firecracker_version().unwrap().firecracker_version;
    assert!(version.starts_with("1."));
    describe(&mut vm, &place);
    assert_eq!(vm.get_machine_configuration().unwrap().mem_size_mib, 32);
    // This client looks for the drives under another name.
    let config = vm.get_export_vm_config().unwrap();
    assert_eq!(config.machine_config.unwrap().vcpu_count, 1);
    assert_eq!(state(&mut vm), "NotStarted");
    vm.start().unwrap();
    assert_eq!(state(&mut vm), "Running");
    vm.pause().unwrap();
    assert_eq!(state(&mut vm), "Paused");
    vm.resume().unwrap();
    vm.stop().unwrap();
    Place::wait_for_the_end(&socket);
}

#[test]
fn two_machines_go_on_from_a_snapshot() {
    let Some(place) = Place::new("firecracker-rs-sdk, snapshot") else {
        return;
    };
    let (socket, console) = (place.path("api"), place.path("console"));
    let mut vm = process(&place, &socket, &console);
    describe(&mut vm, &place);
    vm.start().unwrap();
    Place::wait_for_up(&console);
    vm.pause().unwrap();
    vm.create_snapshot(&SnapshotCreateParams {
        mem_file_path: place.path("memory"),
        snapshot_path: place.path("state"),
        snapshot_type: Some(SnapshotType::Full),
        version: None,
    })
    .unwrap();
    vm.resume().unwrap();
    vm.stop().unwrap();
    Place::wait_for_the_end(&socket);

    for name in ["one", "two"] {
        let console = place.path(name);
        let mut vm = process(&place, &socket, &console);
        vm.load_snapshot(&SnapshotLoadParams {
            enable_diff_snapshots: None,
            mem_file_path: None,
            mem_backend: Some(MemoryBackend {
                backend_type: BackendType::File,
                backend_path: place.path("memory"),
            }),
            resume_vm: None,
            snapshot_path: place.path("state"),
        })
        .unwrap();
        assert_eq!(state(&mut vm), "Paused");
        vm.resume().unwrap();
        vm.stop().unwrap();
        Place::wait_for_the_end(&socket);
        assert_eq!(fs::read_to_string(&console).unwrap(), DOWN);
    }
}
