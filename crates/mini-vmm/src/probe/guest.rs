// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A test guest of a few instructions that a stock kernel also needs.
//!
//! A KVM without hardware virtualization runs guest code in an instruction emulator. That knows the instructions that
//! access devices, and few others. /proc/cpuinfo may hint at this, but only running the instructions is certain.

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hypercall_patch::HypercallInsn;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs};
use kvm_ioctls::Kvm;
use para_abi::KvmErrno;
use para_abi::vmm::VMM_HC_NOP;
use serde::Serialize;
use vcpu_loop::kvm::{KvmHost, KvmVcpu};
use vcpu_loop::{
    FailureReason, FatalExit, Next, VcpuBuilder, VcpuEvent, VcpuIo, VcpuSet, vcpu_events,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::boot::{Protocol, regs};
use crate::layout::{BOOT_PAGE_TABLES, BOOT_PAGE_TABLES_SIZE};
use crate::memory::{MappedVm, create_vm};

/// The test guest's time limit. On a working KVM it takes well under a millisecond. Including the probe of hypercalls,
/// a report takes at most two seconds.
const DEADLINE: Duration = Duration::from_millis(1500);
/// How long its thread may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// The addresses of the test guest's parts. Tables and registers are those at Linux's entry point.
const CODE: u64 = 0x1000;
const DATA: u64 = 0x2000;
const MEMORY: u64 = BOOT_PAGE_TABLES + BOOT_PAGE_TABLES_SIZE;
/// The port that it reports its progress to.
const PORT: u8 = 0x80;

/// A step of the guest. It writes the number of each step that it has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Entering 64-bit mode.
    LongMode,
    /// `cmpxchg16b`, which the kernel's memory allocators use.
    Cmpxchg16b,
    /// `xsetbv` and a VEX-encoded instruction, which user space uses if CPUID has AVX.
    Avx,
    /// VMCALL or VMMCALL, and KVM's answer to an unknown number.
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

/// The result of the test guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum GuestTest {
    /// It ran to its end.
    Passed,
    /// KVM failed at a step.
    Failed {
        /// The step that failed.
        step: Step,
        /// How KVM left the guest.
        exit: String,
    },
    /// It did not end in time.
    TimedOut {
        /// The step that was not completed.
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

/// Runs the test guest on its own thread, for at most [`DEADLINE`].
pub(crate) fn test(kvm: &Kvm) -> GuestTest {
    run(kvm, code, DEADLINE)
}

/// Whether KVM completes the hypercall instruction `insn` with its answer to an unknown number. That takes well under a
/// millisecond. If the call never returns to the guest, as on a KVM without hardware virtualization, it takes
/// `deadline` and a little more. Runs on its own thread.
pub(crate) fn test_hypercall(kvm: &Kvm, insn: HypercallInsn, deadline: Duration) -> GuestTest {
    run(kvm, |_| hypercall_code(insn), deadline)
}

/// A guest's code and its steps.
type Program = (Vec<u8>, Vec<Step>);

fn run(kvm: &Kvm, code: impl FnOnce(bool) -> Program, deadline: Duration) -> GuestTest {
    let tested = prepare(kvm, code).and_then(|guest| run_with_deadline(guest, deadline));
    tested.unwrap_or_else(|error| GuestTest::NotRun {
        error: error.to_string(),
    })
}

/// The progress of a guest.
#[derive(Debug, Default)]
struct Progress {
    steps_done: AtomicUsize,
    /// An access that is not one of its steps. It stops the guest.
    stray: OnceLock<String>,
}

/// The guest's only device. It also keeps the guest's memory alive as long as the vCPU.
struct Reports {
    progress: Arc<Progress>,
    steps: usize,
    _vm: MappedVm,
}

impl Reports {
    fn stray(&self, access: String) -> Next {
        let _ = self.progress.stray.set(access);
        Next::Pause
    }
}

impl VcpuIo for Reports {
    fn pio_write(&mut self, port: u16, data: &[u8]) -> Next {
        let done = self.progress.steps_done.load(Ordering::Relaxed);
        match data {
            &[step] if port == u16::from(PORT) && usize::from(step) == done => {
                self.progress.steps_done.store(done + 1, Ordering::Relaxed);
                match done + 1 == self.steps {
                    true => Next::Pause,
                    false => Next::Continue,
                }
            }
            _ => self.stray(format!("IoOut({port:#x}, {data:x?})")),
        }
    }

    fn pio_read(&mut self, port: u16, _: &mut [u8]) -> Next {
        self.stray(format!("IoIn({port:#x})"))
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) -> Next {
        self.stray(format!("MmioWrite({addr:#x}, {data:x?})"))
    }

    fn mmio_read(&mut self, addr: u64, _: &mut [u8]) -> Next {
        self.stray(format!("MmioRead({addr:#x})"))
    }
}

/// A guest that is ready to run.
struct Guest {
    vcpu: KvmVcpu,
    vm: MappedVm,
    steps: Vec<Step>,
}

fn run_with_deadline(guest: Guest, deadline: Duration) -> Result<GuestTest, Box<dyn Error>> {
    let Guest { vcpu, vm, steps } = guest;
    let progress = Arc::new(Progress::default());
    let reports = Reports {
        progress: Arc::clone(&progress),
        steps: steps.len(),
        _vm: vm,
    };
    let (sender, events) = vcpu_events()?;
    let mut vcpus = VcpuSet::new(sender);
    vcpus.spawn_with(VcpuBuilder::new(0, vcpu, reports).thread_name("kvm-check"))?;
    let end = Instant::now() + deadline;
    match vcpus.resume(deadline) {
        // If the vCPU starts too late, its event doesn't come in time, either.
        Ok(()) | Err(vcpu_loop::Error::Deadline { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let event = events.recv_timeout(end.saturating_duration_since(Instant::now()));
    vcpus
        .stop(STOP_DEADLINE)
        .map_err(|_| "its thread can't be stopped")?;
    let Some(&step) = steps.get(progress.steps_done.load(Ordering::Relaxed)) else {
        return Ok(GuestTest::Passed);
    };
    let exit = match event {
        None => return Ok(GuestTest::TimedOut { step }),
        Some(VcpuEvent::Halted { .. }) => "Hlt".to_owned(),
        Some(VcpuEvent::Fatal { report } | VcpuEvent::Shutdown { report }) => {
            in_words(report.reason)
        }
        Some(other) => match progress.stray.get() {
            Some(access) => access.clone(),
            None => format!("{other:?}"),
        },
    };
    Ok(GuestTest::Failed { step, exit })
}

/// Why a vCPU failed, as part of a sentence, without KVM's details of an internal error.
fn in_words(reason: FailureReason) -> String {
    match reason {
        FailureReason::Exit(FatalExit::InternalError { suberror, data, .. }) => {
            let count = 0;
            FatalExit::InternalError {
                suberror,
                count,
                data,
            }
            .to_string()
        }
        other => other.to_string(),
    }
}

/// Creates a guest with the code for a CPU with or without AVX. It starts in 64-bit mode.
fn prepare(kvm: &Kvm, code: impl FnOnce(bool) -> Program) -> Result<Guest, Box<dyn Error>> {
    // CR0: MP, NE. CR4: OSFXSR, OSXMMEXCPT, OSXSAVE. Intel SDM volume 3A, section "Control Registers".
    const CR0: u64 = 1 << 1 | 1 << 5;
    const CR4: u64 = 1 << 9 | 1 << 10;
    const CR4_OSXSAVE: u64 = 1 << 18;
    // IF is set, although this guest gets no interrupts. Reason: under Bochs, the host's own interrupts are held back
    // while a guest runs with IF clear.
    const RFLAGS: u64 = 1 << 1 | 1 << 9;

    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)])?;
    let vm = MappedVm::new(create_vm(kvm)?, memory)?;
    let fd = vm.vm().create_vcpu(0)?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    fd.set_cpuid2(&cpuid)?;
    let leaf1 = cpuid.as_slice().iter().find(|e| e.function == 1);
    let has_avx = leaf1.is_some_and(|e| e.ecx & AVX_AND_XSAVE == AVX_AND_XSAVE);

    let (code, steps) = code(has_avx);
    vm.memory().write_slice(&code, GuestAddress(CODE))?;
    regs::write_tables(vm.memory(), Protocol::Linux64)?;
    let mut sregs = fd.get_sregs()?;
    regs::special(Protocol::Linux64, &mut sregs);
    sregs.cr0 |= CR0;
    sregs.cr4 |= if has_avx { CR4 | CR4_OSXSAVE } else { CR4 };
    fd.set_sregs(&sregs)?;
    fd.set_regs(&kvm_regs {
        rip: CODE,
        rdi: DATA,
        rflags: RFLAGS,
        ..Default::default()
    })?;
    let vcpu = KvmVcpu::new(fd, &KvmHost::with_msrs(kvm, Vec::new())?)?;
    Ok(Guest { vcpu, vm, steps })
}

/// CPUID leaf 1, ECX: XSAVE (bit 26) and AVX (bit 28), Intel SDM volume 2A.
const AVX_AND_XSAVE: u32 = 1 << 26 | 1 << 28;

/// The guest's code and its steps.
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

/// Code that makes a hypercall with a number that KVM doesn't know, and checks the answer.
fn hypercall_code(insn: HypercallInsn) -> Program {
    let mut bytes = vec![0xb8]; // mov eax, VMM_HC_NOP
    bytes.extend((VMM_HC_NOP as u32).to_le_bytes());
    bytes.extend(insn.bytes());
    bytes.extend([0x48, 0x3d]); // cmp rax, -KVM_ENOSYS
    bytes.extend((KvmErrno::KVM_ENOSYS.as_ret() as u32).to_le_bytes());
    bytes.extend([0x74, 0x01, 0xf4]); // je over; hlt; over:
    program(vec![(Step::LongMode, &[]), (Step::Hypercall, &bytes)])
}

/// Appends to each part the code that reports it.
fn program(parts: Vec<(Step, &[u8])>) -> Program {
    let mut code = Vec::new();
    for (number, (_, bytes)) in (0u8..).zip(&parts) {
        code.extend_from_slice(bytes);
        // mov al, number; out PORT, al
        code.extend_from_slice(&[0xb0, number, 0xe6, PORT]);
    }
    // hlt, in case execution continues here
    code.push(0xf4);
    (code, parts.into_iter().map(|(step, _)| step).collect())
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

    /// A generous limit, only to end a hang.
    const SOON: Duration = Duration::from_secs(600);

    /// Runs `code`, if this host has a usable KVM.
    fn run_on_host(test: &str, deadline: Duration, code: fn(bool) -> Program) -> Option<GuestTest> {
        let kvm = crate::check::tests::host_kvm(test)?;
        Some(run(&kvm, code, deadline))
    }

    #[test]
    fn endless_guest_is_stopped_at_the_deadline() {
        let test = "probe::guest::tests::endless_guest_is_stopped_at_the_deadline";
        // jmp $, after a first step: mov al, 0; out PORT, al
        let endless = |_: bool| {
            let code = vec![0xb0, 0, 0xe6, PORT, 0xeb, 0xfe];
            (code, vec![Step::LongMode, Step::Cmpxchg16b])
        };
        // On a busy host the first step may take longer.
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
        // mov al, 1; out PORT, al: skips step 0
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
        // After three NOPs RAX still has the number, which is not the answer.
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
        let (suberror, count, data) = (1, 3, [7; 16]);
        let reason = FatalExit::InternalError {
            suberror,
            count,
            data,
        };
        assert_eq!(
            in_words(FailureReason::Exit(reason)),
            "KVM internal error 1 (instruction emulation)"
        );
        let late = GuestTest::TimedOut { step: Step::Avx };
        assert_eq!(late.to_string(), "never got past AVX");
    }
}
