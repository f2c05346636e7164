// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An I/O object that records its calls.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use super::relock;
use crate::exit::{Exit, Hypercall, HypercallAbi, HypervExit};
use crate::history::{ExitKind, ExitRecord};
use crate::vcpu::{MsrReply, Next, VcpuIo};

/// A call of a [`RecordingIo`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A port read, with the number of bytes.
    PioRead(u16, usize),
    /// A port write.
    PioWrite(u16, Vec<u8>),
    /// A memory read, with the number of bytes.
    MmioRead(u64, usize),
    /// A memory write.
    MmioWrite(u64, Vec<u8>),
    /// An MSR read.
    Rdmsr(u32),
    /// An MSR write.
    Wrmsr(u32, u64),
    /// A hypercall.
    Hypercall(HypercallAbi, u64),
    /// A Hyper-V notification.
    Hyperv,
    /// The end of an interrupt.
    IoapicEoi(u8),
    /// An exit that has no method of its own.
    Other(ExitKind),
}

/// The calls of a [`RecordingIo`], readable while it is in use elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<Mutex<Vec<Call>>>);

impl Calls {
    /// The calls so far.
    pub fn get(&self) -> Vec<Call> {
        relock(&self.0).clone()
    }
}

/// Decides what follows each call.
type Judge = Box<dyn FnMut(&Call) -> Next + Send>;

/// Records every call, and answers as configured.
pub struct RecordingIo {
    calls: Calls,
    judge: Judge,
    fill: u8,
    msrs: BTreeMap<u32, u64>,
}

impl fmt::Debug for RecordingIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordingIo")
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

impl RecordingIo {
    /// Claims nothing.
    pub fn unclaimed() -> Self {
        Self::new(0, |_| Next::Unclaimed)
    }

    /// Claims everything except MSRs: reads return `fill` in each byte, hypercalls return `fill`. For MSRs, see
    /// [`RecordingIo::with_msr`].
    pub fn claiming(fill: u8) -> Self {
        Self::new(fill, |_| Next::Continue)
    }

    /// Like [`RecordingIo::claiming`], but `judge` decides what follows, and may panic.
    pub fn new(fill: u8, judge: impl FnMut(&Call) -> Next + Send + 'static) -> Self {
        RecordingIo {
            calls: Calls::default(),
            judge: Box::new(judge),
            fill,
            msrs: BTreeMap::new(),
        }
    }

    /// Adds an MSR that reads as the value last written.
    #[must_use]
    pub fn with_msr(mut self, index: u32, value: u64) -> Self {
        self.msrs.insert(index, value);
        self
    }

    /// The recorded calls.
    pub fn calls(&self) -> Calls {
        self.calls.clone()
    }

    fn call(&mut self, call: Call) -> Next {
        relock(&self.calls.0).push(call.clone());
        (self.judge)(&call)
    }
}

impl VcpuIo for RecordingIo {
    fn pio_read(&mut self, port: u16, data: &mut [u8]) -> Next {
        assert!(
            data.iter().all(|byte| *byte == 0xff),
            "a read must be prefilled with all ones"
        );
        data.fill(self.fill);
        self.call(Call::PioRead(port, data.len()))
    }

    fn pio_write(&mut self, port: u16, data: &[u8]) -> Next {
        self.call(Call::PioWrite(port, data.to_vec()))
    }

    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) -> Next {
        assert!(
            data.iter().all(|byte| *byte == 0xff),
            "a read must be prefilled with all ones"
        );
        data.fill(self.fill);
        self.call(Call::MmioRead(addr, data.len()))
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) -> Next {
        self.call(Call::MmioWrite(addr, data.to_vec()))
    }

    fn rdmsr(&mut self, index: u32) -> MsrReply<u64> {
        let _ = self.call(Call::Rdmsr(index));
        self.msrs
            .get(&index)
            .map_or(MsrReply::Unclaimed, |value| MsrReply::Value(*value))
    }

    fn wrmsr(&mut self, index: u32, data: u64) -> MsrReply<()> {
        let _ = self.call(Call::Wrmsr(index, data));
        match self.msrs.get_mut(&index) {
            Some(value) => {
                *value = data;
                MsrReply::Value(())
            }
            None => MsrReply::Unclaimed,
        }
    }

    fn hypercall(&mut self, call: &mut Hypercall<'_>) -> Next {
        *call.ret = u64::from(self.fill);
        self.call(Call::Hypercall(call.abi, call.number))
    }

    fn hyperv(&mut self, _: &mut HypervExit<'_>) -> Next {
        self.call(Call::Hyperv)
    }

    fn ioapic_eoi(&mut self, vector: u8) -> Next {
        self.call(Call::IoapicEoi(vector))
    }

    fn other_exit(&mut self, exit: &mut Exit<'_>) -> Next {
        let next = self.call(Call::Other(ExitRecord::from(&*exit).kind));
        if let (Exit::Other(other), Next::Continue) = (exit, next) {
            other.data.fill(self.fill);
        }
        next
    }
}
