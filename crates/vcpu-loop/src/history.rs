// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The last exits of a vCPU, kept without allocation for its failure report.

use std::fmt;

use crate::exit::{Exit, Hypercall, HypervExit};

/// How many exits are kept.
pub const HISTORY: usize = 16;

/// The kind of a recorded exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitKind {
    /// [`Exit::PioIn`].
    PioIn,
    /// [`Exit::PioOut`].
    PioOut,
    /// [`Exit::MmioRead`].
    MmioRead,
    /// [`Exit::MmioWrite`].
    MmioWrite,
    /// [`Exit::Rdmsr`].
    Rdmsr,
    /// [`Exit::Wrmsr`].
    Wrmsr,
    /// [`Exit::Hypercall`].
    Hypercall,
    /// [`Exit::Xen`].
    Xen,
    /// [`Exit::Hyperv`].
    Hyperv,
    /// [`Exit::Hlt`].
    Hlt,
    /// [`Exit::Shutdown`].
    Shutdown,
    /// [`Exit::SystemEvent`].
    SystemEvent,
    /// [`Exit::Debug`].
    Debug,
    /// [`Exit::IoapicEoi`].
    IoapicEoi,
    /// [`Exit::DirtyRingFull`].
    DirtyRingFull,
    /// [`Exit::InterruptWindow`].
    InterruptWindow,
    /// [`Exit::SetTpr`].
    SetTpr,
    /// [`Exit::TprAccess`].
    TprAccess,
    /// [`Exit::BusLock`].
    BusLock,
    /// [`Exit::Notify`].
    Notify,
    /// [`Exit::ApResetHold`].
    ApResetHold,
    /// [`Exit::MemoryFault`].
    MemoryFault,
    /// [`Exit::Coalesced`].
    Coalesced,
    /// [`Exit::Other`].
    Other,
    /// [`Exit::Interrupted`].
    Interrupted,
    /// [`Exit::Fatal`].
    Fatal,
}

impl ExitKind {
    /// Every kind, in the order of discriminants.
    pub const ALL: &'static [ExitKind] = &[
        ExitKind::PioIn,
        ExitKind::PioOut,
        ExitKind::MmioRead,
        ExitKind::MmioWrite,
        ExitKind::Rdmsr,
        ExitKind::Wrmsr,
        ExitKind::Hypercall,
        ExitKind::Xen,
        ExitKind::Hyperv,
        ExitKind::Hlt,
        ExitKind::Shutdown,
        ExitKind::SystemEvent,
        ExitKind::Debug,
        ExitKind::IoapicEoi,
        ExitKind::DirtyRingFull,
        ExitKind::InterruptWindow,
        ExitKind::SetTpr,
        ExitKind::TprAccess,
        ExitKind::BusLock,
        ExitKind::Notify,
        ExitKind::ApResetHold,
        ExitKind::MemoryFault,
        ExitKind::Coalesced,
        ExitKind::Other,
        ExitKind::Interrupted,
        ExitKind::Fatal,
    ];
}

/// One exit, in 24 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitRecord {
    /// Its kind.
    pub kind: ExitKind,
    /// Bytes per access; 0 if it is no port or memory access.
    pub size: u8,
    /// Total bytes, saturated; 0 if it is no port or memory access.
    pub len: u16,
    /// Port, guest-physical address, MSR, hypercall number, vector, event type or KVM's exit reason.
    pub address: u64,
    /// For a write, its first bytes (little endian); for other kinds, a related value or 0.
    pub data: u64,
}

/// The widths of single accesses each take one load.
#[inline]
fn leading(data: &[u8]) -> u64 {
    match *data {
        [a] => u64::from(a),
        [a, b] => u64::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
        _ => leading_of_many(data),
    }
}

#[inline(never)]
fn leading_of_many(data: &[u8]) -> u64 {
    let mut word = [0u8; 8];
    let len = data.len().min(8);
    word[..len].copy_from_slice(&data[..len]);
    u64::from_le_bytes(word)
}

fn first(call: &Hypercall<'_>) -> u64 {
    call.args.first().copied().unwrap_or(0)
}

/// A record's address and data.
fn hyperv(exit: &HypervExit<'_>) -> (u64, u64) {
    match exit {
        HypervExit::Synic { msr, control, .. } | HypervExit::SynDbg { msr, control, .. } => {
            (u64::from(*msr), *control)
        }
        HypervExit::Hypercall(call) => (call.number, first(call)),
        HypervExit::Unknown(kind) => (u64::from(*kind), 0),
    }
}

impl From<&Exit<'_>> for ExitRecord {
    fn from(exit: &Exit<'_>) -> Self {
        let record = |kind, address, size, data| ExitRecord {
            kind,
            size,
            len: size.into(),
            address,
            data,
        };
        match exit {
            Exit::PioIn { port, size, data } => ExitRecord {
                len: u16::try_from(data.len()).unwrap_or(u16::MAX),
                ..record(ExitKind::PioIn, u64::from(*port), *size, 0)
            },
            Exit::PioOut { port, size, data } => ExitRecord {
                len: u16::try_from(data.len()).unwrap_or(u16::MAX),
                ..record(ExitKind::PioOut, u64::from(*port), *size, leading(data))
            },
            Exit::MmioRead { addr, data } => record(ExitKind::MmioRead, *addr, data.len() as u8, 0),
            Exit::MmioWrite { addr, data } => {
                record(ExitKind::MmioWrite, *addr, data.len() as u8, leading(data))
            }
            Exit::Rdmsr { index, .. } => record(ExitKind::Rdmsr, u64::from(*index), 0, 0),
            Exit::Wrmsr { index, data, .. } => record(ExitKind::Wrmsr, u64::from(*index), 0, *data),
            Exit::Hypercall(call) => record(ExitKind::Hypercall, call.number, 0, first(call)),
            Exit::Xen(call) => record(ExitKind::Xen, call.number, 0, first(call)),
            Exit::Hyperv(exit) => {
                let (address, data) = hyperv(exit);
                record(ExitKind::Hyperv, address, 0, data)
            }
            Exit::Hlt => record(ExitKind::Hlt, 0, 0, 0),
            Exit::Shutdown => record(ExitKind::Shutdown, 0, 0, 0),
            Exit::SystemEvent(event) => record(
                ExitKind::SystemEvent,
                u64::from(event.kind),
                0,
                event.data[0],
            ),
            Exit::Debug(debug) => record(ExitKind::Debug, debug.pc, 0, debug.dr6),
            Exit::IoapicEoi { vector } => record(ExitKind::IoapicEoi, u64::from(*vector), 0, 0),
            Exit::DirtyRingFull => record(ExitKind::DirtyRingFull, 0, 0, 0),
            Exit::InterruptWindow => record(ExitKind::InterruptWindow, 0, 0, 0),
            Exit::SetTpr => record(ExitKind::SetTpr, 0, 0, 0),
            Exit::TprAccess { rip, is_write } => {
                record(ExitKind::TprAccess, *rip, 0, u64::from(*is_write))
            }
            Exit::BusLock => record(ExitKind::BusLock, 0, 0, 0),
            Exit::Notify => record(ExitKind::Notify, 0, 0, 0),
            Exit::ApResetHold => record(ExitKind::ApResetHold, 0, 0, 0),
            Exit::MemoryFault(fault) => record(ExitKind::MemoryFault, fault.gpa, 0, fault.flags),
            Exit::Coalesced(_) => record(ExitKind::Coalesced, 0, 0, 0),
            Exit::Other(exit) => record(ExitKind::Other, u64::from(exit.reason), 0, 0),
            Exit::Interrupted => record(ExitKind::Interrupted, 0, 0, 0),
            Exit::Fatal(_) => record(ExitKind::Fatal, 0, 0, 0),
        }
    }
}

impl fmt::Display for ExitRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ExitRecord {
            kind,
            size,
            len,
            address,
            data,
        } = self;
        match kind {
            ExitKind::PioIn | ExitKind::PioOut => {
                let count = u32::from(*len) / u32::from(*size).max(1);
                write!(f, "{kind:?} port {address:#x}, {count} x {size} bytes")?;
            }
            ExitKind::MmioRead | ExitKind::MmioWrite => {
                write!(f, "{kind:?} {address:#x}, {size} bytes")?
            }
            ExitKind::Rdmsr | ExitKind::Wrmsr | ExitKind::MemoryFault => {
                write!(f, "{kind:?} {address:#x}")?
            }
            ExitKind::Other => write!(f, "{kind:?} KVM exit {address}")?,
            ExitKind::Hypercall | ExitKind::Xen | ExitKind::Hyperv => {
                write!(f, "{kind:?} {address:#x}")?
            }
            ExitKind::IoapicEoi => write!(f, "{kind:?} vector {address:#x}")?,
            ExitKind::SystemEvent => write!(f, "{kind:?} type {address}")?,
            ExitKind::Debug | ExitKind::TprAccess => write!(f, "{kind:?} at {address:#x}")?,
            _ => write!(f, "{kind:?}")?,
        }
        match kind {
            ExitKind::PioOut | ExitKind::MmioWrite | ExitKind::Wrmsr => {
                write!(f, ", data {data:#x}")
            }
            _ => Ok(()),
        }
    }
}

/// A ring of the last [`HISTORY`] exits.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExitHistory {
    records: [Option<ExitRecord>; HISTORY],
    next: usize,
}

impl ExitHistory {
    /// Adds a record. If the ring is full, it replaces the oldest.
    pub fn push(&mut self, record: ExitRecord) {
        self.records[self.next % HISTORY] = Some(record);
        self.next = (self.next + 1) % HISTORY;
    }

    /// Whether there was no exit yet.
    pub fn is_empty(&self) -> bool {
        self.records.iter().all(Option::is_none)
    }

    /// The records, newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &ExitRecord> {
        (1..=HISTORY)
            .filter_map(move |age| self.records[(self.next + HISTORY - age) % HISTORY].as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kind missing in `ALL` would have no counter.
    #[test]
    fn every_kind_is_listed_at_its_number() {
        for (number, kind) in ExitKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, number);
        }
        let last = ExitKind::Fatal;
        assert_eq!(last as usize + 1, ExitKind::ALL.len());
        // A new kind fails to compile here: add it to `ALL`, and update `last`.
        match last {
            ExitKind::PioIn
            | ExitKind::PioOut
            | ExitKind::MmioRead
            | ExitKind::MmioWrite
            | ExitKind::Rdmsr
            | ExitKind::Wrmsr
            | ExitKind::Hypercall
            | ExitKind::Xen
            | ExitKind::Hyperv
            | ExitKind::Hlt
            | ExitKind::Shutdown
            | ExitKind::SystemEvent
            | ExitKind::Debug
            | ExitKind::IoapicEoi
            | ExitKind::DirtyRingFull
            | ExitKind::InterruptWindow
            | ExitKind::SetTpr
            | ExitKind::TprAccess
            | ExitKind::BusLock
            | ExitKind::Notify
            | ExitKind::ApResetHold
            | ExitKind::MemoryFault
            | ExitKind::Coalesced
            | ExitKind::Other
            | ExitKind::Interrupted
            | ExitKind::Fatal => {}
        }
    }

    #[test]
    fn ring_keeps_the_newest_in_order() {
        let mut history = ExitHistory::default();
        assert!(history.is_empty());
        for vector in 0..40u8 {
            history.push(ExitRecord::from(&Exit::IoapicEoi { vector }));
        }
        let kept: Vec<u64> = history.newest_first().map(|r| r.address).collect();
        assert_eq!(kept, (24..40).rev().collect::<Vec<_>>());
    }

    #[test]
    fn records_are_small_and_readable() {
        assert!(size_of::<ExitRecord>() <= 24);
        let record = ExitRecord::from(&Exit::PioOut {
            port: 0x3f8,
            size: 2,
            data: &[1, 2, 3, 4],
        });
        assert_eq!(
            record.to_string(),
            "PioOut port 0x3f8, 2 x 2 bytes, data 0x4030201"
        );
        let record = ExitRecord::from(&Exit::Wrmsr {
            index: 0x10,
            data: 5,
            error: &mut 0,
        });
        assert_eq!(record.to_string(), "Wrmsr 0x10, data 0x5");
    }
}
