// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks that come and go while a guest runs, with a guest that gives up what it is asked for, and one that never does.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bare::ctl::{ctl, ctl_fails};
use bare::http::Client;
use bare::{Asm, Running, Vm, guest};
use mini_vmm::config::{DiskSpec, HotplugSlots, OnReboot, SerialSpec, VmSpec};
use mini_vmm::layout::{ACPI_RESET, ACPI_RESET_VALUE, MIB, PCI_ECAM, PCI_HOTPLUG};
use mini_vmm::outcome::Outcome;
use mini_vmm::vmm::{Handle, Vmm, control};

/// Where slot 31's device and vendor are.
const SLOT_31: u64 = PCI_ECAM + (31 << 15);
const DISK: u32 = 0x1042_1af4;

/// Gives up whatever it is asked for.
fn giver() -> Asm {
    guest(|asm| {
        asm.print("up");
        asm.forever(|asm| {
            // `mov [PCI_HOTPLUG + 8], eax`
            asm.load(PCI_HOTPLUG + 4).rdi(PCI_HOTPLUG + 8);
            asm.raw(&[0x89, 0x07]);
        });
    })
}

fn image(vm: &Vm, name: &str) -> PathBuf {
    let path = vm.path(name);
    File::create(&path).unwrap().set_len(MIB).unwrap();
    path
}

fn disk(path: &Path) -> String {
    format!("path={}", path.display())
}

/// Starts the program, and waits until it answers and the guest runs.
fn started(vm: &mut Vm, api: &Path) -> Running {
    let mut running = vm.start();
    Client::connect(&mut running, api);
    running
}

#[test]
fn a_disk_comes_and_goes_also_in_a_copy() {
    let test = "a_disk_comes_and_goes_also_in_a_copy";
    let Some(mut vm) = Vm::new(test, &giver()) else {
        return;
    };
    let (first, second) = (image(&vm, "first"), image(&vm, "second"));
    let (api, snap) = (vm.path("api"), vm.path("snap"));
    vm.args(["--hotplug=2", "--disk", &disk(&first), "--api-sock"]);
    vm.args([&api]);
    let mut running = started(&mut vm, &api);
    running.await_many(2);
    let words = disk(&second);
    let add = ["add", "data", "--disk", &words];
    for _ in 0..5 {
        assert_eq!(ctl(&api, &add), "data: added\n");
        ctl_fails(&api, &add, "there is a device \"data\" already");
        let again = ["add", "other", "--disk", &words];
        ctl_fails(&api, &again, "are one file");
        assert_eq!(ctl(&api, &["remove", "data"]), "data: removed\n");
        ctl_fails(&api, &["remove", "data"], "there is no \"data\"");
    }
    ctl_fails(&api, &["remove", "disk0"], "has no slot");
    assert_eq!(ctl(&api, &add), "data: added\n");
    assert_eq!(ctl(&api, &["resize", "data"]), "data: told\n");
    ctl(&api, &["snapshot".as_ref(), snap.as_os_str()]);
    ctl(&api, &["stop"]);
    running.end().expect(0);

    let mut copy = vm.restoring(&snap);
    copy.args([
        "--disk",
        &disk(&first),
        "--disk",
        &words,
        "--resume",
        "--api-sock",
    ]);
    copy.args([&api]);
    let running = started(&mut copy, &api);
    assert_eq!(ctl(&api, &["remove", "data"]), "data: removed\n");
    assert_eq!(ctl(&api, &add), "data: added\n");
    assert_eq!(ctl(&api, &["remove", "data", "--force"]), "data: removed\n");
    assert_eq!(ctl(&api, &add), "data: added\n");
    ctl(&api, &["stop"]);
    running.end().expect(0);
}

/// Waits until slot 31 has a disk, and then until it has none. Then resets the machine.
fn watcher() -> Asm {
    guest(|asm| {
        asm.until_equal(|asm| {
            asm.load(SLOT_31).compare_eax(DISK);
        });
        asm.print("c");
        asm.until_equal(|asm| {
            asm.load(SLOT_31).compare_eax(u32::MAX);
        });
        asm.out(ACPI_RESET, ACPI_RESET_VALUE);
    })
}

fn handle(vm: &Vm) -> Handle {
    let spec = VmSpec {
        memory: 32 * MIB,
        serial: SerialSpec::Off,
        hotplug: HotplugSlots(1),
        on_reboot: OnReboot::Reset,
        // Of a guest that waits for what doesn't come.
        timeout: Some(Duration::from_secs(600)),
        ..VmSpec::new(vm.path("kernel"))
    };
    Vmm::build(&spec).unwrap()
}

fn resets(machine: &Handle) -> u64 {
    machine.describe().unwrap().resets
}

#[test]
fn a_guest_that_gives_up_nothing_loses_it_by_force_or_a_reset() {
    let test = "a_guest_that_gives_up_nothing_loses_it_by_force_or_a_reset";
    let Some(vm) = Vm::new(test, &watcher()) else {
        return;
    };
    let disk = DiskSpec {
        slot: Some(31),
        ..DiskSpec::new(image(&vm, "disk"))
    };
    let machine = handle(&vm);
    machine.resume().unwrap();
    machine.add_disk(disk.clone()).unwrap();
    let described = machine.describe().unwrap().spec.disk;
    assert_eq!(described, std::slice::from_ref(&disk));
    let error = machine.add_disk(disk.clone()).unwrap_err().to_string();
    assert!(error.contains("is in use by another machine"), "{error}");
    machine.remove_device(31, true).unwrap();
    // The guest saw it come and go, if it was quick enough; the next ones come until it was.
    while resets(&machine) == 0 {
        machine.add_disk(disk.clone()).unwrap();
        let asked = machine.clone();
        let asked = thread::spawn(move || asked.remove_device(31, false));
        while !asked.is_finished() {
            // Who waits for the guest is answered, too.
            match machine.remove_device(31, true) {
                Ok(()) | Err(control::Error::NoDevice) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(
            asked.join().unwrap(),
            Ok(()) | Err(control::Error::NoDevice)
        ));
    }
    assert!(machine.describe().unwrap().spec.disk.is_empty());
    let error = machine.remove_device(31, false).unwrap_err();
    assert!(matches!(error, control::Error::NoDevice), "{error}");

    // Nobody waits longer than the machine lives. Of two who ask, one has come too late.
    machine.add_disk(disk).unwrap();
    let asked = [machine.clone(), machine.clone()];
    let asked = asked.map(|machine| thread::spawn(move || machine.remove_device(31, false)));
    while !asked.iter().any(JoinHandle::is_finished) {
        thread::yield_now();
    }
    machine.stop().unwrap();
    let mut ends = asked.map(|asked| asked.join().unwrap().unwrap_err());
    ends.sort_by_key(|error| matches!(error, control::Error::Ended));
    assert!(
        matches!(ends, [control::Error::Leaving, control::Error::Ended]),
        "{ends:?}"
    );
    assert_eq!(machine.wait().unwrap(), Outcome::Stopped);
}
