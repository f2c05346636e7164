// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One vCPU's thread: run the guest, answer exits, obey requests, report how it ended.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use crate::dispatch::{Flow, Leave, Unclaimed, dispatch};
use crate::error::Unchanged;
use crate::event::{VcpuEvent, VcpuEventSender};
use crate::exit::Exit;
use crate::history::{ExitHistory, ExitRecord};
use crate::kick::KickSignal;
use crate::report::{CpuDump, FailureReason, FailureReport};
use crate::state::{Incident, Request, Response, State, occur, step};
use crate::vcpu::{BoxError, ManagedVcpu, VcpuId, VcpuIo};

/// Most exits that finishing one instruction may take. KVM's longest is a string instruction, which
/// returns to the guest after 1,024 elements at the latest.
const MAX_COMPLETIONS: u32 = 65_536;

/// A request with what it carries, and where its answer goes.
pub(crate) struct Envelope<S> {
    pub(crate) order: Order<S>,
    pub(crate) reply: Sender<(VcpuId, Reply<S>)>,
}

/// A request with what it carries.
pub(crate) enum Order<S> {
    Plain(Request),
    Restore(Box<S>),
    Call(Call),
}

/// The controller's own code, for a vCPU whose type the set has forgotten. It does nothing on another type.
pub(crate) type Call = Box<dyn FnOnce(&mut dyn Any) + Send>;

impl<S> Order<S> {
    pub(crate) fn request(&self) -> Request {
        match self {
            Order::Plain(request) => *request,
            Order::Restore(_) => Request::Restore,
            Order::Call(_) => Request::Call,
        }
    }
}

/// An answer with what it carries.
pub(crate) enum Reply<S> {
    Done,
    /// Boxed: a channel of the standard library takes room for 31 answers with the first one.
    Saved(Box<S>),
    Dumped(Box<Option<CpuDump>>),
    Refused(State),
    Failed(BoxError),
}

type SaveHook<V, I, S> = Box<dyn FnMut(&mut V, &mut I) -> Result<S, BoxError> + Send>;
type RestoreHook<V, I, S> = Box<dyn FnMut(&mut V, &mut I, S) -> Result<(), BoxError> + Send>;

/// How a vCPU and its I/O object become one saved state, and back.
///
/// Needed when the I/O object has state of its own, such as per-vCPU MSRs. Both run on the vCPU's
/// thread, while it is paused.
pub struct StateHooks<V, I, S> {
    pub(crate) save: SaveHook<V, I, S>,
    pub(crate) restore: RestoreHook<V, I, S>,
}

impl<V, I, S> fmt::Debug for StateHooks<V, I, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateHooks").finish_non_exhaustive()
    }
}

impl<V, I, S> StateHooks<V, I, S> {
    /// Hooks of the caller's own.
    ///
    /// A `restore` hook should check what it can before it changes anything, and say [`Unchanged`] where that fails;
    /// then restore the vCPU and pass its error on, by itself or as a [`source`](std::error::Error::source). After
    /// `Unchanged`, or an error of which the vCPU says [`SaveVcpu::left_unchanged`], it stays paused. Any other error
    /// ends the vCPU until a restore succeeds.
    ///
    /// [`SaveVcpu::left_unchanged`]: crate::SaveVcpu::left_unchanged
    pub fn new(
        save: impl FnMut(&mut V, &mut I) -> Result<S, BoxError> + Send + 'static,
        restore: impl FnMut(&mut V, &mut I, S) -> Result<(), BoxError> + Send + 'static,
    ) -> Self {
        StateHooks {
            save: Box::new(save),
            restore: Box::new(restore),
        }
    }
}

impl<V: ManagedVcpu, I> StateHooks<V, I, V::State> {
    /// The vCPU's state alone.
    pub fn vcpu_only() -> Self {
        StateHooks::new(
            |vcpu: &mut V, _: &mut I| vcpu.save().map_err(Into::into),
            |vcpu: &mut V, _: &mut I, state: V::State| vcpu.restore(&state).map_err(Into::into),
        )
    }
}

/// Sends a last event if the thread unwinds past everything else. Disarmed on every regular way out.
struct LastWord {
    id: VcpuId,
    events: VcpuEventSender,
    armed: bool,
}

impl Drop for LastWord {
    fn drop(&mut self) {
        if self.armed {
            let report = FailureReport {
                id: self.id,
                reason: FailureReason::Lost,
                dump: None,
                exits: ExitHistory::default(),
            };
            self.events.send(VcpuEvent::Fatal {
                report: Box::new(report),
            });
        }
    }
}

/// Everything a vCPU's thread owns.
pub(crate) struct Worker<V, I, S> {
    pub(crate) id: VcpuId,
    pub(crate) vcpu: V,
    pub(crate) io: I,
    pub(crate) hooks: StateHooks<V, I, S>,
    pub(crate) mailbox: Receiver<Envelope<S>>,
    pub(crate) events: VcpuEventSender,
    pub(crate) unclaimed: Arc<Unclaimed>,
    pub(crate) signal: KickSignal,
}

impl<V: ManagedVcpu + 'static, I: VcpuIo, S> Worker<V, I, S> {
    /// The thread's body. Returns when stopped, or when the controller is gone.
    pub(crate) fn main(self) {
        let mut last_word = LastWord {
            id: self.id,
            events: self.events.clone(),
            armed: true,
        };
        Control {
            worker: self,
            state: State::Paused,
            halted: false,
            history: ExitHistory::default(),
        }
        .serve();
        last_word.armed = false;
    }
}

/// How a stay in the guest ended.
enum Stay {
    /// There may be a request.
    Interrupted,
    /// A device asked for a pause, the guest stopped by itself, or both at the same instruction.
    Stopped { asked: bool, left: Option<Leave> },
}

struct Control<V, I, S> {
    worker: Worker<V, I, S>,
    state: State,
    /// In `hlt`: not to enter the guest before a wake-up, also across a pause.
    halted: bool,
    history: ExitHistory,
}

impl<V: ManagedVcpu + 'static, I: VcpuIo, S> Control<V, I, S> {
    fn serve(&mut self) {
        if let Err(error) = self.worker.signal.unblock() {
            self.fail(FailureReason::Host(error.into()));
        } else if let Err(panic) =
            catch_unwind(AssertUnwindSafe(|| self.worker.io.thread_started()))
        {
            self.fail(FailureReason::Panic {
                message: panic_message(panic.as_ref()),
            });
        }
        while self.state != State::Stopped {
            if self.state == State::Running && !self.halted {
                self.run_guest();
                self.drain();
            } else {
                match self.worker.mailbox.recv() {
                    Ok(envelope) => self.obey(envelope),
                    Err(_) => return,
                }
                // What was just obeyed may have used up the kick of a later request (a restore completes
                // a pending access): nothing may be left in the mailbox when the guest is entered.
                self.drain();
            }
        }
    }

    /// Obeys every request that is there. Without a controller there is nobody to run the guest for.
    fn drain(&mut self) {
        loop {
            match self.worker.mailbox.try_recv() {
                Ok(envelope) => self.obey(envelope),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.state = State::Stopped;
                    return;
                }
            }
        }
    }

    /// Runs the guest until there may be a request, or until it stopped by itself.
    fn run_guest(&mut self) {
        let Worker {
            id,
            vcpu,
            io,
            unclaimed,
            ..
        } = &mut self.worker;
        let history = &mut self.history;
        let stay = catch_unwind(AssertUnwindSafe(|| {
            run_until_stopped(vcpu, io, *id, unclaimed, history)
        }));
        match stay {
            Ok(Ok(Stay::Interrupted)) => {}
            Ok(Ok(Stay::Stopped { asked, left })) => self.stopped(asked, left),
            Ok(Err(reason)) => self.fail(*reason),
            Err(panic) => self.fail(FailureReason::Panic {
                message: panic_message(panic.as_ref()),
            }),
        }
    }

    /// One event for each of the reasons, except that a vCPU that ended can't be paused.
    fn stopped(&mut self, asked: bool, left: Option<Leave>) {
        let id = self.worker.id;
        if asked && !left.is_some_and(Leave::is_final) {
            self.pause_itself(VcpuEvent::Paused { id });
        }
        match left {
            None => {}
            Some(Leave::Halted) if self.state == State::Failed => {}
            Some(Leave::Halted) => {
                self.halted = true;
                self.send(VcpuEvent::Halted { id });
            }
            Some(Leave::Debug(debug)) => self.pause_itself(VcpuEvent::Debug { id, debug }),
            Some(Leave::DirtyRingFull) => self.pause_itself(VcpuEvent::DirtyRingFull { id }),
            Some(Leave::SystemEvent(event)) => {
                self.end(|_| VcpuEvent::SystemEvent { id, event });
            }
            Some(Leave::Shutdown) => self.end(|control| VcpuEvent::Shutdown {
                report: control.report(FailureReason::TripleFault),
            }),
            Some(Leave::Fatal(exit)) => self.end(|control| VcpuEvent::Fatal {
                report: control.report(FailureReason::Exit(exit)),
            }),
        }
    }

    /// Out of the guest until the event is acknowledged, unless the host refuses; then the vCPU fails. The
    /// caller made sure that nothing is pending. A second reason for the same stop is one more event.
    fn pause_itself(&mut self, event: VcpuEvent) {
        let before = self.state;
        self.state = occur(before, Incident::SelfPause);
        if self.state == State::SelfPaused && (before == self.state || self.tell(V::paused)) {
            self.send(event);
        }
    }

    /// `Ended`, with nothing pending that could reach the guest memory of a restore. Where that fails, the restore
    /// is refused and says so.
    fn end(&mut self, event: impl FnOnce(&mut Self) -> VcpuEvent) {
        let event = event(self);
        self.state = occur(self.state, Incident::End);
        let vcpu = &mut self.worker.vcpu;
        let _ = catch_unwind(AssertUnwindSafe(|| vcpu.abandon()));
        self.send(event);
    }

    fn send(&self, event: VcpuEvent) {
        self.worker.events.send(event);
    }

    /// Tells the vCPU of a change of state, and fails if it can't follow.
    fn tell(&mut self, change: impl FnOnce(&mut V) -> Result<(), V::Error>) -> bool {
        match catch_unwind(AssertUnwindSafe(|| change(&mut self.worker.vcpu))) {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                self.fail(FailureReason::Host(error.into()));
                false
            }
            Err(panic) => {
                self.fail(FailureReason::Panic {
                    message: panic_message(panic.as_ref()),
                });
                false
            }
        }
    }

    fn fail(&mut self, reason: FailureReason) {
        self.state = occur(self.state, Incident::Failure);
        let report = self.report(reason);
        self.worker.events.send(VcpuEvent::Fatal { report });
    }

    fn report(&mut self, reason: FailureReason) -> Box<FailureReport> {
        let vcpu = &mut self.worker.vcpu;
        // After a panic the vCPU may panic again; a report without registers is better than none.
        let dump = catch_unwind(AssertUnwindSafe(|| vcpu.dump()))
            .ok()
            .flatten();
        Box::new(FailureReport {
            id: self.worker.id,
            reason,
            dump,
            exits: self.history,
        })
    }

    /// The answer to a change of state of which the vCPU was told.
    fn told(&mut self, change: impl FnOnce(&mut V) -> Result<(), V::Error>) -> Reply<S> {
        match self.tell(change) {
            true => Reply::Done,
            false => Reply::Refused(self.state),
        }
    }

    /// Whether a failed restore changed nothing, which the hook says or the vCPU's error in the chain of causes.
    fn left_unchanged(error: &BoxError) -> bool {
        if error.is::<Unchanged>() {
            return true;
        }
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error.as_ref());
        while let Some(error) = cause {
            if let Some(own) = error.downcast_ref::<V::Error>() {
                return V::left_unchanged(own);
            }
            cause = error.source();
        }
        false
    }

    fn obey(&mut self, Envelope { order, reply }: Envelope<S>) {
        let before = self.state;
        let (next, response) = step(before, order.request());
        let answer = match response {
            Response::Refused(state) => Reply::Refused(state),
            Response::Done => {
                self.state = next;
                self.carry_out(before, order)
            }
        };
        // A controller that gave up waiting has dropped its end.
        let _ = reply.send((self.worker.id, answer));
    }

    /// What a granted request does besides the change of state.
    fn carry_out(&mut self, before: State, order: Order<S>) -> Reply<S> {
        let request = order.request();
        let Worker {
            vcpu, io, hooks, ..
        } = &mut self.worker;
        let outcome = match order {
            Order::Plain(Request::Pause) if before == State::Running => {
                return self.told(V::paused);
            }
            Order::Plain(Request::Resume) if before == State::Paused => {
                return self.told(V::resuming);
            }
            Order::Plain(Request::Wake) => {
                self.halted = false;
                return Reply::Done;
            }
            Order::Plain(Request::Save) => catch_unwind(AssertUnwindSafe(|| {
                (hooks.save)(vcpu, io).map(|state| Reply::Saved(Box::new(state)))
            })),
            Order::Plain(Request::Dump) => catch_unwind(AssertUnwindSafe(|| {
                Ok(Reply::Dumped(Box::new(vcpu.dump())))
            })),
            Order::Plain(_) => return Reply::Done,
            Order::Call(call) => catch_unwind(AssertUnwindSafe(|| {
                call(vcpu);
                Ok(Reply::Done)
            })),
            Order::Restore(state) => catch_unwind(AssertUnwindSafe(|| {
                (hooks.restore)(vcpu, io, *state).map(|()| Reply::Done)
            })),
        };
        match outcome {
            Ok(Ok(reply)) => {
                if request == Request::Restore {
                    self.halted = false;
                }
                reply
            }
            Ok(Err(error)) => {
                if request == Request::Restore {
                    // Half-restored: nothing but another restore makes it runnable.
                    self.state = match Self::left_unchanged(&error) {
                        true => before,
                        false => occur(self.state, Incident::End),
                    };
                }
                Reply::Failed(error)
            }
            Err(panic) => {
                self.fail(FailureReason::Panic {
                    message: panic_message(panic.as_ref()),
                });
                Reply::Refused(self.state)
            }
        }
    }
}

/// The whole of `Running`: control is looked at only after `Interrupted`.
fn run_until_stopped<V: ManagedVcpu, I: VcpuIo>(
    vcpu: &mut V,
    io: &mut I,
    id: VcpuId,
    unclaimed: &Unclaimed,
    history: &mut ExitHistory,
) -> Result<Stay, Box<FailureReason>> {
    loop {
        let exit = vcpu.run().map_err(host)?;
        if !matches!(exit, Exit::Interrupted) {
            history.push(ExitRecord::from(&exit));
        }
        match dispatch(exit, io, id, unclaimed) {
            Flow::Continue => {}
            Flow::Interrupted => return Ok(Stay::Interrupted),
            Flow::Pause => return settle(vcpu, io, id, unclaimed, history, (true, None)),
            Flow::Leave(leave) if leave.is_final() => {
                return Ok(Stay::Stopped {
                    asked: false,
                    left: Some(leave),
                });
            }
            Flow::Leave(leave) => {
                return settle(vcpu, io, id, unclaimed, history, (false, Some(leave)));
            }
        }
    }
}

/// Finishes what is pending without running the guest. `so_far` says whether a device asked for a pause, and
/// how the guest stopped by itself; more of both may come meanwhile.
#[cold]
#[inline(never)]
fn settle<V: ManagedVcpu, I: VcpuIo>(
    vcpu: &mut V,
    io: &mut I,
    id: VcpuId,
    unclaimed: &Unclaimed,
    history: &mut ExitHistory,
    so_far: (bool, Option<Leave>),
) -> Result<Stay, Box<FailureReason>> {
    let (mut asked, mut left) = so_far;
    for _ in 0..MAX_COMPLETIONS {
        let exit = vcpu.complete().map_err(host)?;
        if !matches!(exit, Exit::Interrupted) {
            history.push(ExitRecord::from(&exit));
        }
        match dispatch(exit, io, id, unclaimed) {
            Flow::Interrupted => return Ok(Stay::Stopped { asked, left }),
            Flow::Leave(leave) => left = Some(leave),
            Flow::Pause => asked = true,
            Flow::Continue => {}
        }
        if left.is_some_and(Leave::is_final) {
            return Ok(Stay::Stopped { asked, left });
        }
    }
    Err(Box::new(FailureReason::NeverSettled {
        exits: MAX_COMPLETIONS,
    }))
}

fn host(error: impl std::error::Error + Send + Sync + 'static) -> Box<FailureReason> {
    Box::new(FailureReason::Host(Box::new(error)))
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no text)")
        .to_owned()
}
