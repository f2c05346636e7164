// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! firepilot: it looks for the socket's file, for half a second.

use std::path::{Path, PathBuf};

use firepilot::builder::drive::DriveBuilder;
use firepilot::builder::executor::FirecrackerExecutorBuilder;
use firepilot::builder::kernel::KernelBuilder;
use firepilot::builder::{Builder, Configuration};
use firepilot::machine::Machine;
use mini_vmm_clients::Place;

fn text(path: PathBuf) -> String {
    path.into_os_string().into_string().unwrap()
}

/// A machine that waits, and its socket.
async fn create(place: &Place, id: &str) -> (Machine, PathBuf) {
    let kernel = KernelBuilder::new()
        .with_kernel_image_path(text(place.path("kernel")))
        .with_boot_args("reboot=k panic=1 pci=off".to_owned());
    let drive = DriveBuilder::new()
        .with_drive_id("rootfs".to_owned())
        .with_path_on_host(place.path("disk"))
        .as_read_only()
        .as_root_device();
    let executor = FirecrackerExecutorBuilder::new()
        .with_chroot(text(place.path("chroot")))
        .with_exec_binary(place.path("firecracker"));
    let config = Configuration::new(id.to_owned())
        .with_kernel(kernel.try_build().unwrap())
        .with_executor(executor.try_build().unwrap())
        .with_drive(drive.try_build().unwrap());
    let mut machine = Machine::new();
    machine.create(config).await.unwrap();
    (
        machine,
        place.path("chroot").join(id).join("firecracker.socket"),
    )
}

#[tokio::test]
async fn a_machine_is_created_started_paused_resumed_and_ended() {
    let Some(place) = Place::new("firepilot") else {
        return;
    };
    let (machine, socket) = create(&place, "one").await;
    machine.start().await.unwrap();
    machine.pause().await.unwrap();
    machine.resume().await.unwrap();
    machine.start().await.unwrap_err();
    machine.stop().await.unwrap();
    Place::wait_for_the_end(&socket);

    let (mut machine, socket) = create(&place, "two").await;
    machine.start().await.unwrap();
    machine.kill().await.unwrap();
    assert!(!Path::new(&socket).exists());
}
