// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest without an operating system: it registers its vCPU through MSR 0x87655678 and makes hypercalls, with
//! `para-abi`'s feature `guest`. mini-vmm boots it like a `vmlinux`.
//!
//! It reports to COM1 and ends the machine by [`VMM_HC_EXIT`], status 5. If the VMM answers no calls, it uses the
//! debug-exit device (`--debug-exit`), whose value 2 is mini-vmm's exit code 5.

#![no_std]
#![no_main]

mod machine;

use core::fmt::Write;

use machine::{Serial, end_by_port, halt};
use para_abi::guest::{HypercallStub, ParaPage, register, wrmsr, wrmsr_fixup};
use para_abi::kvm::KVM_HC_VAPIC_POLL_IRQ;
use para_abi::vmm::{VMM_HC_BOOT_MARK, VMM_HC_EXIT};

/// The one vCPU's page.
static PAGE: ParaPage = ParaPage::new();

/// The exit code of a successful run.
const STATUS: u64 = 5;

/// Called by [`machine`]'s entry, with a stack and a handler of #GP.
#[unsafe(no_mangle)]
extern "sysv64" fn guest_main() -> ! {
    let mut serial = Serial;
    let stub = HypercallStub::built_in();
    // Memory is identity-mapped.
    let (page_gpa, stub_gpa) = (PAGE.address() as u64, stub.address() as u64);
    // SAFETY: at CPL 0, with a handler of #GP that uses `wrmsr_fixup`; `register` passes the ABI's MSR.
    let write = |index, value| unsafe { wrmsr(index, value) };
    // SAFETY: the addresses are those of the page and the stub, which are static.
    let registration = unsafe { register(&PAGE, page_gpa, stub_gpa, write) };
    // Writes to the port can't fail.
    let _ = writeln!(serial, "bare guest: {registration:?}");
    let _ = writeln!(serial, "bare guest: stub {:02x?}", stub.bytes());
    if !registration.is_registered() {
        end_by_port(1);
        halt();
    }
    // SAFETY: these calls write no memory of the guest.
    let (ping, mark) = unsafe {
        (
            stub.kvm(KVM_HC_VAPIC_POLL_IRQ, [0; 4]),
            stub.kvm(VMM_HC_BOOT_MARK, [1, 0, 0, 0]),
        )
    };
    let _ = writeln!(
        serial,
        "bare guest: ping {}, boot mark {}",
        ping as i64, mark as i64
    );
    // SAFETY: as above.
    let answer = unsafe { stub.kvm(VMM_HC_EXIT, [STATUS, 0, 0, 0]) };
    let _ = writeln!(
        serial,
        "bare guest: the VMM answers no calls: {}",
        answer as i64
    );
    end_by_port((STATUS / 2) as u8);
    halt()
}

/// Called by the handler of #GP. Returns the address to continue at, or 0.
#[unsafe(no_mangle)]
extern "sysv64" fn guest_general_protection(rip: u64) -> u64 {
    wrmsr_fixup(rip).unwrap_or(0)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let _ = writeln!(Serial, "bare guest: {info}");
    halt()
}
