// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! fctools: by requests and by a config file, with a snapshot, and with a check of `--version`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::api::VmApi;
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{BootSource, CreateSnapshot, Drive, MachineConfiguration, SnapshotType};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vm::snapshot::{PrepareVmFromSnapshotOptions, VmSnapshot};
use fctools::vm::{Vm, VmState};
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{MovedResourceType, ResourceType};
use mini_vmm_clients::{DOWN, Place, UP};
use tokio::io::AsyncReadExt;

type Machine = Vm<UnrestrictedVmmExecutor, DirectProcessSpawner, TokioRuntime>;

/// Only a machine that hangs takes that long.
const PATIENCE: Duration = Duration::from_secs(300);

fn executor(place: &Place) -> UnrestrictedVmmExecutor {
    let arguments = VmmArguments::new(VmmApiSocket::Enabled(place.path("api")));
    UnrestrictedVmmExecutor::new(arguments)
}

/// A machine that was not started.
async fn prepare(place: &Place, init_method: InitMethod) -> Machine {
    let firecracker = place.path("firecracker");
    // Neither is used.
    let (jailer, snapshot_editor) = (firecracker.clone(), firecracker.clone());
    let installation = VmmInstallation::new(firecracker, jailer, snapshot_editor);
    let mut resources = ResourceSystem::new(
        DirectProcessSpawner,
        TokioRuntime,
        VmmOwnershipModel::Shared,
    );
    let mut resource = |name: &str| {
        let moved = ResourceType::Moved(MovedResourceType::Copied);
        resources.create_resource(place.path(name), moved).unwrap()
    };
    let data = VmConfigurationData {
        boot_source: BootSource {
            kernel_image: resource("kernel"),
            boot_args: Some("console=ttyS0 reboot=k panic=1 pci=off".to_owned()),
            initrd: None,
        },
        drives: vec![Drive {
            drive_id: "rootfs".to_owned(),
            is_root_device: true,
            cache_type: None,
            partuuid: None,
            is_read_only: Some(true),
            block: Some(resource("disk")),
            rate_limiter: None,
            io_engine: None,
            socket: None,
        }],
        pmem_devices: Vec::new(),
        machine_configuration: MachineConfiguration {
            vcpu_count: 1,
            mem_size_mib: 32,
            smt: None,
            track_dirty_pages: None,
            huge_pages: None,
        },
        cpu_template: None,
        network_interfaces: Vec::new(),
        balloon_device: None,
        vsock_device: None,
        logger_system: None,
        metrics_system: None,
        memory_hotplug_configuration: None,
        mmds_configuration: None,
        entropy_device: None,
    };
    let configuration = VmConfiguration::New { init_method, data };
    Vm::prepare(executor(place), resources, installation, configuration)
        .await
        .unwrap()
}

/// Presses the power button, and waits for the end of the process.
async fn power_off(vm: &mut Machine) {
    let action = VmShutdownAction {
        method: VmShutdownMethod::CtrlAltDel,
        timeout: None,
        graceful: true,
    };
    let outcome = vm.shutdown([action]).await.unwrap();
    assert!(outcome.graceful && outcome.errors.is_empty(), "{outcome:?}");
}

async fn lives(place: &Place, init_method: InitMethod) {
    let mut vm = prepare(place, init_method).await;
    vm.start(PATIENCE).await.unwrap();
    assert_eq!(vm.get_state(), VmState::Running);
    vm.pause().await.unwrap();
    assert_eq!(vm.get_state(), VmState::Paused);
    vm.resume().await.unwrap();
    let info = vm.get_info().await.unwrap();
    assert_eq!(info.app_name, "Firecracker");
    power_off(&mut vm).await;
    vm.cleanup().await.unwrap();
}

/// Runs a machine until its guest is up. Makes a snapshot, and kills the machine.
async fn snapshot(place: &Place) -> (Machine, VmSnapshot) {
    let mut vm = prepare(place, InitMethod::ViaApiCalls).await;
    vm.start(PATIENCE).await.unwrap();
    let mut pipes = vm.take_pipes().unwrap();
    let mut console = [0; UP.len()];
    let stdout = pipes.stdout.get_mut();
    stdout.read_exact(&mut console).await.unwrap();
    assert_eq!(console, UP.as_bytes());
    vm.pause().await.unwrap();
    let mut resource = |name: &str| {
        let resources = vm.get_resource_system_mut();
        let path = place.path(name);
        resources
            .create_resource(path, ResourceType::Produced)
            .unwrap()
    };
    let create = CreateSnapshot {
        snapshot_type: Some(SnapshotType::Full),
        snapshot: resource("state"),
        mem_file: resource("memory"),
    };
    let snapshot = vm.create_snapshot(create).await.unwrap();
    let kill = VmShutdownAction {
        method: VmShutdownMethod::Kill,
        timeout: None,
        graceful: false,
    };
    vm.shutdown([kill]).await.unwrap();
    fs::remove_file(place.path("api")).unwrap();
    (vm, snapshot)
}

#[tokio::test]
async fn a_machine_goes_on_from_a_snapshot() {
    let Some(place) = Place::new("fctools, snapshot") else {
        return;
    };
    let (mut old, snapshot) = snapshot(&place).await;
    let options = PrepareVmFromSnapshotOptions {
        executor: executor(&place),
        process_spawner: DirectProcessSpawner,
        runtime: TokioRuntime,
        moved_resource_type: MovedResourceType::Copied,
        ownership_model: VmmOwnershipModel::Shared,
        track_dirty_pages: None,
        resume_vm: Some(true),
        network_overrides: Vec::new(),
    };
    let mut vm = snapshot.prepare_vm(&mut old, options).await.unwrap();
    vm.start(PATIENCE).await.unwrap();
    let mut pipes = vm.take_pipes().unwrap();
    assert_eq!(
        vm.get_machine_configuration().await.unwrap().mem_size_mib,
        32
    );
    power_off(&mut vm).await;
    let mut console = String::new();
    let stdout = pipes.stdout.get_mut();
    stdout.read_to_string(&mut console).await.unwrap();
    assert_eq!(console, DOWN);
    vm.cleanup().await.unwrap();
}

#[tokio::test]
async fn a_machine_lives_by_requests() {
    if let Some(place) = Place::new("fctools, by requests") {
        lives(&place, InitMethod::ViaApiCalls).await;
    }
}

#[tokio::test]
async fn a_machine_lives_by_a_config_file() {
    if let Some(place) = Place::new("fctools, by a config file") {
        let config = place.path("config.json");
        lives(&place, InitMethod::ViaJsonConfiguration(config)).await;
    }
}

#[tokio::test]
async fn the_version_is_that_of_a_firecracker() {
    let Some(place) = Place::new("fctools, version") else {
        return;
    };
    // It also asks two programs that are not ours.
    let other = |name: &str, says: &str| {
        let path = place.path(name);
        fs::write(&path, format!("#!/bin/sh\necho '{says} v1.14.1'\n")).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        path
    };
    let jailer = other("jailer", "Jailer");
    let editor = other("snapshot-editor", "snapshot-editor");
    let installation = VmmInstallation::new(place.path("firecracker"), jailer, editor);
    installation.verify("v1.14.1", &TokioRuntime).await.unwrap();
}
