// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The run page of a vCPU, which this process shares with KVM.
//!
//! The page is mapped a second time, in addition to kvm-ioctls' mapping. Other threads store to
//! `immediate_exit` while the vCPU runs, and kvm-ioctls creates a `&mut kvm_run` from *its* mapping
//! (rust-vmm/kvm issue 373), which would make such a store undefined behaviour. Nothing here ever creates a
//! reference to the whole `kvm_run`. Accesses through this mapping:
//!
//! | bytes | accessed by |
//! |---|---|
//! | `immediate_exit` | any thread, as [`AtomicU8`] |
//! | `kvm_valid_regs`, `kvm_dirty_regs`, `s.regs.regs` | any thread, as [`AtomicU64`] |
//! | `s.regs.sregs`: `efer` | any thread, as [`AtomicU64`], only read after [`RunPage::map`] |
//! | `s.regs.sregs`: `ss.dpl`, `cs.l` | any thread, as [`AtomicU8`], only read |
//! | the ring of coalesced writes, in the page after the data area | any thread: the indices atomically, the entries with the ring's lock |
//! | `exit_reason`, `request_interrupt_window`, `cr8`, the exit's union, the data area | the owner of [`RunPage`], between two `KVM_RUN` |
//!
//! The kernel writes the page only during `KVM_RUN`, which takes `&mut RunPage`, so no reference from the owner is
//! alive then.

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use kvm_bindings::{
    KVM_COALESCED_MMIO_PAGE_OFFSET, KVMIO, kvm_hyperv_exit,
    kvm_hyperv_exit__bindgen_ty_1__bindgen_ty_1 as HvSynic,
    kvm_hyperv_exit__bindgen_ty_1__bindgen_ty_2 as HvHcall,
    kvm_hyperv_exit__bindgen_ty_1__bindgen_ty_3 as HvSynDbg, kvm_regs, kvm_run,
    kvm_run__bindgen_ty_1, kvm_run__bindgen_ty_1__bindgen_ty_1 as HardwareArm,
    kvm_run__bindgen_ty_1__bindgen_ty_2 as FailEntryArm,
    kvm_run__bindgen_ty_1__bindgen_ty_3 as ExceptionArm,
    kvm_run__bindgen_ty_1__bindgen_ty_4 as IoArm, kvm_run__bindgen_ty_1__bindgen_ty_5 as DebugArm,
    kvm_run__bindgen_ty_1__bindgen_ty_6 as MmioArm,
    kvm_run__bindgen_ty_1__bindgen_ty_8 as HypercallArm,
    kvm_run__bindgen_ty_1__bindgen_ty_9 as TprArm,
    kvm_run__bindgen_ty_1__bindgen_ty_13 as InternalArm,
    kvm_run__bindgen_ty_1__bindgen_ty_19 as SystemEventArm,
    kvm_run__bindgen_ty_1__bindgen_ty_21 as EoiArm, kvm_run__bindgen_ty_1__bindgen_ty_23 as MsrArm,
    kvm_run__bindgen_ty_1__bindgen_ty_26 as NotifyArm,
    kvm_run__bindgen_ty_1__bindgen_ty_27 as MemoryFaultArm, kvm_xen_exit,
    kvm_xen_exit__bindgen_ty_1__bindgen_ty_1 as XenHcall,
};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;

mod ring;

pub(crate) use ring::Ring;

vmm_sys_util::ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);

const PAGE: usize = 4096;

/// The ring's page number in the mapping, on x86.
pub(crate) const RING_PAGE: usize = KVM_COALESCED_MMIO_PAGE_OFFSET as usize;
const RING: usize = RING_PAGE * PAGE;

/// `kvm_regs` is 18 words: RAX to R15, RIP, RFLAGS.
pub(crate) const REGS_WORDS: usize = size_of::<kvm_regs>() / 8;

/// The index of RFLAGS in these words. A value of 0 means that KVM has not yet copied general registers into the page,
/// because bit 1 is always 1 (Intel SDM, volume 1, section 3.4.3).
pub(crate) const RFLAGS: usize = offset_of!(kvm_regs, rflags) / size_of::<u64>();

/// This EFER means that KVM has not yet copied segments into the page: no CPU has all bits.
pub(crate) const EFER_UNFILLED: u64 = u64::MAX;

/// A shared mapping of a vCPU's run page and the pages after it, unmapped with its last owner.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread. Shared bytes are only accessed as the module's docs say.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this range. There are no references into it any more, because all references
        // borrow from an owner of this `Mapping`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl Mapping {
    fn new(fd: &impl AsRawFd, len: usize) -> io::Result<Self> {
        if len < size_of::<kvm_run>() {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        // SAFETY: a new mapping at an address that the kernel chooses affects no existing memory.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(base.cast()) {
            Some(base) => Ok(Mapping { base, len }),
            None => Err(io::Error::other("a mapping at address 0")),
        }
    }

    fn run(&self) -> *mut kvm_run {
        self.base.as_ptr().cast()
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the byte is in the mapping (checked in `new`), lives as long as `self`, and is only
        // accessed through this function.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run()).immediate_exit) }
    }

    pub(crate) fn valid_regs(&self) -> &AtomicU64 {
        // SAFETY: as in `immediate_exit`; the field is 8-byte aligned in a page-aligned structure.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.run()).kvm_valid_regs) }
    }

    pub(crate) fn dirty_regs(&self) -> &AtomicU64 {
        // SAFETY: as in `valid_regs`.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.run()).kvm_dirty_regs) }
    }

    pub(crate) fn regs(&self) -> &[AtomicU64; REGS_WORDS] {
        // SAFETY: as in `valid_regs`; `kvm_regs` is an array of `u64` fields without padding, and
        // `AtomicU64` has the layout of `u64`.
        unsafe { &*(&raw mut (*self.run()).s.regs.regs).cast::<[AtomicU64; REGS_WORDS]>() }
    }

    pub(crate) fn ss_dpl(&self) -> &AtomicU8 {
        // SAFETY: the byte is in the mapping and lives as long as `self`. This process only reads it, through this
        // function.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run()).s.regs.sregs.ss.dpl) }
    }

    pub(crate) fn cs_l(&self) -> &AtomicU8 {
        // SAFETY: as in `ss_dpl`.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run()).s.regs.sregs.cs.l) }
    }

    pub(crate) fn efer(&self) -> &AtomicU64 {
        // SAFETY: as in `valid_regs`.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.run()).s.regs.sregs.efer) }
    }
}

/// The owner's view of a vCPU's run page.
#[derive(Debug)]
pub(crate) struct RunPage {
    mapping: Arc<Mapping>,
}

macro_rules! arms {
    ($($name:ident: $arm:ty = $field:ident;)*) => {
        $(pub(crate) fn $name(&mut self) -> &mut $arm {
            // SAFETY: the union is in the mapping. Its arms consist of integers without implicit padding, so any
            // bytes are valid. `&mut self` excludes other references to it and `KVM_RUN`.
            unsafe { &mut (*self.exit()).$field }
        })*
    };
}

impl RunPage {
    pub(crate) fn map(fd: &impl AsRawFd, len: usize) -> io::Result<Self> {
        let mapping = Mapping::new(fd, len)?;
        // A former user of the vCPU may have asked KVM to share registers.
        mapping.valid_regs().store(0, Ordering::Relaxed);
        mapping.dirty_regs().store(0, Ordering::Relaxed);
        mapping.regs()[RFLAGS].store(0, Ordering::Relaxed);
        mapping.efer().store(EFER_UNFILLED, Ordering::Relaxed);
        Ok(RunPage {
            mapping: Arc::new(mapping),
        })
    }

    /// The handle with which other threads ask this vCPU to leave the guest.
    pub(crate) fn kicker(&self) -> RunFlag {
        RunFlag {
            mapping: Arc::clone(&self.mapping),
        }
    }

    /// The mapping, for the registers that KVM shares. It may have several owners.
    pub(crate) fn mapping(&self) -> Arc<Mapping> {
        Arc::clone(&self.mapping)
    }

    /// The VM's ring of coalesced writes, if the mapping is long enough to have one.
    pub(crate) fn ring(&self) -> Option<Ring> {
        (self.mapping.len >= RING + PAGE).then(|| Ring {
            mapping: Arc::clone(&self.mapping),
        })
    }

    /// `KVM_RUN`.
    pub(crate) fn enter(&mut self, fd: &VcpuFd) -> io::Result<()> {
        loop {
            // SAFETY: `fd` is a vCPU. KVM writes guest memory, which belongs to the guest, and the run page. `&mut
            // self` excludes references into the run page.
            if unsafe { ioctl(fd, KVM_RUN()) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            // EAGAIN: a vCPU that waits for SIPI woke up; nothing ran, and nothing is pending. A kick takes effect at
            // the next entry, because `immediate_exit` is still set.
            if error.raw_os_error() != Some(libc::EAGAIN) {
                return Err(error);
            }
        }
    }

    /// Makes the next [`RunPage::enter`] return before the guest runs.
    pub(crate) fn request_exit(&self) {
        self.mapping.immediate_exit().store(1, Ordering::Release);
    }

    /// Clears a kick's flag: *clear* in the protocol of kicks.
    pub(crate) fn clear_exit_request(&self) {
        self.mapping.immediate_exit().swap(0, Ordering::AcqRel);
    }

    /// Drops register values that were set but not yet passed to KVM, before a restore.
    pub(crate) fn forget_sync_registers(&self) {
        self.mapping.dirty_regs().store(0, Ordering::Relaxed);
    }

    /// Sets the task priority that the next `KVM_RUN` uses, unless KVM emulates the LAPIC.
    pub(crate) fn set_cr8(&mut self, cr8: u64) {
        // SAFETY: the field is in the mapping; `&mut self` excludes `KVM_RUN`.
        unsafe { (&raw mut (*self.mapping.run()).cr8).write(cr8) };
    }

    /// Whether `KVM_RUN` returns as soon as the guest can take an interrupt.
    pub(crate) fn request_interrupt_window(&mut self, wanted: bool) {
        // SAFETY: the field is in the mapping; `&mut self` excludes `KVM_RUN`.
        unsafe { (&raw mut (*self.mapping.run()).request_interrupt_window).write(wanted.into()) };
    }

    pub(crate) fn exit_reason(&mut self) -> u32 {
        // SAFETY: the field is in the mapping; `&mut self` excludes `KVM_RUN`.
        unsafe { (&raw const (*self.mapping.run()).exit_reason).read() }
    }

    fn exit(&mut self) -> *mut kvm_run__bindgen_ty_1 {
        // SAFETY: the field is in the mapping; no reference is created.
        unsafe { &raw mut (*self.mapping.run()).__bindgen_anon_1 }
    }

    arms! {
        hardware: HardwareArm = hw;
        fail_entry: FailEntryArm = fail_entry;
        exception: ExceptionArm = ex;
        io: IoArm = io;
        debug: DebugArm = debug;
        mmio: MmioArm = mmio;
        hypercall: HypercallArm = hypercall;
        tpr_access: TprArm = tpr_access;
        internal: InternalArm = internal;
        system_event: SystemEventArm = system_event;
        eoi: EoiArm = eoi;
        hyperv: kvm_hyperv_exit = hyperv;
        msr: MsrArm = msr;
        xen: kvm_xen_exit = xen;
        notify: NotifyArm = notify;
        memory_fault: MemoryFaultArm = memory_fault;
    }

    /// The union of all exits as bytes, for an exit that has no arm above.
    pub(crate) fn bytes(&mut self) -> &mut [u8; size_of::<kvm_run__bindgen_ty_1>()] {
        // SAFETY: as in `arms`.
        unsafe { &mut *self.exit().cast() }
    }

    /// The bytes at `offset` from the start of the page, if they are entirely between `kvm_run` and the ring.
    pub(crate) fn data(&mut self, offset: u64, len: usize) -> Option<&mut [u8]> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(len)?;
        if offset < size_of::<kvm_run>() || end > self.mapping.len.min(RING) {
            return None;
        }
        // SAFETY: the range is in the mapping (checked above) and overlaps nothing that is accessed otherwise.
        // `&mut self` excludes other references to it and `KVM_RUN`.
        Some(unsafe { std::slice::from_raw_parts_mut(self.mapping.base.as_ptr().add(offset), len) })
    }
}

/// The system event's data words.
pub(crate) fn system_event_data(arm: &SystemEventArm) -> [u64; 16] {
    // SAFETY: both arms of the union are integers.
    unsafe { arm.__bindgen_anon_1.data }
}

/// The KVM hypercall's flags; bit 0 is long mode, where the older `longmode` field was.
pub(crate) fn hypercall_flags(arm: &HypercallArm) -> u64 {
    // SAFETY: both arms of the union are integers.
    unsafe { arm.__bindgen_anon_1.flags }
}

/// The only arm of Xen's union.
pub(crate) fn xen_hcall(arm: &mut kvm_xen_exit) -> &mut XenHcall {
    // SAFETY: the arm consists of integers.
    unsafe { &mut arm.u.hcall }
}

/// The arms of Hyper-V's union.
pub(crate) fn hyperv_synic(arm: &kvm_hyperv_exit) -> HvSynic {
    // SAFETY: the arm consists of integers.
    unsafe { arm.u.synic }
}

pub(crate) fn hyperv_hcall(arm: &mut kvm_hyperv_exit) -> &mut HvHcall {
    // SAFETY: the arm consists of integers.
    unsafe { &mut arm.u.hcall }
}

pub(crate) fn hyperv_syndbg(arm: &mut kvm_hyperv_exit) -> &mut HvSynDbg {
    // SAFETY: the arm consists of integers.
    unsafe { &mut arm.u.syndbg }
}

/// The flag half of a kick.
#[derive(Debug)]
pub(crate) struct RunFlag {
    mapping: Arc<Mapping>,
}

impl RunFlag {
    /// *flag* in the protocol of kicks.
    pub(crate) fn raise(&self) {
        self.mapping.immediate_exit().store(1, Ordering::Release);
    }
}

/// The general registers from the page's words.
pub(crate) fn regs_from_words(words: [u64; REGS_WORDS]) -> kvm_regs {
    // SAFETY: `kvm_regs` is `REGS_WORDS` words without padding, and any bytes are valid.
    unsafe { std::mem::transmute::<[u64; REGS_WORDS], kvm_regs>(words) }
}

/// The words of the general registers.
pub(crate) fn words_from_regs(regs: kvm_regs) -> [u64; REGS_WORDS] {
    // SAFETY: as in `regs_from_words`.
    unsafe { std::mem::transmute::<kvm_regs, [u64; REGS_WORDS]>(regs) }
}
