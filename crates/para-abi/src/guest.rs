// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's side: what a Rust kernel needs to register its vCPUs and to call its host (x86-64, ELF).
//!
//! - [`ParaPage`], one per vCPU, in memory whose guest-physical address the kernel knows.
//! - [`HypercallStub::built_in`]: six bytes of code that return -38 until a host patches the first four.
//!   They are aligned to 4, so a host can patch them with one store while other vCPUs run.
//! - [`register`]: presets the page, lets the caller write the MSR, and returns the result.
//! - [`HypercallStub::para`], [`kvm`](HypercallStub::kvm) and [`xen`](HypercallStub::xen): calls in the three
//!   64-bit conventions. They change RAX only.
//! - [`wrmsr`] and [`wrmsr_fixup`]: the instruction, and what a #GP handler needs to survive it on a host
//!   that doesn't know the MSR. A kernel with a fault-safe `wrmsr` of its own passes that instead.
//!
//! Both addresses are guest-*physical* and 64 bits wide. The guests of 2007 passed 0 for the upper half of the
//! page's address. With a page above 4 GiB they registered the wrong page, and the host wrote to that one (hole
//! H14). A host can't detect this. [`register`] takes a `u64` and [`wrmsr`] passes all of it.
//!
//! Calls reach the stub through an indirect call. The ABI's six bytes have no room for `endbr64`, so a
//! kernel that enforces indirect branch tracking must disable it around calls.
//!
//! # Example: a bare guest
//!
//! ```no_run
//! use para_abi::guest::{HypercallStub, ParaPage, register, wrmsr, wrmsr_fixup};
//! use para_abi::{Registration, vmm};
//!
//! /// This kernel's image is mapped at a fixed offset from its physical address.
//! const IMAGE_OFFSET: u64 = 0xffff_ffff_8000_0000;
//! static PAGES: [ParaPage; 4] = [const { ParaPage::new() }; 4];
//!
//! fn image_gpa(address: usize) -> u64 {
//!     address as u64 - IMAGE_OFFSET
//! }
//!
//! /// On each vCPU, with the #GP handler in place.
//! fn start_paravirt(cpu: usize) -> Registration {
//!     let (page, stub) = (&PAGES[cpu], HypercallStub::built_in());
//!     // SAFETY: at CPL 0; the handler below catches the fault; the number is that of `register`.
//!     let write = |index, value| unsafe { wrmsr(index, value) };
//!     // SAFETY: the two addresses are those of the page and the stub, in memory that stays.
//!     unsafe { register(page, image_gpa(page.address()), image_gpa(stub.address()), write) }
//! }
//!
//! /// The first thing that the handler of vector 13 does.
//! fn general_protection(saved_rip: &mut u64) -> bool {
//!     match wrmsr_fixup(*saved_rip) {
//!         Some(resume) => {
//!             *saved_rip = resume;
//!             true
//!         }
//!         None => false,
//!     }
//! }
//!
//! fn boot(cpu: usize) {
//!     if start_paravirt(cpu).is_registered() {
//!         // SAFETY: the call writes no memory of the guest.
//!         unsafe { HypercallStub::built_in().kvm(vmm::VMM_HC_BOOT_MARK, [1, 0, 0, 0]) };
//!     }
//! }
//! # boot(general_protection(&mut 0).into());
//! ```

// All unsafe code of the crate is in this file: instructions without an intrinsic, and calls into patched code.
#![allow(unsafe_code, reason = "WRMSR, the stub and calls to it are assembly")]

use core::arch::{asm, global_asm};
use core::mem::{align_of, offset_of, size_of};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::{
    Call, Convention, GpFault, KVM_PARA_API_VERSION, MSR_KVM_API_MAGIC, OFFSET_GUEST_VERSION,
    OFFSET_HOST_VERSION, OFFSET_HYPERCALL_GPA, OFFSET_RET, OFFSET_SIZE, PARA_PRESET,
    PARA_STATE_SIZE, ParaStatePayload, Registers, Registration, STUB_LEN, Width,
};

global_asm!(
    ".pushsection .text.para_abi, \"ax\", @progbits",
    ".balign 4",
    ".globl para_abi_hypercall",
    ".type para_abi_hypercall, @function",
    "para_abi_hypercall:",
    ".byte 0xb8, 0xda, 0xff, 0xff, 0xff, 0xc3", // mov eax, -38; ret
    ".size para_abi_hypercall, 6",
    ".balign 16, 0xcc",
    ".globl para_abi_wrmsr",
    ".type para_abi_wrmsr, @function",
    "para_abi_wrmsr:", // edi = index, rsi = value
    "mov ecx, edi",
    "mov eax, esi",
    "mov rdx, rsi",
    "shr rdx, 32",
    ".globl para_abi_wrmsr_insn",
    "para_abi_wrmsr_insn:",
    "wrmsr",
    "xor eax, eax",
    "ret",
    ".globl para_abi_wrmsr_fault",
    "para_abi_wrmsr_fault:",
    "mov eax, 1",
    "ret",
    ".size para_abi_wrmsr, . - para_abi_wrmsr",
    ".popsection",
);

unsafe extern "sysv64" {
    static para_abi_hypercall: u8;
    static para_abi_wrmsr_insn: u8;
    static para_abi_wrmsr_fault: u8;
    fn para_abi_wrmsr(index: u32, value: u64) -> u32;
}

/// A [`kvm_vcpu_para_state`](crate::kvm_vcpu_para_state) that a host may write at any time.
///
/// One per vCPU, in memory that is never freed, because the host keeps the address. The fields are
/// atomics, so a `static` needs no lock. Only the vCPU that owns a page registers it.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct ParaPage {
    guest_version: AtomicU32,
    host_version: AtomicU32,
    size: AtomicU32,
    ret: AtomicU32,
    hypercall_gpa: AtomicU64,
}

const _: () = {
    assert!(size_of::<ParaPage>() == PARA_STATE_SIZE && align_of::<ParaPage>() == PARA_STATE_SIZE);
    assert!(offset_of!(ParaPage, guest_version) == OFFSET_GUEST_VERSION);
    assert!(offset_of!(ParaPage, host_version) == OFFSET_HOST_VERSION);
    assert!(offset_of!(ParaPage, size) == OFFSET_SIZE);
    assert!(offset_of!(ParaPage, ret) == OFFSET_RET);
    assert!(offset_of!(ParaPage, hypercall_gpa) == OFFSET_HYPERCALL_GPA);
};

impl ParaPage {
    /// An unregistered page, all zeros.
    pub const fn new() -> Self {
        Self {
            guest_version: AtomicU32::new(0),
            host_version: AtomicU32::new(0),
            size: AtomicU32::new(0),
            ret: AtomicU32::new(0),
            hypercall_gpa: AtomicU64::new(0),
        }
    }

    /// The page's virtual address. The kernel translates it to the guest-physical one.
    pub fn address(&self) -> usize {
        (&raw const *self).expose_provenance()
    }

    /// The page's current fields.
    pub fn payload(&self) -> ParaStatePayload {
        self.share();
        ParaStatePayload {
            guest_version: self.guest_version.load(Ordering::Acquire),
            host_version: self.host_version.load(Ordering::Acquire),
            size: self.size.load(Ordering::Acquire),
            ret: self.ret.load(Ordering::Acquire),
            hypercall_gpa: self.hypercall_gpa.load(Ordering::Acquire),
        }
    }

    fn preset(&self, guest_version: u32, hypercall_gpa: u64) {
        let ParaStatePayload { size, .. } = ParaStatePayload::new(hypercall_gpa);
        self.guest_version.store(guest_version, Ordering::Release);
        self.host_version.store(PARA_PRESET, Ordering::Release);
        self.size.store(size, Ordering::Release);
        self.ret.store(PARA_PRESET, Ordering::Release);
        self.hypercall_gpa.store(hypercall_gpa, Ordering::Release);
        self.share();
    }

    /// Makes the compiler assume that the page changed. It can't know that the host has the page's address.
    fn share(&self) {
        // SAFETY: no instruction at all; the operand tells the compiler that others may access the page,
        // and every field is an atomic, so it may.
        unsafe { asm!("/* {0} */", in(reg) &raw const *self, options(nostack, preserves_flags)) }
    }
}

impl Default for ParaPage {
    fn default() -> Self {
        Self::new()
    }
}

/// Registers this vCPU's page and the stub with the host.
///
/// `page_gpa` and `hypercall_gpa` are the guest-physical addresses of `page` and of the stub. `wrmsr` writes
/// a 64-bit value to an MSR, low half in EAX and high half in EDX, and reports a #GP as an error. See
/// [`wrmsr`] or the module's example.
///
/// # Safety
///
/// The host writes `host_version` and `ret` at `page_gpa` and four bytes at `hypercall_gpa`, whatever is
/// there. So `page_gpa` must be `page`'s address for as long as the vCPU exists. At `hypercall_gpa` there
/// must be four bytes of code on one page that no vCPU is in the middle of, and that may become an
/// instruction of up to 3 bytes and a `ret`. `wrmsr` must do what is described above.
pub unsafe fn register(
    page: &ParaPage,
    page_gpa: u64,
    hypercall_gpa: u64,
    wrmsr: impl FnOnce(u32, u64) -> Result<(), GpFault>,
) -> Registration {
    page.preset(KVM_PARA_API_VERSION, hypercall_gpa);
    let written = wrmsr(MSR_KVM_API_MAGIC, page_gpa);
    Registration::classify(written, page.payload())
}

/// Asks whether there is a host of this ABI, without registering anything: every host refuses a
/// guest of version [`u32::MAX`]. The answer is in [`Registration::host_version`].
///
/// # Safety
///
/// The host writes `host_version` and `ret` at `page_gpa`, so that must be `page`'s address. `wrmsr` is
/// as for [`register`].
pub unsafe fn probe(
    page: &ParaPage,
    page_gpa: u64,
    wrmsr: impl FnOnce(u32, u64) -> Result<(), GpFault>,
) -> Registration {
    page.preset(u32::MAX, 0);
    let written = wrmsr(MSR_KVM_API_MAGIC, page_gpa);
    Registration::classify(written, page.payload())
}

/// WRMSR: `index` in ECX, `value` in EDX:EAX.
///
/// # Errors
///
/// [`GpFault`] if the instruction raised #GP(0) and the kernel's handler used [`wrmsr_fixup`].
///
/// # Safety
///
/// The CPL must be 0, and the kernel's #GP handler must resume where [`wrmsr_fixup`] says. Writing this
/// value to this MSR must be sound; an MSR can do anything.
pub unsafe fn wrmsr(index: u32, value: u64) -> Result<(), GpFault> {
    // SAFETY: the function is the assembly above and follows the calling convention on both exits. The
    // caller guarantees the write and the handler.
    match unsafe { para_abi_wrmsr(index, value) } {
        0 => Ok(()),
        _ => Err(GpFault),
    }
}

/// For a #GP handler: where to resume if `rip` is the instruction in [`wrmsr`], which then returns an error.
///
/// `None` means that the fault came from other code.
pub fn wrmsr_fixup(rip: u64) -> Option<u64> {
    let address = |symbol: *const u8| symbol.expose_provenance() as u64;
    (rip == address(&raw const para_abi_wrmsr_insn))
        .then(|| address(&raw const para_abi_wrmsr_fault))
}

/// Code that reaches the host when called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HypercallStub {
    address: usize,
}

impl HypercallStub {
    /// This crate's stub, one for all vCPUs: [`STUB_UNPATCHED`](crate::STUB_UNPATCHED) in the section
    /// `.text.para_abi`, symbol `para_abi_hypercall`, aligned to 4.
    ///
    /// Until a host patches it, calls return [`STUB_UNPATCHED_RESULT`](crate::STUB_UNPATCHED_RESULT).
    pub fn built_in() -> Self {
        let stub = &raw const para_abi_hypercall;
        Self {
            address: stub.expose_provenance(),
        }
    }

    /// A stub elsewhere, for example a slot of a Xen hypercall page.
    ///
    /// # Safety
    ///
    /// At `address` there must be executable code that can be called, returns with `ret` and changes RAX and
    /// flags only. Hyper-V's calls don't guarantee that. Six bytes there must be readable. All of this must hold
    /// for as long as the value is used.
    pub const unsafe fn at(address: usize) -> Self {
        Self { address }
    }

    /// The stub's virtual address. The kernel translates it to the guest-physical one.
    pub const fn address(self) -> usize {
        self.address
    }

    /// The stub's current bytes, which show what the host wrote. It never writes bytes 4 and 5.
    pub fn bytes(self) -> [u8; STUB_LEN] {
        let start = core::ptr::with_exposed_provenance::<u8>(self.address);
        let read = |at| {
            // SAFETY: six bytes are readable, by the contract of `at` or by the symbol's size.
            // Volatile, because the host changes them.
            unsafe { start.wrapping_add(at).read_volatile() }
        };
        // Unoptimized, `array::from_fn` calls memset, which code that was copied into a guest doesn't have.
        [read(0), read(1), read(2), read(3), read(4), read(5)]
    }

    /// Calls with the convention of 2007: number in RAX, arguments in RDI RSI RDX RCX R8 R9.
    ///
    /// # Safety
    ///
    /// What the host does for this call must be sound; calls can write any guest memory. The caller must be
    /// where the stub works: a patched VMCALL outside a VM is #UD.
    pub unsafe fn para(self, nr: u64, args: [u64; 6]) -> u64 {
        let result;
        // SAFETY: the stub returns and changes RAX and flags only: `at` requires it and patches keep to
        // it. No `nostack`, because the call pushes. The caller guarantees the host's side.
        unsafe {
            asm!(
                "call r11",
                in("r11") self.address,
                inlateout("rax") nr => result,
                in("rdi") args[0],
                in("rsi") args[1],
                in("rdx") args[2],
                in("rcx") args[3],
                in("r8") args[4],
                in("r9") args[5],
            );
        }
        result
    }

    /// Calls with today's KVM convention: number in RAX, arguments in RBX RCX RDX RSI.
    ///
    /// # Safety
    ///
    /// As for [`para`](Self::para).
    pub unsafe fn kvm(self, nr: u64, args: [u64; 4]) -> u64 {
        let result;
        // SAFETY: as in `para`. The compiler reserves RBX, so it is swapped in and back.
        unsafe {
            asm!(
                "xchg rbx, r10",
                "call r11",
                "xchg rbx, r10",
                in("r11") self.address,
                inlateout("rax") nr => result,
                in("r10") args[0],
                in("rcx") args[1],
                in("rdx") args[2],
                in("rsi") args[3],
            );
        }
        result
    }

    /// Calls with Xen's convention: number in RAX, arguments in RDI RSI RDX R10 R8 R9.
    ///
    /// # Safety
    ///
    /// As for [`para`](Self::para).
    pub unsafe fn xen(self, nr: u64, args: [u64; 6]) -> u64 {
        let result;
        // SAFETY: as in `para`.
        unsafe {
            asm!(
                "call r11",
                in("r11") self.address,
                inlateout("rax") nr => result,
                in("rdi") args[0],
                in("rsi") args[1],
                in("rdx") args[2],
                in("r10") args[3],
                in("r8") args[4],
                in("r9") args[5],
            );
        }
        result
    }

    /// Calls with any convention. Registers are set by [`Convention::set_call`]; the others are 0.
    ///
    /// # Safety
    ///
    /// As for [`para`](Self::para).
    pub unsafe fn call(self, convention: Convention, call: &Call) -> u64 {
        let mut r = Registers::default();
        convention.set_call(Width::Long, &mut r, call);
        let result;
        // SAFETY: as in `para`. RBX and RBP are swapped in and back as in `kvm`.
        unsafe {
            asm!(
                "xchg rbx, r12",
                "xchg rbp, r13",
                "call r11",
                "xchg rbp, r13",
                "xchg rbx, r12",
                in("r11") self.address,
                inlateout("rax") r.rax => result,
                in("r12") r.rbx,
                in("rcx") r.rcx,
                in("rdx") r.rdx,
                in("rsi") r.rsi,
                in("rdi") r.rdi,
                in("r13") r.rbp,
                in("r8") r.r8,
                in("r9") r.r9,
                in("r10") r.r10,
            );
        }
        result
    }
}

#[cfg(test)]
mod tests;
