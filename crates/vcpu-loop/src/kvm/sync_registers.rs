// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vCPU's registers, shared in its run page.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, kvm_regs};

use crate::sys::run_page::{
    EFER_UNFILLED, Mapping, REGS_WORDS, RFLAGS, regs_from_words, words_from_regs,
};

/// EFER.LMA, the CPU is in long mode (AMD APM, volume 2, section 3.1.7).
const EFER_LMA: u64 = 1 << 10;

/// The privilege level and mode of the code that a vCPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuMode {
    /// The current privilege level, 0 to 3.
    pub cpl: u8,
    /// Whether the code is 64-bit code. Compatibility mode is not.
    pub long_mode: bool,
}

/// A general register that hypercalls use, by its index in `kvm_regs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeneralRegister {
    /// RAX.
    Rax = word_of(offset_of!(kvm_regs, rax)),
    /// RBX.
    Rbx = word_of(offset_of!(kvm_regs, rbx)),
    /// RCX.
    Rcx = word_of(offset_of!(kvm_regs, rcx)),
    /// RDX.
    Rdx = word_of(offset_of!(kvm_regs, rdx)),
    /// RSI.
    Rsi = word_of(offset_of!(kvm_regs, rsi)),
    /// RDI.
    Rdi = word_of(offset_of!(kvm_regs, rdi)),
    /// RBP.
    Rbp = word_of(offset_of!(kvm_regs, rbp)),
    /// R8.
    R8 = word_of(offset_of!(kvm_regs, r8)),
    /// R9.
    R9 = word_of(offset_of!(kvm_regs, r9)),
    /// R10.
    R10 = word_of(offset_of!(kvm_regs, r10)),
}

const fn word_of(offset: usize) -> isize {
    (offset / size_of::<u64>()) as isize
}

/// A vCPU's registers without a system call (`KVM_CAP_SYNC_REGS`).
///
/// Once [`share`](SyncRegisters::share) is called, KVM copies the registers to the run page at every exit. At the next
/// entry, it reads the general registers back if they were set. The values are valid only on the vCPU's thread, while
/// an exit is being answered, and if they [`are_filled`](SyncRegisters::are_filled). At other times they are stale but
/// harmless. Don't change RIP while an access is incomplete: KVM advances it.
#[derive(Clone, Debug)]
pub struct SyncRegisters {
    mapping: Arc<Mapping>,
}

impl SyncRegisters {
    pub(super) fn new(mapping: Arc<Mapping>) -> Self {
        SyncRegisters { mapping }
    }

    /// Has KVM share the general registers and, with `mode`, those that [`mode`](SyncRegisters::mode) reads. Any thread
    /// may call it. KVM checks when the vCPU leaves the guest, so every exit that starts after this call has the
    /// registers. An exit in progress may not: see [`are_filled`](SyncRegisters::are_filled). Sharing can't be turned
    /// off, and makes KVM copy a few hundred bytes per exit.
    pub fn share(&self, mode: bool) {
        let mut valid = u64::from(KVM_SYNC_X86_REGS);
        if mode {
            valid |= u64::from(KVM_SYNC_X86_SREGS);
        }
        self.mapping.valid_regs().fetch_or(valid, Ordering::SeqCst);
    }

    /// Whether the exit that is being answered has all registers that [`share`](SyncRegisters::share) asked for. If
    /// not, `share` was called too late for this exit. Then don't set registers, because that might overwrite all of
    /// the vCPU's with zeros, and don't read those that the last `share` added.
    #[inline]
    pub fn are_filled(&self) -> bool {
        let wants = self.mapping.valid_regs().load(Ordering::Relaxed);
        let wants_mode = wants & u64::from(KVM_SYNC_X86_SREGS) != 0;
        // KVM copies on this thread, before `KVM_RUN` returns, so the registers are never partly copied.
        let has_mode = self.mapping.efer().load(Ordering::Relaxed) != EFER_UNFILLED;
        self.mapping.regs()[RFLAGS].load(Ordering::Relaxed) != 0 && (has_mode || !wants_mode)
    }

    /// The mode of the code that exited. Valid if [`share`](SyncRegisters::share) asked for it and the registers
    /// [`are_filled`](SyncRegisters::are_filled).
    ///
    /// The privilege level is the DPL of SS, as both vendors define it (Intel SDM, volume 3, section 25.4.1
    /// "Guest Register State"; AMD APM, volume 2, section 15.5.1) and KVM on both do.
    pub fn mode(&self) -> CpuMode {
        let lma = self.mapping.efer().load(Ordering::Relaxed) & EFER_LMA != 0;
        CpuMode {
            cpl: self.mapping.ss_dpl().load(Ordering::Relaxed) & 3,
            long_mode: lma && self.mapping.cs_l().load(Ordering::Relaxed) != 0,
        }
    }

    /// One register at the exit. Cheaper than [`get`](SyncRegisters::get).
    #[inline]
    pub fn general(&self, register: GeneralRegister) -> u64 {
        self.mapping.regs()[register as usize].load(Ordering::Relaxed)
    }

    /// All general registers at the exit.
    pub fn get(&self) -> kvm_regs {
        let mut words = [0u64; REGS_WORDS];
        for (word, shared) in words.iter_mut().zip(self.mapping.regs()) {
            *word = shared.load(Ordering::Relaxed);
        }
        regs_from_words(words)
    }

    /// Changes RAX at the next entry. The other registers keep their values from the exit, so they must be
    /// [filled](SyncRegisters::are_filled). Cheaper than [`set`](SyncRegisters::set).
    pub fn set_rax(&self, rax: u64) {
        self.mapping.regs()[GeneralRegister::Rax as usize].store(rax, Ordering::Relaxed);
        self.set_dirty();
    }

    /// Changes all general registers at the next entry.
    pub fn set(&self, regs: &kvm_regs) {
        let words = words_from_regs(*regs);
        for (word, shared) in words.iter().zip(self.mapping.regs()) {
            shared.store(*word, Ordering::Relaxed);
        }
        self.set_dirty();
    }

    /// Has KVM read back the general registers, the only ones that can be set here.
    fn set_dirty(&self) {
        let dirty = u64::from(KVM_SYNC_X86_REGS);
        self.mapping.dirty_regs().store(dirty, Ordering::Relaxed);
    }
}
