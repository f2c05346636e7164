// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A vCPU that runs a script instead of a guest, and an I/O object that records its calls.
//!
//! They test everything above KVM: exit handling, pause, kick, save order, panics. The vCPU is stricter than KVM: it
//! panics where KVM would silently do the wrong thing.

mod io;
mod step;

use std::collections::VecDeque;
use std::mem::take;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::exit::{Details, Exit, Hypercall, HypercallAbi, HypervExit, OtherExit};
use crate::kick::Kick;
use crate::report::{CpuDump, InstructionBytes, Registers};
use crate::vcpu::{ManagedVcpu, SaveVcpu, Vcpu};
pub use io::{Call, Calls, RecordingIo};
pub use step::{Reply, Step};

/// An error of a scripted vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScriptError {
    /// From [`Step::HostError`].
    #[error("the script says that the host fails")]
    Host,
    /// From a restore of [`ScriptState::MISFIT`], which changes nothing.
    #[error("the script says that the state doesn't fit")]
    Misfit,
}

/// A scripted vCPU's saved state: how far the guest got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScriptState {
    /// How many instructions have completed.
    pub retired: u64,
}

impl ScriptState {
    /// A state that fits no vCPU.
    pub const MISFIT: ScriptState = ScriptState { retired: u64::MAX };
}

#[derive(Debug, Default)]
struct Flag {
    exit: AtomicU8,
    lock: Mutex<()>,
    spinning: Condvar,
}

impl Kick for Flag {
    fn request_exit(&self) {
        self.exit.store(1, Ordering::Release);
        let _guard = relock(&self.lock);
        self.spinning.notify_all();
    }
}

impl Flag {
    fn wait(&self) {
        let mut guard = relock(&self.lock);
        while self.exit.load(Ordering::Acquire) == 0 {
            guard = self
                .spinning
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn relock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The replies of a [`ScriptedVcpu`], readable while it runs elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Replies(Arc<Mutex<Vec<Reply>>>);

impl Replies {
    /// The replies so far.
    pub fn get(&self) -> Vec<Reply> {
        relock(&self.0).clone()
    }
}

/// A vCPU whose guest is a list of [`Step`]s.
///
/// # Panics
/// Its methods panic on misuse, to make tests fail: saving or restoring while an access is incomplete, or entering
/// after a triple fault, a system event or a fatal exit without a restore.
#[derive(Debug)]
pub struct ScriptedVcpu {
    script: VecDeque<Step>,
    repeat: Option<Step>,
    flag: Arc<Flag>,
    replies: Replies,
    /// The reply that the guest waits for, without what the VMM answers.
    owed: Option<Reply>,
    /// The bytes that `Exit` borrows.
    data: Vec<u8>,
    details: Details,
    word: u64,
    error: u8,
    retired: u64,
    ended: bool,
}

impl ScriptedVcpu {
    /// A vCPU that runs these steps, then spins.
    pub fn new(script: impl IntoIterator<Item = Step>) -> Self {
        ScriptedVcpu {
            script: script.into_iter().collect(),
            repeat: None,
            flag: Arc::default(),
            replies: Replies::default(),
            owed: None,
            data: Vec::new(),
            details: Details::default(),
            word: 0,
            error: 0,
            retired: 0,
            ended: false,
        }
    }

    /// A vCPU that repeats one step for ever and keeps no record of its replies.
    pub fn endless(step: Step) -> Self {
        ScriptedVcpu {
            repeat: Some(step),
            ..Self::new([])
        }
    }

    /// The replies that the guest got.
    pub fn replies(&self) -> Replies {
        self.replies.clone()
    }

    /// Delivers the reply to the last exit. The instruction retires unless a `Step::Then` continues it.
    fn deliver(&mut self) {
        let Some(mut reply) = self.owed.take() else {
            return;
        };
        let succeeded = self.error == 0;
        match &mut reply {
            Reply::PioIn(data) | Reply::MmioRead(data) | Reply::Other(data) => {
                *data = take(&mut self.data);
            }
            Reply::Rdmsr(value) => *value = succeeded.then_some(self.word),
            Reply::Wrmsr(done) => *done = succeeded.then_some(()),
            Reply::Hypercall(ret) => *ret = self.word,
            Reply::PioOut | Reply::MmioWrite | Reply::Hyperv => {}
        }
        if self.repeat.is_none() {
            relock(&self.replies.0).push(reply);
        }
        if !matches!(self.script.front(), Some(Step::Then(_))) {
            self.retired += 1;
        }
    }

    fn assert_complete(&self, act: &str) {
        let owed = &self.owed;
        assert!(owed.is_none(), "{act} while {owed:?} is incomplete");
    }

    fn continuation(&mut self) -> Option<Step> {
        match self.script.front() {
            Some(Step::Then(_)) => match self.script.pop_front() {
                Some(Step::Then(step)) => Some(*step),
                _ => None,
            },
            _ => None,
        }
    }

    fn interrupted(&mut self) -> Exit<'static> {
        self.flag.exit.swap(0, Ordering::AcqRel);
        Exit::Interrupted
    }

    fn owe(&mut self, owed: Reply, data: Vec<u8>) {
        self.owed = Some(owed);
        self.data = data;
        self.word = 0;
        // KVM presets success: an unanswered MSR access succeeds with 0.
        self.error = 0;
    }

    fn exit(&mut self, mut step: Step) -> Result<Exit<'_>, ScriptError> {
        let Some((owed, data)) = owed(&mut step) else {
            // The guest repeats an access that faulted, so nothing has retired.
            self.retired += u64::from(!matches!(step, Step::MemoryFault(_)));
            return self.plain(step);
        };
        self.owe(owed, data);
        let (data, word, error) = (&mut self.data, &mut self.word, &mut self.error);
        Ok(match step {
            Step::PioIn { port, size, .. } => Exit::PioIn { port, size, data },
            Step::PioOut { port, size, .. } => Exit::PioOut { port, size, data },
            Step::MmioRead { addr, .. } => Exit::MmioRead { addr, data },
            Step::MmioWrite { addr, .. } => Exit::MmioWrite { addr, data },
            Step::Rdmsr { index } => {
                let data = word;
                Exit::Rdmsr { index, data, error }
            }
            Step::Wrmsr { index, data } => Exit::Wrmsr { index, data, error },
            Step::Hypercall { abi, number } => hypercall(abi, number, word),
            Step::HypervSynic { msr } => Exit::Hyperv(HypervExit::Synic {
                msr,
                control: 0,
                event_page: 0,
                message_page: 0,
            }),
            Step::Other { reason, .. } => Exit::Other(OtherExit { reason, data }),
            _ => panic!("{step:?} owes nothing"),
        })
    }

    /// Exits with nothing to complete.
    fn plain(&mut self, step: Step) -> Result<Exit<'_>, ScriptError> {
        self.ended = matches!(step, Step::Shutdown | Step::Fatal(_) | Step::SystemEvent(_));
        Ok(match step {
            Step::Hlt => Exit::Hlt,
            Step::ApResetHold => Exit::ApResetHold,
            Step::Shutdown => Exit::Shutdown,
            Step::SystemEvent(event) => self.details.event(event),
            Step::Debug(debug) => Exit::Debug(debug),
            Step::IoapicEoi { vector } => Exit::IoapicEoi { vector },
            Step::DirtyRingFull => Exit::DirtyRingFull,
            Step::InterruptWindow => Exit::InterruptWindow,
            Step::SetTpr => Exit::SetTpr,
            Step::TprAccess => Exit::TprAccess {
                rip: self.retired,
                is_write: true,
            },
            Step::BusLock => Exit::BusLock,
            Step::Notify => Exit::Notify,
            Step::MemoryFault(fault) => Exit::MemoryFault(fault),
            Step::Fatal(exit) => self.details.fatal(exit),
            Step::HostError => return Err(ScriptError::Host),
            Step::Then(step) => panic!("{step:?} continues an instruction that made no exit"),
            _ => self.interrupted(),
        })
    }
}

/// The reply that the guest waits for after `step`, and the data of its exit.
fn owed(step: &mut Step) -> Option<(Reply, Vec<u8>)> {
    Some(match step {
        Step::PioIn { size, count, .. } => (
            Reply::PioIn(Vec::new()),
            vec![0; usize::from(*size) * *count],
        ),
        Step::PioOut { data, .. } => (Reply::PioOut, take(data)),
        Step::MmioRead { len, .. } => (Reply::MmioRead(Vec::new()), vec![0; *len]),
        Step::MmioWrite { data, .. } => (Reply::MmioWrite, take(data)),
        Step::Rdmsr { .. } => (Reply::Rdmsr(None), Vec::new()),
        Step::Wrmsr { .. } => (Reply::Wrmsr(None), Vec::new()),
        Step::Hypercall { .. } => (Reply::Hypercall(0), Vec::new()),
        Step::HypervSynic { .. } => (Reply::Hyperv, Vec::new()),
        Step::Other { data, .. } => (Reply::Other(Vec::new()), take(data)),
        _ => return None,
    })
}

fn hypercall(abi: HypercallAbi, number: u64, ret: &mut u64) -> Exit<'_> {
    let call = Hypercall {
        abi,
        number,
        args: &[0; 6],
        long_mode: true,
        cpl: None,
        ret,
    };
    match abi {
        HypercallAbi::Kvm => Exit::Hypercall(call),
        HypercallAbi::Xen => Exit::Xen(call),
        HypercallAbi::Hyperv => Exit::Hyperv(HypervExit::Hypercall(call)),
    }
}

impl Vcpu for ScriptedVcpu {
    type Error = ScriptError;

    fn run(&mut self) -> Result<Exit<'_>, ScriptError> {
        assert!(!self.ended, "entered after an exit that ends the vCPU");
        self.deliver();
        if let Some(step) = self.continuation() {
            return self.exit(step);
        }
        if self.flag.exit.load(Ordering::Acquire) != 0 {
            return Ok(self.interrupted());
        }
        match self.script.pop_front().or_else(|| self.repeat.clone()) {
            None | Some(Step::Spin) => {
                self.flag.wait();
                Ok(self.interrupted())
            }
            Some(step) => self.exit(step),
        }
    }

    fn complete(&mut self) -> Result<Exit<'_>, ScriptError> {
        assert!(!self.ended, "entered after an exit that ends the vCPU");
        self.flag.exit.store(1, Ordering::Release);
        self.deliver();
        match self.continuation() {
            Some(step) => self.exit(step),
            None => Ok(self.interrupted()),
        }
    }
}

impl SaveVcpu for ScriptedVcpu {
    type State = ScriptState;

    fn save(&mut self) -> Result<ScriptState, ScriptError> {
        self.assert_complete("saved");
        assert!(!self.ended, "saved after an exit that ends the vCPU");
        Ok(ScriptState {
            retired: self.retired,
        })
    }

    /// The guest gets no reply, and steps that continue the instruction are skipped.
    fn abandon(&mut self) -> Result<(), ScriptError> {
        self.owed = None;
        while self.continuation().is_some() {}
        Ok(())
    }

    /// Replaces the count of instructions. The script continues where it is.
    fn restore(&mut self, state: &ScriptState) -> Result<(), ScriptError> {
        if *state == ScriptState::MISFIT {
            return Err(ScriptError::Misfit);
        }
        self.assert_complete("restored");
        self.ended = false;
        self.retired = state.retired;
        Ok(())
    }

    fn left_unchanged(error: &ScriptError) -> bool {
        *error == ScriptError::Misfit
    }
}

impl ManagedVcpu for ScriptedVcpu {
    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.flag) as Arc<dyn Kick>
    }

    fn paused(&mut self) -> Result<(), ScriptError> {
        self.assert_complete("paused");
        Ok(())
    }

    fn dump(&mut self) -> Option<CpuDump> {
        let registers = Registers {
            rip: self.retired,
            ..Registers::default()
        };
        Some(CpuDump {
            registers,
            instruction: InstructionBytes::Unavailable,
        })
    }
}
