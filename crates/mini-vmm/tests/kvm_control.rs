// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Machines in this process, controlled through their handles.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;
#[path = "../examples/two_machines.rs"]
mod two_machines;

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bare::{Asm, Vm, guest};
use mini_vmm::config::{OnReboot, SerialSpec, VmSpec};
use mini_vmm::layout::{self, MIB};
use mini_vmm::outcome::Outcome;
use mini_vmm::vmm::control::{Command, Error, State};
use mini_vmm::vmm::{self, Handle, Vmm};
use rustix::fs::{CWD, Mode, mkfifoat};

const COMMANDS: [Command; 7] = [
    Command::Pause,
    Command::Resume,
    Command::PowerButton,
    Command::ResizeDisks,
    Command::Stop,
    Command::Save,
    Command::Describe,
];

/// A port without a device. Writes to it show that the guest runs.
const NOWHERE: u16 = 0x1234;

/// Exits in an endless loop.
fn busy_guest() -> Asm {
    guest(|asm| {
        asm.forever(|asm| {
            asm.out(NOWHERE, 0);
        });
    })
}

/// Resets at once.
fn restless_guest() -> Asm {
    guest(|asm| {
        asm.out(layout::ACPI_RESET, layout::ACPI_RESET_VALUE).halt();
    })
}

/// Powers off when its button is pressed.
fn obedient_guest() -> Asm {
    guest(|asm| {
        asm.until_equal(|asm| {
            asm.input(layout::GED_EVENTS)
                .compare_al(layout::GED_POWER_BUTTON);
        });
        asm.power_off();
    })
}

fn spec(vm: &Vm) -> VmSpec {
    VmSpec {
        memory: 32 * MIB,
        serial: SerialSpec::Off,
        ..VmSpec::new(vm.path("kernel"))
    }
}

/// A paused machine. `None`, with a note, if no guest can run.
fn machine(test: &str, guest: &Asm) -> Option<(Handle, Vm)> {
    let vm = Vm::new(test, guest)?;
    Some((Vmm::build(&spec(&vm)).unwrap(), vm))
}

fn exits(machine: &Handle) -> u64 {
    machine.describe().unwrap().exits.iter().sum()
}

/// Waits until the guest has made some more exits.
fn let_it_run(machine: &Handle) {
    let before = exits(machine);
    while exits(machine) < before + 10 {
        thread::yield_now();
    }
}

/// This process's file descriptors that its child processes would inherit.
fn inherited() -> BTreeSet<String> {
    let all = fs::read_dir("/proc/self/fd").unwrap();
    let names = all.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let is_inherited = |name: &String| {
        // A descriptor of another test may be closed by now.
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{name}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:\t"));
        flags.is_some_and(|flags| i32::from_str_radix(flags, 8).unwrap() & libc::O_CLOEXEC == 0)
    };
    names.filter(is_inherited).collect()
}

#[track_caller]
fn is_refused<T: std::fmt::Debug>(result: Result<T, Error>, asked: Command, seen: State) {
    let error = result.unwrap_err();
    assert!(
        matches!(&error, Error::Refused { command, state } if (&**command, *state) == (&asked, seen)),
        "{error:?}"
    );
}

#[test]
fn the_example_reads_both_outcomes() {
    let Some(vm) = Vm::new("the_example_reads_both_outcomes", &busy_guest()) else {
        return;
    };
    let outcomes = two_machines::run(&vm.path("kernel")).unwrap();
    assert_eq!(outcomes, [Outcome::Stopped; 2]);
    let lines = include_str!("../examples/two_machines.rs").lines().count();
    assert!(lines <= 60, "{lines} lines");
}

#[test]
fn a_paused_guest_stands_still_and_only_it_is_saved() {
    let test = "a_paused_guest_stands_still_and_only_it_is_saved";
    let Some((machine, _vm)) = machine(test, &busy_guest()) else {
        return;
    };
    let state = || machine.describe().unwrap().state;
    assert_eq!((state(), exits(&machine)), (State::Paused, 0));
    machine.resume().unwrap();
    let_it_run(&machine);
    assert_eq!(state(), State::Running);
    is_refused(machine.save(), Command::Save, State::Running);
    for _ in 0..3 {
        machine.pause().unwrap();
        machine.pause().unwrap();
        let (before, saved) = (exits(&machine), machine.save().unwrap());
        let again = machine.save().unwrap();
        assert_eq!(saved.vcpus[0].vcpu.regs.rip, again.vcpus[0].vcpu.regs.rip);
        assert_eq!(saved.devices, again.devices);
        assert_eq!(exits(&machine), before);
        machine.resume().unwrap();
        machine.resume().unwrap();
        let_it_run(&machine);
    }
    machine.stop().unwrap();
    assert_eq!(machine.wait().unwrap(), Outcome::Stopped);
}

#[test]
fn a_program_that_is_started_gets_no_descriptor_of_a_machine() {
    let test = "a_program_that_is_started_gets_no_descriptor_of_a_machine";
    let before = inherited();
    let Some((machine, _vm)) = machine(test, &busy_guest()) else {
        return;
    };
    machine.resume().unwrap();
    let_it_run(&machine);
    // Its first interrupt.
    machine.power_button().unwrap();
    assert_eq!(inherited(), before);
}

#[test]
fn a_machine_that_ended_answers_every_command_with_that() {
    let test = "a_machine_that_ended_answers_every_command_with_that";
    let Some((machine, _vm)) = machine(test, &obedient_guest()) else {
        return;
    };
    // A paused guest notices its button later.
    machine.power_button().unwrap();
    assert_eq!(machine.describe().unwrap().state, State::Paused);
    machine.resume().unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let machine = machine.clone();
            thread::spawn(move || machine.wait().unwrap())
        })
        .collect();
    for waiting in waiting {
        assert_eq!(waiting.join().unwrap(), Outcome::PowerOff);
    }
    assert!(machine.failure().is_none());
    for command in COMMANDS {
        let error = machine.command(command.clone()).unwrap_err();
        assert!(matches!(error, Error::Ended), "{command:?}: {error:?}");
    }
}

#[test]
fn a_failed_vcpu_leaves_its_report_with_the_handle() {
    let test = "a_failed_vcpu_leaves_its_report_with_the_handle";
    let Some((machine, _vm)) = machine(
        test,
        &guest(|asm| {
            asm.triple_fault();
        }),
    ) else {
        return;
    };
    machine.resume().unwrap();
    assert_eq!(machine.wait().unwrap(), Outcome::VcpuFailure);
    let report = machine.failure().unwrap().to_string();
    assert!(report.contains("triple fault"), "{report}");
}

#[test]
fn a_guest_that_only_resets_is_paused_across_resets_and_stopped() {
    let test = "a_guest_that_only_resets_is_paused_across_resets_and_stopped";
    let Some(vm) = Vm::new(test, &restless_guest()) else {
        return;
    };
    let spec = VmSpec {
        on_reboot: OnReboot::Reset,
        ..spec(&vm)
    };
    let machine = Vmm::build(&spec).unwrap();
    let resets = || machine.describe().unwrap().resets;
    machine.resume().unwrap();
    for _ in 0..5 {
        let before = resets();
        while resets() == before {}
        machine.pause().unwrap();
        // A reset from before the pause still happens, but no further one.
        let most = resets() + 1;
        for _ in 0..20 {
            let now = machine.describe().unwrap();
            assert_eq!(now.state, State::Paused);
            assert!(now.resets <= most);
        }
        machine.resume().unwrap();
    }
    machine.stop().unwrap();
    assert_eq!(machine.wait().unwrap(), Outcome::Stopped);
}

/// Sends all commands but `stop` from several threads until the machine has ended. None fails except because of the
/// state.
fn hammer(machine: &Handle) -> Vec<thread::JoinHandle<()>> {
    let hammer = |machine: Handle, first| {
        let others = COMMANDS.iter().filter(|other| **other != Command::Stop);
        for command in others.cycle().skip(first) {
            match machine.command(command.clone()) {
                Ok(_) | Err(Error::Refused { .. }) => {}
                Err(Error::Ended) => return,
                Err(other) => panic!("{command:?}: {other:?}"),
            }
        }
    };
    let clients = (0..4).map(|first| (first, machine.clone()));
    clients
        .map(|(first, machine)| thread::spawn(move || hammer(machine, first)))
        .collect()
}

#[test]
fn commands_from_many_threads_are_all_answered_when_one_stops_the_machine() {
    let test = "commands_from_many_threads_are_all_answered_when_one_stops_the_machine";
    for round in 0..5 {
        let Some((machine, _vm)) = machine(test, &busy_guest()) else {
            return;
        };
        let clients = hammer(&machine);
        for _ in 0..10 * round {
            machine.describe().unwrap();
        }
        machine.stop().unwrap();
        for client in clients {
            client.join().unwrap();
        }
        assert_eq!(machine.wait().unwrap(), Outcome::Stopped);
    }
}

#[test]
fn commands_from_many_threads_are_all_answered_when_the_guest_ends() {
    let test = "commands_from_many_threads_are_all_answered_when_the_guest_ends";
    let ends = [Outcome::PowerOff, Outcome::VcpuFailure];
    let cases = [0, 1, 10, 100].map(|exits| ends.map(|end| (exits, end)));
    for (exits, end) in cases.into_iter().flatten() {
        let guest = guest(|asm| {
            for _ in 0..exits {
                asm.out(NOWHERE, 0);
            }
            match end {
                Outcome::PowerOff => asm.power_off(),
                _ => asm.triple_fault(),
            };
        });
        let Some((machine, _vm)) = machine(test, &guest) else {
            return;
        };
        for client in hammer(&machine) {
            client.join().unwrap();
        }
        assert_eq!(machine.wait().unwrap(), end);
    }
}

#[test]
fn the_time_of_a_paused_machine_runs_out() {
    let Some(vm) = Vm::new("the_time_of_a_paused_machine_runs_out", &busy_guest()) else {
        return;
    };
    // Before it is built, and after.
    for limit in [Duration::from_nanos(1), Duration::from_millis(100)] {
        let spec = VmSpec {
            timeout: Some(limit),
            ..spec(&vm)
        };
        let machine = Vmm::build(&spec).unwrap();
        assert_eq!(machine.wait().unwrap(), Outcome::Timeout);
        assert!(matches!(machine.resume(), Err(Error::Ended)));
    }
}

#[test]
fn the_time_of_a_machine_that_is_loading_runs_out() {
    let files = tempfile::tempdir().unwrap();
    // It has no writer.
    let kernel = files.path().join("kernel");
    mkfifoat(CWD, &kernel, Mode::RUSR | Mode::WUSR).unwrap();
    let spec = VmSpec {
        timeout: Some(Duration::from_millis(1)),
        ..VmSpec::new(&kernel)
    };
    let machine = Vmm::build(&spec).unwrap();
    assert!(matches!(machine.describe(), Err(Error::Ended)));
    assert_eq!(machine.wait().unwrap(), Outcome::Timeout);
}

#[test]
fn the_last_handle_takes_its_machine_along() {
    let Some(vm) = Vm::new("the_last_handle_takes_its_machine_along", &busy_guest()) else {
        return;
    };
    let socket = vm.path("socket");
    let spec = VmSpec {
        serial: SerialSpec::Socket(socket.clone()),
        ..spec(&vm)
    };
    let machine = Vmm::build(&spec).unwrap();
    machine.resume().unwrap();
    let other = machine.clone();
    drop(machine);
    let_it_run(&other);
    assert!(socket.exists());
    drop(other);
    assert!(!socket.exists(), "its console was closed");
}

#[test]
fn what_can_not_be_built_is_an_error_of_the_build() {
    let spec = VmSpec {
        cpus: 0,
        ..VmSpec::new("vmlinux")
    };
    let error = Vmm::build(&spec).unwrap_err();
    assert!(matches!(error, vmm::Error::Spec(_)), "{error:?}");
    let nowhere = VmSpec::new("/nowhere/vmlinux");
    let error = Vmm::build(&nowhere).unwrap_err();
    assert!(matches!(error, vmm::Error::Image(_)), "{error:?}");
    fn is_shared<T: Clone + Send + Sync + 'static>() {}
    is_shared::<Handle>();
    is_shared::<Arc<vmm::Error>>();
}
