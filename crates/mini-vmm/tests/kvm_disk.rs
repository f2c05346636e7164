// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest reads and writes a disk, by MMIO and by PCI, on real KVM.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bare::virtio::{BUFFER, COUNT, DISK, HEADER, STATUS, by_mmio, by_pci};
use bare::{Asm, Built, Vm};
use mini_vmm::boot::Unwatched;
use mini_vmm::config::{DiskSpec, OnReboot, SerialSpec, VirtioSpec, VmSpec};
use mini_vmm::layout::{ACPI_RESET, ACPI_RESET_VALUE, MIB, PCI_LOW, VIRTIO_MMIO};
use mini_vmm::machine::Images;
use mini_vmm::outcome::Outcome;
use mini_vmm::vmm::{self, Vmm};

const RAM: u64 = 32 * MIB;
/// Where the guest's sector is in the image.
const SECTOR: u64 = 512;
/// The number at its start before the guest runs.
const FIRST: u32 = 100;
/// VIRTIO_BLK_S_IOERR.
const IOERR: u32 = 1;

/// Makes an image, and returns its path.
fn image(vm: &Vm) -> PathBuf {
    let path = vm.path("disk.img");
    fs::write(&path, vec![0x5a; MIB as usize]).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&FIRST.to_le_bytes(), SECTOR).unwrap();
    path
}

/// The number at the start of the sector.
fn number(image: &Path) -> u32 {
    let mut bytes = [0; 4];
    let file = fs::File::open(image).unwrap();
    file.read_exact_at(&mut bytes, SECTOR).unwrap();
    u32::from_le_bytes(bytes)
}

fn spec(vm: &Vm, virtio: VirtioSpec, disk: DiskSpec) -> VmSpec {
    VmSpec {
        memory: RAM,
        serial: SerialSpec::Off,
        virtio,
        disk: vec![disk],
        // Of a guest that waits for what doesn't come.
        timeout: Some(Duration::from_secs(600)),
        ..VmSpec::new(vm.path("kernel"))
    }
}

/// A guest for each transport, which does what `then` says after each request.
fn guests(then: fn(&mut Asm)) -> [(VirtioSpec, Asm); 2] {
    [
        (VirtioSpec::Mmio, by_mmio(&DISK, then)),
        (VirtioSpec::Pci, by_pci(&DISK, then)),
    ]
}

/// Runs until so many more requests were answered.
fn answer(guest: &Built, requests: u32) {
    let before = guest.read(COUNT);
    guest.machine.start().unwrap();
    while guest.read(COUNT).wrapping_sub(before) < requests {
        assert_eq!(guest.latch.get(), None);
        std::thread::sleep(Duration::from_millis(1));
    }
    guest.machine.pause().unwrap();
}

/// Whether the image has what the paused guest has written. Its last request is answered, or not made yet.
fn check(guest: &Built, image: &Path) {
    assert_eq!(guest.read(STATUS), 0);
    let (count, on_disk) = (guest.read(COUNT), number(image));
    // Reads and writes take turns. The guest may be between the answer and its count.
    assert!(
        (count / 2..=count / 2 + 1).contains(&(on_disk - FIRST)),
        "{count} {on_disk}"
    );
    let in_memory = guest.read(BUFFER);
    assert!(
        (on_disk..=on_disk + 1).contains(&in_memory),
        "{in_memory} {on_disk}"
    );
    let whole = fs::read(image).unwrap();
    let rest = whole
        .iter()
        .enumerate()
        .filter(|(at, _)| !(512..516).contains(at));
    assert!(rest.into_iter().all(|(_, byte)| *byte == 0x5a));
}

#[test]
fn what_a_guest_writes_is_in_the_image_and_goes_on_elsewhere() {
    let test = "what_a_guest_writes_is_in_the_image_and_goes_on_elsewhere";
    for (virtio, guest) in guests(|_| ()) {
        let Some(vm) = Vm::new(test, &guest) else {
            return;
        };
        let image = image(&vm);
        let spec = spec(&vm, virtio, DiskSpec::new(&image));
        let images = Images::open(&spec, &Unwatched).unwrap();
        Images::open(&spec, &Unwatched).unwrap_err();
        let first = Built::with_images(&spec, &images);
        answer(&first, 9);
        check(&first, &image);

        let second = Built::with_images(&spec, &images);
        second.restore(&first.save());
        drop(first);
        answer(&second, 9);
        check(&second, &image);
        drop((second, images));
        Images::open(&spec, &Unwatched).unwrap();
    }
}

/// Reads, and ends if the number is `FIRST` and 3. Else writes it and resets.
fn three_resets(asm: &mut Asm) {
    asm.load(HEADER).compare_eax(0).if_equal(|asm| {
        asm.load(BUFFER).compare_eax(FIRST + 3).if_equal(|asm| {
            asm.power_off();
        });
    });
    asm.load(HEADER).compare_eax(1).if_equal(|asm| {
        asm.out(ACPI_RESET, ACPI_RESET_VALUE).halt();
    });
}

#[test]
fn after_a_reset_a_guest_reads_what_it_wrote() {
    let test = "after_a_reset_a_guest_reads_what_it_wrote";
    for (virtio, guest) in guests(three_resets) {
        let Some(vm) = Vm::new(test, &guest) else {
            return;
        };
        let image = image(&vm);
        let overlay = DiskSpec {
            overlay: Some(vm.path("")),
            ..DiskSpec::new(&image)
        };
        // The first one leaves the image alone.
        for (disk, after) in [(overlay, FIRST), (DiskSpec::new(&image), FIRST + 3)] {
            let spec = VmSpec {
                on_reboot: OnReboot::Reset,
                ..spec(&vm, virtio, disk)
            };
            let machine = Vmm::build(&spec).unwrap();
            machine.resume().unwrap();
            assert_eq!(machine.wait().unwrap(), Outcome::PowerOff);
            assert_eq!(number(&image), after);
        }
        let names = fs::read_dir(vm.path("")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!(names, ["config.json", "disk.img", "kernel"]);
    }
}

/// The status of the last read.
const READ_STATUS: u64 = STATUS + 8;

fn note_reads(asm: &mut Asm) {
    asm.load(HEADER).compare_eax(0).if_equal(|asm| {
        asm.load(STATUS).rdi(READ_STATUS).raw(&[0x89, 0x07]); // mov [rdi], eax
    });
}

/// It is read-only, since a write would make the image longer again.
#[test]
fn an_image_that_loses_its_end_is_an_error_of_the_guest() {
    let test = "an_image_that_loses_its_end_is_an_error_of_the_guest";
    for (virtio, guest) in guests(note_reads) {
        let Some(vm) = Vm::new(test, &guest) else {
            return;
        };
        let image = image(&vm);
        let disk = DiskSpec {
            readonly: true,
            ..DiskSpec::new(&image)
        };
        let spec = spec(&vm, virtio, disk);
        let images = Images::open(&spec, &Unwatched).unwrap();
        let running = Built::with_images(&spec, &images);
        let answered = |status| {
            answer(&running, 6);
            assert_eq!(running.read(READ_STATUS), status);
        };
        answered(0);
        let file = OpenOptions::new().write(true).open(&image).unwrap();
        file.set_len(0).unwrap();
        answered(IOERR);
        fs::remove_file(&image).unwrap();
        answered(IOERR);
        file.set_len(MIB).unwrap();
        answered(0);
    }
}

#[test]
fn a_machine_that_runs_has_its_images_locked() {
    let test = "a_machine_that_runs_has_its_images_locked";
    let [(virtio, guest), _] = guests(|_| ());
    let Some(vm) = Vm::new(test, &guest) else {
        return;
    };
    let spec = spec(&vm, virtio, DiskSpec::new(image(&vm)));
    let machine = Vmm::build(&spec).unwrap();
    machine.resume().unwrap();
    let error = Vmm::build(&spec).unwrap_err();
    assert!(matches!(error, vmm::Error::Image(_)), "{error:?}");
    assert!(
        error.to_string().contains("in use by another machine"),
        "{error}"
    );
    machine.stop().unwrap();
    machine.wait().unwrap();
    drop(machine);
    Vmm::build(&spec).unwrap();
}

/// Ends after some requests, of which all writes have failed and all reads have not.
fn expect_failed_writes(asm: &mut Asm) {
    for (request, status) in [(0, 0), (1, IOERR)] {
        asm.load(HEADER).compare_eax(request).if_equal(|asm| {
            asm.load(STATUS).expect_eax(status, request as u8 + 1);
        });
    }
    asm.load(COUNT).compare_eax(20).if_equal(|asm| {
        asm.power_off();
    });
}

/// A limit of the process stands for a host whose file system is full.
#[test]
fn a_host_that_takes_no_more_is_told_once_and_the_guest_goes_on() {
    let test = "a_host_that_takes_no_more_is_told_once_and_the_guest_goes_on";
    let pci = by_pci(&DISK, expect_failed_writes);
    let Some(vm) = Vm::new(test, &pci) else {
        return;
    };
    let image = image(&vm);
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 0; exec \"$@\"", "sh"])
        .arg(bare::program())
        .args(["--serial=off", "--debug-exit", "--memory=32M", "--kernel"])
        .arg(vm.path("kernel"))
        .arg(format!("--disk=path={}", image.display()))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let lines = said
        .lines()
        .filter(|line| line.contains("disk0: a write at sector 1 failed"));
    assert_eq!(lines.count(), 1, "{said}");
    assert_eq!(number(&image), FIRST);
}

/// Ends when the disk has twice its size.
fn until_larger(asm: &mut Asm, capacity: u64) {
    asm.load(capacity).compare_eax(2 * (MIB / 512) as u32);
    asm.if_equal(|asm| {
        asm.power_off();
    });
}

#[test]
fn a_guest_learns_that_its_disk_was_made_larger() {
    let test = "a_guest_learns_that_its_disk_was_made_larger";
    let mmio = by_mmio(&DISK, |asm| until_larger(asm, VIRTIO_MMIO + 0x100));
    let pci = by_pci(&DISK, |asm| until_larger(asm, PCI_LOW + 0x3000));
    for (virtio, guest) in [(VirtioSpec::Mmio, mmio), (VirtioSpec::Pci, pci)] {
        let Some(vm) = Vm::new(test, &guest) else {
            return;
        };
        let image = image(&vm);
        let machine = Vmm::build(&spec(&vm, virtio, DiskSpec::new(&image))).unwrap();
        machine.resize_disks().unwrap();
        machine.resume().unwrap();
        while number(&image) == FIRST {
            machine.describe().unwrap();
        }
        let file = OpenOptions::new().write(true).open(&image).unwrap();
        file.set_len(2 * MIB).unwrap();
        machine.resize_disks().unwrap();
        assert_eq!(machine.wait().unwrap(), Outcome::PowerOff);
    }
}
