// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::*;
use crate::{KvmErrno, ParaErrno, Register, STUB_UNPATCHED, STUB_UNPATCHED_RESULT};

/// What the fake host does with the page on a write of the MSR.
fn host(page: &ParaPage, ret: u32) {
    page.host_version.store(1, Ordering::Relaxed);
    page.ret.store(ret, Ordering::Relaxed);
}

fn register_with(
    page: &ParaPage,
    gpa: u64,
    wrmsr: impl FnOnce(u32, u64) -> Result<(), GpFault>,
) -> Registration {
    // SAFETY: the fake hosts of these tests write to `page` alone.
    unsafe { register(page, gpa, 0x1_0000_0ffc, wrmsr) }
}

#[test]
fn r1_register_presets_the_page_and_writes_its_address() {
    let page = ParaPage::new();
    let mut seen = None;
    let result = register_with(&page, 0x7000, |index, value| {
        seen = Some((index, value, page.payload()));
        host(&page, 0);
        Ok(())
    });
    let preset = ParaStatePayload {
        guest_version: 1,
        host_version: 0xffff_ffff,
        size: 4096,
        ret: 0xffff_ffff,
        hypercall_gpa: 0x1_0000_0ffc,
    };
    assert_eq!(seen, Some((0x8765_5678, 0x7000, preset)));
    assert_eq!(result, Registration::Registered { host_version: 1 });
}

#[test]
fn r6_a_refusal_and_a_fault_are_told_apart() {
    let page = ParaPage::new();
    let refused = register_with(&page, 0x7000, |_, _| {
        host(&page, ParaErrno::KVM_EINVAL.as_ret());
        Ok(())
    });
    assert_eq!(
        refused,
        Registration::Refused {
            host_version: 1,
            ret: 0xffff_ffff
        }
    );
    assert_eq!(
        register_with(&page, 0x7001, |_, _| Err(GpFault)),
        Registration::Fault
    );
}

#[test]
fn r10_a_second_registration_presets_again() {
    let page = ParaPage::new();
    let first = register_with(&page, 0x7000, |_, _| {
        host(&page, 0);
        Ok(())
    });
    assert!(first.is_registered());
    // The host is gone: nothing of its first answer may remain.
    assert_eq!(
        register_with(&page, 0x7000, |_, _| Ok(())),
        Registration::Swallowed
    );
}

#[test]
fn r6_a_probe_is_newer_than_any_host() {
    let page = ParaPage::new();
    let write = |_, _| {
        let payload = page.payload();
        assert!(payload.is_newer_than_host());
        host(
            &page,
            if payload.is_newer_than_host() {
                u32::MAX
            } else {
                0
            },
        );
        Ok(())
    };
    // SAFETY: the fake host writes to `page` alone.
    let answer = unsafe { probe(&page, 0x7000, write) };
    assert_eq!(answer.host_version(), Some(1));
    assert!(!answer.is_registered());
}

#[test]
fn h14_a_host_that_is_told_half_an_address_leaves_this_page_alone() {
    let (page, other) = (ParaPage::new(), ParaPage::new());
    let (gpa, truncated) = (0x1_0000_7000, 0x7000);
    let at = |address| if address == gpa { &page } else { &other };
    let full = register_with(&page, gpa, |_, value| {
        host(at(value), 0);
        Ok(())
    });
    assert!(full.is_registered());
    let half = register_with(&page, gpa, |_, value| {
        assert_eq!(value & 0xffff_ffff, truncated);
        host(at(truncated), 0);
        Ok(())
    });
    assert_eq!(half, Registration::Swallowed);
    assert_eq!(other.payload().host_version, 1);
}

#[test]
fn r9_the_built_in_stub_is_that_of_2007() {
    let stub = HypercallStub::built_in();
    assert_eq!(stub.bytes(), STUB_UNPATCHED);
    assert_eq!(HypercallStub::built_in(), stub);
}

#[test]
fn h1_h8_the_built_in_stub_is_one_aligned_word() {
    // Four aligned bytes cross no page, and a host can replace them with one store.
    assert_eq!(HypercallStub::built_in().address() % 4, 0);
}

#[test]
fn an_unpatched_stub_returns_minus_38() {
    let stub = HypercallStub::built_in();
    for convention in Convention::ALL {
        // SAFETY: the stub isn't patched, so it only returns.
        let result = unsafe {
            stub.call(
                convention,
                &Call {
                    nr: u64::MAX,
                    args: [u64::MAX; 6],
                },
            )
        };
        assert_eq!(result, STUB_UNPATCHED_RESULT, "{convention}");
    }
    // SAFETY: as above.
    unsafe {
        assert_eq!(stub.para(1, [0; 6]), 0xffff_ffda);
        assert_eq!(stub.kvm(1, [0; 4]), 0xffff_ffda);
        assert_eq!(stub.xen(1, [0; 6]), 0xffff_ffda);
    }
}

#[unsafe(no_mangle)]
static PARA_ABI_TEST_SEEN: [AtomicU64; 10] = [const { AtomicU64::new(0) }; 10];

// A stub that records the registers and returns -1000.
global_asm!(
    ".pushsection .text.para_abi_test, \"ax\", @progbits",
    "para_abi_test_recorder:",
    "mov [rip + {seen}], rax",
    "mov [rip + {seen} + 8], rbx",
    "mov [rip + {seen} + 16], rcx",
    "mov [rip + {seen} + 24], rdx",
    "mov [rip + {seen} + 32], rsi",
    "mov [rip + {seen} + 40], rdi",
    "mov [rip + {seen} + 48], rbp",
    "mov [rip + {seen} + 56], r8",
    "mov [rip + {seen} + 64], r9",
    "mov [rip + {seen} + 72], r10",
    "mov rax, -1000",
    "ret",
    ".popsection",
    seen = sym PARA_ABI_TEST_SEEN,
);

unsafe extern "sysv64" {
    static para_abi_test_recorder: u8;
}

static RECORDER: Mutex<()> = Mutex::new(());

fn recorder() -> (MutexGuard<'static, ()>, HypercallStub) {
    let lock = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the code above changes RAX only, and is longer than six bytes.
    let stub =
        unsafe { HypercallStub::at((&raw const para_abi_test_recorder).expose_provenance()) };
    (lock, stub)
}

fn seen() -> Registers {
    let mut registers = Registers::default();
    for (register, value) in Register::ALL.into_iter().zip(&PARA_ABI_TEST_SEEN) {
        registers.set(register, value.load(Ordering::Relaxed));
    }
    registers
}

const ARGS: [u64; 6] = [
    0x1_1111_1111,
    0x2_2222_2222,
    0x3_3333_3333,
    0x4_4444_4444,
    u64::MAX,
    6,
];
const NR: u64 = 0x9_8765_4321;

#[test]
fn each_call_puts_its_arguments_where_the_host_looks() {
    let (_lock, stub) = recorder();
    let four = [ARGS[0], ARGS[1], ARGS[2], ARGS[3]];
    let check = |convention: Convention, result: u64, args: [u64; 6]| {
        assert_eq!(
            convention.call(Width::Long, &seen()),
            Call { nr: NR, args },
            "{convention}"
        );
        assert_eq!(
            KvmErrno::from_ret(result),
            Some(KvmErrno::KVM_ENOSYS),
            "{convention}"
        );
    };
    let cut = [ARGS[0], ARGS[1], ARGS[2], ARGS[3], 0, 0];
    // SAFETY: the stub is the recorder.
    unsafe {
        check(Convention::Para2007, stub.para(NR, ARGS), ARGS);
        check(Convention::Kvm, stub.kvm(NR, four), cut);
        check(Convention::Xen, stub.xen(NR, ARGS), ARGS);
        for convention in Convention::ALL {
            let kept = if convention == Convention::Kvm {
                cut
            } else {
                ARGS
            };
            let call = Call { nr: NR, args: ARGS };
            check(convention, stub.call(convention, &call), kept);
            let mut all = Registers::default();
            convention.set_call(Width::Long, &mut all, &call);
            assert_eq!(seen(), all, "{convention}: the others are 0");
        }
    }
}

extern "sysv64" fn lends_registers() {
    let (_lock, stub) = recorder();
    // SAFETY: the stub is the recorder.
    unsafe {
        stub.kvm(1, [7; 4]);
        stub.call(
            Convention::Kvm,
            &Call {
                nr: 1,
                args: [8; 6],
            },
        );
        stub.call(
            Convention::Para2007,
            &Call {
                nr: 1,
                args: [9; 6],
            },
        );
    }
}

/// The compiler isn't told that calls swap RBX and RBP, so both must come back.
#[test]
fn calls_give_borrowed_registers_back() {
    let sentinel = 0x5eed_5eed_5eed_5eed_u64;
    let (rbx, rbp): (u64, u64);
    // SAFETY: the function keeps its convention, for which the stack stays aligned; RBX and RBP come back.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "mov rbx, r12",
            "mov rbp, r12",
            "call {function}",
            "mov rax, rbx",
            "mov rdx, rbp",
            "pop rbp",
            "pop rbx",
            function = sym lends_registers,
            in("r12") sentinel,
            out("rax") rbx,
            out("rdx") rbp,
            clobber_abi("sysv64"),
        );
    }
    assert_eq!((rbx, rbp), (sentinel, sentinel));
}

/// In user space WRMSR is #GP, which arrives as SIGSEGV: a handler that does what a kernel's would do.
mod fault {
    use super::*;

    static AT_FAULT: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

    extern "C" fn handler(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the kernel passes a `ucontext_t` to handlers with SA_SIGINFO.
        let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        match wrmsr_fixup(registers[libc::REG_RIP as usize] as u64) {
            Some(resume) => {
                let names = [libc::REG_RCX, libc::REG_RAX, libc::REG_RDX];
                for (slot, name) in AT_FAULT.iter().zip(names) {
                    slot.store(registers[name as usize] as u64, Ordering::Relaxed);
                }
                registers[libc::REG_RIP as usize] = resume as i64;
            }
            // A fault of other code: let it happen again and kill the process. SAFETY: resetting a
            // signal's disposition is async-signal-safe.
            None => unsafe {
                libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            },
        }
    }

    #[test]
    fn h14_edx_eax_carry_the_full_address_and_a_fault_is_survived() {
        let page = ParaPage::new();
        let gpa = 0xfedc_ba98_7654_3000;
        // SAFETY: a handler that follows the rules, and the former one comes back; WRMSR in user space
        // faults whatever the MSR.
        let result = unsafe {
            let mut former: libc::sigaction = core::mem::zeroed();
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = handler as extern "C" fn(_, _, _) as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(libc::SIGSEGV, &action, &mut former), 0);
            let result = register(&page, gpa, 0, |index, value| wrmsr(index, value));
            assert_eq!(
                libc::sigaction(libc::SIGSEGV, &former, core::ptr::null_mut()),
                0
            );
            result
        };
        assert_eq!(result, Registration::Fault);
        let [rcx, rax, rdx] = [0, 1, 2].map(|at: usize| AT_FAULT[at].load(Ordering::Relaxed));
        assert_eq!((rcx, rax, rdx), (0x8765_5678, 0x7654_3000, 0xfedc_ba98));
    }

    #[test]
    fn other_faults_are_not_taken() {
        assert_eq!(wrmsr_fixup(0), None);
        let insn = (&raw const para_abi_wrmsr_insn).expose_provenance() as u64;
        assert!(wrmsr_fixup(insn).is_some());
        assert_eq!(wrmsr_fixup(insn + 1), None);
        assert_eq!(wrmsr_fixup(insn - 1), None);
    }
}
