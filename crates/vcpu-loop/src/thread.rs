// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One vCPU's thread: it runs the guest, answers exits, obeys requests, and reports how the vCPU ended.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

use crate::builder::{SpawnError, Stopped};
use crate::counters::ExitCounters;
use crate::dispatch::{Leave, Unclaimed};
use crate::doorbell::Listener;
use crate::error::{Error, StartError, Unchanged};
use crate::event::{VcpuEvent, VcpuEventSender};
use crate::guest::{Desk, Guest, Stay};
use crate::history::ExitHistory;
use crate::hooks::{Call, StartHook, StateHooks};
use crate::kick::KickSignal;
use crate::report::{CpuDump, FailureReason, FailureReport};
use crate::state::{Incident, Request, Response, State, occur, step};
use crate::vcpu::{BoxError, ManagedVcpu, VcpuId, VcpuIo};

/// An order, and the channel for its answer.
pub(crate) struct Envelope<S> {
    pub(crate) order: Order<S>,
    pub(crate) reply: Sender<(VcpuId, Reply<S>)>,
}

/// A request with its payload.
pub(crate) enum Order<S> {
    Plain(Request),
    Restore(Box<S>),
    /// [`Request::Access`] or [`Request::Call`].
    Call(Request, Call),
}

impl<S> Order<S> {
    pub(crate) fn request(&self) -> Request {
        match self {
            Order::Plain(request) => *request,
            Order::Restore(_) => Request::Restore,
            Order::Call(request, _) => *request,
        }
    }
}

/// An answer with its payload.
pub(crate) enum Reply<S> {
    Done,
    /// Boxed, because the standard library's channel allocates 31 slots with the first answer.
    Saved(Box<S>),
    Dumped(Box<Option<CpuDump>>),
    Refused(State),
    Failed(BoxError),
    /// Answers a resume after the start hook failed.
    NotStarted(StartError),
}

/// Sends a last event if the thread unwinds in spite of everything. Disarmed on every regular return.
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
    pub(crate) on_start: Option<StartHook<V, I>>,
    pub(crate) mailbox: Receiver<Envelope<S>>,
    pub(crate) listener: Listener,
    pub(crate) events: VcpuEventSender,
    pub(crate) unclaimed: Arc<Unclaimed>,
    pub(crate) exits: Arc<ExitCounters>,
    pub(crate) signal: KickSignal,
}

impl<V, I, S> Worker<V, I, S> {
    /// Returns the vCPU that could not be spawned.
    pub(crate) fn refused(self, error: Error) -> SpawnError<V, I> {
        SpawnError {
            error,
            vcpu: self.vcpu,
            io: self.io,
        }
    }
}

impl<V: ManagedVcpu + 'static, I: VcpuIo, S> Worker<V, I, S> {
    /// The thread's body. Returns when stopped, or when the controller is gone.
    pub(crate) fn main(self) -> Stopped<V, I> {
        let mut last_word = LastWord {
            id: self.id,
            events: self.events.clone(),
            armed: true,
        };
        let mut control = Control {
            worker: self,
            state: State::Paused,
            last: State::Paused,
            halted: false,
            history: ExitHistory::default(),
            not_started: None,
        };
        control.serve();
        let Control { worker, last, .. } = control;
        let Worker {
            id,
            vcpu,
            io,
            hooks,
            ..
        } = worker;
        drop(hooks);
        last_word.armed = false;
        Stopped {
            id,
            state: last,
            vcpu,
            io,
        }
    }
}

struct Control<V, I, S> {
    worker: Worker<V, I, S>,
    state: State,
    /// The state before the stop.
    last: State,
    /// In `hlt`: must not enter the guest before a wake-up, even after a pause.
    halted: bool,
    history: ExitHistory,
    not_started: Option<StartError>,
}

impl<V: ManagedVcpu + 'static, I: VcpuIo, S> Control<V, I, S> {
    fn serve(&mut self) {
        self.worker.listener.0.arrive();
        self.start();
        while self.state != State::Stopped {
            if self.state == State::Running && !self.halted {
                self.run_guest();
                self.drain();
            } else {
                match self.worker.mailbox.recv() {
                    Ok(envelope) => self.obey(envelope),
                    Err(_) => self.change(State::Stopped),
                }
                // The request may have cleared the kick of a later one (the caller's code may complete an access),
                // so the mailbox must be empty before the guest is entered.
                self.drain();
            }
        }
        // It may be spawned again later, and then the guest must hear of the pause.
        if self.last == State::Running && !self.tell(V::paused) {
            self.last = State::Failed;
        }
    }

    /// Runs the start hook. Kicks arrive afterwards, whatever the hook did to signals.
    fn start(&mut self) {
        let hook = self.worker.on_start.take();
        match self.callers_code(|vcpu, io, _| hook.map_or(Ok(()), |hook| hook(vcpu, io))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = StartError::new(error);
                self.not_started = Some(error.clone());
                self.fail(FailureReason::Start(error));
            }
            Err(panic) => self.panicked(panic.as_ref()),
        }
    }

    /// Runs the caller's code, which may do anything to the vCPU and the thread. Kicks still arrive afterwards: if the
    /// vCPU was replaced, they go to the new one, and the signal is unblocked.
    fn callers_code<T>(
        &mut self,
        code: impl FnOnce(&mut V, &mut I, &mut StateHooks<V, I, S>) -> Result<T, BoxError>,
    ) -> std::thread::Result<Result<T, BoxError>> {
        let Worker {
            vcpu,
            io,
            hooks,
            listener,
            signal,
            ..
        } = &mut self.worker;
        catch_unwind(AssertUnwindSafe(|| {
            let result = code(vcpu, io, hooks);
            listener.0.redirect(vcpu.kicker());
            signal.unblock()?;
            result
        }))
    }

    /// Obeys every queued request. Stops if there is no controller any more.
    fn drain(&mut self) {
        self.worker.listener.0.silence();
        loop {
            match self.worker.mailbox.try_recv() {
                Ok(envelope) => self.obey(envelope),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.change(State::Stopped);
                    return;
                }
            }
        }
    }

    /// Runs the guest until there may be a request, or until it stops by itself.
    fn run_guest(&mut self) {
        let worker = &mut self.worker;
        let mut guest = Guest {
            vcpu: &mut worker.vcpu,
            bell: &worker.listener.0,
            desk: Desk {
                id: worker.id,
                io: &mut worker.io,
                unclaimed: &worker.unclaimed,
                exits: &worker.exits,
                history: &mut self.history,
            },
        };
        match catch_unwind(AssertUnwindSafe(|| guest.run())) {
            Ok(Ok(stay)) => self.stayed(stay),
            Ok(Err(reason)) => self.fail(*reason),
            Err(panic) => self.panicked(panic.as_ref()),
        }
    }

    /// Sends one event per reason to stop. A vCPU that ended is not paused as well.
    fn stayed(&mut self, Stay { asked, left }: Stay) {
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

    /// Pauses until the event is acknowledged; fails if the host refuses. The caller made sure that nothing is pending.
    /// A second reason for the same stop only sends another event.
    fn pause_itself(&mut self, event: VcpuEvent) {
        let before = self.state;
        self.state = occur(before, Incident::SelfPause);
        if self.state == State::SelfPaused && (before == self.state || self.tell(V::paused)) {
            self.send(event);
        }
    }

    /// Ends the vCPU and completes a pending access, which could otherwise write guest memory after a restore. If that
    /// fails, `restore` returns the error.
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

    /// Tells the vCPU of a state change. If it returns an error, the vCPU fails.
    fn tell(&mut self, change: impl FnOnce(&mut V) -> Result<(), V::Error>) -> bool {
        match catch_unwind(AssertUnwindSafe(|| change(&mut self.worker.vcpu))) {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                self.fail(FailureReason::Host(error.into()));
                false
            }
            Err(panic) => {
                self.panicked(panic.as_ref());
                false
            }
        }
    }

    fn fail(&mut self, reason: FailureReason) {
        self.state = occur(self.state, Incident::Failure);
        let report = self.report(reason);
        self.worker.events.send(VcpuEvent::Fatal { report });
    }

    fn panicked(&mut self, panic: &(dyn Any + Send)) {
        let message = panic_message(panic);
        self.fail(FailureReason::Panic { message });
    }

    fn report(&mut self, reason: FailureReason) -> Box<FailureReport> {
        let vcpu = &mut self.worker.vcpu;
        // After a panic, the vCPU may panic again. A report without registers is better than none.
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

    /// Tells the vCPU of a state change, and returns the answer to the request.
    fn told(&mut self, change: impl FnOnce(&mut V) -> Result<(), V::Error>) -> Reply<S> {
        match self.tell(change) {
            true => Reply::Done,
            false => Reply::Refused(self.state),
        }
    }

    /// Whether a failed restore changed nothing: the hook returned `Unchanged`, or the vCPU's error among the causes
    /// tells.
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

    fn change(&mut self, next: State) {
        if next == State::Stopped && self.state != next {
            self.last = self.state;
        }
        self.state = next;
    }

    fn obey(&mut self, Envelope { order, reply }: Envelope<S>) {
        let before = self.state;
        let (next, response) = step(before, order.request());
        let answer = match response {
            Response::Refused(state) => match (&self.not_started, order.request()) {
                (Some(error), Request::Resume) => Reply::NotStarted(error.clone()),
                _ => Reply::Refused(state),
            },
            Response::Done => {
                self.change(next);
                self.carry_out(before, order)
            }
        };
        // A controller that gave up waiting has dropped its end.
        let _ = reply.send((self.worker.id, answer));
    }

    /// Does what a granted request asks for besides the state change.
    fn carry_out(&mut self, before: State, order: Order<S>) -> Reply<S> {
        let request = order.request();
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
            Order::Plain(Request::Save) => self.callers_code(|vcpu, io, hooks| {
                (hooks.save)(vcpu, io).map(|state| Reply::Saved(Box::new(state)))
            }),
            Order::Plain(Request::Dump) => {
                self.callers_code(|vcpu, _, _| Ok(Reply::Dumped(Box::new(vcpu.dump()))))
            }
            Order::Plain(_) => return Reply::Done,
            Order::Call(_, call) => self.callers_code(|vcpu, _, _| {
                call(vcpu);
                Ok(Reply::Done)
            }),
            Order::Restore(state) => self.callers_code(|vcpu, io, hooks| {
                (hooks.restore)(vcpu, io, *state).map(|()| Reply::Done)
            }),
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
                    // Half restored: only another restore makes it runnable.
                    self.state = match Self::left_unchanged(&error) {
                        true => before,
                        false => occur(self.state, Incident::End),
                    };
                }
                Reply::Failed(error)
            }
            Err(panic) => {
                self.panicked(panic.as_ref());
                Reply::Refused(self.state)
            }
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no text)")
        .to_owned()
}
