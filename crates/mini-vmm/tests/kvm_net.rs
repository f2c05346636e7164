// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest sends and receives frames, by MMIO and by PCI, on real KVM: through a tap, and through a process that stands
//! for passt.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use bare::namespace::{is_inside, make_tap, shell};
use bare::virtio::{BUFFER, COUNT, FRAME, NET_HEADER, by_mmio, by_pci, network};
use bare::{Asm, Built, Vm, passt};
use mini_vmm::boot::Unwatched;
use mini_vmm::config::{LinkSpec, NetSpec, OnReboot, SerialSpec, VirtioSpec, VmSpec};
use mini_vmm::layout::{ACPI_RESET, ACPI_RESET_VALUE, MIB};
use mini_vmm::machine::Images;
use mini_vmm::mmds::{self, MmdsSpec, Store, Version};
use mini_vmm::outcome::Outcome;
use mini_vmm::vmm::Vmm;
use rustix::process::Signal;
use vm_memory::{Bytes, GuestAddress};

const RAM: u64 = 32 * MIB;
/// The ports of host and guest.
const HOST: &str = "0.0.0.0:7777";
const GUEST: &str = "10.0.0.255:7778";
/// What the guest says.
const WORDS: &[u8] = b"a frame from the guest";
/// A datagram of 10.0.0.2's to the host's port, for all of the network.
const DATAGRAM: &[u8] = b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x02\x08\0\
    \x45\0\0\x32\0\0\x40\0\x40\x11\x25\xbb\x0a\0\0\x02\x0a\0\0\xff\
    \x1e\x62\x1e\x61\0\x1e\0\0a frame from the guest";

/// A guest for each transport, which does what `then` says after each frame.
fn guests(then: fn(&mut Asm)) -> [(VirtioSpec, Asm); 2] {
    let driver = network(DATAGRAM);
    [
        (VirtioSpec::Mmio, by_mmio(&driver, then)),
        (VirtioSpec::Pci, by_pci(&driver, then)),
    ]
}

fn spec(vm: &Vm, virtio: VirtioSpec) -> VmSpec {
    VmSpec {
        memory: RAM,
        serial: SerialSpec::Off,
        virtio,
        net: vec![NetSpec::new(LinkSpec::Tap("tap0".into()))],
        // Of a guest that waits for what doesn't come.
        timeout: Some(Duration::from_secs(600)),
        ..VmSpec::new(vm.path("kernel"))
    }
}

/// The host's end of `tap0`.
fn host() -> UdpSocket {
    assert!(make_tap("tap0", ""));
    shell("ip addr add 10.0.0.1/24 dev tap0; ip link set tap0 up");
    let socket = UdpSocket::bind(HOST).unwrap();
    socket.set_broadcast(true).unwrap();
    let look_every = Duration::from_millis(10);
    socket.set_read_timeout(Some(look_every)).unwrap();
    socket
}

/// Sends the guest a datagram, and receives one; `is_well` says whether to go on waiting.
fn exchange(socket: &UdpSocket, word: &[u8], mut is_well: impl FnMut() -> bool) {
    let mut bytes = [0; 100];
    socket.send_to(word, GUEST).unwrap();
    loop {
        match socket.recv_from(&mut bytes) {
            Ok((len, from)) => {
                assert_eq!(&bytes[..len], WORDS);
                assert_eq!(from.to_string(), "10.0.0.2:7778");
                return;
            }
            Err(error) => assert!(is_well(), "{error}"),
        }
    }
}

/// Exchanges datagrams, and checks that the guest received one as it was sent.
fn talk(guest: &Built, socket: &UdpSocket) {
    guest.machine.start().unwrap();
    let is_well = || guest.latch.get().is_none();
    let before = guest.read(COUNT);
    for number in 0..5u8 {
        let word = [b'0' + number; 40];
        exchange(socket, &word, is_well);
        // The host itself also sends frames, such as IPv6's.
        let received = || {
            let at = GuestAddress(BUFFER + NET_HEADER + 42);
            let mut bytes = [0; 40];
            guest.machine.memory().read_slice(&mut bytes, at).unwrap();
            bytes == word
        };
        while !received() {
            exchange(socket, &word, is_well);
        }
    }
    // A frame is in memory before the guest counts it.
    while guest.read(COUNT).wrapping_sub(before) < 5 {
        exchange(socket, b"word", is_well);
    }
    guest.machine.pause().unwrap();
}
#[test]
fn frames_travel_by_a_tap_and_go_on_elsewhere() {
    let test = "frames_travel_by_a_tap_and_go_on_elsewhere";
    if !is_inside(test) {
        return;
    }
    let socket = host();
    for (virtio, guest) in guests(|_| ()) {
        let Some(vm) = Vm::new(test, &guest) else {
            return;
        };
        let spec = spec(&vm, virtio);
        let images = Images::open(&spec, &Unwatched).unwrap();
        let first = Built::with_images(&spec, &images);
        talk(&first, &socket);
        talk(&first, &socket);
        let snapshot = first.save();
        drop(first);

        let second = Built::with_images(&spec, &images);
        second.restore(&snapshot);
        talk(&second, &socket);
    }
}

fn reset_after_three(asm: &mut Asm) {
    asm.compare_eax(3).if_equal(|asm| {
        asm.out(ACPI_RESET, ACPI_RESET_VALUE).halt();
    });
}

/// The tap is opened once, so nobody else can take it in between.
#[test]
fn after_a_reset_a_guest_has_its_tap() {
    let test = "after_a_reset_a_guest_has_its_tap";
    if !is_inside(test) {
        return;
    }
    let socket = host();
    for (virtio, guest) in guests(reset_after_three) {
        let Some(vm) = Vm::new(test, &guest) else {
            return;
        };
        let spec = VmSpec {
            on_reboot: OnReboot::Reset,
            ..spec(&vm, virtio)
        };
        let machine = Vmm::build(&spec).unwrap();
        machine.resume().unwrap();
        while machine.describe().unwrap().resets < 3 {
            exchange(&socket, b"word", || machine.describe().is_ok());
        }
        machine.stop().unwrap();
        assert_eq!(machine.wait().unwrap(), Outcome::Stopped);
    }
}

/// A tap that goes down and comes up again, and then is deleted.
#[test]
fn a_guest_outlives_its_tap() {
    let test = "a_guest_outlives_its_tap";
    if !is_inside(test) {
        return;
    }
    let socket = host();
    let [_, (_, guest)] = guests(|_| ());
    let Some(mut vm) = Vm::new(test, &guest) else {
        return;
    };
    let mut running = vm.args(["--net=tap=tap0", "--serial=off"]).start();
    exchange(&socket, b"word", || running.is_alive());
    shell(
        "ip link set tap0 down; ip link set tap0 up; ip addr add 10.0.0.1/24 dev tap0 2>/dev/null || true",
    );
    exchange(&socket, b"word", || running.is_alive());
    shell("ip link del tap0");
    running.await_stderr("net0: the network link is lost");
    assert!(running.is_alive());
}

/// Gives a machine a network by a script in place of passt.
fn stand_in(vm: &mut Vm, script: &str) {
    let path = passt::stand_in(&vm.path(""), script);
    vm.command.env("PATH", path);
    vm.args(["--net=user", "--serial=off"]);
}

/// Opens a connection to the metadata service. The request follows with the same frame, changed.
const ASK: &[u8] = b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x02\x08\0\
    \x45\0\0\x4e\0\0\x40\0\x40\x06\0\0\x0a\0\0\x02\xa9\xfe\xa9\xfe\
    \x10\0\0\x50\0\0\0\x64\0\0\0\0\x50\x02\x40\0\0\0\0\0\
    GET /a HTTP/1.1\r\nConnection: close\r\n\r\n";

/// Makes the frame the request once the connection is open, and powers off at the answer.
fn ask_and_power_off(asm: &mut Asm) {
    const GOT: u64 = BUFFER + NET_HEADER;
    const SENT: u64 = FRAME + NET_HEADER;
    // The host itself also sends frames. Those of the service begin with its address.
    asm.load(GOT + 6).compare_eax(0x4523_0106);
    asm.if_equal(|asm| {
        // Length of the header, flags, window: SYN and ACK.
        asm.load(GOT + 46).compare_eax(0x0010_1260);
        asm.if_equal(|asm| {
            // `bswap eax; inc eax; bswap eax; mov [rdi], eax`
            asm.load(GOT + 38).rdi(SENT + 42);
            asm.raw(&[0x0f, 0xc8, 0xff, 0xc0, 0x0f, 0xc8, 0x89, 0x07]);
            asm.store(SENT + 38, 101_u32.to_be());
            asm.store(SENT + 46, 0x0040_1850);
        });
        // PSH and ACK.
        asm.load(GOT + 46).compare_eax(0x0010_1850);
        asm.if_equal(|asm| {
            asm.power_off();
        });
    });
}

/// How many frames of the guest's have reached its tap.
fn frames_on_tap() -> u64 {
    let text = fs::read_to_string("/proc/self/net/dev").unwrap();
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, numbers) = lines.find(|(name, _)| name.trim() == "tap0").unwrap();
    numbers.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_guest_reads_metadata_that_its_tap_never_sees() {
    let test = "a_guest_reads_metadata_that_its_tap_never_sees";
    if !is_inside(test) {
        return;
    }
    let _socket = host();
    let driver = network(ASK);
    for (virtio, guest) in [
        (VirtioSpec::Mmio, by_mmio(&driver, ask_and_power_off)),
        (VirtioSpec::Pci, by_pci(&driver, ask_and_power_off)),
    ] {
        let Some(vm) = Vm::new(test, &guest) else {
            return;
        };
        let store = Store::new(100);
        store.put(serde_json::json!({"a": "metadata"})).unwrap();
        let mmds = MmdsSpec {
            version: Version::V1,
            nets: vec![0],
            address: mmds::ADDRESS,
            imds_compat: false,
            store,
        };
        let spec = VmSpec {
            mmds: Some(mmds),
            ..spec(&vm, virtio)
        };
        let running = Built::new(&spec, None);
        running.machine.start().unwrap();
        while running.latch.get().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(running.latch.get(), Some(Outcome::PowerOff));
        let mut bytes = [0; 300];
        let at = GuestAddress(BUFFER + NET_HEADER + 54);
        let memory = running.machine.memory();
        memory.read_slice(&mut bytes, at).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("\r\n\r\nmetadata\0"), "{text}");
    }
    assert_eq!(frames_on_tap(), 0);
}

fn power_off_after_nine(asm: &mut Asm) {
    asm.compare_eax(9).if_equal(|asm| {
        asm.power_off();
    });
}

/// What the guest sends comes back to it.
#[test]
fn frames_travel_by_passt() {
    let test = "frames_travel_by_passt";
    for (virtio, guest) in guests(power_off_after_nine) {
        let Some(mut vm) = Vm::new(test, &guest) else {
            return;
        };
        stand_in(&mut vm, passt::ECHO);
        let virtio = if virtio == VirtioSpec::Pci {
            "pci"
        } else {
            "mmio"
        };
        let ended = vm.args([format!("--virtio={virtio}")]).run();
        ended.expect(0);
        assert_eq!(ended.stderr, "");
    }
}

/// It ends after some frames.
#[test]
fn a_guest_outlives_passt() {
    let [_, (_, guest)] = guests(|_| ());
    let Some(mut vm) = Vm::new("a_guest_outlives_passt", &guest) else {
        return;
    };
    let bytes = 3 * (4 + DATAGRAM.len());
    stand_in(
        &mut vm,
        &format!("dd bs=1 count={bytes} <&$fd >&$fd 2>/dev/null & exit 0"),
    );
    let mut running = vm.start();
    running.await_stderr("net0: the network link is lost");
    assert!(running.is_alive());
}

/// Waits until a file has some text.
fn wait_for(path: &Path) {
    while fs::read(path).unwrap_or_default().is_empty() {
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn passt_ends_when_the_machine_is_killed() {
    let [_, (_, guest)] = guests(|_| ());
    let Some(mut vm) = Vm::new("passt_ends_when_the_machine_is_killed", &guest) else {
        return;
    };
    let script =
        "{ dd bs=1 count=1 <&$fd >$0.begun; cat <&$fd; echo >$0.ended; } >/dev/null 2>&1 & exit 0";
    stand_in(&mut vm, script);
    let running = vm.start();
    wait_for(&vm.path("passt.begun"));
    assert!(!vm.path("passt.ended").exists());
    running.signal(Signal::KILL);
    wait_for(&vm.path("passt.ended"));
}
