// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The 2007 API and the rest of the machine: its flags, large memory, resets, logs, and the debug-exit device.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs;
use std::thread;
use std::time::Duration;

use bare::lab::{FAULTS, Lab, MAGIC, PARA, REGISTERS, Route, STUB, TOP, UNPATCHED, routes};
use bare::registration::Verdict::{Fault, Refused, Registered};
use bare::registration::{Registration, patched};
use bare::{Asm, Vm, count, guest, has_kvm};
use mini_vmm::layout::{self, GIB, MIB, PAGE_SIZE};
use para_abi::vmm::VMM_HC_NOP;
use rustix::process::Signal;

const NO_SUCH_CALL: u64 = -1000i64 as u64;
const VAPIC_POLL_IRQ: u64 = 1;
const UNKNOWN: u64 = 0x1234;

/// Runs a lab guest and checks all that it showed.
fn check(test: &str, lab: Lab, route: &Route, args: &[&str]) {
    if let Some(records) = lab.run(test, args) {
        for record in records.unwrap_or_else(|error| panic!("{args:?}: {error}")) {
            record.check(route);
        }
    }
}

/// A registration and two calls.
fn short_walk(route: &Route) -> Lab {
    let mut lab = Lab::default();
    lab.count_faults();
    Registration::new("a registration", Registered).walk(&mut lab, route);
    lab.call("a call", STUB, VAPIC_POLL_IRQ, 0);
    lab.call("an unknown call", STUB, UNKNOWN, NO_SUCH_CALL);
    lab
}

// ---- Flags ---------------------------------------------------------------------------------------

#[test]
fn r12_without_para_the_msr_does_not_exist() {
    let mut lab = Lab::default();
    lab.count_faults();
    Registration::new("WRMSR", Fault).walk(&mut lab, &Route::PIO);
    Registration::of_version("a probe", u32::MAX, Fault).walk(&mut lab, &Route::PIO);
    lab.clear_faults();
    lab.asm.rdmsr(MAGIC);
    lab.show("RDMSR", &[(FAULTS, 2)], [1, 0]);
    // out 0xf5, al
    lab.try_raw("the port is nobody's", &[0xe6, 0xf5], 1, 1);
    let args = ["--para=off", "--debug-exit=off"];
    check(
        "r12_without_para_the_msr_does_not_exist",
        lab,
        &Route::PIO,
        &args,
    );
}

#[test]
fn h15_the_msr_is_there_under_every_policy() {
    let test = "h15_the_msr_is_there_under_every_policy";
    for policy in ["allow", "deny-unknown", "log"] {
        let policy = format!("--msr-policy={policy}");
        let mut args = Route::PIO.args().to_vec();
        args.push(&policy);
        check(test, short_walk(&Route::PIO), &Route::PIO, &args);
    }
}

/// The parameter of KVM's module that makes it ignore accesses to unknown MSRs.
const IGNORE_MSRS: &str = "/sys/module/kvm/parameters/ignore_msrs";

/// Sets the parameter back.
struct IgnoreMsrs(String);

impl Drop for IgnoreMsrs {
    fn drop(&mut self) {
        let _ = fs::write(IGNORE_MSRS, &self.0);
    }
}

#[test]
fn h15_a_kvm_that_ignores_msrs_hands_this_one_over() {
    let test = "h15_a_kvm_that_ignores_msrs_hands_this_one_over";
    if std::env::var_os("MINI_VMM_BED").is_none() {
        eprintln!("SKIP: {test}: changes KVM for everybody on this machine, see MINI_VMM_BED");
        return;
    }
    if !has_kvm(test) {
        return;
    }
    let _restore = IgnoreMsrs(fs::read_to_string(IGNORE_MSRS).unwrap());
    fs::write(IGNORE_MSRS, "1").unwrap();
    let mut lab = short_walk(&Route::PIO);
    lab.clear_faults();
    lab.asm.rdmsr(MAGIC);
    lab.show("RDMSR", &[(FAULTS, 2)], [1, 0]);
    // The setting works.
    lab.clear_faults();
    lab.asm.rdmsr(0x1234_5678);
    lab.show("RDMSR of an MSR that nobody has", &[(FAULTS, 2)], [0, 0]);
    check(test, lab, &Route::PIO, &Route::PIO.args());
}

#[test]
fn r9_auto_is_a_route_that_works() {
    let test = "r9_auto_is_a_route_that_works";
    // The vendor's instruction if it completes, else the port.
    let routes = routes(test);
    let native = routes.iter().find(|route| !route.is_ours);
    let route = native.unwrap_or(&Route::PIO);
    // With and without the flag.
    for flag in ["--hypercall=auto", "--cpus=1"] {
        check(test, short_walk(route), route, &[flag, "--debug-exit=off"]);
    }
}

#[test]
fn r9_the_port_can_be_chosen() {
    let test = "r9_the_port_can_be_chosen";
    for (flag, port) in [("--hypercall=pio=0xf6", 0xf6), ("--hypercall=pio=16", 16)] {
        let stub = [0xe6, port, 0xc3, 0xcc];
        let route = Route {
            flag,
            stub,
            ..Route::PIO
        };
        let mut lab = short_walk(&route);
        lab.try_raw(
            "the usual port is nobody's",
            &[0xe6, 0xf5],
            UNKNOWN,
            UNKNOWN,
        );
        check(test, lab, &route, &route.args());
    }
}

#[test]
fn r9_the_port_and_the_debug_exit_device_keep_apart() {
    let test = "r9_the_port_and_the_debug_exit_device_keep_apart";
    // The stub shows which port the program uses.
    let guest = guest(|asm| {
        Registration::new("a registration", Registered).prepare(asm);
        asm.wrmsr(MAGIC, PARA).show(STUB, 4);
        bare::lab::call(asm, STUB, &bare::lab::registers(VMM_HC_NOP));
        asm.show(REGISTERS, 8).out(layout::DEBUG_EXIT, 0x22).halt();
    });
    let Some(mut vm) = Vm::new(test, &guest) else {
        return;
    };
    let ended = vm.args([Route::PIO.flag]).run();
    let out = &ended.expect(0x45).stdout;
    assert_eq!(out.len(), 12, "{out:x?}");
    assert_eq!((out[0], &out[2..4]), (0xe6, &[0xc3, 0xcc][..]));
    let taken = layout::DEBUG_EXIT..layout::DEBUG_EXIT + layout::DEBUG_EXIT_SIZE;
    assert!(!taken.contains(&out[1].into()), "{out:x?}");
    assert_eq!(out[4..], [0; 8]);
}

#[test]
fn r1_a_guest_of_256_mib_on_one_processor() {
    let test = "r1_a_guest_of_256_mib_on_one_processor";
    let mut lab = short_walk(&Route::PIO);
    Registration::of_page("the last page", 256 * MIB - PAGE_SIZE, Registered)
        .walk(&mut lab, &Route::PIO);
    Registration::of_value("beyond it", 256 * MIB, Fault).walk(&mut lab, &Route::PIO);
    let mut asm = lab.asm.clone();
    asm.power_off();
    let Some(vm) = Vm::new(test, &asm) else {
        return;
    };
    // Only these arguments, without a config file.
    let mut vm = Vm::of_kernel(&vm.path("kernel")).holding(vm);
    let args = "--memory 256M --cpus 1 --hypercall pio".split(' ');
    let ended = vm.args(args).run();
    for record in lab.judge(0, &ended).unwrap() {
        record.check(&Route::PIO);
    }
}

// ---- Memory above 4 GiB ---------------------------------------------------------------------------

/// A page above 4 GiB whose address has the same lower half as [`PARA`].
const HIGH: u64 = 4 * GIB + PARA;

/// A guest that has mapped the GiB from 4 GiB on.
fn high_lab() -> Lab {
    let mut lab = Lab::default();
    lab.count_faults();
    let pdpt = layout::BOOT_PAGE_TABLES + PAGE_SIZE;
    let directory = STUB + 16 * PAGE_SIZE;
    lab.asm.store(pdpt + 4 * 8, directory as u32 | 3);
    for page in 0..4 {
        lab.asm
            .store(directory + page * 8, (page * 2 * MIB) as u32 | 0x83);
        lab.asm.store(directory + page * 8 + 4, 1);
    }
    lab
}

#[test]
fn r1_the_upper_half_of_the_value_counts() {
    let test = "r1_the_upper_half_of_the_value_counts";
    let (low, high) = (PARA, HIGH);
    for route in routes(test) {
        let mut lab = high_lab();
        let below = Registration::new("the page below is as it was", Fault);
        below.prepare(&mut lab.asm);
        let above = Registration {
            site: high + PAGE_SIZE,
            window: high + PAGE_SIZE,
            ..Registration::of_page("a page and a stub above 4 GiB", high, Registered)
        };
        above.walk(&mut lab, &route);
        lab.show("the page below is as it was", &[(low + 4, 4)], [0xff; 4]);
        lab.call("a call above 4 GiB", above.site, VAPIC_POLL_IRQ, 0);
        let mut args = route.args().to_vec();
        args.push("--memory=5G");
        check(test, lab, &route, &args);
    }
}

#[test]
fn h14_a_guest_that_drops_the_upper_half_registers_the_page_below() {
    let test = "h14_a_guest_that_drops_the_upper_half_registers_the_page_below";
    let mut lab = high_lab();
    let route = &Route::PIO;
    // It is not a payload: the guest meant another page.
    let garbage = Registration::of_version("the page below", 0x4141_4141, Refused);
    let meant = Registration::of_page("the page that it meant", HIGH, Registered);
    meant.prepare(&mut lab.asm);
    garbage.walk(&mut lab, route);
    lab.show(
        "the page that it meant is as it was",
        &[(HIGH + 4, 4)],
        [0xff; 4],
    );
    let mut args = route.args().to_vec();
    args.push("--memory=5G");
    check(test, lab, route, &args);
}

// ---- Resets ---------------------------------------------------------------------------------------

#[test]
fn h5_a_reset_forgets_the_registration() {
    let test = "h5_a_reset_forgets_the_registration";
    let by_register = |asm: &mut Asm| {
        asm.out(layout::ACPI_RESET, layout::ACPI_RESET_VALUE);
    };
    let by_fault = |asm: &mut Asm| {
        asm.triple_fault();
    };
    for route in routes(test) {
        for reset in [by_register as fn(&mut Asm), by_fault] {
            let guest = guest(|asm| boot(asm, &route, reset));
            let Some(mut vm) = Vm::new(test, &guest) else {
                return;
            };
            vm.args(route.args()).args(["--on-reboot=reset"]);
            let mut running = vm.start();
            running.await_output(&"fresh, registered\n".repeat(4));
            running.signal(Signal::TERM);
            thread::sleep(Duration::from_millis(20));
            running.signal(Signal::TERM);
            let ended = running.end();
            let boots = count(&ended.stdout, "fresh, registered\n");
            let out = String::from_utf8_lossy(&ended.stdout);
            assert!(boots >= 4 && !out.contains("stale"), "{out}");
        }
    }
}

/// One boot: checks that nothing is registered, registers, and resets.
fn boot(asm: &mut Asm, route: &Route, reset: fn(&mut Asm)) {
    let check = |asm: &mut Asm, expected: u32, stale: &str| {
        asm.compare_eax(expected).if_different(|asm| {
            asm.print(stale).halt();
        });
    };
    let [unpatched, patched] =
        [UNPATCHED, patched(route)].map(|bytes| u32::from_le_bytes(bytes[..4].try_into().unwrap()));
    asm.load(STUB);
    check(asm, 0, "stale memory\n");
    if route.is_pio() {
        // If the processor were registered, this would be an unknown call.
        asm.rax(UNKNOWN).raw(&[0xe6, 0xf5]);
        check(asm, UNKNOWN as u32, "stale registration\n");
    }
    asm.print("fresh, ");
    Registration::new("", Registered).prepare(asm);
    asm.load(STUB);
    check(asm, unpatched, "stale stub\n");
    asm.wrmsr(MAGIC, PARA).load(STUB);
    check(asm, patched, "stale: no stub\n");
    asm.load(PARA + 12);
    check(asm, 0, "stale: refused\n");
    bare::lab::call(asm, STUB, &bare::lab::registers(UNKNOWN));
    asm.load(REGISTERS);
    check(asm, NO_SUCH_CALL as u32, "stale: no call\n");
    asm.print("registered\n");
    reset(asm);
    asm.halt();
}

// ---- Logs -----------------------------------------------------------------------------------------

#[test]
fn h11_no_guest_floods_the_log() {
    let test = "h11_no_guest_floods_the_log";
    for (verdict, msr, version) in [(Refused, PARA, 2), (Fault, TOP, 1), (Registered, PARA, 1)] {
        let mut lab = Lab::default();
        lab.count_faults();
        let new = Registration::of_version("registrations", version, verdict);
        let registration = Registration { msr, ..new };
        registration.prepare(&mut lab.asm);
        lab.asm.times(1000, |asm| {
            asm.wrmsr(MAGIC, msr);
        });
        lab.asm.power_off();
        let Some(mut vm) = Vm::new(test, &lab.asm) else {
            return;
        };
        let ended = vm.args(Route::PIO.args()).args(["-vv"]).run();
        let lines = ended.expect(0).stderr.lines().count();
        assert!(lines < 100, "{verdict:?}: {lines} lines, {}", ended.stderr);
    }
}
