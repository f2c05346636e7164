// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a vCPU left the guest, with the slots for replies.

/// Maximum bytes of one MMIO exit (KVM splits wider accesses).
pub const MMIO_MAX: usize = 8;

/// Maximum data words of an internal-error exit, see [`FatalExit::InternalError`].
pub const INTERNAL_ERROR_WORDS: usize = 16;

/// Maximum data words of a system event, see [`SystemEvent`].
pub const SYSTEM_EVENT_WORDS: usize = 16;

/// One exit from the guest.
///
/// Write replies in place, through the borrows; the next [`run`](crate::Vcpu::run) or
/// [`complete`](crate::Vcpu::complete) delivers them. Until then the instruction is incomplete:
/// see [`Exit::needs_completion`].
///
/// The variants follow `struct kvm_run` in the KVM API documentation, section 5.
#[derive(Debug)]
#[non_exhaustive]
pub enum Exit<'a> {
    /// `in` or `ins`: `data` is `count * size` bytes to fill, for `count` accesses of `size` bytes each.
    PioIn {
        /// Port number.
        port: u16,
        /// Width of one access: 1, 2 or 4 bytes.
        size: u8,
        /// Slot for the bytes read.
        data: &'a mut [u8],
    },
    /// `out` or `outs`: `data` is `count` accesses of `size` bytes each.
    PioOut {
        /// Port number.
        port: u16,
        /// Width of one access: 1, 2 or 4 bytes.
        size: u8,
        /// The bytes written.
        data: &'a [u8],
    },
    /// A read of guest-physical memory that no slot backs, at most [`MMIO_MAX`] bytes.
    MmioRead {
        /// Guest-physical address.
        addr: u64,
        /// Slot for the bytes read.
        data: &'a mut [u8],
    },
    /// A write to guest-physical memory that no writable slot backs, at most [`MMIO_MAX`] bytes.
    MmioWrite {
        /// Guest-physical address.
        addr: u64,
        /// The bytes written.
        data: &'a [u8],
    },
    /// `rdmsr` of a register that KVM leaves to user space.
    Rdmsr {
        /// MSR number (ECX).
        index: u32,
        /// The value for EDX:EAX.
        data: &'a mut u64,
        /// Anything but 0 injects #GP. KVM presets 0, so always write it.
        error: &'a mut u8,
    },
    /// `wrmsr` to a register that KVM leaves to user space.
    Wrmsr {
        /// MSR number (ECX).
        index: u32,
        /// The value from EDX:EAX.
        data: u64,
        /// Anything but 0 injects #GP. KVM presets 0, so always write it.
        error: &'a mut u8,
    },
    /// A KVM hypercall that KVM leaves to user space (`KVM_CAP_EXIT_HYPERCALL`).
    Hypercall(Hypercall<'a>),
    /// A hypercall under `KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL`.
    Xen(Hypercall<'a>),
    /// A Hyper-V hypercall or SynIC/debugger notification.
    Hyperv(HypervExit<'a>),
    /// `hlt` without an in-kernel interrupt controller.
    Hlt,
    /// A triple fault, or INIT on hosts that report it like this.
    Shutdown,
    /// The guest asked for a system-wide state change.
    SystemEvent(&'a SystemEvent),
    /// A breakpoint or single step, enabled by `KVM_SET_GUEST_DEBUG`. The VMM calls that before it spawns the vCPU, or
    /// in [`with_vcpu`](crate::VcpuSet::with_vcpu).
    Debug(DebugExit),
    /// The guest ended a level-triggered interrupt (split irqchip).
    IoapicEoi {
        /// Interrupt vector.
        vector: u8,
    },
    /// The dirty ring of this vCPU is full. The VMM must harvest and reset it before the vCPU can run.
    DirtyRingFull,
    /// The guest can take an interrupt now. Requested by `KvmVcpu::request_interrupt_window`.
    InterruptWindow,
    /// The guest lowered CR8 below the threshold (no in-kernel LAPIC).
    SetTpr,
    /// The guest accessed the task priority register (`KVM_TPR_ACCESS_REPORTING`).
    TprAccess {
        /// Instruction pointer of the access.
        rip: u64,
        /// Whether it was a write.
        is_write: bool,
    },
    /// The guest took a bus lock (`KVM_CAP_X86_BUS_LOCK_EXIT`).
    BusLock,
    /// The guest ran without an event window for longer than `KVM_CAP_X86_NOTIFY_VMEXIT` allows, and can continue.
    Notify,
    /// An SEV-ES guest parked this vCPU until the next INIT-SIPI.
    ApResetHold,
    /// A fault on guest memory that KVM can't resolve (`KVM_EXIT_MEMORY_FAULT`).
    MemoryFault(MemoryFault),
    /// Writes that KVM kept in the VM's ring. The vCPU's actual exit follows. Drain the writes now; otherwise devices
    /// get them after the guest's later accesses.
    Coalesced(CoalescedWrites<'a>),
    /// An exit without its own variant, such as those of TDX and SNP, or of newer KVMs.
    Other(OtherExit<'a>),
    /// A kick or a signal took the vCPU out of the guest. Nothing is pending.
    Interrupted,
    /// The vCPU can't continue.
    Fatal(&'a FatalExit),
}

/// The calling convention of a hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HypercallAbi {
    /// KVM's own (`Documentation/virt/kvm/x86/hypercalls.rst`).
    Kvm,
    /// Xen's.
    Xen,
    /// Hyper-V's (TLFS, chapter 3).
    Hyperv,
}

impl HypercallAbi {
    /// The result of an unknown call: -1000 (`-KVM_ENOSYS`), -38 (Xen's `-ENOSYS`), or 2
    /// (`HV_STATUS_INVALID_HYPERCALL_CODE`).
    pub const fn unknown(self) -> u64 {
        match self {
            HypercallAbi::Kvm => -1000i64 as u64,
            HypercallAbi::Xen => -38i64 as u64,
            HypercallAbi::Hyperv => 2,
        }
    }
}

/// A hypercall that user space answers through `ret`.
#[derive(Debug)]
pub struct Hypercall<'a> {
    /// Its calling convention.
    pub abi: HypercallAbi,
    /// Its number; for Hyper-V the whole input value.
    pub number: u64,
    /// Arguments in the order of the ABI, as many as KVM reports: six, or two for Hyper-V.
    pub args: &'a [u64],
    /// Whether the vCPU was in 64-bit mode.
    pub long_mode: bool,
    /// The caller's privilege level, if KVM reports it (Xen).
    pub cpl: Option<u8>,
    /// The value for the guest's result register.
    pub ret: &'a mut u64,
}

/// A Hyper-V exit (KVM API, `KVM_EXIT_HYPERV`).
#[derive(Debug)]
#[non_exhaustive]
pub enum HypervExit<'a> {
    /// The guest wrote a SynIC register; KVM has already set it.
    Synic {
        /// MSR number.
        msr: u32,
        /// SCONTROL.
        control: u64,
        /// SIEFP.
        event_page: u64,
        /// SIMP.
        message_page: u64,
    },
    /// A hypercall; `number` is the input value, `args[0..2]` the input and output GPA (or fast parameters).
    Hypercall(Hypercall<'a>),
    /// The guest wrote a synthetic debugger register.
    SynDbg {
        /// MSR number.
        msr: u32,
        /// The control register's value.
        control: u64,
        /// The status to return.
        status: &'a mut u64,
        /// Send buffer's GPA.
        send_page: u64,
        /// Receive buffer's GPA.
        recv_page: u64,
        /// Pending page's GPA.
        pending_page: u64,
    },
    /// A type that this version of the crate doesn't know.
    Unknown(u32),
}

/// A system-wide event (`KVM_EXIT_SYSTEM_EVENT`): its type as KVM numbers it, and its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemEvent {
    /// 1 shutdown, 2 reset, 3 crash, 4 wake-up, 5 suspend, 6 SEV termination.
    pub kind: u32,
    /// How many words of `data` are valid.
    pub count: u8,
    /// Event data.
    pub data: [u64; SYSTEM_EVENT_WORDS],
}

impl SystemEvent {
    /// The valid part of the data.
    pub fn words(&self) -> &[u64] {
        &self.data[..usize::from(self.count).min(SYSTEM_EVENT_WORDS)]
    }
}

/// A fault on guest memory that KVM can't resolve (`KVM_EXIT_MEMORY_FAULT`). The slot's host memory is missing or
/// poisoned, or the access is private and the memory shared, or vice versa. Once the VMM has fixed the memory, the
/// guest can repeat the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFault {
    /// Bit 3: the access was to private memory.
    pub flags: u64,
    /// Guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub size: u64,
}

/// A source of coalesced writes.
pub(crate) trait Drain {
    /// Delivers the writes, oldest first.
    fn drain(&self, deliver: &mut dyn FnMut(CoalescedWrite<'_>));
}

/// Writes without exits, to ranges that the VMM registered (`KVM_CAP_COALESCED_MMIO`, `KVM_CAP_COALESCED_PIO`). They
/// may come from any vCPU of the VM.
pub struct CoalescedWrites<'a>(pub(crate) &'a dyn Drain);

impl CoalescedWrites<'_> {
    /// Delivers the writes, oldest first. Other vCPUs that find writes wait until this returns.
    pub fn drain(self, mut deliver: impl FnMut(CoalescedWrite<'_>)) {
        self.0.drain(&mut deliver);
    }
}

impl std::fmt::Debug for CoalescedWrites<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoalescedWrites").finish_non_exhaustive()
    }
}

/// One coalesced write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoalescedWrite<'a> {
    /// A write to guest-physical memory, at most [`MMIO_MAX`] bytes.
    Mmio {
        /// Guest-physical address.
        addr: u64,
        /// The bytes written.
        data: &'a [u8],
    },
    /// A port write of 1, 2 or 4 bytes.
    Pio {
        /// Port number.
        port: u16,
        /// The bytes written.
        data: &'a [u8],
    },
}

/// An exit as KVM left it in the run page.
#[derive(Debug)]
pub struct OtherExit<'a> {
    /// `kvm_run.exit_reason`.
    pub reason: u32,
    /// The 256 bytes of `kvm_run` from offset 32, whose meaning depends on the reason. KVM reads a reply from them at
    /// the next entry.
    pub data: &'a mut [u8],
}

/// A debug exit (`struct kvm_debug_exit_arch`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugExit {
    /// Exception vector: 1 (#DB) or 3 (#BP).
    pub exception: u32,
    /// Instruction pointer.
    pub pc: u64,
    /// DR6 at the exit.
    pub dr6: u64,
    /// DR7 at the exit.
    pub dr7: u64,
}

/// An exit after which KVM can't continue this vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FatalExit {
    /// The CPU refused to enter the guest (`KVM_EXIT_FAIL_ENTRY`).
    FailEntry {
        /// VMX or SVM error code.
        reason: u64,
        /// The host CPU.
        cpu: u32,
    },
    /// A KVM internal error (`KVM_EXIT_INTERNAL_ERROR`).
    InternalError {
        /// 1 emulation, 2 simultaneous exceptions, 3 event delivery, 4 unexpected exit reason.
        suberror: u32,
        /// How many words of `data` are valid.
        count: u8,
        /// KVM's data for it.
        data: [u64; INTERNAL_ERROR_WORDS],
    },
    /// An exception that KVM doesn't handle (`KVM_EXIT_EXCEPTION`).
    Exception {
        /// Vector.
        vector: u32,
        /// Error code.
        error_code: u32,
    },
    /// A hardware exit that KVM doesn't know (`KVM_EXIT_UNKNOWN`).
    Hardware {
        /// VMX or SVM exit reason.
        reason: u64,
    },
    /// The guest ran without an event window, and its context is lost (`KVM_EXIT_NOTIFY`). If the context is valid, the
    /// exit is [`Exit::Notify`].
    Notify {
        /// Bit 0 is set: the VM context is corrupt.
        flags: u32,
    },
    /// A fault on guest memory that the VMM did not fix.
    MemoryFault(MemoryFault),
    /// KVM's description of the exit is inconsistent, for example a length beyond the run page.
    Malformed {
        /// The exit reason in `kvm_run`.
        exit_reason: u32,
    },
    /// An exit without its own variant that the VMM did not answer.
    Unknown {
        /// `kvm_run.exit_reason`.
        exit_reason: u32,
    },
}

impl FatalExit {
    /// The instruction that KVM failed to emulate, if KVM reports it (suberror 1, flag bit 0): its bytes, and how many
    /// are valid.
    ///
    /// The data words contain `flags: u64, len: u8, bytes: [u8; 15]`.
    pub fn emulated_bytes(&self) -> Option<([u8; 15], usize)> {
        match self {
            FatalExit::InternalError {
                suberror: 1,
                count,
                data,
            } if *count >= 3 && data[0] & 1 != 0 => {
                let mut raw = [0u8; 16];
                raw[..8].copy_from_slice(&data[1].to_le_bytes());
                raw[8..].copy_from_slice(&data[2].to_le_bytes());
                let mut bytes = [0u8; 15];
                bytes.copy_from_slice(&raw[1..]);
                Some((bytes, usize::from(raw[0]).min(15)))
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for FatalExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FatalExit::FailEntry { reason, cpu } => {
                write!(
                    f,
                    "guest entry failed, hardware reason {reason:#x} on host CPU {cpu}"
                )
            }
            FatalExit::InternalError {
                suberror,
                count,
                data,
            } => {
                let what = match suberror {
                    1 => " (instruction emulation)",
                    2 => " (simultaneous exceptions)",
                    3 => " (event delivery)",
                    4 => " (unexpected exit reason)",
                    _ => "",
                };
                write!(f, "KVM internal error {suberror}{what}")?;
                let data = &data[..usize::from(*count).min(INTERNAL_ERROR_WORDS)];
                for (i, word) in data.iter().enumerate() {
                    write!(f, "{}{word:#x}", if i == 0 { ", data " } else { " " })?;
                }
                if let Some((bytes, len)) = self.emulated_bytes() {
                    write!(f, ", instruction")?;
                    bytes[..len]
                        .iter()
                        .try_for_each(|b| write!(f, " {b:02x}"))?;
                }
                Ok(())
            }
            FatalExit::Exception { vector, error_code } => {
                write!(
                    f,
                    "unhandled exception {vector}, error code {error_code:#x}"
                )
            }
            FatalExit::Hardware { reason } => write!(f, "unknown hardware exit {reason:#x}"),
            FatalExit::Notify { flags } => write!(f, "no event window, flags {flags:#x}"),
            FatalExit::MemoryFault(MemoryFault { flags, gpa, size }) => {
                write!(f, "memory fault at {gpa:#x}+{size:#x}, flags {flags:#x}")
            }
            FatalExit::Malformed { exit_reason } => {
                write!(f, "inconsistent description of KVM exit {exit_reason}")
            }
            FatalExit::Unknown { exit_reason } => write!(f, "unknown KVM exit {exit_reason}"),
        }
    }
}

/// Holds what is too large to be part of an [`Exit`], because exits are passed by value.
#[cfg(any(test, feature = "kvm", feature = "test-utils"))]
#[derive(Debug, Default)]
pub(crate) struct Details {
    event: Option<SystemEvent>,
    fatal: Option<FatalExit>,
}

#[cfg(any(test, feature = "kvm", feature = "test-utils"))]
impl Details {
    pub(crate) fn event(&mut self, event: SystemEvent) -> Exit<'_> {
        Exit::SystemEvent(self.event.insert(event))
    }

    pub(crate) fn fatal(&mut self, exit: FatalExit) -> Exit<'_> {
        Exit::Fatal(self.fatal.insert(exit))
    }
}

impl Exit<'_> {
    /// Whether the exit's instruction is, or may be, incomplete. An unknown or malformed exit may be: nothing tells
    /// whether KVM still has to finish something.
    ///
    /// Until it is complete, the registers are those from before the instruction, so state saved now would replay it.
    pub const fn needs_completion(&self) -> bool {
        matches!(
            self,
            Exit::PioIn { .. }
                | Exit::PioOut { .. }
                | Exit::MmioRead { .. }
                | Exit::MmioWrite { .. }
                | Exit::Rdmsr { .. }
                | Exit::Wrmsr { .. }
                | Exit::Hypercall(_)
                | Exit::Xen(_)
                | Exit::Hyperv(_)
                | Exit::Coalesced(_)
                | Exit::Other(_)
                | Exit::Fatal(FatalExit::Malformed { .. })
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_small_enough_to_be_passed_on() {
        assert!(size_of::<Exit<'_>>() <= 56);
    }

    #[test]
    fn an_exit_that_nobody_understands_may_be_incomplete() {
        let needs = |exit| Exit::Fatal(&exit).needs_completion();
        let (reason, data) = (99, &mut [0; 256][..]);
        assert!(Exit::Other(OtherExit { reason, data }).needs_completion());
        assert!(needs(FatalExit::Malformed { exit_reason: 2 }));
        assert!(!needs(FatalExit::Hardware { reason: 1 }));
        assert!(!Exit::Notify.needs_completion());
    }
}
