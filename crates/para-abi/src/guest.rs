// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's half: what a Rust kernel needs to register its vCPUs and to call its host (x86-64, ELF).
//!
//! - [`ParaPage`], one per vCPU, in memory that the kernel can name by guest-physical address.
//! - [`HypercallStub::built_in`]: six bytes of code that return -38 until a host patches the first four of
//!   them. They are aligned to 4, so a host can do that with one store while other vCPUs run.
//! - [`register`]: presets the page, has the caller write the MSR, and says what came of it.
//! - [`HypercallStub::para`], [`kvm`](HypercallStub::kvm) and [`xen`](HypercallStub::xen): calls by the three
//!   64-bit conventions. They change RAX only.
//! - [`wrmsr`] and [`wrmsr_fixup`]: the instruction, and the line that a #GP handler needs to survive it on a
//!   host that doesn't know the MSR. A kernel that has a fault-safe `wrmsr` of its own passes that instead.
//!
//! Both addresses are guest-*physical* and 64 bits wide. The guests of 2007 passed 0 for the upper half of
//! the page's address, so a page above 4 GiB registered another page, which the host then wrote to (hole H14). No
//! host can tell; [`register`] takes a `u64` and [`wrmsr`] passes all of it.
//!
//! Calls reach the stub by an indirect call without `endbr64`, for which the ABI's six bytes have no room: a
//! kernel that enforces indirect branch tracking has to switch it off around them.
//!
//! # Example: a bare guest
//!
//! ```no_run
//! use para_abi::guest::{HypercallStub, ParaPage, register, wrmsr, wrmsr_fixup};
//! use para_abi::{Registration, vmm};
//!
//! /// This kernel's image is mapped at a fixed distance from where it lies.
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
//! /// What the handler of vector 13 does first.
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

// The one file with unsafe code: instructions that Rust has no name for, and calls into patched code.
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

/// A [`kvm_vcpu_para_state`](crate::kvm_vcpu_para_state) that a host writes behind the compiler's back.
///
/// One per vCPU, in memory that is never freed: a host keeps the address. Its fields are atomics, so that
/// a `static` of it needs no lock; only the vCPU it belongs to registers it.
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
    /// A page that isn't registered, all zeros.
    pub const fn new() -> Self {
        Self {
            guest_version: AtomicU32::new(0),
            host_version: AtomicU32::new(0),
            size: AtomicU32::new(0),
            ret: AtomicU32::new(0),
            hypercall_gpa: AtomicU64::new(0),
        }
    }

    /// The page's virtual address, to translate into the guest-physical one.
    pub fn address(&self) -> usize {
        (&raw const *self).expose_provenance()
    }

    /// What the page holds now.
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

    /// Makes the compiler take the page for changed: the host knows it by an address that no pointer shows.
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
/// a 64-bit value to an MSR, low half in EAX and high half in EDX, and says whether that was #GP. See
/// [`wrmsr`], or the module's example.
///
/// # Safety
///
/// The host writes `host_version` and `ret` to `page_gpa` and four bytes to `hypercall_gpa`, whatever is
/// there. So `page_gpa` is `page`'s address and stays it while the vCPU lives, and at `hypercall_gpa` are
/// four bytes on one page that are code, that no vCPU is in the middle of, and that may become another
/// instruction of up to 3 bytes and a `ret`. `wrmsr` does what is said above.
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

/// Asks whether there is a host of this ABI, and changes nothing that it keeps: a guest of version
/// [`u32::MAX`] is refused by every host. Look at [`Registration::host_version`].
///
/// # Safety
///
/// The host writes `host_version` and `ret` to `page_gpa`, so that is `page`'s address. `wrmsr` is as for
/// [`register`].
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
/// [`GpFault`] if it raised #GP(0) and the kernel's handler used [`wrmsr_fixup`].
///
/// # Safety
///
/// CPL 0, and the kernel's #GP handler resumes at what [`wrmsr_fixup`] returns. Writing this value to this
/// MSR must be sound: MSRs can do anything.
pub unsafe fn wrmsr(index: u32, value: u64) -> Result<(), GpFault> {
    // SAFETY: the function is the assembly above, it follows the calling convention on both ways out, and
    // the caller answers for the write and the handler.
    match unsafe { para_abi_wrmsr(index, value) } {
        0 => Ok(()),
        _ => Err(GpFault),
    }
}

/// For a #GP handler: where to resume if `rip` is the instruction of [`wrmsr`], which then returns an error.
///
/// `None` is a fault of somebody else.
pub fn wrmsr_fixup(rip: u64) -> Option<u64> {
    let address = |symbol: *const u8| symbol.expose_provenance() as u64;
    (rip == address(&raw const para_abi_wrmsr_insn))
        .then(|| address(&raw const para_abi_wrmsr_fault))
}

/// Code that reaches the host when it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HypercallStub {
    address: usize,
}

impl HypercallStub {
    /// The stub of this crate, one for all vCPUs: [`STUB_UNPATCHED`](crate::STUB_UNPATCHED) in the section
    /// `.text.para_abi`, symbol `para_abi_hypercall`, aligned to 4.
    ///
    /// Until a host patches it, calls return [`STUB_UNPATCHED_RESULT`](crate::STUB_UNPATCHED_RESULT).
    pub fn built_in() -> Self {
        let stub = &raw const para_abi_hypercall;
        Self {
            address: stub.expose_provenance(),
        }
    }

    /// A stub elsewhere, a slot of a Xen hypercall page for instance.
    ///
    /// # Safety
    ///
    /// At `address` is executable code that can be called, returns by `ret` and changes RAX and flags only, which
    /// Hyper-V's calls don't promise; six bytes there can be read. Both hold as long as the value is used.
    pub const unsafe fn at(address: usize) -> Self {
        Self { address }
    }

    /// The stub's virtual address, to translate into the guest-physical one.
    pub const fn address(self) -> usize {
        self.address
    }

    /// The bytes that stand there now; they say which stub a host chose. Bytes 4 and 5 stay the guest's.
    pub fn bytes(self) -> [u8; STUB_LEN] {
        let start = core::ptr::with_exposed_provenance::<u8>(self.address);
        let read = |at| {
            // SAFETY: six bytes can be read there, by the contract of `at` or as the symbol's size;
            // volatile, since a host changes them.
            unsafe { start.wrapping_add(at).read_volatile() }
        };
        // `array::from_fn` calls memset when it is not optimized; code that was copied into a guest has none.
        [read(0), read(1), read(2), read(3), read(4), read(5)]
    }

    /// Calls by the convention of 2007: RAX, RDI RSI RDX RCX R8 R9.
    ///
    /// # Safety
    ///
    /// What the host does for this call must be sound; calls can write any memory of the guest. And the caller
    /// is at the privilege level that the stub needs: a patched VMCALL outside a VM is #UD.
    pub unsafe fn para(self, nr: u64, args: [u64; 6]) -> u64 {
        let result;
        // SAFETY: the stub returns and changes RAX and flags only, as `at` demands and patches promise. No
        // `nostack`: the call pushes. The caller answers for the host's side.
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

    /// Calls by today's KVM convention: RAX, RBX RCX RDX RSI.
    ///
    /// # Safety
    ///
    /// As for [`para`](Self::para).
    pub unsafe fn kvm(self, nr: u64, args: [u64; 4]) -> u64 {
        let result;
        // SAFETY: as in `para`. The compiler keeps RBX to itself, so it is lent and given back.
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

    /// Calls by Xen's convention: RAX, RDI RSI RDX R10 R8 R9.
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

    /// Calls by any convention, all registers as [`Convention::set_call`] puts them, the others 0.
    ///
    /// # Safety
    ///
    /// As for [`para`](Self::para).
    pub unsafe fn call(self, convention: Convention, call: &Call) -> u64 {
        let mut r = Registers::default();
        convention.set_call(Width::Long, &mut r, call);
        let result;
        // SAFETY: as in `para`, and RBX and RBP are lent and given back as in `kvm`.
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
