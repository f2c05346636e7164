// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest of a few instructions that a stock kernel has in its way as well.
//!
//! A KVM without hardware virtualization runs guest code in an instruction emulator, which knows
//! the instructions that touch devices and few of the others. /proc/cpuinfo may hint at that; to
//! run the instructions is to know.

use std::fmt::{self, Display, Formatter};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use hypercall_patch::HypercallInsn;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use para_abi::KvmErrno;
use para_abi::vmm::VMM_HC_NOP;
use serde::Serialize;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::memory::MappedVm;

/// How long the test guest may take; it takes well under a millisecond where it works. With the probe of
/// hypercalls behind it, a report is there within two seconds.
const DEADLINE: Duration = Duration::from_millis(1500);
/// Between two signals to a guest that is out of time.
const KICK_PERIOD: Duration = Duration::from_millis(10);
/// How many signals are sent before the thread is given up.
const KICKS: u32 = 200;

/// Where the test guest's parts lie.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const CODE: u64 = 0x4000;
const DATA: u64 = 0x5000;
const MEMORY: usize = 0x6000;
/// The port where it says how far it came.
const PORT: u8 = 0x80;

/// The step that the guest is at: it writes the number of each step it has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Entering 64-bit mode.
    LongMode,
    /// `cmpxchg16b`, which the kernel's memory allocators use.
    Cmpxchg16b,
    /// `xsetbv` and a VEX-encoded instruction, which user space uses where CPUID has AVX.
    Avx,
    /// VMCALL or VMMCALL, and KVM's answer to a number that it doesn't know.
    Hypercall,
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::LongMode => "64-bit mode",
            Step::Cmpxchg16b => "cmpxchg16b",
            Step::Avx => "AVX",
            Step::Hypercall => "a hypercall",
        })
    }
}

/// How the test guest fared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum GuestTest {
    /// It came to its end.
    Passed,
    /// KVM gave up at a step.
    Failed {
        /// The step that was not done.
        step: Step,
        /// How KVM left the guest.
        exit: String,
    },
    /// It came to no end.
    TimedOut {
        /// The step that was not done.
        step: Step,
    },
    /// The host could not set it up.
    NotRun {
        /// What went wrong.
        error: String,
    },
}

impl Display for GuestTest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            GuestTest::Passed => f.write_str("passed"),
            GuestTest::Failed { step, exit } => write!(f, "failed at {step} ({exit})"),
            GuestTest::TimedOut { step } => write!(f, "never got past {step}"),
            GuestTest::NotRun { error } => write!(f, "could not be run ({error})"),
        }
    }
}

/// The guest, ready to run. Fields are dropped in order: KVM's side before the memory it maps.
struct Guest {
    vcpu: VcpuFd,
    _vm: MappedVm,
    steps: Vec<Step>,
}

/// Runs the test guest on a thread of its own and waits for it, [`DEADLINE`] at most.
///
/// Takes over the signal `SIGRTMIN + 5` of the process.
pub(crate) fn test(kvm: &Kvm) -> GuestTest {
    run(kvm, code, DEADLINE)
}

/// Whether KVM completes the hypercall instruction `insn` with the answer that it has for an unknown number. It takes
/// well under a millisecond where it does; where it never returns to the guest, as on a KVM without hardware
/// virtualization, `deadline` and a little more.
///
/// Runs on a thread of its own, and takes over the signal `SIGRTMIN + 5` of the process.
pub(crate) fn test_hypercall(kvm: &Kvm, insn: HypercallInsn, deadline: Duration) -> GuestTest {
    run(kvm, |_| hypercall_code(insn), deadline)
}

fn run(kvm: &Kvm, code: impl FnOnce(bool) -> Program, deadline: Duration) -> GuestTest {
    match Guest::new(kvm, code) {
        Ok(guest) => run_with_deadline(guest, deadline),
        Err(error) => GuestTest::NotRun {
            error: error.to_string(),
        },
    }
}

/// A guest's code, and the steps that it has.
type Program = (Vec<u8>, Vec<Step>);

/// Interrupts KVM_RUN by being delivered, no more.
extern "C" fn interrupted(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn run_with_deadline(mut guest: Guest, deadline: Duration) -> GuestTest {
    let kick = SIGRTMIN() + 5;
    if let Err(error) = register_signal_handler(kick, interrupted) {
        return GuestTest::NotRun {
            error: error.to_string(),
        };
    }
    let out_of_time = Arc::new(AtomicBool::new(false));
    let (sender, result) = mpsc::channel();
    let flag = Arc::clone(&out_of_time);
    let thread = thread::Builder::new()
        .name("kvm-check".to_owned())
        .spawn(move || {
            // The receiver is gone only when the guest was given up.
            let _ = sender.send(guest.run(&flag));
        });
    let thread = match thread {
        Ok(thread) => thread,
        Err(error) => {
            return GuestTest::NotRun {
                error: error.to_string(),
            };
        }
    };
    if let Ok(outcome) = result.recv_timeout(deadline) {
        return outcome;
    }
    out_of_time.store(true, Ordering::Relaxed);
    // A signal that comes just before KVM_RUN is without effect: so more than one.
    for _ in 0..KICKS {
        // Fails when the thread has ended, and then the result is there.
        let _ = thread.kill(kick);
        match result.recv_timeout(KICK_PERIOD) {
            Ok(outcome) => return outcome,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    GuestTest::NotRun {
        error: "its thread can't be stopped".to_owned(),
    }
}

/// Creates a virtual machine; a signal may interrupt that on a busy host.
fn create_vm(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result,
        }
    }
}

impl Guest {
    /// Makes a guest of the code that `code` has for a CPU with or without AVX.
    fn new(
        kvm: &Kvm,
        code: impl FnOnce(bool) -> Program,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])?;
        let mapped = MappedVm::new(create_vm(kvm)?, memory)?;
        let memory = mapped.memory();
        let vcpu = mapped.vm().create_vcpu(0)?;

        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        vcpu.set_cpuid2(&cpuid)?;
        let leaf1 = cpuid.as_slice().iter().find(|e| e.function == 1);
        let has_avx = leaf1.is_some_and(|e| e.ecx & AVX_AND_XSAVE == AVX_AND_XSAVE);

        let (code, steps) = code(has_avx);
        let entries = [
            (PML4, PDPT | 0b11),
            (PDPT, PAGE_DIRECTORY | 0b11),
            (PAGE_DIRECTORY, 0x83),
        ];
        for (table, entry) in entries {
            memory.write_obj(entry, GuestAddress(table))?;
        }
        memory.write_slice(&code, GuestAddress(CODE))?;
        enter_long_mode(&vcpu, has_avx)?;
        Ok(Guest {
            vcpu,
            _vm: mapped,
            steps,
        })
    }

    /// Runs until the last step is done, KVM gives up, or `out_of_time` is set and a signal comes.
    fn run(&mut self, out_of_time: &AtomicBool) -> GuestTest {
        let mut done = 0;
        while let Some(&step) = self.steps.get(done) {
            let exit = match self.vcpu.run() {
                Ok(VcpuExit::IoOut(port, &[value]))
                    if port == u16::from(PORT) && usize::from(value) == done =>
                {
                    done += 1;
                    continue;
                }
                Ok(exit) => format!("{exit:?}"),
                Err(error) if error.errno() == libc::EINTR => {
                    if out_of_time.load(Ordering::Relaxed) {
                        return GuestTest::TimedOut { step };
                    }
                    continue;
                }
                Err(error) => error.to_string(),
            };
            return GuestTest::Failed { step, exit };
        }
        GuestTest::Passed
    }
}

/// CPUID leaf 1, ECX: XSAVE (bit 26) and AVX (bit 28), Intel SDM volume 2A.
const AVX_AND_XSAVE: u32 = 1 << 26 | 1 << 28;

/// The guest's code and the steps that it has.
fn code(has_avx: bool) -> Program {
    let mut parts: Vec<(Step, &[u8])> = vec![
        (Step::LongMode, &[]),
        // lock cmpxchg16b [rdi]
        (Step::Cmpxchg16b, &[0xf0, 0x48, 0x0f, 0xc7, 0x0f]),
    ];
    if has_avx {
        // xor ecx, ecx; xor edx, edx; mov eax, 7; xsetbv; vpxor xmm0, xmm0, xmm0
        let vex = &[
            0x31, 0xc9, 0x31, 0xd2, 0xb8, 7, 0, 0, 0, 0x0f, 0x01, 0xd1, 0xc5, 0xf9, 0xef, 0xc0,
        ];
        parts.push((Step::Avx, vex));
    }
    program(parts)
}

/// The code that makes a hypercall with a number that is none of KVM's, and looks at the answer.
fn hypercall_code(insn: HypercallInsn) -> Program {
    let mut bytes = vec![0xb8]; // mov eax, VMM_HC_NOP
    bytes.extend((VMM_HC_NOP as u32).to_le_bytes());
    bytes.extend(insn.bytes());
    bytes.extend([0x48, 0x3d]); // cmp rax, -KVM_ENOSYS
    bytes.extend((KvmErrno::KVM_ENOSYS.as_ret() as u32).to_le_bytes());
    bytes.extend([0x74, 0x01, 0xf4]); // je over; hlt; over:
    program(vec![(Step::LongMode, &[]), (Step::Hypercall, &bytes)])
}

/// Each part is followed by its report.
fn program(parts: Vec<(Step, &[u8])>) -> Program {
    let mut code = Vec::new();
    for (number, (_, bytes)) in (0u8..).zip(&parts) {
        code.extend_from_slice(bytes);
        // mov al, number; out PORT, al
        code.extend_from_slice(&[0xb0, number, 0xe6, PORT]);
    }
    // hlt, should KVM come here
    code.push(0xf4);
    (code, parts.into_iter().map(|(step, _)| step).collect())
}

/// Puts a vCPU at the start of the code in 64-bit mode (Intel SDM volume 3A, section
/// "IA-32e Mode Initialization"), SSE on, and XSAVE where the code uses it.
fn enter_long_mode(vcpu: &VcpuFd, has_avx: bool) -> Result<(), kvm_ioctls::Error> {
    // CR0: PE, MP, ET, NE, PG. CR4: PAE, OSFXSR, OSXMMEXCPT, OSXSAVE. EFER: LME, LMA.
    const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 31;
    const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10;
    const CR4_OSXSAVE: u64 = 1 << 18;
    const EFER: u64 = 1 << 8 | 1 << 10;
    // IF, though nothing interrupts this guest: Bochs as a host's host holds the host's own
    // interrupts back while a guest runs without.
    const RFLAGS: u64 = 1 << 1 | 1 << 9;
    let segment = |type_, selector, s| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        db: 1,
        ..segment(3, 0x10, 1)
    };
    let sregs = kvm_sregs {
        cr0: CR0,
        cr3: PML4,
        cr4: if has_avx { CR4 | CR4_OSXSAVE } else { CR4 },
        efer: EFER,
        cs: kvm_segment {
            l: 1,
            ..segment(11, 8, 1)
        },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        // A busy 64-bit TSS: what VMX wants of TR.
        tr: segment(11, 0x18, 0),
        ldt: kvm_segment {
            unusable: 1,
            ..Default::default()
        },
        ..vcpu.get_sregs()?
    };
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: CODE,
        rdi: DATA,
        rflags: RFLAGS,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_fits_its_page_and_reports_each_step() {
        for has_avx in [false, true] {
            let (code, steps) = code(has_avx);
            assert!(code.len() as u64 <= DATA - CODE);
            assert_eq!(steps.len(), 2 + usize::from(has_avx));
            let reports = code
                .windows(4)
                .filter(|w| w[0] == 0xb0 && w[2..] == [0xe6, PORT]);
            let numbers: Vec<_> = reports.map(|w| usize::from(w[1])).collect();
            assert_eq!(numbers, (0..steps.len()).collect::<Vec<_>>());
        }
    }

    /// Ends only what hangs: no machine is that slow.
    const SOON: Duration = Duration::from_secs(600);

    /// Runs `code`, if this host has a usable KVM.
    fn run_on_host(test: &str, deadline: Duration, code: fn(bool) -> Program) -> Option<GuestTest> {
        let kvm = crate::check::tests::host_kvm(test)?;
        Some(run_with_deadline(Guest::new(&kvm, code).unwrap(), deadline))
    }

    #[test]
    fn endless_guest_is_stopped_at_the_deadline() {
        let test = "probe::guest::tests::endless_guest_is_stopped_at_the_deadline";
        // jmp $, after a first step: mov al, 0; out PORT, al
        let endless = |_: bool| {
            let code = vec![0xb0, 0, 0xe6, PORT, 0xeb, 0xfe];
            (code, vec![Step::LongMode, Step::Cmpxchg16b])
        };
        // On a busy host the first step takes longer.
        for milliseconds in [50, 500, 5_000, 50_000] {
            let deadline = Duration::from_millis(milliseconds);
            match run_on_host(test, deadline, endless) {
                None => return,
                Some(GuestTest::TimedOut {
                    step: Step::Cmpxchg16b,
                }) => return,
                Some(GuestTest::TimedOut {
                    step: Step::LongMode,
                }) => {}
                Some(other) => panic!("{other:?}"),
            }
        }
        panic!("the first step took too long");
    }

    #[test]
    fn guest_that_does_something_else_has_failed() {
        let test = "probe::guest::tests::guest_that_does_something_else_has_failed";
        // mov al, 1; out PORT, al: step 0 was left out
        let skips = |_: bool| (vec![0xb0, 1, 0xe6, PORT, 0xf4], vec![Step::LongMode]);
        let Some(outcome) = run_on_host(test, SOON, skips) else {
            return;
        };
        let GuestTest::Failed {
            step: Step::LongMode,
            exit,
        } = outcome
        else {
            panic!("{outcome:?}");
        };
        assert!(exit.contains("IoOut"), "{exit}");
    }

    #[test]
    fn hypercalls_complete_or_the_deadline_ends_them() {
        let test = "probe::guest::tests::hypercalls_complete_or_the_deadline_ends_them";
        let Some(kvm) = crate::check::tests::host_kvm(test) else {
            return;
        };
        let deadline = Duration::from_millis(200);
        for insn in [HypercallInsn::Vmcall, HypercallInsn::Vmmcall] {
            let outcome = test_hypercall(&kvm, insn, deadline);
            let late = GuestTest::TimedOut {
                step: Step::Hypercall,
            };
            assert!(
                outcome == GuestTest::Passed || outcome == late,
                "{insn:?}: {outcome:?}"
            );
        }
    }

    #[test]
    fn an_answer_of_its_own_is_no_kvm() {
        let test = "probe::guest::tests::an_answer_of_its_own_is_no_kvm";
        // The number, untouched by three NOPs, is not the answer.
        let ignores = |_: bool| {
            let (mut code, steps) = hypercall_code(HypercallInsn::Vmcall);
            let at = code
                .windows(3)
                .position(|w| w == HypercallInsn::Vmcall.bytes());
            code[at.unwrap()..][..3].fill(0x90);
            (code, steps)
        };
        let Some(outcome) = run_on_host(test, SOON, ignores) else {
            return;
        };
        assert!(
            matches!(&outcome, GuestTest::Failed { step: Step::Hypercall, exit } if exit.contains("Hlt")),
            "{outcome:?}"
        );
    }

    #[test]
    fn outcomes_read_as_sentences() {
        let failed = GuestTest::Failed {
            step: Step::Cmpxchg16b,
            exit: "InternalError".to_owned(),
        };
        assert_eq!(failed.to_string(), "failed at cmpxchg16b (InternalError)");
        let late = GuestTest::TimedOut { step: Step::Avx };
        assert_eq!(late.to_string(), "never got past AVX");
    }
}
