// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stay in the guest: run and answer exits until there may be a request or the vCPU stops by itself.

use crate::counters::ExitCounters;
use crate::dispatch::{Flow, Leave, Unclaimed, dispatch};
use crate::doorbell::Doorbell;
use crate::exit::Exit;
use crate::history::{ExitHistory, ExitKind, ExitRecord};
use crate::report::FailureReason;
use crate::vcpu::{Vcpu, VcpuId, VcpuIo};

/// Maximum number of exits to finish one instruction. KVM's longest is a string instruction, which returns to the guest
/// after at most 1,024 elements.
const MAX_COMPLETIONS: u32 = 65_536;

/// How a stay in the guest ended: there may be a request, and nothing is pending unless the guest has ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stay {
    /// A device asked for a pause.
    pub(crate) asked: bool,
    /// The guest stopped by itself.
    pub(crate) left: Option<Leave>,
}

/// What a stay in the guest needs.
pub(crate) struct Guest<'a, V, I> {
    pub(crate) vcpu: &'a mut V,
    pub(crate) bell: &'a Doorbell,
    pub(crate) desk: Desk<'a, I>,
}

/// Where exits are answered and recorded.
pub(crate) struct Desk<'a, I> {
    pub(crate) id: VcpuId,
    pub(crate) io: &'a mut I,
    pub(crate) unclaimed: &'a Unclaimed,
    pub(crate) exits: &'a ExitCounters,
    pub(crate) history: &'a mut ExitHistory,
}

impl<V: Vcpu, I: VcpuIo> Guest<'_, V, I> {
    /// What the thread does in `State::Running`.
    pub(crate) fn run(&mut self) -> Result<Stay, Box<FailureReason>> {
        loop {
            let exit = self.vcpu.run().map_err(host)?;
            let flow = self.desk.answer(exit);
            let stay = match flow {
                Flow::Continue if !self.bell.is_rung() => continue,
                Flow::Interrupted => return Ok(Stay::default()),
                Flow::Leave(leave) if leave.is_final() => return Ok(Stay::default().after(flow)),
                flow => Stay::default().after(flow),
            };
            return self.settle(stay);
        }
    }

    /// Finishes what is pending without running the guest. Every pause and every non-final stop goes through here.
    /// Completing the access may add reasons to stop.
    #[cold]
    #[inline(never)]
    fn settle(&mut self, mut stay: Stay) -> Result<Stay, Box<FailureReason>> {
        for _ in 0..MAX_COMPLETIONS {
            let exit = self.vcpu.complete().map_err(host)?;
            match self.desk.answer(exit) {
                Flow::Interrupted => return Ok(stay),
                flow => stay = stay.after(flow),
            }
            if stay.left.is_some_and(Leave::is_final) {
                return Ok(stay);
            }
        }
        Err(Box::new(FailureReason::NeverSettled {
            exits: MAX_COMPLETIONS,
        }))
    }
}

impl Stay {
    fn after(self, flow: Flow) -> Self {
        Stay {
            asked: self.asked || flow == Flow::Pause,
            left: match flow {
                Flow::Leave(leave) => Some(leave),
                _ => self.left,
            },
        }
    }
}

impl<I: VcpuIo> Desk<'_, I> {
    #[inline]
    fn answer(&mut self, exit: Exit<'_>) -> Flow {
        let record = ExitRecord::from(&exit);
        self.exits.note(record.kind);
        if record.kind != ExitKind::Interrupted {
            self.history.push(record);
        }
        dispatch(exit, self.io, self.id, self.unclaimed)
    }
}

fn host(error: impl std::error::Error + Send + Sync + 'static) -> Box<FailureReason> {
    Box::new(FailureReason::Host(Box::new(error)))
}
