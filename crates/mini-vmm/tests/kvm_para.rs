// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The 2007 API as a 64-bit guest sees it, on every route of this host's KVM.
//!
//! One guest runs all cases of a route in one start. Each test checks the cases of its rule. Numbers: R for rules of
//! the 2007 patch, H for gaps in it that a decision closed.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::sync::OnceLock;

use bare::has_kvm;
use bare::lab::{
    FAULTS, Lab, MAGIC, PARA, REGISTERS, Record, Route, STUB, TOP, call, registers, routes,
};
use bare::registration::Verdict::{Fault, Refused, Registered};
use bare::registration::{Registration, patched, stub};
use mini_vmm::layout;
use para_abi::vmm::VMM_HC_NOP;

/// KVM's answers to calls: -KVM_ENOSYS and -KVM_EPERM.
const NO_SUCH_CALL: u64 = -1000i64 as u64;
const NOT_ALLOWED: u64 = -1i64 as u64;
/// KVM's only call that needs no arguments.
const VAPIC_POLL_IRQ: u64 = 1;
const UNKNOWN: u64 = 0x1234;
const PAGE: u64 = layout::PAGE_SIZE;
/// A page boundary within memory, eight bytes around it.
const BOUNDARY: u64 = STUB + 4 * PAGE - 4;

/// Pages, and values that are not pages.
fn pages() -> Vec<Registration> {
    let page = Registration::of_page;
    let value = Registration::of_value;
    vec![
        Registration::new("r1 the page's address is the MSR's value", Registered),
        page("r1 another page", PARA + 5 * PAGE, Registered),
        page("r3 off by 1", PARA + 1, Fault),
        page("r3 off by 8", PARA + 8, Fault),
        page("r3 off by 24", PARA + 24, Fault),
        page("r3 off by half a page", PARA + 0x800, Fault),
        page("r3 at a page's last word", PARA + 0xffc, Fault),
        value("r3 misaligned and beyond memory", TOP + 1, Fault),
        value("r4 the first page beyond memory", TOP, Fault),
        value("r4 in the hole", layout::HOLE_START, Fault),
        value("r4 at 4 GiB, without memory there", layout::HOLE_END, Fault),
        value("r4 beyond physical addresses", 1 << 52, Fault),
        value("r4 the sign bit", 1 << 63, Fault),
        page("r4 the last page", TOP - PAGE, Registered),
        page("r4 page 0", 0, Registered),
        value("h10 the local APIC's page", layout::LAPIC, Fault),
        value("h10 the IOAPIC's page", layout::IOAPIC, Fault),
        value("h10 a device's page", layout::VIRTIO_MMIO, Fault),
        value("h10 KVM's own page", layout::KVM_TSS, Fault),
        value("h13 the last page there is", !0xfff, Fault),
        value("h13 one byte above it", !0xffe, Fault),
        value("h13 all bits", u64::MAX, Fault),
    ]
}

/// Stubs, and addresses where no stub can be.
fn stubs() -> Vec<Registration> {
    let site = Registration::of_site;
    let gpa = Registration::of_gpa;
    vec![
        gpa("h10 stub in the local APIC", layout::LAPIC + 0x80, Refused),
        gpa("h10 stub in the IOAPIC", layout::IOAPIC, Refused),
        gpa("h10 stub in the hole", layout::HOLE_START + 8, Refused),
        gpa("h13 a stub that wraps around", u64::MAX - 2, Refused),
        gpa("h13 the last stub that does not", u64::MAX - 3, Refused),
        gpa("r7 stub beyond memory", TOP, Refused),
        gpa("r7 stub at 2^52", 1 << 52, Refused),
        gpa("r7 stub at 2^63", 1 << 63, Refused),
        site("r7 stub off by 1", STUB + 0x100, 1, Registered),
        site("r7 stub off by 2", STUB + 0x200, 2, Registered),
        site("r7 stub off by 3", STUB + 0x300, 3, Registered),
        site("r9 four bytes exactly", STUB + 0x40, 0, Registered),
        site("h1 the last stub of memory", TOP - 8, 4, Registered),
        site("h1 a byte beyond memory", TOP - 8, 5, Refused),
        site("h1 two bytes beyond memory", TOP - 8, 6, Refused),
        site("h1 three bytes beyond memory", TOP - 8, 7, Refused),
        site("h1 the last stub of a page", BOUNDARY, 0, Registered),
        site("h1 offset 0xffd", BOUNDARY, 1, Refused),
        site("h1 offset 0xffe", BOUNDARY, 2, Refused),
        site("h1 offset 0xfff", BOUNDARY, 3, Refused),
        site("h1 the first stub of a page", BOUNDARY, 4, Registered),
        gpa("h9 stub on guest_version", PARA, Refused),
        gpa("h9 stub on host_version", PARA + 3, Refused),
        gpa("h9 stub on ret", PARA + 12, Refused),
        gpa("h9 stub on hypercall_gpa", PARA + 16, Refused),
        gpa("h9 stub on the last byte", PARA + 23, Refused),
        site("h9 stub right behind the payload", PARA + 24, 0, Registered),
        site("h9 stub in the page", PARA + 0x40, 0, Registered),
        site("h9 stub right before the page", PARA - 8, 4, Registered),
    ]
}

/// Other payload contents.
fn payloads() -> Vec<Registration> {
    let version = Registration::of_version;
    let mut all = vec![
        version("r6 version 2", 2, Refused),
        version("r6 version 2^31 - 1", i32::MAX as u32, Refused),
        version("r6 version 2^31", 1 << 31, Refused),
        version("r6 version 2^32 - 1", u32::MAX, Refused),
        version("h12 ret is -1, as EINVAL was 1", 2, Refused),
        version("r13 version 0", 0, Registered),
        version("r13 version 1", 1, Registered),
        version("r13 version 2", 2, Refused),
    ];
    for (name, size) in [
        ("h2 size 0", 0),
        ("h2 size 24", 24),
        ("h2 size 2^32 - 1", u32::MAX),
    ] {
        let new = Registration::new(name, Registered);
        all.push(Registration { size, ..new });
    }
    // Refused for two reasons.
    let new = version(
        "r5 host_version is written whatever else is wrong",
        2,
        Refused,
    );
    all.push(Registration { site: TOP, ..new });
    all
}

/// All cases of one route.
fn walk(route: &Route) -> Lab {
    let mut lab = Lab::default();
    lab.count_faults();
    lab.allow_user_code();
    before(&mut lab, route);
    for registration in [pages(), stubs(), payloads()].concat() {
        registration.walk(&mut lab, route);
    }
    read(&mut lab, "r12 RDMSR after a registration is #GP");
    again(&mut lab, route);
    calls(&mut lab, route);
    user_calls(&mut lab, route);
    if route.is_pio() {
        other_outs(&mut lab);
    }
    lab
}

/// RDMSR of the number, which must be a fault.
fn read(lab: &mut Lab, name: &str) {
    lab.clear_faults();
    lab.asm.rdmsr(MAGIC);
    lab.show(name, &[(FAULTS, 2)], [1, 0]);
}

/// The state before the first registration.
fn before(lab: &mut Lab, route: &Route) {
    stub(&mut lab.asm, STUB);
    let unpatched = -38i32 as u32;
    lab.call_all(
        "r8 a stub that nobody patched returns -38",
        STUB,
        &registers(UNKNOWN),
        unpatched.into(),
    );
    if route.is_pio() {
        lab.try_raw(
            "h5 the port is nobody's before a registration",
            &[0xe6, 0xf5],
            UNKNOWN,
            UNKNOWN,
        );
    }
    read(lab, "r12 RDMSR before a registration is #GP");
    let by_user = Registration::new("r2 WRMSR at CPL 3 is #GP, and no registration", Fault);
    by_user.prepare(&mut lab.asm);
    lab.clear_faults();
    lab.user(true, |asm| {
        asm.wrmsr(MAGIC, PARA);
    });
    by_user.show(lab, route);
    lab.clear_faults();
    lab.user(true, |asm| {
        asm.rdmsr(MAGIC);
    });
    lab.show("r2 RDMSR at CPL 3 is #GP", &[(FAULTS, 2)], [1, 0]);
}

/// A second registration. A failed one leaves the first unchanged; a successful one leaves the first stub's bytes.
fn again(lab: &mut Lab, route: &Route) {
    let at = |name, n: u64, verdict| Registration {
        site: STUB + n * PAGE,
        window: STUB + n * PAGE,
        ..Registration::of_page(name, PARA + n * PAGE, verdict)
    };
    let first = at("r10 the first registration", 8, Registered);
    first.walk(lab, route);
    let newer = at("r10 a newer version does not replace it", 9, Refused);
    let outside = at("r10 a stub that is no memory does not", 9, Refused);
    let misaligned = at("r10 a fault does not", 9, Fault);
    for failing in [
        Registration {
            version: 2,
            ..newer
        },
        Registration {
            site: TOP,
            ..outside
        },
        Registration {
            msr: PARA + 9 * PAGE + 1,
            ..misaligned
        },
    ] {
        failing.walk(lab, route);
        lab.show(
            &format!("{}: the patched stub", failing.name),
            &[(first.window, 8)],
            patched(route),
        );
        lab.call(
            &format!("{}: it is called", failing.name),
            first.site,
            VAPIC_POLL_IRQ,
            0,
        );
    }
    let second = at("r8 another registration replaces the first", 10, Registered);
    second.walk(lab, route);
    for registration in [&first, &second] {
        lab.show(
            "r8 both stubs are patched",
            &[(registration.window, 8)],
            patched(route),
        );
        lab.call(
            "r8 both stubs are called",
            registration.site,
            VAPIC_POLL_IRQ,
            0,
        );
    }
    // Once more, with the site already patched.
    lab.asm
        .store(second.page + 4, u32::MAX)
        .store(second.page + 12, u32::MAX);
    lab.clear_faults();
    lab.asm.wrmsr(MAGIC, second.msr);
    second.show_as(lab, route, "h8 the same stub is registered again");
    lab.call("h8 it is called", second.site, VAPIC_POLL_IRQ, 0);
}

/// Calls through a registered stub.
fn calls(lab: &mut Lab, route: &Route) {
    Registration::new("r9 the stub for calls", Registered).walk(lab, route);
    lab.call_all(
        "r9 an unknown call is -1000 and changes RAX alone",
        STUB,
        &registers(UNKNOWN),
        NO_SUCH_CALL,
    );
    lab.call_all(
        "r9 a call that is known changes RAX alone",
        STUB,
        &registers(VAPIC_POLL_IRQ),
        0,
    );
    for (name, number) in [
        ("r9 call 0 is unknown", 0),
        ("r9 call 2 is unknown", 2),
        ("r9 all 64 bits count", 1 << 32 | VAPIC_POLL_IRQ),
        ("r9 call 2^64 - 1 is unknown", u64::MAX),
    ] {
        lab.call(name, STUB, number, NO_SUCH_CALL);
    }
    let ours = if route.is_ours { 0 } else { NO_SUCH_CALL };
    lab.call_all("r9 our call", STUB, &registers(VMM_HC_NOP), ours);
}

/// Calls from user code.
fn user_calls(lab: &mut Lab, route: &Route) {
    for (name, number) in [
        ("h16 KVM's call at CPL 3 is -1", VAPIC_POLL_IRQ),
        ("h16 our call at CPL 3 is -1", VMM_HC_NOP),
        ("h16 an unknown call at CPL 3 is -1", UNKNOWN),
    ] {
        lab.user(true, |asm| call(asm, STUB, &registers(number)));
        lab.show(name, &[(REGISTERS, 8)], NOT_ALLOWED.to_le_bytes());
    }
    if route.is_pio() {
        // OUT is skipped, RET is executed.
        lab.clear_faults();
        lab.user(false, |asm| {
            call(asm, STUB, &registers(VAPIC_POLL_IRQ));
        });
        let pieces = [(FAULTS, 2), (REGISTERS, 8)];
        let name = "h16 without the right to OUT it is #GP";
        lab.show(name, &pieces, [1, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }
    lab.call("h16 and at CPL 0 it is answered", STUB, VAPIC_POLL_IRQ, 0);
}

/// OUT instructions like the stub's: some are calls, some not.
fn other_outs(lab: &mut Lab) {
    for (name, code) in [
        ("r9 the port below is no call", &[0xe6, 0xf4][..]),
        ("r9 the port above is no call", &[0xe6, 0xf6]),
        ("r9 a word is no call", &[0x66, 0xe7, 0xf5]),
        ("r9 a double word is no call", &[0xe7, 0xf5]),
        (
            "r9 a word from the port below is no call",
            &[0x66, 0xe7, 0xf4],
        ),
    ] {
        lab.try_raw(name, code, VAPIC_POLL_IRQ, VAPIC_POLL_IRQ);
    }
    lab.try_raw("r9 reading is no call", &[0xe4, 0xf5], VAPIC_POLL_IRQ, 0xff);
    lab.try_raw(
        "r9 the OUT alone is a call",
        &[0xe6, 0xf5],
        VAPIC_POLL_IRQ,
        0,
    );
}

/// A route, and the result of its cases.
type Walked = (Route, Result<Vec<Record>, String>);

/// The results of every route.
fn walks(test: &str) -> &'static [Walked] {
    static WALKS: OnceLock<Vec<Walked>> = OnceLock::new();
    if !has_kvm(test) {
        return &[];
    }
    WALKS.get_or_init(|| {
        let walk = |route: Route| (route, walk(&route).run(test, &route.args()).unwrap());
        routes(test).into_iter().map(walk).collect()
    })
}

/// Checks the cases of a rule.
#[track_caller]
fn holds(test: &str, rule: &str) {
    for (route, records) in walks(test) {
        let records = records.as_ref().unwrap_or_else(|error| panic!("{error}"));
        let is_of_rule = |record: &&Record| record.name.split(' ').next() == Some(rule);
        let cases: Vec<_> = records.iter().filter(is_of_rule).collect();
        assert!(!cases.is_empty());
        for record in cases {
            record.check(route);
        }
    }
}

#[test]
fn r1_the_msr_value_is_the_pages_address() {
    holds("r1_the_msr_value_is_the_pages_address", "r1");
}

#[test]
fn r2_only_the_kernel_registers() {
    holds("r2_only_the_kernel_registers", "r2");
}

#[test]
fn r3_a_misaligned_page_faults_and_nothing_is_touched() {
    holds("r3_a_misaligned_page_faults_and_nothing_is_touched", "r3");
}

#[test]
fn r4_a_page_outside_of_memory_faults() {
    holds("r4_a_page_outside_of_memory_faults", "r4");
}

#[test]
fn r5_host_version_is_written_whatever_else_is_wrong() {
    holds("r5_host_version_is_written_whatever_else_is_wrong", "r5");
}

#[test]
fn r6_newer_guests_are_refused() {
    holds("r6_newer_guests_are_refused", "r6");
}

#[test]
fn r7_a_stub_outside_of_memory_is_refused_and_needs_no_alignment() {
    holds(
        "r7_a_stub_outside_of_memory_is_refused_and_needs_no_alignment",
        "r7",
    );
}

#[test]
fn r8_a_registration_replaces_the_last_one() {
    holds("r8_a_registration_replaces_the_last_one", "r8");
}

#[test]
fn r9_four_bytes_are_patched_and_calls_change_rax_alone() {
    holds("r9_four_bytes_are_patched_and_calls_change_rax_alone", "r9");
}

#[test]
fn r10_a_failed_registration_keeps_the_last_one() {
    holds("r10_a_failed_registration_keeps_the_last_one", "r10");
}

#[test]
fn r12_the_msr_is_not_read() {
    holds("r12_the_msr_is_not_read", "r12");
}

#[test]
fn r13_older_guests_are_welcome() {
    holds("r13_older_guests_are_welcome", "r13");
}

#[test]
fn h1_a_stub_that_leaves_its_page_is_refused_and_untouched() {
    holds(
        "h1_a_stub_that_leaves_its_page_is_refused_and_untouched",
        "h1",
    );
}

#[test]
fn h2_the_size_is_ignored() {
    holds("h2_the_size_is_ignored", "h2");
}

#[test]
fn h8_the_same_stub_may_be_registered_again() {
    holds("h8_the_same_stub_may_be_registered_again", "h8");
}

#[test]
fn h9_a_stub_does_not_overlap_the_payload() {
    holds("h9_a_stub_does_not_overlap_the_payload", "h9");
}

#[test]
fn h10_device_memory_is_no_memory() {
    holds("h10_device_memory_is_no_memory", "h10");
}

#[test]
fn h12_the_error_is_the_number_of_2007() {
    holds("h12_the_error_is_the_number_of_2007", "h12");
}

#[test]
fn h13_addresses_near_the_end_do_not_wrap() {
    holds("h13_addresses_near_the_end_do_not_wrap", "h13");
}

#[test]
fn h16_user_code_makes_no_calls() {
    holds("h16_user_code_makes_no_calls", "h16");
}
