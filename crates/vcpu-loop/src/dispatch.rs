// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From an exit to the VMM's code and back: one pass, no allocation, no lock.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::exit::{
    CoalescedWrite, CoalescedWrites, DebugExit, Exit, FatalExit, Hypercall, HypervExit, SystemEvent,
};
use crate::vcpu::{MsrReply, Next, VcpuId, VcpuIo};

/// What the loop does after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub enum Flow {
    /// Enter the guest again.
    Continue,
    /// The VMM asked for a pause: complete the access, then wait for requests.
    Pause,
    /// Nothing is pending: look at the mailbox.
    Interrupted,
    /// The guest stopped by itself.
    Leave(Leave),
}

/// Why the guest stopped by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Leave {
    /// It waits for an interrupt that only the VMM can inject.
    Halted,
    /// A breakpoint or single step.
    Debug(DebugExit),
    /// The dirty ring must be harvested.
    DirtyRingFull,
    /// It asked for a system-wide state change.
    SystemEvent(SystemEvent),
    /// Triple fault.
    Shutdown,
    /// KVM can't continue.
    Fatal(FatalExit),
}

impl Leave {
    /// Whether this ends the vCPU.
    pub const fn is_final(self) -> bool {
        matches!(
            self,
            Leave::SystemEvent(_) | Leave::Shutdown | Leave::Fatal(_)
        )
    }
}

/// Kinds of unclaimed accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Port read.
    PioRead,
    /// Port write.
    PioWrite,
    /// Memory read.
    MmioRead,
    /// Memory write.
    MmioWrite,
    /// MSR read.
    Rdmsr,
    /// MSR write.
    Wrmsr,
    /// Hypercall, of any ABI.
    Hypercall,
    /// Hyper-V notification, end of an interrupt, or [`Exit::Notify`].
    Notification,
}

impl Access {
    /// Every kind, in the order of discriminants.
    const ALL: [Access; 8] = [
        Access::PioRead,
        Access::PioWrite,
        Access::MmioRead,
        Access::MmioWrite,
        Access::Rdmsr,
        Access::Wrmsr,
        Access::Hypercall,
        Access::Notification,
    ];
}

/// Counts of unclaimed accesses by kind. One vCPU's thread counts, any thread can read.
#[derive(Debug, Default)]
pub struct Unclaimed {
    counts: [AtomicU64; Access::ALL.len()],
}

impl Unclaimed {
    /// The number of unclaimed accesses of this kind.
    pub fn count(&self, access: Access) -> u64 {
        self.counts[access as usize].load(Ordering::Relaxed)
    }

    /// The number of unclaimed accesses of all kinds.
    pub fn total(&self) -> u64 {
        Access::ALL.iter().map(|access| self.count(*access)).sum()
    }

    /// Counts one, and logs it if it is among the first four of its kind or a power of two. This limits the log to
    /// fewer than 70 lines per kind without reading a clock.
    fn note(&self, id: VcpuId, access: Access, address: u64) {
        // Only one vCPU's thread writes, so this needs no locked addition.
        let count = self.count(access).wrapping_add(1);
        self.counts[access as usize].store(count, Ordering::Relaxed);
        if count <= 4 || count.is_power_of_two() {
            log_unclaimed(id, access, address, count);
        }
    }
}

#[cold]
fn log_unclaimed(id: VcpuId, access: Access, address: u64, count: u64) {
    log::debug!("vCPU {id}: unclaimed {access:?} {address:#x} ({count} of this kind so far)");
}

/// Answers one exit through `io`.
///
/// An unclaimed read returns all ones, and an unclaimed MSR access takes #GP. String port I/O is split into its
/// elements. `id` only appears in log lines.
pub fn dispatch<I: VcpuIo + ?Sized>(
    exit: Exit<'_>,
    io: &mut I,
    id: VcpuId,
    unclaimed: &Unclaimed,
) -> Flow {
    let mut bus = Answering { io, id, unclaimed };
    match exit {
        Exit::PioOut { port, size, data } => bus.pio_out(port, size, data),
        Exit::PioIn { port, size, data } => bus.pio_in(port, size, data),
        Exit::MmioRead { addr, data } => bus.mmio_read(addr, data),
        Exit::MmioWrite { addr, data } => {
            let next = bus.io.mmio_write(addr, data);
            bus.settle(next, Access::MmioWrite, addr)
        }
        Exit::Rdmsr { index, data, error } => bus.rdmsr(index, data, error),
        Exit::Wrmsr { index, data, error } => bus.wrmsr(index, data, error),
        Exit::Hypercall(call) | Exit::Xen(call) => bus.hypercall(call),
        Exit::Hyperv(HypervExit::Hypercall(call)) => bus.hypercall(call),
        Exit::Hyperv(mut exit) => {
            let next = bus.io.hyperv(&mut exit);
            let msr = match exit {
                HypervExit::Synic { msr, .. } | HypervExit::SynDbg { msr, .. } => msr,
                _ => 0,
            };
            bus.settle(next, Access::Notification, u64::from(msr))
        }
        Exit::IoapicEoi { vector } => {
            let next = bus.io.ioapic_eoi(vector);
            bus.settle(next, Access::Notification, u64::from(vector))
        }
        Exit::Coalesced(writes) => bus.coalesced(writes),
        Exit::InterruptWindow
        | Exit::SetTpr
        | Exit::TprAccess { .. }
        | Exit::BusLock
        | Exit::Notify
        | Exit::MemoryFault(_)
        | Exit::Other(_) => bus.other(exit),
        Exit::Interrupted => Flow::Interrupted,
        Exit::Hlt | Exit::ApResetHold => Flow::Leave(Leave::Halted),
        Exit::Debug(debug) => Flow::Leave(Leave::Debug(debug)),
        Exit::DirtyRingFull => Flow::Leave(Leave::DirtyRingFull),
        Exit::SystemEvent(event) => Flow::Leave(Leave::SystemEvent(*event)),
        Exit::Shutdown => Flow::Leave(Leave::Shutdown),
        Exit::Fatal(exit) => Flow::Leave(Leave::Fatal(*exit)),
    }
}

struct Answering<'a, I: ?Sized> {
    io: &'a mut I,
    id: VcpuId,
    unclaimed: &'a Unclaimed,
}

impl<I: VcpuIo + ?Sized> Answering<'_, I> {
    fn settle(&self, next: Next, access: Access, address: u64) -> Flow {
        match next {
            Next::Continue => Flow::Continue,
            Next::Pause => Flow::Pause,
            Next::Unclaimed => {
                self.unclaimed.note(self.id, access, address);
                Flow::Continue
            }
        }
    }

    /// All elements of a string instruction are written before a pause that one of them asks for.
    fn pio_out(&mut self, port: u16, size: u8, data: &[u8]) -> Flow {
        let size = usize::from(size.max(1));
        if data.len() == size {
            let next = self.io.pio_write(port, data);
            return self.settle(next, Access::PioWrite, u64::from(port));
        }
        let mut flow = Flow::Continue;
        for element in data.chunks(size) {
            let next = self.io.pio_write_string(port, element);
            if self.settle(next, Access::PioWrite, u64::from(port)) == Flow::Pause {
                flow = Flow::Pause;
            }
        }
        flow
    }

    fn pio_in(&mut self, port: u16, size: u8, data: &mut [u8]) -> Flow {
        let mut flow = Flow::Continue;
        for element in data.chunks_mut(usize::from(size.max(1))) {
            element.fill(0xff);
            let next = self.io.pio_read(port, element);
            if next == Next::Unclaimed {
                element.fill(0xff);
            }
            if self.settle(next, Access::PioRead, u64::from(port)) == Flow::Pause {
                flow = Flow::Pause;
            }
        }
        flow
    }

    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) -> Flow {
        data.fill(0xff);
        let next = self.io.mmio_read(addr, data);
        if next == Next::Unclaimed {
            data.fill(0xff);
        }
        self.settle(next, Access::MmioRead, addr)
    }

    fn rdmsr(&mut self, index: u32, data: &mut u64, error: &mut u8) -> Flow {
        let reply = self.io.rdmsr(index);
        let (value, flow) = self.msr(reply, Access::Rdmsr, index);
        *error = u8::from(value.is_none());
        if let Some(value) = value {
            *data = value;
        }
        flow
    }

    fn wrmsr(&mut self, index: u32, data: u64, error: &mut u8) -> Flow {
        let reply = self.io.wrmsr(index, data);
        let (value, flow) = self.msr(reply, Access::Wrmsr, index);
        *error = u8::from(value.is_none());
        flow
    }

    /// The value for the guest (`None` is #GP), and what the loop does next.
    fn msr<T>(&self, reply: MsrReply<T>, access: Access, index: u32) -> (Option<T>, Flow) {
        match reply {
            MsrReply::Value(value) => (Some(value), Flow::Continue),
            MsrReply::Fault => (None, Flow::Continue),
            MsrReply::Unclaimed => {
                self.unclaimed.note(self.id, access, u64::from(index));
                (None, Flow::Continue)
            }
            MsrReply::Pause(value) => (value, Flow::Pause),
        }
    }

    /// All writes are delivered before a pause that one of them asks for.
    fn coalesced(&mut self, writes: CoalescedWrites<'_>) -> Flow {
        let mut flow = Flow::Continue;
        writes.drain(|write| {
            let after = match write {
                CoalescedWrite::Mmio { addr, data } => {
                    let next = self.io.mmio_write(addr, data);
                    self.settle(next, Access::MmioWrite, addr)
                }
                CoalescedWrite::Pio { port, data } => {
                    let next = self.io.pio_write(port, data);
                    self.settle(next, Access::PioWrite, u64::from(port))
                }
            };
            if after == Flow::Pause {
                flow = Flow::Pause;
            }
        });
        flow
    }

    /// Exits that have no method of their own.
    #[cold]
    fn other(&mut self, mut exit: Exit<'_>) -> Flow {
        let unanswered = match &exit {
            Exit::MemoryFault(fault) => Flow::Leave(Leave::Fatal(FatalExit::MemoryFault(*fault))),
            Exit::Other(other) => Flow::Leave(Leave::Fatal(FatalExit::Unknown {
                exit_reason: other.reason,
            })),
            // The VMM asked for these through the run page, or KVM handles them itself: the guest continues.
            _ => Flow::Continue,
        };
        let counted = matches!(exit, Exit::Notify);
        match self.io.other_exit(&mut exit) {
            Next::Unclaimed if counted => self.settle(Next::Unclaimed, Access::Notification, 0),
            Next::Unclaimed => unanswered,
            next => self.settle(next, Access::Notification, 0),
        }
    }

    fn hypercall(&mut self, mut call: Hypercall<'_>) -> Flow {
        *call.ret = call.abi.unknown();
        let next = self.io.hypercall(&mut call);
        if next == Next::Unclaimed {
            *call.ret = call.abi.unknown();
        }
        let number = call.number;
        self.settle(next, Access::Hypercall, number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kind missing in `ALL` would have no counter, so a guest could make the vCPU's thread panic.
    #[test]
    fn every_kind_of_access_has_a_counter() {
        let last = Access::Notification;
        assert_eq!(last as usize + 1, Access::ALL.len());
        for (number, access) in Access::ALL.iter().enumerate() {
            assert_eq!(*access as usize, number);
        }
        // A new kind fails to compile here: add it to `ALL`, and update `last`.
        match last {
            Access::PioRead
            | Access::PioWrite
            | Access::MmioRead
            | Access::MmioWrite
            | Access::Rdmsr
            | Access::Wrmsr
            | Access::Hypercall
            | Access::Notification => {}
        }
    }
}
