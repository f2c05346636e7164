// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine from the guest's view: memory, processors, interrupts, and addresses without a device.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::process::Stdio;

use bare::{AP_CODE, Asm, Vm, guest};
use mini_vmm::layout::{self, GIB, HOLE_END, HOLE_START, MIB, PAGE_SIZE};
use rustix::process::Signal;

/// Runs a guest that powers off if all checks pass.
fn check(test: &str, args: &[&str], write: impl FnOnce(&mut Asm)) {
    let guest = guest(|asm| {
        write(asm);
        asm.power_off();
    });
    if let Some(mut vm) = Vm::new(test, &guest) {
        vm.args(args).run().expect(0).silent();
    }
}

// ---- Nothing there -------------------------------------------------------------------------------

#[test]
fn unclaimed_reads_are_all_ones_and_writes_are_ignored() {
    check(
        "unclaimed_reads_are_all_ones_and_writes_are_ignored",
        &[],
        |asm| {
            for port in [0x1234, 0xffff] {
                // out dx, eax; in eax, dx
                asm.rax(0x55).port(port).raw(&[0xef, 0xed]);
                asm.expect_eax(u32::MAX, 1);
                // out dx, al; xor eax, eax; in al, dx; out dx, ax; in ax, dx (a prefix)
                asm.raw(&[0xee, 0x31, 0xc0, 0xec]).expect_eax(0xff, 2);
                asm.raw(&[0x66, 0xef, 0x31, 0xc0, 0x66, 0xed]);
                asm.expect_eax(0xffff, 3);
            }
            for address in [HOLE_START, layout::VIRTIO_MMIO + 8, HOLE_END - 8] {
                asm.store(address, 0x55).load(address);
                asm.expect_eax(u32::MAX, 4);
                // mov rax, [rdi]; shr rax, 32
                asm.raw(&[0x48, 0x8b, 0x07, 0x48, 0xc1, 0xe8, 0x20]);
                asm.expect_eax(u32::MAX, 5);
            }
        },
    );
}

#[test]
fn registers_do_not_answer_wide_accesses() {
    check("registers_do_not_answer_wide_accesses", &[], |asm| {
        for port in [layout::ACPI_SLEEP_CONTROL, layout::PVPANIC] {
            // mov eax, 0x3434; out dx, ax; in ax, dx: neither S5 nor a panic
            asm.rax(0x3434).port(port);
            asm.raw(&[0x66, 0xef, 0x31, 0xc0, 0x66, 0xed]);
            asm.expect_eax(0xffff, 1);
        }
    });
}

#[test]
fn unknown_msrs_are_general_protection_faults() {
    let test = "unknown_msrs_are_general_protection_faults";
    for is_write in [false, true] {
        let handler = guest(|asm| {
            asm.print("#GP\n").power_off();
        });
        let guest = guest(|asm| {
            asm.idt(&[(13, handler)]);
            if is_write {
                asm.wrmsr(0x1234_5678, 1);
            } else {
                asm.rdmsr(0x1234_5678);
            }
            asm.fail(1);
        });
        let Some(mut vm) = Vm::new(test, &guest) else {
            return;
        };
        vm.run().expect(0).printed("#GP\n").silent();
    }
}

#[test]
fn a_missing_clock_is_said_in_a_line() {
    let guest = guest(|asm| {
        asm.power_off();
    });
    let warning = "mini-vmm: warning: 'nolapic' takes away the only clock that Linux has here; add --legacy-timer";
    for (args, count) in [
        (&["--cmdline", "quiet nolapic"][..], 1),
        (&["--cmdline", "quiet nolapic", "--legacy-timer"], 0),
        (&["--cmdline", "quiet -- nolapic"], 0),
    ] {
        let Some(mut vm) = Vm::new("a_missing_clock_is_said_in_a_line", &guest) else {
            return;
        };
        let ended = vm.args(args).run();
        ended.expect(0);
        assert_eq!(
            ended.stderr.matches(warning).count(),
            count,
            "{}",
            ended.stderr
        );
        assert_eq!(ended.stderr.lines().count(), count, "{}", ended.stderr);
    }
}

#[test]
fn legacy_timer_is_there_only_when_asked_for() {
    let test = "legacy_timer_is_there_only_when_asked_for";
    const SPEAKER: u16 = 0x61;
    check(test, &[], |asm| {
        asm.input(SPEAKER).expect_al(0xff, 1);
    });
    check(test, &["--legacy-timer"], |asm| {
        // Channel 2 is stopped: bits 0, 1, 6 and 7 are clear.
        asm.input(SPEAKER).test_al(0xc3);
        asm.if_different(|asm| asm.fail(2));
    });
}

// ---- Memory --------------------------------------------------------------------------------------

/// Checks the words around the end of memory, inside and outside.
fn expect_end_of_memory(asm: &mut Asm, end: u64, failure: u8) {
    let pattern = 0x600d_0000 | u32::from(failure);
    asm.load(end - 4).expect_eax(0, failure);
    asm.store(end - 4, pattern).store(end, pattern);
    asm.load(end - 4).expect_eax(pattern, failure);
    asm.load(end).expect_eax(u32::MAX, failure);
}

#[test]
fn small_memory_ends_where_it_should() {
    let test = "small_memory_ends_where_it_should";
    for (size, end) in [
        ("32M", 32 * MIB),
        ("512M", 512 * MIB),
        ("33M", 33 * MIB),
        ("3G", 3 * GIB),
    ] {
        check(test, &["--memory", size], |asm| {
            expect_end_of_memory(asm, end, 1);
        });
    }
}

#[test]
fn large_memory_has_its_hole_below_4_gib() {
    check(
        "large_memory_has_its_hole_below_4_gib",
        &["--memory", "5G"],
        |asm| {
            // Two more page directories: the large pages at 4 GiB, and around 6 GiB.
            const PAGE: u64 = 2 * MIB;
            let pdpt = layout::BOOT_PAGE_TABLES + PAGE_SIZE;
            for (directory, page) in [
                (0x4_0000, 4 * GIB),
                (0x4_1000, 6 * GIB - PAGE),
                (0x4_2000, 6 * GIB),
            ] {
                asm.store(pdpt + page / GIB * 8, directory | 3);
                let entry = u64::from(directory) + page % GIB / PAGE * 8;
                asm.store(entry, page as u32 | 0x83);
                asm.store(entry + 4, (page >> 32) as u32);
            }
            expect_end_of_memory(asm, 3 * GIB, 1);
            asm.load(HOLE_END - 4).expect_eax(u32::MAX, 2);
            // The first word above the hole differs from the hole's, and is no alias of address 0.
            asm.store(0, 0x1111).store(HOLE_END, 0x2222);
            asm.load(HOLE_END).expect_eax(0x2222, 3);
            asm.load(0).expect_eax(0x1111, 4);
            expect_end_of_memory(asm, 6 * GIB, 5);
        },
    );
}

// ---- Processors ----------------------------------------------------------------------------------

/// Where the processors' marks are: how many started, how many disagree about their id, one byte for each id.
const STARTED: u64 = AP_CODE + 0x100;
const MARKS: u64 = AP_CODE + 0x200;

/// Real mode: asks the local APIC (in x2APIC mode) and CPUID for its id, and marks it.
const COUNT_ME: &[u8] = &[
    0xfa, 0x8c, 0xc8, 0x8e, 0xd8, // cli; mov ax, cs; mov ds, ax
    0x66, 0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, // mov ecx, IA32_APIC_BASE; rdmsr
    0x80, 0xcc, 0x0c, 0x0f, 0x30, // or ah, 0xc; wrmsr
    0x66, 0xb9, 0x02, 0x08, 0, 0, 0x0f, 0x32, // mov ecx, IA32_X2APIC_APICID; rdmsr
    0x66, 0x89, 0xc5, // mov ebp, eax
    0x66, 0xb8, 0x0b, 0, 0, 0, 0x66, 0x31, 0xc9, // mov eax, 0xb; xor ecx, ecx
    0x0f, 0xa2, 0x66, 0x39, 0xea, 0x75, 0x11, // cpuid; cmp edx, ebp; jne bad
    0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2, // mov eax, 1; cpuid
    0x66, 0xc1, 0xeb, 0x18, 0x66, 0x39, 0xeb, // shr ebx, 24; cmp ebx, ebp
    0x74, 0x05, // je good
    0xf0, 0xff, 0x06, 0x02, 0x01, // bad: lock inc word [0x102]
    0x89, 0xeb, 0xf0, 0xfe, 0x87, 0x00, 0x02, // good: mov bx, bp; lock inc byte [bx + 0x200]
    0xf0, 0xff, 0x06, 0x00, 0x01, // lock inc word [0x100]
    0xf4, 0xeb, 0xfd, // hlt; jmp
];

/// All processors start when they are told to, each with its own id.
fn processors(test: &str, cpus: u8) {
    let count = cpus.to_string();
    check(test, &["--cpus", &count], |asm| {
        asm.place(COUNT_ME, AP_CODE);
        // No processor starts by itself.
        asm.times(1000, |asm| {
            asm.load(STARTED).expect_eax(0, 0);
        });
        for id in 1..cpus {
            asm.start_processor(id);
        }
        asm.until_equal(|asm| {
            // cmp ax, count
            asm.load(STARTED).raw(&[0x66, 0x3d, cpus - 1, 0]);
        });
        asm.load(STARTED).expect_eax(u32::from(cpus) - 1, 0);
        asm.raw(&[0x31, 0xc0]); // xor eax, eax
        for id in 0..=cpus {
            // mov al, [rdi]
            asm.rdi(MARKS + u64::from(id)).raw(&[0x8a, 0x07]);
            asm.expect_al((1..cpus).contains(&id).into(), id);
        }
    });
}

#[test]
fn two_processors_start() {
    processors("two_processors_start", 2);
}

#[test]
fn four_processors_start() {
    processors("four_processors_start", 4);
}

#[test]
fn sixty_four_processors_start() {
    processors("sixty_four_processors_start", 64);
}

#[test]
fn any_processor_may_power_off() {
    let test = "any_processor_may_power_off";
    // Real mode: mov dx, sleep control; mov al, S5; out dx, al; hlt; jmp
    let [low, high] = layout::ACPI_SLEEP_CONTROL.to_le_bytes();
    let power_off = [0xba, low, high, 0xb0, bare::S5, 0xee, 0xf4, 0xeb, 0xfd];
    let guest = guest(|asm| {
        asm.place(&power_off, AP_CODE).start_processor(2).halt();
    });
    if let Some(mut vm) = Vm::new(test, &guest) {
        vm.args(["--cpus", "3"]).run().expect(0).silent();
    }
}

#[test]
fn failure_of_another_processor_names_it() {
    // Real mode: lidt [cs:0x80], of limit 0; ud2. A triple fault, or an instruction that an emulator lacks.
    let fault = [0x2e, 0x0f, 0x01, 0x1e, 0x80, 0x00, 0x0f, 0x0b];
    let guest = guest(|asm| {
        asm.place(&fault, AP_CODE).start_processor(1).halt();
    });
    let test = "failure_of_another_processor_names_it";
    if let Some(mut vm) = Vm::new(test, &guest) {
        let ended = vm.args(["--cpus", "2"]).run();
        ended.expect(33).says(&["vCPU 1 failed: "]);
        assert_eq!(ended.stderr.matches("failed: ").count(), 1);
    }
}

#[test]
fn only_the_first_failure_is_reported() {
    let test = "only_the_first_failure_is_reported";
    // Real mode: lidt [cs:0x80], of limit 0; ud2
    let fault = [0x2e, 0x0f, 0x01, 0x1e, 0x80, 0x00, 0x0f, 0x0b];
    let guest = guest(|asm| {
        asm.place(&fault, AP_CODE);
        for id in 1..4 {
            asm.start_processor(id);
        }
        asm.triple_fault();
    });
    if let Some(mut vm) = Vm::new(test, &guest) {
        let ended = vm.args(["--cpus", "4"]).run();
        ended.expect(33);
        assert_eq!(ended.stderr.matches("failed: ").count(), 1);
    }
}

// ---- Interrupts ----------------------------------------------------------------------------------

/// The vectors of exceptions. A handler prints its vector as a letter, starting with '@'.
const EXCEPTIONS: u8 = 32;

/// Sends COM1's interrupt through the PIC.
fn com1_through_the_pic(asm: &mut Asm, expected: u8, handler: Asm) {
    listen_to_the_pic(asm, expected, handler);
    // MCR: OUT2; IER: the transmitter is empty, which is the case.
    asm.out(layout::SERIAL + 4, 8).out(layout::SERIAL + 1, 2);
    asm.raw(&[0xfb]); // sti
}

/// Takes interrupts through the PIC without programming it, as Linux does with `noapic`: LINT0 is ExtINT. An interrupt
/// with the vector `expected` runs `handler`; one with an exception's vector prints that vector.
fn listen_to_the_pic(asm: &mut Asm, expected: u8, handler: Asm) {
    let mut handlers: Vec<_> = (0..EXCEPTIONS)
        .map(|vector| {
            let text = char::from(b'@' + vector).to_string();
            (
                vector,
                guest(|asm| {
                    asm.print(&text).power_off();
                }),
            )
        })
        .collect();
    handlers.push((expected, handler));
    asm.idt(&handlers);
    asm.store(layout::LAPIC + 0xf0, 0x1ff);
    asm.store(layout::LAPIC + 0x350, 0x700);
}

#[test]
fn the_pic_is_masked_at_the_start() {
    let guest = guest(|asm| {
        let handler = guest(|asm| {
            asm.print("remapped").power_off();
        });
        com1_through_the_pic(asm, 0x24, handler);
        asm.times(1000, |asm| {
            asm.input(layout::SERIAL + 7);
        });
        asm.print("nothing").power_off();
    });
    if let Some(mut vm) = Vm::new("the_pic_is_masked_at_the_start", &guest) {
        vm.run().expect(0).printed("nothing").silent();
    }
}

#[test]
fn the_pic_sends_no_exceptions_when_it_is_unmasked() {
    let test = "the_pic_sends_no_exceptions_when_it_is_unmasked";
    let guest = guest(|asm| {
        let handler = guest(|asm| {
            asm.print("remapped").power_off();
        });
        asm.out(0x21, 0);
        com1_through_the_pic(asm, 0x24, handler);
        // The host may take its time to pass on an interrupt.
        asm.forever(|asm| {
            asm.input(layout::SERIAL + 7);
        });
    });
    for more in [&[][..], &["--legacy-timer"]] {
        if let Some(mut vm) = Vm::new(test, &guest) {
            vm.args(more).run().expect(0).printed("remapped").silent();
        }
    }
}

/// The real-time clock is on the second PIC.
#[test]
fn the_second_pic_sends_no_exceptions_either() {
    let guest = guest(|asm| {
        let handler = guest(|asm| {
            asm.print("remapped").power_off();
        });
        asm.out(0x21, 0).out(0xa1, 0);
        listen_to_the_pic(asm, 0x28, handler);
        // Register B: 24 hours, and an interrupt each second.
        asm.out(layout::RTC, 11).out(layout::RTC + 1, 0x12);
        asm.raw(&[0xfb]); // sti
        asm.forever(|asm| {
            asm.input(layout::RTC + 1);
        });
    });
    if let Some(mut vm) = Vm::new("the_second_pic_sends_no_exceptions_either", &guest) {
        vm.args(["--rtc", "on"]);
        vm.run().expect(0).printed("remapped").silent();
    }
}

#[test]
fn the_interval_timer_has_pin_0_of_the_ioapic() {
    let guest = guest(|asm| {
        let handlers = [(0x30, "pin 0"), (0x32, "pin 2")].map(|(vector, text)| {
            (
                vector,
                guest(|asm| {
                    asm.print(text).power_off();
                }),
            )
        });
        asm.idt(&handlers).route(0, 0x30).route(2, 0x32);
        // Channel 0: mode 2, about a millisecond.
        asm.out(0x43, 0x34).out(0x40, 0xa9).out(0x40, 4);
        asm.wait_for_interrupts();
    });
    if let Some(mut vm) = Vm::new("the_interval_timer_has_pin_0_of_the_ioapic", &guest) {
        vm.args(["--legacy-timer"])
            .run()
            .expect(0)
            .printed("pin 0")
            .silent();
    }
}

#[test]
fn fixed_hardware_is_there_with_the_legacy_timer() {
    let guest = guest(|asm| {
        // mov eax, 0x3400; out dx, ax: S5
        asm.rax(0x3400).port(layout::PM1_CONTROL).raw(&[0x66, 0xef]);
        asm.print("still here").fail(3);
    });
    for (args, code, text) in [(&[][..], 7, "still here"), (&["--legacy-timer"], 0, "")] {
        let Some(mut vm) = Vm::new("fixed_hardware_is_there_with_the_legacy_timer", &guest) else {
            return;
        };
        vm.args(args).run().expect(code).printed(text).silent();
    }
}

#[test]
fn serial_input_interrupts() {
    let handler = guest(|asm| {
        asm.times(64, |asm| {
            asm.input(layout::SERIAL + 5).test_al(1);
            asm.if_different(|asm| {
                asm.input(layout::SERIAL).raw(&[0xee]).compare_al(b'q');
                asm.if_equal(|asm| {
                    asm.power_off();
                });
            });
        });
        asm.wait_for_interrupts();
    });
    let guest = guest(|asm| {
        asm.idt(&[(0x24, handler)]);
        asm.route(layout::SERIAL_GSI, 0x24);
        asm.out(layout::SERIAL + 1, 1).print("up\n");
        asm.wait_for_interrupts();
    });
    let Some(mut vm) = Vm::new("serial_input_interrupts", &guest) else {
        return;
    };
    vm.command.stdin(Stdio::piped());
    let mut running = vm.start();
    running.await_output("up\n");
    // More than the FIFO holds, at once and byte by byte.
    let text = "All that is typed comes back, ".repeat(10);
    running.type_in(text.as_bytes());
    running.await_output(&text);
    for byte in b"xyz" {
        running.type_in(&[*byte]);
    }
    running.await_output("xyz");
    running.type_in(b"q");
    running.end().expect(0).printed(&format!("up\n{text}xyzq"));
}

#[test]
fn power_button_interrupts() {
    let handler = guest(|asm| {
        asm.input(layout::GED_EVENTS)
            .expect_al(layout::GED_POWER_BUTTON, 1);
        asm.print("pressed\n").power_off();
    });
    let guest = guest(|asm| {
        asm.idt(&[(0x25, handler)]);
        asm.route(layout::GED_GSI, 0x25).print("up\n");
        asm.wait_for_interrupts();
    });
    let Some(mut vm) = Vm::new("power_button_interrupts", &guest) else {
        return;
    };
    let mut running = vm.start();
    running.await_output("up\n");
    running.signal(Signal::TERM);
    running.end().expect(0).printed("up\npressed\n");
}

#[test]
fn the_clock_interrupts_with_each_second() {
    let handler = guest(|asm| {
        // Register C: an update, and its interrupt.
        asm.out(layout::RTC, 12).input(layout::RTC + 1);
        asm.expect_al(0x90, 1);
        asm.print("tick\n").power_off();
    });
    let guest = guest(|asm| {
        asm.idt(&[(0x28, handler)]);
        asm.route(layout::RTC_GSI, 0x28).print("up\n");
        // Register B: interrupt at each update, 24 hours.
        asm.out(layout::RTC, 11).out(layout::RTC + 1, 0x12);
        asm.wait_for_interrupts();
    });
    let Some(mut vm) = Vm::new("the_clock_interrupts_with_each_second", &guest) else {
        return;
    };
    let ended = vm.args(["--rtc=on"]).run();
    ended.expect(0).printed("up\ntick\n");
}
