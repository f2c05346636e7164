// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! fctools boots Linux. Its console is the process's standard input and output.

use std::io::Write;
use std::mem;
use std::path::Path;
use std::time::Duration;

use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::Vm;
use fctools::vm::api::VmApi;
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{BootSource, Drive, MachineConfiguration};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{MovedResourceType, ResourceType};
use mini_vmm_clients::Linux;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Machine = Vm<UnrestrictedVmmExecutor, DirectProcessSpawner, TokioRuntime>;

async fn prepare(linux: &Linux) -> Machine {
    let mut resources = ResourceSystem::new(
        DirectProcessSpawner,
        TokioRuntime,
        VmmOwnershipModel::Shared,
    );
    let mut resource = |path: &Path| {
        let kind = ResourceType::Moved(MovedResourceType::Copied);
        resources.create_resource(path, kind).unwrap()
    };
    let root = linux.disk.as_deref().map(|disk| Drive {
        drive_id: "rootfs".to_owned(),
        is_root_device: true,
        cache_type: None,
        partuuid: None,
        is_read_only: Some(false),
        block: Some(resource(disk)),
        rate_limiter: None,
        io_engine: None,
        socket: None,
    });
    let data = VmConfigurationData {
        boot_source: BootSource {
            kernel_image: resource(&linux.kernel),
            boot_args: Some(linux.line.clone()),
            initrd: Some(resource(&linux.initrd)),
        },
        drives: root.into_iter().collect(),
        pmem_devices: Vec::new(),
        machine_configuration: MachineConfiguration {
            vcpu_count: linux.cpus,
            mem_size_mib: 512,
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
    let configuration = VmConfiguration::New {
        init_method: InitMethod::ViaApiCalls,
        data,
    };
    let socket = std::env::temp_dir().join("fctools.sock");
    let arguments = VmmArguments::new(VmmApiSocket::Enabled(socket));
    let executor = UnrestrictedVmmExecutor::new(arguments);
    // It has no use for the others.
    let [firecracker, jailer, editor] = [(); 3].map(|()| linux.firecracker.clone());
    let installation = VmmInstallation::new(firecracker, jailer, editor);
    Vm::prepare(executor, resources, installation, configuration)
        .await
        .unwrap()
}

#[tokio::main]
async fn main() {
    let linux = Linux::from_arguments();
    let mut vm = prepare(&linux).await;
    // Only a machine that hangs takes that long.
    vm.start(Duration::from_secs(1000)).await.unwrap();
    let mut pipes = vm.take_pipes().unwrap();
    let mut console = Vec::new();
    let mut command = Linux::COMMAND.as_bytes();
    while !linux.is_ready(&console) {
        let read = pipes.stdout.get_mut().read_buf(&mut console).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&console));
        if linux.wants_a_command(&console) {
            let stdin = pipes.stdin.get_mut();
            stdin.write_all(mem::take(&mut command)).await.unwrap();
        }
    }
    vm.pause().await.unwrap();
    vm.resume().await.unwrap();
    assert_eq!(vm.get_info().await.unwrap().app_name, "Firecracker");
    let action = VmShutdownAction {
        method: VmShutdownMethod::CtrlAltDel,
        timeout: None,
        graceful: true,
    };
    let outcome = vm.shutdown([action]).await.unwrap();
    assert!(outcome.graceful && outcome.errors.is_empty(), "{outcome:?}");
    pipes
        .stdout
        .get_mut()
        .read_to_end(&mut console)
        .await
        .unwrap();
    std::io::stdout().write_all(&console).unwrap();
    vm.cleanup().await.unwrap();
}
