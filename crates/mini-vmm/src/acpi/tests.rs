// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs;
use std::path::Path;
use std::process::Command;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::config::{HotplugSlots, RngSpec, SerialSpec, VirtioSpec, VmSpec};

/// Every combination of options that changes a table.
fn machines() -> impl Iterator<Item = MachinePlan> {
    [1, 2, 64].into_iter().flat_map(|cpus| {
        [(false, false), (false, true), (true, false), (true, true)]
            .map(|(serial, legacy_timer)| machine(cpus, serial, legacy_timer))
    })
}

fn machine(cpus: u8, serial: bool, legacy_timer: bool) -> MachinePlan {
    let mut spec = VmSpec::new("vmlinux");
    (spec.cpus, spec.legacy_timer) = (cpus, legacy_timer);
    if !serial {
        spec.serial = SerialSpec::Off;
    }
    MachinePlan::new(&spec).unwrap()
}

fn with_clock(rtc: bool) -> MachinePlan {
    let mut spec = VmSpec::new("vmlinux");
    spec.rtc = rtc;
    MachinePlan::new(&spec).unwrap()
}

fn with_virtio(virtio: VirtioSpec) -> MachinePlan {
    let mut spec = VmSpec::new("vmlinux");
    (spec.virtio, spec.rng) = (virtio, Some(RngSpec::default()));
    MachinePlan::new(&spec).unwrap()
}

fn with_slots(count: u8) -> MachinePlan {
    let mut spec = VmSpec::new("vmlinux");
    spec.hotplug = HotplugSlots(count);
    MachinePlan::new(&spec).unwrap()
}

fn has_serial(machine: &MachinePlan) -> bool {
    machine.devices.iter().any(|device| device.id == "serial")
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// The table at a guest-physical address of `image`, after a check of its checksum.
fn table_at<'a>(image: &'a [u8], address: u64, signature: &[u8; 4]) -> &'a [u8] {
    let offset = (address - layout::ACPI_TABLES) as usize;
    assert_eq!(offset % TABLE_ALIGN, 0);
    let table = &image[offset..offset + u32_at(image, offset + 4) as usize];
    assert_eq!(&table[..4], signature);
    assert_eq!(sum(table), 0, "checksum");
    table
}

/// DSDT, FADT, MADT and XSDT, found as an operating system finds them.
fn walk(image: &[u8]) -> [(&'static str, &[u8]); 4] {
    let rsdp = &image[..36];
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!(rsdp[15], 2, "revision");
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0), "checksums");
    let xsdt = table_at(image, u64_at(rsdp, 24), b"XSDT");
    assert!(xsdt.len() >= 36 + 2 * 8);
    let fadt = table_at(image, u64_at(xsdt, 36), b"FACP");
    let madt = table_at(image, u64_at(xsdt, 44), b"APIC");
    let dsdt = table_at(image, u64_at(fadt, 140), b"DSDT");
    [
        ("dsdt", dsdt),
        ("fadt", fadt),
        ("madt", madt),
        ("xsdt", xsdt),
    ]
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn pointers_and_checksums_lead_to_every_table() {
    for machine in machines() {
        let image = build(&machine).unwrap();
        assert!(image.len() as u64 <= layout::ACPI_TABLES_SIZE);
        walk(&image);
    }
}

#[test]
fn fadt_has_power_registers_and_fixed_hardware_with_the_legacy_timer() {
    for machine in machines() {
        let image = build(&machine).unwrap();
        let fadt = walk(&image)[1].1;
        assert_eq!((fadt.len(), fadt[8]), (276, 6));
        let flags = u32_at(fadt, 112);
        // HEADLESS, RESET_REG_SUP, SLP_BUTTON, PWR_BUTTON, WBINVD.
        let always = 1 << 12 | 1 << 10 | 1 << 5 | 1 << 4 | 1;
        let hardware_reduced = 1 << 20;
        let registers = [u32_at(fadt, 56), u32_at(fadt, 64)];
        let blocks: [&[u8]; 2] = [&fadt[148..160], &fadt[172..184]];
        if machine.legacy_timer {
            assert_eq!(flags, always);
            assert_eq!(registers, [0x604, 0x608]);
            assert_eq!((fadt[88], fadt[89]), (4, 2), "PM1_EVT_LEN, PM1_CNT_LEN");
            assert_eq!(blocks[0], [1, 32, 0, 2, 4, 6, 0, 0, 0, 0, 0, 0]);
            assert_eq!(blocks[1], [1, 16, 0, 2, 8, 6, 0, 0, 0, 0, 0, 0]);
            let facs = u64_at(fadt, 132);
            let offset = (facs - layout::ACPI_TABLES) as usize;
            assert_eq!((facs % 64, &image[offset..offset + 4]), (0, &b"FACS"[..]));
            assert_eq!(u32_at(&image, offset + 4), 64);
        } else {
            assert_eq!(flags, always | hardware_reduced);
            assert_eq!(registers, [0, 0]);
            assert_eq!((blocks[0], blocks[1]), (&[0; 12][..], &[0; 12][..]));
            assert_eq!(u64_at(fadt, 132), 0, "X_FIRMWARE_CTRL");
        }
        let boot_arch = u16::from_le_bytes([fadt[109], fadt[110]]);
        assert_eq!(boot_arch & 1 << 1, 0, "no i8042");
        assert_ne!(boot_arch & 1 << 2, 0, "no VGA");
        assert_ne!(boot_arch & 1 << 5, 0, "no CMOS RTC");
        assert_eq!(
            boot_arch & 1 != 0,
            has_serial(&machine),
            "devices on the ISA bus"
        );
        let register = |port: u16| [1, 8, 0, 1, port as u8, (port >> 8) as u8, 0, 0, 0, 0, 0, 0];
        assert_eq!(fadt[116..128], register(layout::ACPI_RESET));
        assert_eq!(fadt[128], layout::ACPI_RESET_VALUE);
        assert_eq!(fadt[244..256], register(layout::ACPI_SLEEP_CONTROL));
        assert_eq!(fadt[256..268], register(layout::ACPI_SLEEP_STATUS));
        // FIRMWARE_CTRL, SMI_CMD, PM_TMR_BLK.
        assert_eq!([36, 48, 76].map(|at| u32_at(fadt, at)), [0; 3]);
    }
}

#[test]
fn madt_lists_cpus_and_wires() {
    for machine in machines() {
        let image = build(&machine).unwrap();
        let madt = walk(&image)[2].1;
        assert_eq!(u64::from(u32_at(madt, 36)), layout::LAPIC);
        assert_eq!(
            u32_at(madt, 40),
            u32::from(machine.legacy_timer),
            "PCAT_COMPAT"
        );
        let (mut rest, mut types) = (&madt[44..], Vec::new());
        let mut ids = Vec::new();
        while let [kind, len, ..] = *rest {
            let (entry, after) = rest.split_at(len.into());
            match kind {
                0 => {
                    assert_eq!((entry.len(), u32_at(entry, 4)), (8, 1));
                    assert_eq!(entry[2], entry[3]);
                    ids.push(entry[3]);
                }
                1 => assert_eq!(entry, [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]),
                4 => assert_eq!(entry, [4, 6, 0xff, 0, 0, 1]),
                other => panic!("structure type {other}"),
            }
            if kind != 0 {
                types.push(kind);
            }
            rest = after;
        }
        assert!(rest.is_empty());
        assert_eq!(ids, (0..machine.cpus).collect::<Vec<_>>());
        assert_eq!(types, [1, 4]);
    }
}

#[test]
fn serial_port_is_there_only_when_the_machine_has_it() {
    // IO(Decode16, 0x3f8, 0x3f8, 1, 8), Interrupt(ResourceConsumer, Edge, ActiveHigh, Exclusive) {4}
    let resources = [
        0x47, 1, 0xf8, 0x03, 0xf8, 0x03, 1, 8, 0x89, 6, 0, 0x03, 1, 4, 0, 0, 0, 0x79, 0,
    ];
    for machine in machines() {
        let image = build(&machine).unwrap();
        let dsdt = walk(&image)[0].1;
        assert_eq!(contains(dsdt, &resources), has_serial(&machine));
        // A kernel that doesn't use the IOAPIC could only get its interrupt from a PIC.
        let polled = [0x47, 1, 0xf8, 0x03, 0xf8, 0x03, 1, 8, 0x79, 0];
        assert_eq!(
            contains(dsdt, &polled),
            has_serial(&machine) && !machine.legacy_timer
        );
        assert!(contains(dsdt, b"QEMU0001") && contains(dsdt, b"ACPI0013"));
    }
}

#[test]
fn the_clock_is_announced_only_where_it_is() {
    for rtc in [false, true] {
        let image = build(&with_clock(rtc)).unwrap();
        let [(_, dsdt), (_, fadt), ..] = walk(&image);
        // EISAID("PNP0B00"), and IAPC_BOOT_ARCH with "CMOS RTC Not Present".
        assert_eq!(contains(dsdt, &[0x41, 0xd0, 0x0b, 0x00]), rtc);
        assert_eq!(fadt[109] & 1 << 5 == 0, rtc);
    }
}

#[test]
fn each_slot_is_a_device_and_its_event_is_handled() {
    for count in [1, 4, HotplugSlots::MAX] {
        let image = build(&with_slots(count)).unwrap();
        let [(_, dsdt), ..] = walk(&image);
        for slot in 1..32 {
            let name = format!("S{slot:03}");
            let has = contains(dsdt, name.as_bytes());
            assert_eq!(has, slot >= 32 - count, "{name} of {count}");
        }
        assert!(contains(dsdt, b"PHPRPSCN"), "the event device calls it");
        // The controller has its registers, and nobody else.
        let registers = [0x86, 9, 0, 1, 0, 0, 0, 0xf0, 16, 0, 0, 0];
        let found = dsdt.windows(registers.len());
        assert_eq!(found.filter(|bytes| *bytes == registers).count(), 1);
    }
}

#[test]
fn pci_is_announced_only_where_it_is() {
    for virtio in [
        VirtioSpec::Pci,
        VirtioSpec::Mmio,
        VirtioSpec::MmioCmdline,
        VirtioSpec::MmioBoth,
    ] {
        let image = build(&with_virtio(virtio)).unwrap();
        let [(_, dsdt), .., (_, xsdt)] = walk(&image);
        let has_pci = virtio == VirtioSpec::Pci;
        assert_eq!(contains(dsdt, b"PCI0"), has_pci);
        // Memory32Fixed(ReadWrite, 0xf0000000, 16): registers for hotplug, which has no slots here.
        let registers = [0x86, 9, 0, 1, 0, 0, 0, 0xf0, 16, 0, 0, 0];
        assert_eq!(contains(dsdt, &registers), has_pci);
        assert!(!contains(dsdt, b"_EJ0"));
        assert_eq!(
            contains(dsdt, b"LNRO0005"),
            matches!(virtio, VirtioSpec::Mmio | VirtioSpec::MmioBoth)
        );
        assert_eq!(xsdt.len(), 36 + 8 * if has_pci { 3 } else { 2 });
        if has_pci {
            let mcfg = table_at(&image, u64_at(xsdt, 52), b"MCFG");
            assert_eq!(u64_at(mcfg, 44), layout::PCI_ECAM);
        }
    }
}

#[test]
fn number_of_cpus_is_checked() {
    for cpus in [0, 65, 255] {
        let machine = machine(cpus, true, false);
        assert!(matches!(build(&machine), Err(Error::Cpus(n)) if n == cpus));
    }
}

#[test]
fn memory_that_ends_too_early_is_an_error() {
    let machine = machine(1, true, false);
    let memory: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), layout::ACPI_TABLES as usize + 0x40)])
            .unwrap();
    let error = write_tables(&memory, &machine).unwrap_err();
    assert!(error.to_string().contains("at least 32 MiB"), "{error}");
}

#[test]
fn tables_are_written_where_the_layout_says() {
    let machine = machine(3, true, true);
    let memory: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), layout::MIN_RAM as usize)]).unwrap();
    let rsdp = write_tables(&memory, &machine).unwrap();
    assert_eq!(rsdp.0, layout::ACPI_TABLES);
    let mut read = vec![0; layout::ACPI_TABLES_SIZE as usize];
    memory.read_slice(&mut read, rsdp).unwrap();
    // mov dx, 0x602; mov al, 1; out dx, al; hlt: at the real-mode entry point of a PC's firmware.
    let mut entry = [0; 7];
    memory
        .read_slice(&mut entry, GuestAddress(0xf_fff0))
        .unwrap();
    assert_eq!(entry, [0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4]);
    assert_eq!(
        read[..build(&machine).unwrap().len()],
        build(&machine).unwrap()
    );
}

/// Runs iasl in `dir` and returns its output. It must succeed.
fn iasl(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("iasl")
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "iasl {args:?}: {said}");
    said
}

#[test]
fn intels_compiler_accepts_every_table() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!(
            "SKIP: acpi::tests::intels_compiler_accepts_every_table: no iasl; \
             install Debian's acpica-tools"
        );
        return;
    }
    let virtio = [VirtioSpec::Pci, VirtioSpec::Mmio].map(with_virtio);
    let slots = [1, HotplugSlots::MAX].map(with_slots);
    for machine in machines()
        .chain([with_clock(true)])
        .chain(virtio)
        .chain(slots)
    {
        let dir = tempfile::tempdir().unwrap();
        let image = build(&machine).unwrap();
        for (name, bytes) in walk(&image) {
            fs::write(dir.path().join(format!("{name}.dat")), bytes).unwrap();
            let said = iasl(dir.path(), &["-d", &format!("{name}.dat")]);
            assert!(
                !said.contains("rror") && !said.contains("arning"),
                "{name}: {said}"
            );
            let source = fs::read_to_string(dir.path().join(format!("{name}.dsl"))).unwrap();
            assert!(!source.contains("Invalid"), "{name}: {source}");
            assert!(!source.contains("Unknown"), "{name}: {source}");
            // The disassembly compiles without errors and yields the same table.
            // Linux's name for the generation ID, VMGENCTR, is none that ACPI allows (message 6035).
            let source = format!("{name}.dsl");
            // Without optimizations, so that names stay.
            let args = ["-we", "-oa", "-vw", "6035", "-p", "again", &source];
            let said = iasl(dir.path(), &args);
            if name == "dsdt" {
                assert!(said.contains("0 Errors, 0 Warnings"), "{name}: {said}");
            }
            let again = fs::read(dir.path().join("again.aml")).unwrap();
            // Header fields 28 to 36 name the compiler, and the checksum at 9 follows them.
            assert_eq!(
                (again.len(), &again[36..]),
                (bytes.len(), &bytes[36..]),
                "{name}"
            );
        }
    }
}
