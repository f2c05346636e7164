// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! fctools boots Linux, and reads its console from the process's standard output.

use std::io::Write;
use std::time::Duration;

use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::tokio::TokioRuntime;
use fctools::vm::Vm;
use fctools::vm::api::VmApi;
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::{BootSource, MachineConfiguration};
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{MovedResourceType, ResourceType};
use mini_vmm_clients::Linux;
use tokio::io::AsyncReadExt;

type Machine = Vm<UnrestrictedVmmExecutor, DirectProcessSpawner, TokioRuntime>;

async fn prepare(linux: Linux) -> Machine {
    let mut resources = ResourceSystem::new(
        DirectProcessSpawner,
        TokioRuntime,
        VmmOwnershipModel::Shared,
    );
    let mut resource = |path| {
        let kind = ResourceType::Moved(MovedResourceType::Copied);
        resources.create_resource(path, kind).unwrap()
    };
    let data = VmConfigurationData {
        boot_source: BootSource {
            kernel_image: resource(linux.kernel),
            boot_args: Some(linux.line),
            initrd: Some(resource(linux.initrd)),
        },
        drives: Vec::new(),
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
    let mut vm = prepare(Linux::from_arguments()).await;
    // Only a machine that hangs takes that long.
    vm.start(Duration::from_secs(1000)).await.unwrap();
    let mut pipes = vm.take_pipes().unwrap();
    let mut console = Vec::new();
    while !Linux::is_ready(&console) {
        let read = pipes.stdout.get_mut().read_buf(&mut console).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&console));
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
