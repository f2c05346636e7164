// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! firecracker-rs-sdk: HTTP/1.0 on one connection.

use firecracker_rs_sdk::firecracker::FirecrackerOption;
use firecracker_rs_sdk::models::{BootSource, Drive, MachineConfiguration};
use mini_vmm_clients::Place;

#[test]
fn a_machine_is_created_started_paused_resumed_queried_and_ended() {
    let Some(place) = Place::new("firecracker-rs-sdk") else {
        return;
    };
    let socket = place.path("api");
    let mut option = FirecrackerOption::new(place.path("firecracker"));
    let mut vm = option.api_sock(&socket).id("sdk-1").build().unwrap();
    vm.start_vmm().unwrap();
    assert!(
        vm.get_firecracker_version()
            .unwrap()
            .firecracker_version
            .starts_with("1.")
    );
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
    assert_eq!(vm.get_machine_configuration().unwrap().mem_size_mib, 32);
    // This client looks for the drives under another name.
    let config = vm.get_export_vm_config().unwrap();
    assert_eq!(config.machine_config.unwrap().vcpu_count, 1);
    let state = |vm: &mut firecracker_rs_sdk::instance::Instance| {
        format!("{:?}", vm.describe_instance().unwrap().state)
    };
    assert_eq!(state(&mut vm), "NotStarted");
    vm.start().unwrap();
    assert_eq!(state(&mut vm), "Running");
    vm.pause().unwrap();
    assert_eq!(state(&mut vm), "Paused");
    vm.resume().unwrap();
    vm.stop().unwrap();
    Place::wait_for_the_end(&socket);
}
