// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The serial console of a running guest: no reader or client can delay the guest, and no output is lost.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use bare::{Asm, Vm, guest};
use mini_vmm::layout;

/// Writes the first `count` bytes of low memory by string output. KVM chooses the bytes per exit.
fn pour(asm: &mut Asm, count: u32) {
    asm.raw(&[0x31, 0xf6]).ecx(count).port(layout::SERIAL);
    asm.raw(&[0xf3, 0x6e]); // xor esi, esi; …; rep outsb
}

/// A guest that outputs more than a small pipe holds, and then powers off.
fn flood() -> Asm {
    guest(|asm| {
        pour(asm, 20_000);
        asm.power_off();
    })
}

/// Checks that a flood of output ends before the timeout, wherever `connect` connects the console.
fn flood_ends(test: &str, connect: impl FnOnce(&mut Vm)) {
    if let Some(mut vm) = Vm::new(test, &flood()) {
        connect(&mut vm);
        vm.run().expect(0);
    }
}

#[test]
fn reader_that_never_reads_holds_nobody_up() {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    flood_ends("reader_that_never_reads_holds_nobody_up", |vm| {
        vm.command.stdout(writer);
    });
    drop(reader);
}

#[test]
fn reader_that_is_gone_holds_nobody_up() {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    drop(reader);
    flood_ends("reader_that_is_gone_holds_nobody_up", |vm| {
        vm.command.stdout(writer);
    });
}

#[test]
fn dev_null_and_dev_full_hold_nobody_up() {
    for path in ["/dev/null", "/dev/full"] {
        let file = File::options().write(true).open(path).unwrap();
        flood_ends("dev_null_and_dev_full_hold_nobody_up", |vm| {
            vm.command.stdout(file);
        });
    }
}

#[test]
fn closed_streams_hold_nobody_up() {
    let guest = guest(|asm| {
        asm.print("nobody reads this\n").power_off();
    });
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let Some(vm) = Vm::new("closed_streams_hold_nobody_up", &guest) else {
            return;
        };
        let mut shell = vm.through(&format!("exec \"$@\" {closed}"));
        shell.run().expect(0);
    }
}

#[test]
fn everything_is_written_before_the_end() {
    // With one exit per byte, and as strings.
    let guest = guest(|asm| {
        asm.times(5000, |asm| {
            asm.raw(&[0x88, 0xd8]).port(layout::SERIAL).raw(&[0xee]); // mov al, bl; …; out dx, al
        });
        pour(asm, 20_000);
        asm.power_off();
    });
    let Some(mut vm) = Vm::new("everything_is_written_before_the_end", &guest) else {
        return;
    };
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    vm.command.stdout(writer);
    let running = vm.start();
    // This handle would keep the pipe open.
    vm.command.stdout(Stdio::null());
    let received = thread::spawn(move || {
        // Slower than the guest.
        let (mut reader, mut all) = (File::from(reader), Vec::new());
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            all.extend(&buffer[..count]);
            thread::sleep(Duration::from_millis(2));
        }
        all
    });
    running.end().expect(0);
    let received = received.join().unwrap();
    assert_eq!(received.len(), 25_000);
    let first: Vec<u8> = (1..=5000u32).rev().map(|i| i as u8).collect();
    assert!(received.starts_with(&first));
}

#[test]
fn output_before_a_failure_is_written_too() {
    let guest = guest(|asm| {
        pour(asm, 30_000);
        asm.print("last words").triple_fault();
    });
    if let Some(mut vm) = Vm::new("output_before_a_failure_is_written_too", &guest) {
        let ended = vm.run();
        ended.expect(33).says(&["triple fault"]);
        assert_eq!(ended.stdout.len(), 30_010);
        assert!(ended.stdout.ends_with(b"last words"));
    }
}

/// Echoes its input until `q`.
fn echo() -> Asm {
    guest(|asm| {
        asm.print("up\n");
        asm.forever(|asm| {
            asm.input(layout::SERIAL + 5).test_al(1);
            asm.if_different(|asm| {
                asm.input(layout::SERIAL).raw(&[0xee]).compare_al(b'q');
                asm.if_equal(|asm| {
                    asm.power_off();
                });
            });
        });
    })
}

#[test]
fn input_arrives_through_a_pipe_whole() {
    let Some(mut vm) = Vm::new("input_arrives_through_a_pipe_whole", &echo()) else {
        return;
    };
    vm.command.stdin(Stdio::piped());
    let mut running = vm.start();
    // Far more than the FIFO holds. Ctrl-A is not an escape here.
    let text = "0123456789\u{1}x\n".repeat(500) + "q";
    running.type_in(text.as_bytes());
    running.end().expect(0).printed(&format!("up\n{text}"));
}

/// Registers of COM1.
const IER: u16 = layout::SERIAL + 1;
const IIR_FCR: u16 = layout::SERIAL + 2;
const LSR: u16 = layout::SERIAL + 5;

/// Reads a register and prints its value: `in al, dx; …; out dx, al`.
fn show_register(asm: &mut Asm, register: u16) {
    asm.input(register).port(layout::SERIAL).raw(&[0xee]);
}

/// Ends a loop when a register of COM1 has this bit: `in al, dx; not al; test al, bit`.
fn has_bit(asm: &mut Asm, register: u16, bit: u8) {
    asm.input(register).raw(&[0xf6, 0xd0]).test_al(bit);
}

#[test]
fn received_data_is_a_level() {
    // FIFO control, and the interrupt identification while eight or seven bytes wait.
    for (fifo_control, eight, seven) in [
        (0x00, 0x04, 0x04),
        (0x07, 0xc4, 0xc4),
        (0x87, 0xc4, 0xcc),
        (0xc7, 0xcc, 0xcc),
    ] {
        let guest = guest(|asm| {
            asm.out(IIR_FCR, fifo_control).out(IER, 1);
            asm.until_equal(|asm| has_bit(asm, LSR, 1));
            for register in [IIR_FCR, IIR_FCR, layout::SERIAL, IIR_FCR, LSR] {
                show_register(asm, register);
            }
            asm.power_off();
        });
        let Some(mut vm) = Vm::new("received_data_is_a_level", &guest) else {
            return;
        };
        vm.command.stdin(Stdio::piped());
        let mut running = vm.start();
        running.type_in(b"abcdefgh");
        let ended = running.end();
        ended.expect(0);
        assert_eq!(ended.stdout, [eight, eight, b'a', seven, 0x61]);
    }
}

#[test]
fn interrupts_alone_bring_bulk_input() {
    // Reads IIR again after fewer bytes than the FIFO holds, as Linux's driver does after 256.
    let handler = guest(|asm| {
        asm.input(IIR_FCR);
        asm.until_equal(|asm| {
            asm.times(16, |asm| {
                asm.input(LSR).test_al(1);
                asm.if_different(|asm| {
                    show_register(asm, layout::SERIAL);
                    asm.compare_al(b'q').if_equal(|asm| {
                        asm.power_off();
                    });
                });
            });
            has_bit(asm, IIR_FCR, 1);
        });
        asm.wait_for_interrupts();
    });
    for fifo_control in [0x00, 0x07, 0x87, 0xc7] {
        let guest = guest(|asm| {
            asm.idt(&[(0x24, handler.clone())]);
            asm.route(layout::SERIAL_GSI, 0x24);
            asm.out(IIR_FCR, fifo_control).out(IER, 1);
            asm.wait_for_interrupts();
        });
        let Some(mut vm) = Vm::new("interrupts_alone_bring_bulk_input", &guest) else {
            return;
        };
        vm.command.stdin(Stdio::piped());
        let mut running = vm.start();
        let text = "0123456789\n".repeat(300) + "q";
        running.type_in(text.as_bytes());
        running.end().expect(0).printed(&text);
    }
}

#[test]
fn input_from_a_file_is_a_script() {
    let Some(mut vm) = Vm::new("input_from_a_file_is_a_script", &echo()) else {
        return;
    };
    let script = vm.path("script");
    fs::write(&script, "hello q").unwrap();
    vm.command.stdin(File::open(script).unwrap());
    vm.run().expect(0).printed("up\nhello q").silent();
}

#[test]
fn end_of_input_is_not_the_end_of_the_guest() {
    let guest = guest(|asm| {
        asm.times(20_000, |asm| {
            asm.input(layout::SERIAL + 5);
        });
        asm.print("done").power_off();
    });
    if let Some(mut vm) = Vm::new("end_of_input_is_not_the_end_of_the_guest", &guest) {
        vm.run().expect(0).printed("done").silent();
    }
}

#[test]
fn serial_goes_where_it_is_told() {
    let test = "serial_goes_where_it_is_told";
    let guest = guest(|asm| {
        asm.print("to a file").power_off();
    });
    let Some(mut vm) = Vm::new(test, &guest) else {
        return;
    };
    let file = vm.path("log");
    vm.args(["--serial".into(), format!("file={}", file.display())]);
    vm.run().expect(0).printed("").silent();
    assert_eq!(fs::read_to_string(file).unwrap(), "to a file");

    let mut vm = Vm::new(test, &echo()).unwrap();
    let socket = vm.path("socket");
    vm.args(["--serial".into(), format!("socket={}", socket.display())]);
    let mut running = vm.start();
    let mut stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(error) => assert!(running.is_alive(), "{error}"),
        }
        thread::sleep(Duration::from_millis(5));
    };
    std::io::Write::write_all(&mut stream, b"hello q").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    running.end().expect(0).printed("").silent();
    assert!(text.ends_with("hello q"), "{text:?}");
    assert!(!socket.exists());
}

#[test]
fn without_serial_its_ports_are_nobodys() {
    let guest = guest(|asm| {
        asm.out(layout::SERIAL, b'x');
        asm.raw(&[0x31, 0xc0]).input(layout::SERIAL + 5); // xor eax, eax
        asm.expect_eax(0xff, 1).power_off();
    });
    if let Some(mut vm) = Vm::new("without_serial_its_ports_are_nobodys", &guest) {
        vm.args(["--serial", "off"]);
        vm.run().expect(0).printed("").silent();
    }
}
