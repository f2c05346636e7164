// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Once a sealed machine's guest runs, its process does nothing new except for the table of late acts. Each machine
//! here runs in a separate process. From the guest's first instruction on, a system call filter ends that process with
//! SIGSYS for any other call.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs::File;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bare::lab::{self, MAGIC, PARA, Route, STUB, registers};
use bare::namespace::{is_inside, make_tap, shell};
use bare::registration::{Registration, Verdict};
use bare::virtio::{DISK, ENTROPY, STATUS, by_mmio, by_pci, network};
use bare::{Asm, Vm, guest, passt};
use mini_vmm::config::{
    DiskSpec, HypercallRoute, LinkSpec, NetSpec, OnReboot, SerialSpec, VirtioSpec, VmSpec,
};
use mini_vmm::late::{LATE_ACTS, Sealed};
use mini_vmm::layout::{self, MIB};
use mini_vmm::vmm::{Handle, Vmm};
use para_abi::kvm::{KVM_HC_CLOCK_PAIRING, KVM_HC_KICK_CPU, KVM_HC_SEND_IPI};
use para_abi::vmm::{VMM_HC_BOOT_MARK, VMM_HC_CONSOLE_WRITE, VMM_HC_EXIT, VMM_HC_NOP};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};
use vcpu_loop::kvm::seccomp;

/// What the machine's process should do, as words.
const TASK: &str = "MINI_VMM_SEALED_TASK";
/// The directory of its files.
const FOLDER: &str = "MINI_VMM_SEALED_FOLDER";
/// What it prints before the outcome.
const OUTCOME: &str = "outcome: ";
/// The debug-exit value of the guest that takes all interrupts.
const ALL_CAME: u8 = 0x2a;

/// What a process always does with what it has: read, write, wait, start and end threads.
const USUAL: [i64; 42] = [
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_writev,
    libc::SYS_close,
    // Debug builds check a descriptor before they close it.
    libc::SYS_fcntl,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_timerfd_settime,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_tgkill,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_prctl,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The number of a late act's system call. `None` for an ioctl.
fn number(call: &str) -> Option<i64> {
    Some(match call {
        "accept4" => libc::SYS_accept4,
        "brk" => libc::SYS_brk,
        "clone3" => libc::SYS_clone3,
        "close" => libc::SYS_close,
        "epoll_create1" => libc::SYS_epoll_create1,
        "epoll_ctl" => libc::SYS_epoll_ctl,
        "eventfd2" => libc::SYS_eventfd2,
        "fallocate" => libc::SYS_fallocate,
        "fcntl" => libc::SYS_fcntl,
        "fdatasync" => libc::SYS_fdatasync,
        "fsync" => libc::SYS_fsync,
        "fstat" => libc::SYS_fstat,
        "getrandom" => libc::SYS_getrandom,
        "io_uring_enter" => libc::SYS_io_uring_enter,
        "io_uring_register" => libc::SYS_io_uring_register,
        "io_uring_setup" => libc::SYS_io_uring_setup,
        "lseek" => libc::SYS_lseek,
        "madvise" => libc::SYS_madvise,
        "mmap" => libc::SYS_mmap,
        "mprotect" => libc::SYS_mprotect,
        "mremap" => libc::SYS_mremap,
        "munmap" => libc::SYS_munmap,
        "pread64" => libc::SYS_pread64,
        "rt_sigaction" => libc::SYS_rt_sigaction,
        "sched_setaffinity" => libc::SYS_sched_setaffinity,
        "statx" => libc::SYS_statx,
        "timerfd_create" => libc::SYS_timerfd_create,
        "unlink" => libc::SYS_unlink,
        ioctl if ioctl.starts_with(|c: char| c.is_ascii_uppercase()) => return None,
        other => panic!("what is {other}?"),
    })
}

/// The ioctls of vCPUs' threads, which their crate lists.
fn of_vcpus() -> Vec<seccomp::Ioctl> {
    [seccomp::RUN, seccomp::REPORT, seccomp::SAVE].concat()
}

/// The request of a late act's ioctl; `None` for a system call.
fn request(call: &str) -> Option<u64> {
    if let Some(ioctl) = of_vcpus().iter().find(|ioctl| ioctl.name == call) {
        return Some(ioctl.request.into());
    }
    Some(match call {
        "FIONREAD" => libc::FIONREAD,
        "KVM_GET_CLOCK" => 0x8030_ae7c,
        "KVM_GET_IRQCHIP" => 0xc208_ae62,
        "KVM_GET_PIT2" => 0x8070_ae9f,
        "KVM_IOEVENTFD" => 0x4040_ae79,
        "KVM_IRQFD" => 0x4020_ae76,
        "KVM_SET_USER_MEMORY_REGION" => 0x4020_ae46,
        "KVM_SIGNAL_MSI" => 0x4020_aea5,
        "TCSETS" => libc::TCSETS,
        "TIOCGPTPEER" => libc::TIOCGPTPEER,
        "TUNSETOFFLOAD" => libc::TUNSETOFFLOAD,
        "TUNSETQUEUE" => libc::TUNSETQUEUE,
        call if number(call).is_some() => return None,
        other => panic!("what is {other}?"),
    })
}

/// What a reset needs; it comes with every ioctl of a start.
const KVM_CREATE_VM: &str = "KVM_CREATE_VM";

fn filter(
    rules: Vec<(i64, Vec<SeccompRule>)>,
    others: SeccompAction,
    answer: SeccompAction,
) -> BpfProgram {
    let rules = rules.into_iter().collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, others, answer, arch);
    filter.unwrap().try_into().unwrap()
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Vec<SeccompRule> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);
    vec![SeccompRule::new(vec![condition.unwrap()]).unwrap()]
}

/// Installs a filter that ends the process at any call that is neither usual nor a late act of a sealed machine with
/// these options.
fn seal(options: &[&str]) {
    // clone3's flags are in memory, where a filter can't see them. `clone` works as well.
    let no_clone3 = vec![(libc::SYS_clone3, vec![])];
    let no_clone3 = filter(
        no_clone3,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
    );
    apply_filter_all_threads(&no_clone3).unwrap();
    let acts = LATE_ACTS.iter().filter(|late| match late.sealed {
        Sealed::Never => false,
        Sealed::Late => true,
        Sealed::With(option) => options.contains(&option),
    });
    let late = acts.flat_map(|late| late.calls);
    let mut rules: Vec<(i64, Vec<SeccompRule>)> = late
        .clone()
        .filter_map(|call| number(call))
        .chain(USUAL)
        .map(|call| (call, vec![]))
        .collect();
    // A thread, not a process.
    let thread = libc::CLONE_THREAD as u64;
    let thread = rule(0, SeccompCmpOp::MaskedEq(thread), thread);
    rules.push((libc::SYS_clone, thread));
    let of_vcpus = of_vcpus().into_iter().map(|ioctl| ioctl.request.into());
    let requests = of_vcpus.chain(late.clone().filter_map(|call| request(call)));
    let requests = match late.clone().any(|call| *call == KVM_CREATE_VM) {
        true => vec![],
        false => requests
            .flat_map(|request| rule(1, SeccompCmpOp::Eq, request))
            .collect(),
    };
    rules.push((libc::SYS_ioctl, requests));
    let allowed = filter(rules, SeccompAction::KillProcess, SeccompAction::Allow);
    apply_filter_all_threads(&allowed).unwrap();
}

/// The process of a machine. Does nothing when run as a test itself.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    // As the command does: a heap of another thread would open a file when it shrinks.
    mini_vmm::share_heap();
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let has = |word| task.split(' ').any(|other| other == word);
    let output = folder.join("output");
    let spec = VmSpec {
        memory: 32 * MIB,
        debug_exit: Some(layout::DEBUG_EXIT),
        rtc: true,
        sealed: has("sealed"),
        on_reboot: match has("reset") {
            true => OnReboot::Reset,
            false => OnReboot::Exit,
        },
        hypercall: match task.split(' ').next().unwrap() {
            "--hypercall=pio" => HypercallRoute::Pio(None),
            "--hypercall=vendor" => HypercallRoute::Vendor,
            "--hypercall=forward" => HypercallRoute::Forward,
            _ => HypercallRoute::Auto,
        },
        serial: match () {
            () if has("socket") => SerialSpec::Socket(folder.join("socket")),
            () if has("pty") => SerialSpec::Pty,
            () => SerialSpec::File(output.clone()),
        },
        rng: has("rng"),
        disk: disk(&folder, &task).into_iter().collect(),
        net: net(&task).into_iter().collect(),
        virtio: match has("mmio") {
            true => VirtioSpec::Mmio,
            false => VirtioSpec::Pci,
        },
        ..VmSpec::new(folder.join("kernel"))
    };
    let machine = Vmm::build(&spec).unwrap();
    let output = File::open(output).ok();
    let options = [
        ("reset", "--on-reboot reset"),
        ("socket", "--serial socket=PATH"),
        ("pty", "--serial pty"),
        ("rng", "--rng on"),
        ("disk", "--disk path=FILE"),
        ("net", "--net"),
    ];
    // When the control loop answers, it has all that it needs.
    machine.describe().unwrap();
    let options = options.iter().filter(|(word, _)| has(word));
    seal(&options.map(|(_, option)| *option).collect::<Vec<_>>());
    machine.resume().unwrap();
    if has("interrupts") {
        press_in_the_middle(&machine, &output.unwrap());
    }
    if has("reset") {
        while machine.describe().unwrap().resets < 3 {
            std::thread::yield_now();
        }
        machine.stop().unwrap();
    }
    println!("{OUTCOME}{:?}", machine.wait().unwrap());
    if let Some(failure) = machine.failure() {
        println!("{failure}");
    }
    process::exit(0);
}

/// The disk of a task, if it has one: raw, limited, or with an overlay.
fn disk(folder: &Path, task: &str) -> Option<DiskSpec> {
    let (_, kind) = task.split_once("disk ")?;
    let path = folder.join("disk.img");
    File::create(&path).unwrap().set_len(MIB).unwrap();
    let plain = DiskSpec::new(path);
    Some(match kind.split(' ').next().unwrap() {
        "limited" => DiskSpec {
            iops: NonZeroU64::new(1000),
            ..plain
        },
        "overlay" => DiskSpec {
            overlay: Some(folder.to_owned()),
            ..plain
        },
        _ => plain,
    })
}

/// The network of a task, if it has one: a tap, or by passt.
fn net(task: &str) -> Option<NetSpec> {
    let (_, kind) = task.split_once("net ")?;
    let link = match kind.split(' ').next().unwrap() {
        "tap" => LinkSpec::Tap("tap0".into()),
        _ => LinkSpec::User(Vec::new()),
    };
    Some(NetSpec {
        iops: NonZeroU64::new(1000),
        ..NetSpec::new(link)
    })
}

/// Once the guest is ready: pauses it, saves it, resumes it, and presses the power button.
fn press_in_the_middle(machine: &Handle, output: &File) {
    let mut text = [0; 2];
    while output.read_at(&mut text, 0).unwrap() < 2 {
        // Fails once the machine has ended.
        machine.describe().unwrap();
    }
    machine.pause().unwrap();
    assert_eq!(machine.save().unwrap().vcpus.len(), 1);
    machine.resume().unwrap();
    machine.power_button().unwrap();
}

/// Starts the process of a machine that runs `guest`. `None`, with a note, if no guest can run.
fn start(test: &str, guest: &Asm, task: &str) -> Option<(Child, Vm)> {
    let vm = Vm::new(test, guest)?;
    let mut child = Command::new(std::env::current_exe().unwrap());
    if task.contains("net user") {
        child.env("PATH", passt::stand_in(&vm.path(""), passt::ECHO));
    }
    let child = child
        .args(["child", "--exact", "--nocapture", "--test-threads", "1"])
        .env(TASK, task)
        .env(FOLDER, vm.path(""))
        // A panic with a backtrace would open files.
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    Some((child.unwrap(), vm))
}

/// The process's output, or the signal that ended it.
fn end(child: Child) -> Result<String, i32> {
    let ended = child.wait_with_output().unwrap();
    if let Some(signal) = ended.status.signal() {
        return Err(signal);
    }
    let text = String::from_utf8(ended.stdout).unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success(), "{text}\n{said}");
    let (_, outcome) = text.split_once(OUTCOME).expect(&said);
    Ok(outcome.to_owned())
}

/// A sealed machine reaches an outcome. `None` if no guest can run.
#[track_caller]
fn expect(test: &str, guest: &Asm, task: &str, outcome: &str) -> Option<String> {
    let (child, _vm) = start(test, guest, &format!("{task} sealed"))?;
    let said = end(child).unwrap_or_else(|signal| panic!("{task}: signal {signal}"));
    assert!(said.starts_with(outcome), "{task}: {said}");
    Some(said)
}

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
