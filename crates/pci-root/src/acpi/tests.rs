// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::fs;
use std::path::Path as FilePath;
use std::process::{Command, Stdio};

use acpi_tables::Aml;
use acpi_tables::aml::{Method, Path, Store};
use acpi_tables::sdt::Sdt;

use super::*;
use crate::window::{Span, Windows};

const REGISTERS: u64 = 0xe800_0000;

fn windows(buses: u16, high: Span) -> Windows {
    let low = Span::new(0xc000_0000, 0x1000_0000);
    let windows = Windows {
        ecam: 0xe000_0000,
        buses,
        low,
        high,
    };
    assert_eq!(windows.check(), Ok(()));
    windows
}

/// A DSDT with all devices, and `_SB_.NEWS` in the role of the event device.
fn dsdt(windows: &Windows, hotplug: bool) -> Vec<u8> {
    let mut body = Vec::new();
    let bridge = HostBridge::new(windows);
    if hotplug {
        bridge.with_hotplug(31).to_aml_bytes(&mut body);
        HotplugController::new(REGISTERS).to_aml_bytes(&mut body);
        // In Intel's interpreter the registers are memory: slot 3 is new, and slots 1 and 31 should be ejected.
        // Another segment was selected before.
        let [up, down, segment] =
            ["PCIU", "PCID", "PSEG"].map(|name| Path::new(&format!("\\_SB_.PHPR.{name}")));
        let news = [
            Store::new(&up, &(1u32 << 3)),
            Store::new(&down, &(1u32 << 31 | 1 << 1)),
            Store::new(&segment, &5u8),
        ];
        let method = Method::new(
            "_SB_.NEWS".into(),
            0,
            true,
            vec![&news[0], &news[1], &news[2], &ScanSlots],
        );
        method.to_aml_bytes(&mut body);
    } else {
        bridge.to_aml_bytes(&mut body);
    }
    let reservation = EcamReservation::new(windows);
    match hotplug {
        true => reservation.to_aml_bytes(&mut body),
        // Its registers have an address, and nothing else.
        false => reservation.with_hotplug(REGISTERS).to_aml_bytes(&mut body),
    }
    let mut table = Sdt::new(*b"DSDT", 36, 2, *b"MINVMM", *b"MINIVMM ", 1);
    table.append_slice(&body);
    table.as_slice().to_vec()
}

fn machines() -> impl Iterator<Item = Vec<u8>> {
    let high = [Span::default(), Span::new(1 << 39, 1 << 39)];
    let all = high.into_iter().flat_map(|high| {
        [1, 256]
            .into_iter()
            .flat_map(move |buses| [false, true].map(|hotplug| (buses, high, hotplug)))
    });
    all.map(|(buses, high, hotplug)| dsdt(&windows(buses, high), hotplug))
}

/// Runs a program of Intel's in `dir` and returns its output. `None`, with a SKIP line, if it isn't installed.
fn acpica(test: &str, dir: &FilePath, program: &str, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).stdin(Stdio::null());
    let Ok(output) = command.output() else {
        eprintln!("SKIP: acpi::tests::{test}: no {program}; install Debian's acpica-tools");
        return None;
    };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {said}");
    Some(said)
}

#[test]
fn intels_compiler_takes_the_devices() {
    let test = "intels_compiler_takes_the_devices";
    for table in machines() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("dsdt.dat"), &table).unwrap();
        let Some(said) = acpica(test, dir.path(), "iasl", &["-d", "dsdt.dat"]) else {
            return;
        };
        assert!(!said.contains("rror") && !said.contains("arning"), "{said}");
        // Without optimizations, so that names stay.
        let args = ["-we", "-oa", "-p", "again", "dsdt.dsl"];
        let said = acpica(test, dir.path(), "iasl", &args).unwrap();
        assert!(said.contains("0 Errors, 0 Warnings"), "{said}");
        // Header fields 28 to 36 name the compiler, and the checksum at 9 follows them.
        let again = fs::read(dir.path().join("again.aml")).unwrap();
        assert!(again[36..] == table[36..], "another table");
    }
}

/// The output of Intel's interpreter for commands, with the hotplug registers as plain memory.
fn interpret(test: &str, table: &[u8], commands: &str) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("dsdt.dat"), table).unwrap();
    acpica(test, dir.path(), "acpiexec", &["-b", commands, "dsdt.dat"])
}

#[test]
fn intels_interpreter_keeps_the_boot_configuration() {
    let test = "intels_interpreter_keeps_the_boot_configuration";
    let table = dsdt(&windows(1, Span::new(1 << 39, 1 << 39)), false);
    let uuid = "(D0 37 C9 E5 53 35 7A 4D 91 17 EA 4D 19 C3 43 4D)";
    let other = uuid.replace("D0", "D1");
    for (uuid, function, answer) in [
        (uuid, 0, "0000: 21"),
        (uuid, 5, "[Integer] = 0000000000000000"),
        (uuid, 6, "0000: 00"),
        (&*other, 5, "0000: 00"),
    ] {
        let command = format!("evaluate \\_SB.PCI0._DSM {uuid} 1 {function} [0]");
        let Some(said) = interpret(test, &table, &command) else {
            return;
        };
        assert!(said.contains(answer), "{command}: {said}");
    }
}

#[test]
fn intels_interpreter_tells_the_slots() {
    let test = "intels_interpreter_tells_the_slots";
    let table = dsdt(&windows(1, Span::default()), true);
    let commands = [
        "evaluate \\_SB.NEWS",
        "evaluate \\_SB.PHPR.PSEG",
        "evaluate \\_SB.PCI0.S017._EJ0 1",
        "evaluate \\_SB.PHPR.B0EJ",
    ];
    let Some(said) = interpret(test, &table, &commands.join(";")) else {
        return;
    };
    let notices = ["[S003]", "[S001]", "[S031]"].map(|slot| {
        let mut lines = said.lines().filter(|line| line.contains(slot));
        let first = lines.next().unwrap_or_default();
        assert_eq!(lines.next(), None, "{said}");
        first.rsplit_once("Value ").map(|(_, value)| value)
    });
    let expected = [
        "0x01 (Device Check)",
        "0x03 (Eject Request)",
        "0x03 (Eject Request)",
    ];
    assert_eq!(notices, expected.map(Some), "{said}");
    assert_eq!(said.matches("System Notify").count(), 3, "{said}");
    for (register, value) in [("PSEG", "0000000000000000"), ("B0EJ", "0000000000020000")] {
        let answer = said.split_once(&format!("Evaluating \\_SB.PHPR.{register}"));
        let answer = answer.and_then(|(_, rest)| rest.split_once("[Integer] = "));
        assert!(
            answer.is_some_and(|(_, rest)| rest.starts_with(value)),
            "{register}: {said}"
        );
    }
    assert!(!said.contains("AE_"), "{said}");
}

#[test]
fn intels_interpreter_finds_the_windows() {
    let test = "intels_interpreter_finds_the_windows";
    let high = Windows {
        ecam: 1 << 36,
        ..windows(1, Span::new(1 << 39, 1 << 39))
    };
    for (windows, expected) in [
        (
            windows(256, Span::default()),
            vec![
                "[Integer] = 00000000E0000000",
                "Address Maximum : 00FF",
                "Address Minimum : 00000000C0000000",
                "Address Maximum : 00000000CFFFFFFF",
                "32-Bit Fixed Memory Range",
                "Address : E0000000",
                "Address Length : 10000000",
                "32-Bit Fixed Memory Range",
                "Address : E8000000",
                "Address Length : 00000010",
            ],
        ),
        (
            high,
            vec![
                "[Integer] = 0000001000000000",
                "Address Maximum : 0000",
                "Address Minimum : 00000000C0000000",
                "Address Maximum : 00000000CFFFFFFF",
                "Address Minimum : 0000008000000000",
                "Address Maximum : 000000FFFFFFFFFF",
                "Address Minimum : 0000001000000000",
                "Address Maximum : 00000010000FFFFF",
                "Address : E8000000",
            ],
        ),
    ] {
        let commands = "evaluate \\_SB.PCI0._CBA;resources \\_SB.PCI0;resources \\_SB.ECAM";
        let Some(said) = interpret(test, &dsdt(&windows, false), commands) else {
            return;
        };
        let mut rest = &*said;
        for line in expected {
            let found = rest.find(line);
            rest = &rest[found.unwrap_or_else(|| panic!("no more {line}: {said}"))..];
        }
    }
}

#[test]
fn the_mcfg_has_all_buses() {
    for (buses, last) in [(256, 255), (1, 0)] {
        let table = mcfg(
            &windows(buses, Span::default()),
            *b"MINVMM",
            *b"MINIVMM ",
            1,
        );
        assert_eq!(
            table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        assert_eq!(table[..8], [b'M', b'C', b'F', b'G', 60, 0, 0, 0]);
        assert_eq!(
            table[36..],
            [
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xe0, 0, 0, 0, 0, 0, 0, 0, last, 0, 0, 0, 0
            ]
        );
    }
}

#[test]
fn intels_compiler_takes_the_mcfg() {
    let table = mcfg(&windows(1, Span::default()), *b"MINVMM", *b"MINIVMM ", 1);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("mcfg.dat"), &table).unwrap();
    let test = "intels_compiler_takes_the_mcfg";
    if let Some(said) = acpica(test, dir.path(), "iasl", &["-d", "mcfg.dat"]) {
        assert!(!said.contains("rror") && !said.contains("arning"), "{said}");
    }
}
