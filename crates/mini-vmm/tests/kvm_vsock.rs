// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest and processes of the host talk by sockets, by MMIO and by PCI, on real KVM.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bare::http::Client;
use bare::virtio::{SOCKETS, by_mmio, by_pci};
use bare::{Asm, Built, Vm};
use mini_vmm::boot::Unwatched;
use mini_vmm::config::{OnReboot, SerialSpec, VirtioSpec, VmSpec, VsockSpec};
use mini_vmm::layout::{ACPI_RESET, ACPI_RESET_VALUE, MIB};
use mini_vmm::machine::Images;
use mini_vmm::outcome::Outcome;
use mini_vmm::vmm::Vmm;

/// A guest for each transport, which does what `then` says after each packet.
fn guests(then: fn(&mut Asm)) -> [(VirtioSpec, Asm); 2] {
    [
        (VirtioSpec::Mmio, by_mmio(&SOCKETS, then)),
        (VirtioSpec::Pci, by_pci(&SOCKETS, then)),
    ]
}

fn socket(vm: &Vm) -> PathBuf {
    vm.path("v")
}

fn spec(vm: &Vm, virtio: VirtioSpec) -> VmSpec {
    VmSpec {
        memory: 32 * MIB,
        serial: SerialSpec::Off,
        virtio,
        vsock: Some(VsockSpec::new(3, socket(vm))),
        // Of a guest that waits for what doesn't come.
        timeout: Some(Duration::from_secs(600)),
        ..VmSpec::new(vm.path("kernel"))
    }
}

/// Connects to the guest, whatever its state: a guest that is reset closes its clients.
fn connect(socket: &Path) -> UnixStream {
    loop {
        let mut client = UnixStream::connect(socket).unwrap();
        let mut line = [0; 64];
        // The guest may have been reset meanwhile.
        if client.write_all(b"CONNECT 7\n").is_ok()
            && let Ok(len @ 1..) = client.read(&mut line)
        {
            assert!(line.starts_with(b"OK ") && line[..len].ends_with(b"\n"));
            return client;
        }
    }
}

/// Whether the guest sends back what it gets. Not if it is reset.
fn echoes(client: &mut UnixStream, rounds: usize) -> bool {
    for round in 0..rounds {
        let sent: Vec<u8> = (0..4000).map(|i| (i * 3 + round) as u8).collect();
        let mut back = vec![0; sent.len()];
        if client.write_all(&sent).is_err() || client.read_exact(&mut back).is_err() {
            return false;
        }
        assert!(back == sent, "round {round}");
    }
    true
}

#[test]
fn data_goes_both_ways_and_ends() {
    let test = "data_goes_both_ways_and_ends";
    for (virtio, guest) in guests(|_| ()) {
        let Some(vm) = Vm::new(test, &guest) else {
            return;
        };
        // The guest connects as soon as it runs.
        let listener = UnixListener::bind(vm.path("v_52")).unwrap();
        let machine = Vmm::build(&spec(&vm, virtio)).unwrap();
        machine.resume().unwrap();
        let (mut from_guest, _) = listener.accept().unwrap();
        assert!(echoes(&mut from_guest, 50), "the guest's connection");
        let mut client = connect(&socket(&vm));
        assert!(echoes(&mut client, 50), "the host's connection");
        // A pause leaves it there.
        machine.pause().unwrap();
        client.write_all(b"meanwhile").unwrap();
        machine.resume().unwrap();
        let mut back = [0; 9];
        client.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"meanwhile");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut back).unwrap(), 0);
        machine.stop().unwrap();
        assert_eq!(machine.wait().unwrap(), Outcome::Stopped);
        assert!(!socket(&vm).exists(), "the socket's file is removed");
    }
}

#[test]
fn a_reset_ends_connections_and_new_ones_follow() {
    let test = "a_reset_ends_connections_and_new_ones_follow";
    let reset = |asm: &mut Asm| {
        asm.compare_eax(40).if_equal(|asm| {
            asm.out(ACPI_RESET, ACPI_RESET_VALUE).halt();
        });
    };
    for (virtio, guest) in guests(reset) {
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
            let mut client = connect(&socket(&vm));
            assert!(!echoes(&mut client, 1000), "no reset");
        }
        machine.stop().unwrap();
        machine.wait().unwrap();
    }
}

#[test]
fn a_restored_guest_has_new_connections_only() {
    let test = "a_restored_guest_has_new_connections_only";
    for (virtio, guest) in guests(|_| ()) {
        let Some(vm) = Vm::new(test, &guest) else {
            return;
        };
        let spec = spec(&vm, virtio);
        let images = Images::open(&spec, &Unwatched).unwrap();
        let first = Built::with_images(&spec, &images);
        first.machine.start().unwrap();
        let mut client = connect(&socket(&vm));
        assert!(echoes(&mut client, 5));
        first.machine.pause().unwrap();
        let snapshot = first.save();
        drop(first);
        let ended = client.read(&mut [0]).map_err(|error| error.kind());
        assert!(matches!(ended, Ok(0) | Err(ErrorKind::ConnectionReset)));
        let second = Built::with_images(&spec, &images);
        second.restore(&snapshot);
        second.machine.start().unwrap();
        let mut client = connect(&socket(&vm));
        assert!(echoes(&mut client, 5));
        second.machine.pause().unwrap();
    }
}

/// Two machines go on with one snapshot, each on a socket of its own.
#[test]
fn copies_have_sockets_of_their_own() {
    let test = "copies_have_sockets_of_their_own";
    let [_, (_, guest)] = guests(|_| ());
    let Some(mut vm) = Vm::new(test, &guest) else {
        return;
    };
    let api = vm.path("api");
    vm.args(["--api-sock".as_ref(), api.as_os_str()]);
    let mut running = vm.args(["--vsock=cid=3,socket=v", "--serial=off"]).start();
    let mut client = Client::connect(&mut running, &api);
    let shown = client.get("/vm/config")["vsock"].clone();
    assert_eq!(shown, serde_json::json!({"guest_cid": 3, "uds_path": "v"}));
    assert!(echoes(&mut connect(&socket(&vm)), 3));
    client.set_state("Paused");
    let files = r#"{"snapshot_path": "vm.state", "mem_file_path": "vm.memory"}"#;
    client.done("PUT", "/snapshot/create", files);
    client.act("Stop");
    running.end().expect(0);
    assert!(!socket(&vm).exists());
    let load = |socket: &str| {
        format!(
            r#"{{"snapshot_path": "vm.state", "mem_backend": {{"backend_type": "File", "backend_path": "vm.memory"}},
            "resume_vm": true, "vsock_override": {socket}}}"#
        )
    };
    let mut machines = Vec::new();
    for name in ["a", "b"] {
        let api = vm.path(&format!("api-{name}"));
        let mut running = vm.loading(&api).start();
        let mut client = Client::connect(&mut running, &api);
        let long = format!(r#"{{"uds_path": "{}"}}"#, "x".repeat(97));
        for (socket, why) in [
            ("{}", "vsock_override: uds_path: "),
            (r#"{"uds_path": ""}"#, "vsock_override: "),
            (&*long, "is too long"),
        ] {
            client.refused("PUT", "/snapshot/load", &load(socket), why);
        }
        let body = load(&format!(r#"{{"uds_path": "{name}"}}"#));
        client.done("PUT", "/snapshot/load", &body);
        assert_eq!(client.get("/vm/config")["vsock"]["uds_path"], name);
        machines.push((running, client, vm.path(name)));
    }
    for (running, mut client, socket) in machines {
        assert!(echoes(&mut connect(&socket), 3));
        client.act("Stop");
        running.end().expect(0);
    }
}
