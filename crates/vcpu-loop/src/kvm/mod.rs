// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The KVM back end: [`KvmVcpu`] and its saved state.

mod coalesced;
mod cpuid;
mod decode;
mod dump;
#[cfg(feature = "serde")]
pub mod hex;
mod nested;
pub mod seccomp;
mod state;
mod stopped;
mod sync_registers;
mod tsc;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_CAP_SREGS2, KVM_EXIT_INTR, KVM_EXIT_MEMORY_FAULT, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS,
    kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

pub use coalesced::CoalescedRing;
pub use dump::ReadGuest;
pub use state::{Sregs2Extra, VcpuState};
pub use sync_registers::{CpuMode, GeneralRegister, SyncRegisters};
pub use tsc::{HostMoment, TscOffset, TscState};

use crate::exit::{CoalescedWrites, Details, Exit};
use crate::kick::Kick;
use crate::report::CpuDump;
use crate::sys::calls;
use crate::sys::run_page::{RunFlag, RunPage};
use crate::vcpu::{ManagedVcpu, SaveVcpu, Vcpu};
use coalesced::Coalesced;
use stopped::Stopped;

/// A host failure of a KVM vCPU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// KVM refused a call.
    #[error("KVM refused {call} for a vCPU, the cause below says why")]
    Call {
        /// The call's name in the KVM API documentation.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The run page could not be mapped.
    #[error("can't map a vCPU's run page, raise the process's memory limit")]
    Map {
        /// Why.
        source: io::Error,
    },
    /// KVM is too old for this crate.
    #[error("this host's KVM has no {capability}, boot a kernel of version {since} or later")]
    Missing {
        /// The capability's name in the KVM API documentation.
        capability: &'static str,
        /// The first Linux that has it.
        since: &'static str,
    },
    /// A save or restore was called while an access of the guest is incomplete. The vCPU is unchanged.
    #[error(
        "a vCPU's access is incomplete: before a save, call complete() until Exit::Interrupted; before a restore, call abandon() and then replace guest memory"
    )]
    Incomplete,
    /// One instruction did not complete within the number of exits that any instruction needs.
    #[error("a vCPU's access never completes, so it can't be restored in place: create a new vCPU")]
    NeverCompletes,
    /// The saved state doesn't fit this host, or its CPUID differs from this vCPU's, which already ran. The vCPU is
    /// unchanged.
    #[error(
        "the saved state has {what} that this vCPU can't take and nothing was changed, restore it into a new vCPU on a host like the one that saved it"
    )]
    Misfit {
        /// Which part.
        what: &'static str,
    },
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

fn call<T>(
    call: &'static str,
    result: std::result::Result<T, vmm_sys_util::errno::Error>,
) -> Result<T> {
    result.map_err(|error| Error::Call {
        call,
        source: io::Error::from_raw_os_error(error.errno()),
    })
}

/// What vCPUs need to know about the host's KVM. Probed once, shared by all vCPUs.
#[derive(Clone, Debug)]
pub struct KvmHost {
    /// A duplicated descriptor, for [`KvmHost::xsave_size`].
    kvm: Arc<Kvm>,
    run_size: usize,
    sregs2: bool,
    nested: bool,
    sync_regs: bool,
    msrs: Vec<u32>,
}

impl KvmHost {
    /// Asks KVM for sizes, capabilities and the list of MSRs to save. It adds the MTRRs, which KVM doesn't list.
    ///
    /// # Errors
    /// KVM refused one of the calls, or doesn't support kicks ([`Error::Missing`]), or the process has no file
    /// descriptor left.
    pub fn probe(kvm: &Kvm) -> Result<Arc<Self>> {
        let listed = call("KVM_GET_MSR_INDEX_LIST", kvm.get_msr_index_list())?;
        let mut msrs = listed.as_slice().to_vec();
        msrs.extend(mtrrs().filter(|mtrr| !listed.as_slice().contains(mtrr)));
        Self::with_msrs(kvm, msrs)
    }

    /// Like [`KvmHost::probe`], with the caller's list of MSRs to save: up to 4,096, because a restore refuses a state
    /// with more.
    ///
    /// # Errors
    /// As [`KvmHost::probe`].
    pub fn with_msrs(kvm: &Kvm, msrs: Vec<u32>) -> Result<Arc<Self>> {
        let sync_regs = shares_registers(kvm);
        require_kicks(sync_regs, || kvm.check_extension_int(Cap::ImmediateExit))?;
        let own = calls::duplicate_kvm(kvm).map_err(|source| Error::Call {
            call: "F_DUPFD_CLOEXEC",
            source,
        })?;
        Ok(Arc::new(KvmHost {
            kvm: Arc::new(own),
            run_size: call("KVM_GET_VCPU_MMAP_SIZE", kvm.get_vcpu_mmap_size())?,
            sregs2: kvm.check_extension_raw(u64::from(KVM_CAP_SREGS2)) > 0,
            nested: kvm.check_extension_raw(u64::from(kvm_bindings::KVM_CAP_NESTED_STATE)) > 0,
            sync_regs,
            msrs,
        }))
    }

    /// `KVM_CAP_XSAVE2`, or at least the classic size, in bytes: the size of a vCPU's XSAVE area in KVM's calls.
    ///
    /// It depends on the components that the process may use in guests (`ARCH_REQ_XCOMP_GUEST_PERM`, for AMX). So it
    /// may grow until the process creates its first vCPU, which locks that permission. The parameter proves that a vCPU
    /// exists.
    fn xsave_size(&self, _existing: &VcpuFd) -> usize {
        let size = self.kvm.check_extension_int(Cap::Xsave2);
        usize::try_from(size)
            .unwrap_or(0)
            .max(size_of::<kvm_xsave>())
    }

    /// The MSRs that are saved.
    pub fn msrs(&self) -> &[u32] {
        &self.msrs
    }
}

/// Whether vCPUs of this KVM have [`SyncRegisters`]: it can share general registers and segments
/// (`KVM_CAP_SYNC_REGS`). Every KVM that shares registers shares both.
pub fn shares_registers(kvm: &Kvm) -> bool {
    // An error is negative.
    let shared = u32::try_from(kvm.check_extension_int(Cap::SyncRegs)).unwrap_or(0);
    let wanted = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
    shared & wanted == wanted
}

/// Kicks need `KVM_CAP_IMMEDIATE_EXIT` (Linux 4.13). A KVM that shares registers (4.17) has it, so this saves a call.
fn require_kicks(sync_regs: bool, immediate_exit: impl FnOnce() -> i32) -> Result<()> {
    match sync_regs || immediate_exit() > 0 {
        true => Ok(()),
        false => Err(Error::Missing {
            capability: "KVM_CAP_IMMEDIATE_EXIT",
            since: "4.13",
        }),
    }
}

/// KVM's memory type range registers: default type, fixed ranges, eight variable ranges (Intel SDM, volume 3,
/// section 12.11).
fn mtrrs() -> impl Iterator<Item = u32> {
    let fixed = [0x250, 0x258, 0x259].into_iter().chain(0x268..=0x26f);
    fixed.chain(0x200..=0x20f).chain([0x2ff])
}

/// Maximum number of exits that [`SaveVcpu::abandon`] answers to finish an incomplete access.
const MAX_COMPLETIONS: u32 = 65_536;

/// How many rejected MSRs a log line names.
const LOGGED_MSRS: usize = 8;

/// A KVM vCPU.
///
/// It decodes exits from its own mapping of the run page. kvm-ioctls' `run()` merges `count` and `size` of string port
/// I/O into one length, and its `&mut kvm_run` rules out a sound kick from another thread.
pub struct KvmVcpu {
    fd: VcpuFd,
    page: RunPage,
    details: Details,
    host: Arc<KvmHost>,
    memory: Option<Box<dyn ReadGuest>>,
    /// The last exit's instruction may be incomplete until the next `KVM_RUN`.
    incomplete: bool,
    /// The size of the XSAVE area in KVM's calls, in bytes.
    xsave_size: usize,
    skipped_msrs: Vec<u32>,
    stopped: Stopped,
    coalesced: Coalesced,
}

impl fmt::Debug for KvmVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmVcpu")
            .field("fd", &self.fd)
            .field("incomplete", &self.incomplete)
            .field("memory", &self.memory.is_some())
            .finish_non_exhaustive()
    }
}

impl KvmVcpu {
    /// Takes a vCPU from kvm-ioctls. Set it up (CPUID, registers) before or through [`KvmVcpu::fd`].
    ///
    /// # Errors
    /// The run page could not be mapped.
    pub fn new(fd: VcpuFd, host: &Arc<KvmHost>) -> Result<Self> {
        let page = RunPage::map(&fd, host.run_size).map_err(|source| Error::Map { source })?;
        Ok(KvmVcpu {
            xsave_size: host.xsave_size(&fd),
            fd,
            page,
            details: Details::default(),
            host: Arc::clone(host),
            memory: None,
            incomplete: false,
            skipped_msrs: Vec::new(),
            stopped: Stopped::NEVER,
            coalesced: Coalesced::default(),
        })
    }

    /// Sets the reader with which reports read the bytes at the instruction pointer.
    #[must_use]
    pub fn with_memory(mut self, memory: impl ReadGuest + 'static) -> Self {
        self.memory = Some(Box::new(memory));
        self
    }

    /// Sets the shortest pause that the guest's kvmclock reports (`KVM_KVMCLOCK_CTRL`), so that its watchdogs don't
    /// fire because of the pause. The default is one second, the shortest time-out of Linux's watchdogs. A restore is
    /// always reported, the start never.
    #[must_use]
    pub fn with_noticeable_pause(mut self, pause: Duration) -> Self {
        self.stopped.set_noticeable(pause);
        self
    }

    /// The vCPU, for any call but `KVM_RUN`.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Has KVM share the general registers from the next exit; see [`SyncRegisters`]. `None` if this KVM can't share
    /// general registers and segments.
    pub fn sync_registers(&self) -> Option<SyncRegisters> {
        let registers = self.unshared_registers()?;
        registers.share(false);
        Some(registers)
    }

    /// Like [`sync_registers`](KvmVcpu::sync_registers), but KVM shares nothing before [`SyncRegisters::share`] is
    /// called, so exits cost nothing more until then.
    pub fn unshared_registers(&self) -> Option<SyncRegisters> {
        let shares = self.host.sync_regs;
        shares.then(|| SyncRegisters::new(self.page.mapping()))
    }

    /// Whether, from the next entry, the vCPU exits with [`Exit::InterruptWindow`] as soon as its guest can take an
    /// interrupt. For VMs without in-kernel LAPIC, where the VMM injects interrupts.
    pub fn request_interrupt_window(&mut self, wanted: bool) {
        self.page.request_interrupt_window(wanted);
    }

    /// The MSRs that KVM rejected at the last restore. They don't have their saved values.
    pub fn skipped_msrs(&self) -> &[u32] {
        &self.skipped_msrs
    }

    #[inline]
    fn enter(&mut self) -> Result<Exit<'_>> {
        if self.coalesced.has_ring() {
            return self.enter_coalescing();
        }
        let entered = self.page.enter(&self.fd);
        self.exit(entered)
    }

    /// Delivers the writes in the ring before the exit at which they are found.
    fn enter_coalescing(&mut self) -> Result<Exit<'_>> {
        match self.coalesced.next(|| self.page.enter(&self.fd)) {
            Some(entered) => self.exit(entered),
            None => {
                self.incomplete = true;
                Ok(Exit::Coalesced(CoalescedWrites(&self.coalesced)))
            }
        }
    }

    /// The exit of the `KVM_RUN` that returned `entered`.
    #[inline]
    fn exit(&mut self, entered: io::Result<()>) -> Result<Exit<'_>> {
        if let Err(error) = entered
            && let Some(interrupted) = self.failed_entry(error)?
        {
            return Ok(interrupted);
        }
        if self.page.exit_reason() == KVM_EXIT_INTR {
            return Ok(self.interrupted());
        }
        let exit = decode::decode(&mut self.page, &mut self.details);
        self.incomplete = exit.needs_completion();
        Ok(exit)
    }

    /// Handles an error of `KVM_RUN`: returns an interruption, or `None` if the run page has an exit.
    #[cold]
    fn failed_entry(&mut self, error: io::Error) -> Result<Option<Exit<'static>>> {
        match error.raw_os_error() {
            Some(libc::EINTR) => Ok(Some(self.interrupted())),
            // The only exit that comes with an error (KVM API, `KVM_EXIT_MEMORY_FAULT`).
            Some(libc::EFAULT | libc::EHWPOISON)
                if self.page.exit_reason() == KVM_EXIT_MEMORY_FAULT =>
            {
                Ok(None)
            }
            _ => Err(Error::Call {
                call: "KVM_RUN",
                source: error,
            }),
        }
    }

    /// *clear* in the protocol of [`crate::kick`]; the caller drains its mailbox afterwards.
    fn interrupted(&mut self) -> Exit<'static> {
        self.page.clear_exit_request();
        self.incomplete = false;
        Exit::Interrupted
    }
}

impl Vcpu for KvmVcpu {
    type Error = Error;

    #[inline]
    fn run(&mut self) -> Result<Exit<'_>> {
        self.enter()
    }

    /// `KVM_RUN` with `immediate_exit`: KVM finishes the pending access, then returns `EINTR`.
    fn complete(&mut self) -> Result<Exit<'_>> {
        self.page.request_exit();
        self.enter()
    }
}

impl SaveVcpu for KvmVcpu {
    type State = VcpuState;

    fn save(&mut self) -> Result<VcpuState> {
        if self.incomplete {
            return Err(Error::Incomplete);
        }
        state::save(&self.fd, &self.host, self.xsave_size)
    }

    /// `KVM_RUN` with `immediate_exit`, until nothing is pending. Further reads of the same instruction return all
    /// ones.
    ///
    /// # Errors
    /// KVM refused the call, or [`Error::NeverCompletes`].
    fn abandon(&mut self) -> Result<()> {
        drop(self.coalesced.take_held());
        for _ in 0..MAX_COMPLETIONS {
            if !self.incomplete {
                return Ok(());
            }
            self.page.request_exit();
            // Coalesced writes stay in the ring: they may be another vCPU's.
            let entered = self.page.enter(&self.fd);
            if let Exit::PioIn { data, .. } | Exit::MmioRead { data, .. } = self.exit(entered)? {
                data.fill(0xff);
            }
        }
        Err(Error::NeverCompletes)
    }

    /// MSRs that KVM rejects are skipped, logged, and listed by [`KvmVcpu::skipped_msrs`].
    ///
    /// After [`Error::Incomplete`] and [`Error::Misfit`] the vCPU is unchanged.
    fn restore(&mut self, saved: &VcpuState) -> Result<()> {
        // Otherwise, KVM would finish the old access in the new state.
        if self.incomplete {
            return Err(Error::Incomplete);
        }
        let xsave = state::fit(&self.fd, saved, self.xsave_size)?;
        self.page.forget_sync_registers();
        self.stopped.restored();
        self.skipped_msrs = state::restore(&self.fd, &self.host, saved, &xsave)?;
        // Without an in-kernel LAPIC, every entry sets CR8 from the run page.
        self.page.set_cr8(saved.sregs.cr8);
        if !self.skipped_msrs.is_empty() {
            let count = self.skipped_msrs.len();
            let first = &self.skipped_msrs[..count.min(LOGGED_MSRS)];
            log::warn!("KVM rejected the saved values of {count} MSRs, the first are {first:#x?}");
        }
        Ok(())
    }

    fn left_unchanged(error: &Error) -> bool {
        matches!(error, Error::Incomplete | Error::Misfit { .. })
    }
}

impl Kick for RunFlag {
    fn request_exit(&self) {
        self.raise();
    }
}

impl ManagedVcpu for KvmVcpu {
    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::new(self.page.kicker())
    }

    fn paused(&mut self) -> Result<()> {
        self.stopped.paused(Instant::now());
        Ok(())
    }

    /// Reports a pause through the guest's kvmclock if it was long enough; see [`KvmVcpu::with_noticeable_pause`]. KVM
    /// writes the flag only at the next entry. If this were called at the pause, a snapshot would not contain the flag.
    /// Without a kvmclock in the guest, KVM returns `EINVAL`.
    fn resuming(&mut self) -> Result<()> {
        if !self.stopped.resuming(Instant::now()) {
            return Ok(());
        }
        match self.fd.kvmclock_ctrl() {
            Err(error) if error.errno() != libc::EINVAL => call("KVM_KVMCLOCK_CTRL", Err(error)),
            _ => Ok(()),
        }
    }

    fn dump(&mut self) -> Option<CpuDump> {
        dump::dump(&self.fd, self.memory.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_that_cannot_be_kicked_is_refused() {
        assert!(require_kicks(false, || 1).is_ok());
        assert!(require_kicks(true, || unreachable!("not asked")).is_ok());
        for answer in [0, -1] {
            let error = require_kicks(false, || answer).unwrap_err();
            assert_eq!(
                error.to_string(),
                "this host's KVM has no KVM_CAP_IMMEDIATE_EXIT, boot a kernel of version 4.13 or later"
            );
        }
    }
}
