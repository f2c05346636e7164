// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use hypercall_patch::PioPort;
use proptest::prelude::*;

use super::*;
use crate::layout::{CMDLINE_SIZE, MAX_CPUS, MAX_RAM, MIN_RAM, PAGE_SIZE};

mod any;

pub(crate) use any::any_spec;

fn spec() -> VmSpec {
    VmSpec::new("vmlinux")
}

proptest! {
    #[test]
    fn json_round_trips(spec in any_spec()) {
        let json = serde_json::to_string(&spec).unwrap();
        prop_assert_eq!(serde_json::from_str::<VmSpec>(&json).unwrap(), spec);
    }

    #[test]
    fn memory_is_valid_or_has_a_valid_neighbour(memory: u64) {
        let with = |memory| VmSpec { memory, ..spec() }.validate();
        // Every power of two, so that all sizes occur.
        for memory in (0..64).map(|shift| memory >> shift) {
            match with(memory) {
                Ok(()) => prop_assert!(memory.is_multiple_of(PAGE_SIZE)),
                Err(Error::Memory(MemoryError::PartialPage { nearest, .. })) => {
                    prop_assert!(nearest.abs_diff(memory) <= PAGE_SIZE / 2);
                    prop_assert_eq!(with(nearest), Ok(()));
                }
                Err(Error::Memory(MemoryError::Little { .. })) => prop_assert!(memory < MIN_RAM),
                Err(Error::Memory(MemoryError::Much { .. })) => prop_assert!(memory > MAX_RAM),
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }
}

#[test]
fn hypercall_port_is_never_one_of_the_debug_exit_device() {
    let with = |hypercall, debug_exit| VmSpec {
        hypercall,
        debug_exit,
        ..spec()
    };
    let free = with(HypercallRoute::Auto, None);
    assert_eq!(free.hypercall_port(), PioPort::DEFAULT);
    for first in 0..0x100 {
        let chosen = with(HypercallRoute::Pio(None), Some(first));
        assert!(
            !hypercall::takes_port(Some(first), chosen.hypercall_port()),
            "{first:#x}"
        );
    }
    for (port, clash) in [(0xf5, true), (0xf7, true), (0xf8, false), (0xf3, false)] {
        let port = PioPort::new(port).unwrap();
        let asked = with(HypercallRoute::Pio(Some(port)), Some(layout::DEBUG_EXIT));
        assert_eq!(asked.validate().is_err(), clash, "{port}");
        assert_eq!(asked.hypercall_port(), port);
    }
    let clash = with(HypercallRoute::Pio(Some(PioPort::DEFAULT)), Some(0xf4));
    assert_eq!(
        clash.validate().unwrap_err().to_string(),
        "the hypercall port 0xf5 is one of the debug-exit device's, 0xf4 to 0xf7; \
         choose another, or leave the choice to --hypercall pio"
    );
}

#[test]
fn registers_need_somebody_who_looks_at_them() {
    let with = |hypercall, hypercall_abi, para| {
        let spec = VmSpec {
            hypercall,
            hypercall_abi,
            para,
            ..spec()
        };
        spec.validate()
    };
    use HypercallRoute::{Auto, Forward, Pio, Vendor};
    for abi in [HypercallAbi::Para2007, HypercallAbi::Para2007Draft] {
        for route in [Auto, Forward, Pio(None)] {
            assert_eq!(with(route, abi, true), Ok(()));
        }
        assert_eq!(with(Vendor, abi, true), Err(Error::AbiOfVendor { abi }));
        assert_eq!(with(Auto, abi, false), Err(Error::AbiWithoutMsr { abi }));
    }
    assert_eq!(with(Vendor, HypercallAbi::Kvm, true), Ok(()));
    assert_eq!(with(Auto, HypercallAbi::Kvm, false), Ok(()));
    let abi = HypercallAbi::Para2007Draft;
    assert_eq!(
        Error::AbiOfVendor { abi }.to_string(),
        "--hypercall vendor has KVM itself answer, which finds no call in the registers of \
         --hypercall-abi 2007-draft; use --hypercall pio or forward"
    );
    assert_eq!(
        Error::AbiWithoutMsr { abi }.to_string(),
        "--hypercall-abi 2007-draft is about hypercalls, which --para off takes away; \
         leave out one of them"
    );
}

#[test]
fn a_route_needs_the_msr() {
    let off = |hypercall| VmSpec {
        hypercall,
        para: false,
        ..spec()
    };
    assert_eq!(off(HypercallRoute::Auto).validate(), Ok(()));
    assert_eq!(
        off(HypercallRoute::Forward)
            .validate()
            .unwrap_err()
            .to_string(),
        "--hypercall forward asks for hypercalls that --para off takes away; leave out one of them"
    );
}

#[test]
fn only_the_kernel_has_no_default() {
    let read: VmSpec = serde_json::from_str(r#"{"kernel": "vmlinux"}"#).unwrap();
    assert_eq!(read, spec());
    let error = serde_json::from_str::<VmSpec>("{}").unwrap_err();
    assert!(error.to_string().contains("no kernel is named"), "{error}");
}

#[test]
fn default_cmdline_names_the_console_that_exists() {
    let early = "earlycon=uart8250,io,0x3f8 console=hvc0 ";
    for (serial, console, expected) in [
        ("off", "off", ""),
        ("pty", "off", "console=ttyS0 "),
        ("off", "pty", "console=hvc0 "),
        // Both have all messages, and the last one is /dev/console.
        ("stdio", "pty", "console=ttyS0 console=hvc0 "),
        ("file=a", "stdio", "console=ttyS0 console=hvc0 "),
        ("stdio", "stdio", early),
    ] {
        let json = format!(r#"{{"kernel": "k", "serial": "{serial}", "console": "{console}"}}"#);
        let read = serde_json::from_str::<VmSpec>(&json).unwrap().cmdline;
        assert_eq!(read, format!("{expected}panic=-1 cryptomgr.notests"));
    }
}

#[test]
fn numbers_and_nulls_are_read_too() {
    let json = r#"{"kernel": "k", "memory": 67108864, "timeout": 90, "debug-exit": 244,
                   "initrd": null, "cpus": null}"#;
    let read: VmSpec = serde_json::from_str(json).unwrap();
    assert_eq!(read.memory, 64 << 20);
    assert_eq!(read.timeout, Some(Duration::from_secs(90)));
    assert_eq!(read.debug_exit, Some(0xf4));
    assert_eq!((read.initrd, read.cpus), (None, 1));
}

/// One console port.
fn ports(to: PortTarget) -> Vec<PortSpec> {
    let name = "a".to_owned();
    vec![PortSpec { name, to }]
}

#[test]
fn impossible_machines_are_refused_in_one_sentence() {
    let nul = || PathBuf::from("a\0b");
    let long = PathBuf::from("x".repeat(108));
    let feature = |name: &str| {
        vec![CpuFeature {
            name: name.into(),
            enable: true,
        }]
    };
    let max = MAX_RAM + 1;
    let cases = [
        (VmSpec { cpus: 0, ..spec() }, "0 vCPUs"),
        (
            VmSpec { cpus: 65, ..spec() },
            "65 vCPUs are too many; give the machine 1 to 64",
        ),
        (
            VmSpec {
                memory: 0,
                ..spec()
            },
            "0 bytes of memory is less than the 32M",
        ),
        (
            VmSpec {
                memory: 512,
                ..spec()
            },
            "did you mean 512M?",
        ),
        (
            VmSpec {
                memory: 16 << 20,
                ..spec()
            },
            "16M of memory is less than the 32M",
        ),
        (
            VmSpec {
                memory: max,
                ..spec()
            },
            "more than a machine can have; give it at most 1T",
        ),
        (
            VmSpec {
                memory: u64::MAX,
                ..spec()
            },
            "more than a machine can have",
        ),
        (
            VmSpec {
                memory: (64 << 20) + 1,
                ..spec()
            },
            "the nearest size is 64M",
        ),
        (
            VmSpec {
                memory: (64 << 20) + 2048,
                ..spec()
            },
            "the nearest size is 65540K",
        ),
        (
            VmSpec {
                cmdline: "a\0b".into(),
                ..spec()
            },
            "a NUL at byte 1",
        ),
        (
            VmSpec {
                cmdline: "x".repeat(65536),
                ..spec()
            },
            "65536 bytes; shorten it to 65535",
        ),
        (
            VmSpec {
                debug_exit: Some(0x3f9),
                ..spec()
            },
            "0x3f9 to 0x3fc, where COM1 is",
        ),
        (
            VmSpec {
                debug_exit: Some(0xcfc),
                ..spec()
            },
            "0xcfc to 0xcff, where PCI configuration is",
        ),
        (
            VmSpec {
                cpu_features: feature("a,vx"),
                ..spec()
            },
            "\"a,vx\" is not the name",
        ),
        (
            VmSpec {
                cpu_features: feature(""),
                ..spec()
            },
            "\"\" is not the name",
        ),
        (
            VmSpec {
                timeout: Some(Duration::ZERO),
                ..spec()
            },
            "a timeout of 0",
        ),
        (
            VmSpec {
                timeout: Some(Duration::MAX),
                ..spec()
            },
            "longer than 3650 days",
        ),
        (
            VmSpec {
                kernel: PathBuf::new(),
                ..spec()
            },
            "the path of the kernel is empty",
        ),
        (
            VmSpec {
                initrd: Some(nul()),
                ..spec()
            },
            "the path of the initrd, \"a\\0b\",",
        ),
        (
            VmSpec {
                cloud_init: Some(nul()),
                ..spec()
            },
            "the path of the cloud-init directory, \"a\\0b\",",
        ),
        (
            VmSpec {
                serial: SerialSpec::File(nul()),
                ..spec()
            },
            "the path of the serial file",
        ),
        (
            VmSpec {
                console: SerialSpec::Socket(nul()),
                ..spec()
            },
            "the path of the console socket",
        ),
        (
            VmSpec {
                console_port: ports(PortTarget::File(nul())),
                ..spec()
            },
            "the path of the console port",
        ),
        (
            VmSpec {
                console_port: ports(PortTarget::Unix(long.clone())),
                ..spec()
            },
            "the console port socket path",
        ),
        (
            VmSpec {
                console_port: ports(PortTarget::Stdio),
                ..spec()
            },
            "reads standard input, which something else reads, too; say --serial off",
        ),
        (
            VmSpec {
                serial: SerialSpec::Socket(long),
                ..spec()
            },
            "shorten it to 107 bytes",
        ),
    ];
    for (spec, part) in cases {
        let error = spec.validate().expect_err(part).to_string();
        assert!(error.contains(part), "{error:?} lacks {part:?}");
        assert!(!error.contains(['\n', '\0']), "{error:?}");
    }
}

#[test]
fn limits_themselves_are_possible() {
    let socket = PathBuf::from("x".repeat(107));
    let specs = [
        VmSpec {
            cpus: MAX_CPUS,
            ..spec()
        },
        VmSpec {
            memory: MIN_RAM,
            ..spec()
        },
        VmSpec {
            memory: MAX_RAM,
            ..spec()
        },
        VmSpec {
            cmdline: "x".repeat(CMDLINE_SIZE as usize - 1),
            ..spec()
        },
        VmSpec {
            debug_exit: Some(layout::DEBUG_EXIT),
            ..spec()
        },
        VmSpec {
            timeout: Some(VmSpec::MAX_TIMEOUT),
            ..spec()
        },
        VmSpec {
            serial: SerialSpec::Socket(socket),
            ..spec()
        },
        VmSpec {
            kernel: OsStr::from_bytes(b"\xff").into(),
            ..spec()
        },
    ];
    for spec in specs {
        assert_eq!(spec.validate(), Ok(()), "{spec:?}");
    }
}

#[test]
fn words_are_judged_by_their_key() {
    let said = |key: &str, word: &str| Draft::default().say(key, OsStr::new(word));
    let message = |key, word| said(key, word).unwrap_err().to_string();
    assert_eq!(said("memory", "1G"), Ok(()));
    assert_eq!(
        message("on-panic", "halt"),
        "--on-panic \"halt\" is none of the words for it; --help shows them"
    );
    assert!(message("cpus", "two").contains("\"two\" is not a number of vCPUs; write"));
    assert_eq!(
        message("debugexit", "on"),
        "unknown key \"debugexit\"; did you mean \"debug-exit\"?"
    );
    let mut draft = Draft::default();
    for (key, word) in [
        ("kernel", "k"),
        ("cpus", "300"),
        ("cpus", "3"),
        ("serial", "off"),
    ] {
        draft.say(key, OsStr::new(word)).unwrap();
    }
    let spec = draft.finish().unwrap();
    assert_eq!((spec.cpus, spec.serial), (3, SerialSpec::Off));
    assert_eq!(spec.cmdline, "panic=-1 cryptomgr.notests");
}

proptest! {
    #[test]
    fn parts_round_trip_on_their_own(spec in any_spec()) {
        let parts = (
            spec.serial,
            spec.hypercall,
            spec.cpu_features,
            (spec.boot_protocol, spec.decompress, spec.on_reboot),
            (spec.on_panic, spec.hypercall_abi, spec.msr_policy),
        );
        let json = serde_json::to_string(&parts).unwrap();
        prop_assert_eq!(serde_json::from_str(&json).ok(), Some(parts), "{}", json);
    }
}

#[test]
fn json_has_all_keys_in_order() {
    let json = serde_json::to_string(&spec()).unwrap();
    let places: Vec<_> = KEYS
        .iter()
        .map(|key| json.find(&format!("\"{key}\":")))
        .collect();
    assert!(places.iter().all(Option::is_some), "{json}");
    assert!(places.is_sorted(), "{json}");
}
