// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Once a sealed machine's guest runs, its process does nothing new except for the table of late acts. Each machine
//! here runs in a separate process. From the guest's first instruction on, a system call filter ends that process with
//! SIGSYS for any other call.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;
mod sealed;

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bare::lab::{self, MAGIC, PARA, Route, STUB, registers};
use bare::namespace::{is_inside, make_tap, shell};
use bare::registration::{Registration, Verdict};
use bare::virtio::{DISK, ENTROPY, SOCKETS, STATUS, by_mmio, by_pci, network};
use bare::{Asm, guest};
use mini_vmm::layout::{self, MIB};
use para_abi::kvm::{KVM_HC_CLOCK_PAIRING, KVM_HC_KICK_CPU, KVM_HC_SEND_IPI};
use para_abi::vmm::{VMM_HC_BOOT_MARK, VMM_HC_CONSOLE_WRITE, VMM_HC_EXIT, VMM_HC_NOP};
use sealed::{end, expect, start};

/// The debug-exit value of the guest that takes all interrupts.
const ALL_CAME: u8 = 0x2a;

/// Registers for hypercalls.
fn register(asm: &mut Asm) {
    Registration::new("", Verdict::Registered).prepare(asm);
    asm.wrmsr(MAGIC, PARA);
}

/// Registers, and makes every call that has an answer, with the arguments that matter.
fn call_all(asm: &mut Asm) {
    register(asm);
    for (number, arguments) in [
        (VMM_HC_NOP, [0; 4]),
        (VMM_HC_BOOT_MARK, [1, 0, 0, 0]),
        (KVM_HC_CLOCK_PAIRING, [PARA + 0x800, 0, 0, 0]),
        (KVM_HC_KICK_CPU, [0; 4]),
        (KVM_HC_SEND_IPI, [1, 0, 0, 0x400]),
        (VMM_HC_CONSOLE_WRITE, [PARA, 4, 0, 0]),
    ] {
        let mut before = registers(number);
        let places = [lab::RBX, lab::RCX, lab::RDX, lab::RSI];
        for (place, argument) in places.into_iter().zip(arguments) {
            before[place] = argument;
        }
        lab::call(asm, STUB, &before);
    }
}

/// Where each interrupt handler leaves a note.
const NOTES: u64 = 5 * MIB;

/// The vectors of COM1, the power button and the clock.
const LINES: [u32; 3] = [layout::SERIAL_GSI, layout::GED_GSI, layout::RTC_GSI];

fn vector(gsi: u32) -> u8 {
    0x40 + gsi as u8
}

/// Notes an interrupt, and ends the run when all have arrived.
fn handler(gsi: u32) -> (u8, Asm) {
    let handler = guest(|asm| {
        asm.store(NOTES + 4 * u64::from(gsi), 1);
        for other in LINES {
            asm.load(NOTES + 4 * u64::from(other)).compare_eax(1);
            asm.if_different(|asm| {
                asm.wait_for_interrupts();
            });
        }
        asm.fail(ALL_CAME);
    });
    (vector(gsi), handler)
}

/// Registers, calls, and enables the interrupt of every device.
fn interrupts(asm: &mut Asm) {
    // The NMI that it sends to itself.
    let nmi = guest(|asm| {
        asm.raw(&[0x48, 0xcf]); // iretq
    });
    let mut handlers: Vec<_> = LINES.map(handler).into();
    handlers.push((2, nmi));
    asm.idt(&handlers);
    call_all(asm);
    for gsi in LINES {
        asm.route(gsi, vector(gsi));
    }
    asm.out(0x21, 0xff).out(0xa1, 0xff);
    asm.print("up");
    // COM1 can transmit; the clock updates its time, and its alarm is at any second.
    asm.out(layout::SERIAL + 1, 2);
    for (index, value) in [(1, 0xc0), (3, 0xc0), (5, 0xc0), (11, 0x32)] {
        asm.out(layout::RTC, index).out(layout::RTC + 1, value);
    }
    asm.wait_for_interrupts();
}

#[test]
fn every_interrupt_and_call_come_to_their_ends() {
    let test = "every_interrupt_and_call_come_to_their_ends";
    let outcome = format!("DebugExit({ALL_CAME})");
    let mut routes = lab::routes(test);
    routes.push(Route {
        flag: "--hypercall=auto",
        ..Route::PIO
    });
    for route in routes {
        let task = format!("{} interrupts", route.flag);
        if expect(test, &guest(interrupts), &task, &outcome).is_none() {
            return;
        }
    }
}

#[test]
fn virtio_devices_start_and_answer() {
    let test = "virtio_devices_start_and_answer";
    let enough = |asm: &mut Asm| {
        asm.compare_eax(10).if_equal(|asm| {
            asm.power_off();
        });
    };
    expect(
        test,
        &by_pci(&ENTROPY, enough),
        "--hypercall=pio rng pci",
        "PowerOff",
    );
    expect(
        test,
        &by_mmio(&ENTROPY, enough),
        "--hypercall=pio rng mmio",
        "PowerOff",
    );
}

#[test]
fn disks_are_read_and_written() {
    let test = "disks_are_read_and_written";
    let enough = |asm: &mut Asm| {
        asm.compare_eax(10).if_equal(|asm| {
            asm.load(STATUS).expect_eax(0, 1);
            asm.power_off();
        });
    };
    for kind in ["raw", "limited", "overlay"] {
        let pci = format!("--hypercall=pio pci disk {kind}");
        expect(test, &by_pci(&DISK, enough), &pci, "PowerOff");
        let mmio = format!("--hypercall=pio mmio disk {kind}");
        expect(test, &by_mmio(&DISK, enough), &mmio, "PowerOff");
    }
    let reset = by_pci(&DISK, |asm| {
        asm.compare_eax(3).if_equal(|asm| {
            asm.out(layout::ACPI_RESET, layout::ACPI_RESET_VALUE).halt();
        });
    });
    for kind in ["raw", "overlay"] {
        let task = format!("--hypercall=pio pci reset disk {kind}");
        expect(test, &reset, &task, "Stopped");
    }
}

/// Frames come back from what stands for passt. By a tap the host sends some all the time.
#[test]
fn networks_send_and_receive() {
    let test = "networks_send_and_receive";
    if !is_inside(test) {
        return;
    }
    assert!(make_tap("tap0", ""));
    shell("ip addr add 10.0.0.1/24 dev tap0; ip link set tap0 up");
    let after = |frames| {
        move |asm: &mut Asm| {
            asm.compare_eax(frames).if_equal(|asm| {
                asm.power_off();
            });
        }
    };
    let driver = network(&[0xff; 60]);
    let (by_mmio, by_pci) = (by_mmio(&driver, after(10)), by_pci(&driver, after(10)));
    expect(test, &by_mmio, "--hypercall=pio mmio net user", "PowerOff");
    expect(test, &by_pci, "--hypercall=pio pci net user", "PowerOff");
    let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
    socket.set_broadcast(true).unwrap();
    let alive = Arc::new(());
    let test_lives = Arc::downgrade(&alive);
    let sender = thread::spawn(move || {
        while test_lives.upgrade().is_some() {
            // Nobody has the tap between two machines.
            let _ = socket.send_to(&[0; 40], "10.0.0.255:9");
            thread::sleep(Duration::from_millis(1));
        }
    });
    expect(test, &by_mmio, "--hypercall=pio mmio net tap", "PowerOff");
    expect(test, &by_pci, "--hypercall=pio pci net tap", "PowerOff");
    drop(alive);
    sender.join().unwrap();
}

/// Processes of the host connect. The guest's own connection is reset, although somebody listens.
#[test]
fn sockets_connect_to_the_guest_only() {
    let test = "sockets_connect_to_the_guest_only";
    let after_a_few = |asm: &mut Asm| {
        asm.compare_eax(20).if_equal(|asm| {
            asm.power_off();
        });
    };
    let guests = [
        ("mmio", by_mmio(&SOCKETS, after_a_few)),
        ("pci", by_pci(&SOCKETS, after_a_few)),
    ];
    for (transport, guest) in guests {
        let task = format!("--hypercall=pio {transport} vsock sealed");
        let Some((child, vm)) = start(test, &guest, &task) else {
            return;
        };
        let listener = UnixListener::bind(vm.path("v_52")).unwrap();
        listener.set_nonblocking(true).unwrap();
        // Until the guest powers off.
        let mut answers = 0;
        while answers == 0 || vm.path("v").exists() {
            let Ok(mut client) = UnixStream::connect(vm.path("v")) else {
                continue;
            };
            let _ = client.write_all(b"CONNECT 7\nhello");
            answers += client.read(&mut [0; 64]).unwrap_or(0);
        }
        assert_eq!(end(child).as_deref(), Ok("PowerOff\n"));
        assert!(listener.accept().is_err(), "the guest connected");
    }
}

#[test]
fn without_the_seal_the_first_registration_ends_the_process() {
    let test = "without_the_seal_the_first_registration_ends_the_process";
    let guest = guest(|asm| {
        register(asm);
        asm.power_off();
    });
    let Some((child, _vm)) = start(test, &guest, "--hypercall=auto") else {
        return;
    };
    assert_eq!(end(child), Err(libc::SIGSYS));
    expect(test, &guest, "--hypercall=auto", "PowerOff");
}

#[test]
fn each_end_of_a_guest_is_told() {
    let test = "each_end_of_a_guest_is_told";
    let by = |act: fn(&mut Asm)| {
        guest(|asm| {
            register(asm);
            act(asm);
            asm.halt();
        })
    };
    type Act = fn(&mut Asm);
    let ends: [(Act, &str); 5] = [
        (
            |asm| {
                asm.out(layout::PVPANIC, 1);
            },
            "GuestPanic",
        ),
        (
            |asm| {
                asm.triple_fault();
            },
            "VcpuFailure",
        ),
        (
            |asm| {
                asm.out(layout::CF9_RESET, 6);
            },
            "Reset",
        ),
        (
            |asm| {
                let mut before = registers(VMM_HC_EXIT);
                before[lab::RBX] = 7;
                lab::call(asm, STUB, &before);
            },
            "GuestExit(7)",
        ),
        (
            |asm| {
                asm.power_off();
            },
            "PowerOff",
        ),
    ];
    for (act, outcome) in ends {
        let Some(said) = expect(test, &by(act), "--hypercall=pio", outcome) else {
            return;
        };
        if outcome == "VcpuFailure" {
            assert!(
                said.contains("triple fault") && said.contains("rip"),
                "{said}"
            );
        }
    }
}

#[test]
fn machines_after_resets_need_a_vm_and_open_nothing() {
    let test = "machines_after_resets_need_a_vm_and_open_nothing";
    let guest = guest(|asm| {
        register(asm);
        asm.out(layout::ACPI_RESET, layout::ACPI_RESET_VALUE).halt();
    });
    expect(test, &guest, "--hypercall=auto reset", "Stopped");
}

#[test]
fn consoles_work_as_ever() {
    let test = "consoles_work_as_ever";
    let guest = guest(|asm| {
        asm.print("key?");
        asm.until_equal(|asm| {
            asm.input(layout::SERIAL + 5).raw(&[0x24, 1]).compare_al(1); // and al, 1
        });
        asm.input(layout::SERIAL).compare_al(b'k');
        asm.if_equal(|asm| {
            asm.power_off();
        });
        asm.fail(0);
    });
    let Some((mut child, vm)) = start(test, &guest, "--hypercall=auto socket sealed") else {
        return;
    };
    let socket = vm.path("socket");
    let mut client = loop {
        // It listens before the guest starts.
        match UnixStream::connect(&socket) {
            Ok(client) => break client,
            Err(error) => assert!(child.try_wait().unwrap().is_none(), "{error}"),
        }
    };
    let mut prompt = [0; 4];
    client.read_exact(&mut prompt).unwrap();
    assert_eq!(&prompt, b"key?");
    client.write_all(b"k").unwrap();
    assert_eq!(end(child).as_deref(), Ok("PowerOff\n"));
    assert!(!socket.exists());

    let silent = bare::guest(|asm| {
        asm.print("to nobody").power_off();
    });
    expect(test, &silent, "--hypercall=auto pty", "PowerOff");
}
