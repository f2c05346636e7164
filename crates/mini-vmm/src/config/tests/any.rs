// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptions of all kinds.

use proptest::prelude::*;

use super::super::choices::Choice;
use super::super::*;
use crate::layout::{MAX_CPUS, MAX_RAM, MIN_RAM, PAGE_SIZE};
use hypercall_patch::PioPort;

fn choice<T: Choice + std::fmt::Debug>() -> impl Strategy<Value = T> {
    proptest::sample::select(T::CHOICES).prop_map(|(value, _)| value)
}

/// Valid machines of every kind, with paths and texts that JSON must escape.
pub(crate) fn any_spec() -> impl Strategy<Value = VmSpec> {
    let path = || "[ -~é\n]{1,40}".prop_map(PathBuf::from);
    let serial = prop_oneof![
        Just(SerialSpec::Off),
        Just(SerialSpec::Stdio),
        Just(SerialSpec::Pty),
        path().prop_map(SerialSpec::File),
        path().prop_map(SerialSpec::Socket),
    ];
    let feature = ("[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", any::<bool>())
        .prop_map(|(name, enable)| CpuFeature { name, enable });
    let millis = 1..VmSpec::MAX_TIMEOUT.as_millis() as u64;
    let port = (..=u16::MAX - 3).prop_filter("owned", |port| layout::port_owner(*port).is_none());
    let files = (path(), proptest::option::of(path()), "\\PC{0,80}");
    let machine = (
        1..=MAX_CPUS,
        proptest::collection::vec(feature, 0..4),
        (MIN_RAM / PAGE_SIZE..=MAX_RAM / PAGE_SIZE).prop_map(|pages| pages * PAGE_SIZE),
        any::<[bool; 4]>(),
    );
    let disks = proptest::collection::vec(disk::tests::any_disk(), 0..3);
    let cloud_init = proptest::option::of(path());
    let nets = net::tests::any_nets();
    let vsock = (3..u32::MAX, path()).prop_map(|(cid, path)| VsockSpec::new(cid, path));
    let vsock = proptest::option::of(vsock);
    let shared = (path(), any::<bool>(), 1..=64u16).prop_map(|(path, readonly, queues)| {
        let share = ShareSpec {
            readonly,
            ..ShareSpec::new(&path)
        };
        let device = if readonly {
            VhostUserDevice::Block
        } else {
            VhostUserDevice::Id(queues.min(63))
        };
        let device = VhostUserSpec {
            queues: Some(queues),
            ..VhostUserSpec::new(&path, device)
        };
        (vec![share], vec![device])
    });
    let shared = prop_oneof![Just((Vec::new(), Vec::new())), shared];
    let size = (1..=MAX_RAM / PAGE_SIZE).prop_map(|pages| pages * PAGE_SIZE);
    let memory = (path(), proptest::option::of(size))
        .prop_map(|(path, size)| SharedMemorySpec { path, size });
    let devices = (
        serial,
        proptest::option::of(port),
        disks,
        cloud_init,
        nets,
        vsock,
        shared,
        proptest::option::of(memory),
        port::tests::any_ports(),
    );
    let hypercalls = (
        any::<u8>(),
        choice::<HypercallAbi>(),
        choice::<MsrPolicy>(),
        0..6u8,
    );
    let policy = (
        any::<[bool; 4]>(),
        any::<bool>(),
        proptest::option::of(millis.prop_map(Duration::from_millis)),
    );
    (files, machine, devices, policy, hypercalls).prop_map(|parts| {
        let (files, machine, devices, policy, (port, abi, msrs, route)) = parts;
        let [pvh, auto, reset, go_on] = policy.0;
        let port = PioPort::new(port).ok();
        let port = port.filter(|port| !hypercall::takes_port(devices.1, *port));
        let spec = VmSpec {
            mmds: None,
            vcpu_thread: "vcpu",
            track_dirty_pages: false,
            boot_timer: None,
            metrics: files.1.clone(),
            event_log: devices.3.clone(),
            snapshot_dir: devices
                .3
                .clone()
                .filter(|_| route != 0 && route != 2 && !machine.3[3]),
            hypercall: match route {
                0 | 1 => HypercallRoute::Auto,
                2 => HypercallRoute::Vendor,
                3 => HypercallRoute::Forward,
                _ => HypercallRoute::Pio(port),
            },
            hypercall_abi: match route {
                0 | 2 => HypercallAbi::Kvm,
                _ => abi,
            },
            para: route != 0,
            msr_policy: msrs,
            kernel: files.0,
            initrd: files.1,
            cmdline: files.2,
            boot_protocol: match (pvh, auto) {
                (_, true) => BootProtocol::Auto,
                (true, _) => BootProtocol::Pvh,
                (false, _) => BootProtocol::Linux,
            },
            decompress: if policy.1 {
                Decompress::Guest
            } else {
                Decompress::Auto
            },
            cpus: machine.0,
            cpu_features: machine.1,
            msrs: match machine.3[1] {
                true => vec![MsrChange {
                    index: 0x277,
                    mask: 5,
                    value: 4,
                }],
                false => Vec::new(),
            },
            kvm_capabilities: match machine.3[2] {
                true => vec![0, u32::MAX],
                false => Vec::new(),
            },
            memory: machine.2,
            console: match (machine.3[0], &devices.0) {
                (true, SerialSpec::Stdio | SerialSpec::Pty) => SerialSpec::Stdio,
                (true, other) => other.clone(),
                (false, _) => SerialSpec::Off,
            },
            console_port: devices.8,
            serial: devices.0,
            on_reboot: if reset {
                OnReboot::Reset
            } else {
                OnReboot::Exit
            },
            on_panic: if go_on {
                OnPanic::Continue
            } else {
                OnPanic::Exit
            },
            timeout: policy.2,
            debug_exit: devices.1,
            disk: devices.2,
            cloud_init: devices.3,
            net: devices.4,
            vsock: devices.5,
            share: devices.6.0,
            vhost_user: devices.6.1,
            shared_memory: devices.7,
            balloon: machine.3[1].then(|| BalloonSpec {
                size: machine.2 / 2 / PAGE_SIZE * PAGE_SIZE,
                deflate_on_oom: machine.3[0],
                stats: u32::from(machine.0),
                reporting: machine.3[2],
                hinting: machine.3[3],
                iothread: IoThreadName::new("balloon"),
            }),
            legacy_timer: machine.3[0],
            nested: machine.3[1],
            rtc: machine.3[2],
            sealed: machine.3[3],
            rng: (machine.3[3] != machine.3[2]).then(RngSpec::default),
            serial_bandwidth: if machine.3[0] {
                Limit::per_second(1)
            } else {
                None
            },
            virtio: match (machine.3[1], machine.3[2]) {
                (true, _) => VirtioSpec::Pci,
                (false, true) => VirtioSpec::Mmio,
                (false, false) => VirtioSpec::MmioCmdline,
            },
            hotplug: HotplugSlots::default(),
        };
        with_slots(spec)
    })
}

/// With slots for some devices, if they are on PCI.
fn with_slots(mut spec: VmSpec) -> VmSpec {
    if spec.virtio == VirtioSpec::Pci {
        spec.hotplug = HotplugSlots(spec.cpus % 15 + 2);
        spec.disk
            .iter_mut()
            .take(1)
            .for_each(|disk| disk.slot = Some(31));
        spec.net
            .iter_mut()
            .take(1)
            .for_each(|net| net.slot = Some(30));
    }
    spec
}
