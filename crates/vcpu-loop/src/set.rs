// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All vCPUs of a VM, controlled together: send to all, then wait for all, with a deadline.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::signal::Killable;

use crate::dispatch::Unclaimed;
use crate::error::{Error, Result};
use crate::event::VcpuEventSender;
use crate::kick::{Kick, KickSignal};
use crate::report::CpuDump;
use crate::state::Request;
use crate::thread::{Call, Envelope, Order, Reply, StateHooks, Worker};
use crate::vcpu::{ManagedVcpu, VcpuId, VcpuIo};

/// How long [`VcpuSet`]'s `Drop` waits for its threads before it leaves them behind.
const DROP_DEADLINE: Duration = Duration::from_secs(1);

/// The control end of one vCPU's thread.
struct VcpuHandle<S> {
    id: VcpuId,
    mailbox: Sender<Envelope<S>>,
    kick: Arc<dyn Kick>,
    thread: JoinHandle<()>,
    unclaimed: Arc<Unclaimed>,
}

impl<S> VcpuHandle<S> {
    /// Enqueue, flag, signal: in this order, see [`crate::kick`]. Without a thread the envelope is dropped.
    fn send(&self, order: Order<S>, reply: Sender<(VcpuId, Reply<S>)>, signal: KickSignal) {
        if self.mailbox.send(Envelope { order, reply }).is_ok() {
            self.kick(signal);
        }
    }

    fn kick(&self, signal: KickSignal) {
        self.kick.request_exit();
        // The thread can't be reaped while we hold its handle, so the signal can't go astray.
        let _ = self.thread.kill(signal.number());
    }
}

/// The vCPUs of one VM, each on its own thread.
///
/// `S` is a vCPU's saved state. Methods take a deadline for all vCPUs together; one that misses it is
/// named by the error, and obeys the request later, when it can. Waiting happens on the caller's thread:
/// a [`VcpuIo`] must therefore never call into the set, nor wait for the thread that does.
///
/// Kicks are signals whose handler is installed without `SA_RESTART`: a system call that a [`VcpuIo`] makes
/// on the vCPU's thread may return `EINTR`, and has to be repeated.
///
/// Dropping the set stops all threads and waits for one second at most.
pub struct VcpuSet<S> {
    vcpus: Vec<VcpuHandle<S>>,
    events: VcpuEventSender,
    signal: KickSignal,
}

impl<S> fmt::Debug for VcpuSet<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<VcpuId> = self.vcpus.iter().map(|vcpu| vcpu.id).collect();
        f.debug_struct("VcpuSet")
            .field("vcpus", &ids)
            .field("signal", &self.signal)
            .finish_non_exhaustive()
    }
}

impl<S: Send + 'static> VcpuSet<S> {
    /// An empty set whose vCPUs report to `events` and are kicked by the default [`KickSignal`].
    pub fn new(events: VcpuEventSender) -> Self {
        Self::with_signal(events, KickSignal::default())
    }

    /// As [`VcpuSet::new`], with another kick signal. The set installs its handler, for the whole process.
    pub fn with_signal(events: VcpuEventSender, signal: KickSignal) -> Self {
        VcpuSet {
            vcpus: Vec::new(),
            events,
            signal,
        }
    }

    /// Starts a thread `vcpu<id>` for a vCPU, which is paused until [`VcpuSet::resume`].
    ///
    /// # Errors
    /// The id is taken, or the host refused the signal handler or the thread.
    pub fn spawn<V, I>(&mut self, id: impl Into<VcpuId>, vcpu: V, io: I) -> Result<()>
    where
        V: ManagedVcpu<State = S> + Send + 'static,
        I: VcpuIo + Send + 'static,
    {
        self.spawn_with(id, vcpu, io, StateHooks::vcpu_only())
    }

    /// As [`VcpuSet::spawn`], for an I/O object whose own state belongs to the saved state.
    ///
    /// # Errors
    /// As [`VcpuSet::spawn`].
    pub fn spawn_with<V, I>(
        &mut self,
        id: impl Into<VcpuId>,
        vcpu: V,
        io: I,
        hooks: StateHooks<V, I, S>,
    ) -> Result<()>
    where
        V: ManagedVcpu + Send + 'static,
        I: VcpuIo + Send + 'static,
    {
        let id = id.into();
        if self.vcpus.iter().any(|vcpu| vcpu.id == id) {
            return Err(Error::DuplicateId { id });
        }
        let signal = self.signal;
        signal.install().map_err(|source| Error::Signal {
            signal: signal.number(),
            source,
        })?;
        let (sender, mailbox) = channel();
        let kick = vcpu.kicker();
        let unclaimed = Arc::new(Unclaimed::default());
        let worker = Worker {
            id,
            vcpu,
            io,
            hooks,
            mailbox,
            events: self.events.clone(),
            unclaimed: Arc::clone(&unclaimed),
            signal,
        };
        let thread = Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || worker.main())
            .map_err(|source| Error::Thread { id, source })?;
        self.vcpus.push(VcpuHandle {
            id,
            mailbox: sender,
            kick,
            thread,
            unclaimed,
        });
        Ok(())
    }

    /// The ids, in the order of [`VcpuSet::spawn`], which is also the order of saved states.
    pub fn ids(&self) -> impl Iterator<Item = VcpuId> + '_ {
        self.vcpus.iter().map(|vcpu| vcpu.id)
    }

    /// The counters of accesses that nobody claimed. `None` if there is no such vCPU: also after
    /// [`VcpuSet::stop`], which counters that were asked for before outlive.
    pub fn unclaimed(&self, id: impl Into<VcpuId>) -> Option<Arc<Unclaimed>> {
        let id = id.into();
        self.vcpus
            .iter()
            .find(|vcpu| vcpu.id == id)
            .map(|vcpu| Arc::clone(&vcpu.unclaimed))
    }

    /// Lets all vCPUs enter the guest: starts them, or continues after a pause. One that refuses doesn't
    /// keep the others from running.
    ///
    /// # Errors
    /// [`Error::Deadline`], [`Error::Refused`] for a vCPU that ended, failed, or stopped by itself and was not
    /// [acknowledged](VcpuSet::acknowledge), [`Error::Gone`].
    pub fn resume(&self, deadline: Duration) -> Result<()> {
        self.all(Request::Resume, deadline).map(drop)
    }

    /// Takes all vCPUs out of the guest. Afterwards nothing is pending: every access that the guest began
    /// is complete. vCPUs that stopped by themselves, ended or failed count as paused.
    ///
    /// # Errors
    /// [`Error::Deadline`], [`Error::Refused`] for a vCPU that failed on the way, [`Error::Gone`].
    pub fn pause(&self, deadline: Duration) -> Result<()> {
        self.all(Request::Pause, deadline).map(drop)
    }

    /// As [`VcpuSet::resume`], for one vCPU. The others stay as they are.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`], and as [`VcpuSet::resume`].
    pub fn resume_vcpu(&self, id: impl Into<VcpuId>, deadline: Duration) -> Result<()> {
        self.one(id.into(), Request::Resume, deadline).map(drop)
    }

    /// As [`VcpuSet::pause`], for one vCPU. The others stay as they are.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`], and as [`VcpuSet::pause`].
    pub fn pause_vcpu(&self, id: impl Into<VcpuId>, deadline: Duration) -> Result<()> {
        self.one(id.into(), Request::Pause, deadline).map(drop)
    }

    /// Notes that one vCPU stopped by itself, which [`VcpuEvent::Paused`], [`VcpuEvent::Debug`] or
    /// [`VcpuEvent::DirtyRingFull`] said. It is paused then as any other, and a resume lets it run. Before
    /// that, no resume does, whoever asks for it. A paused vCPU needs none, and takes it as done.
    ///
    /// [`VcpuEvent::Paused`]: crate::VcpuEvent::Paused
    /// [`VcpuEvent::Debug`]: crate::VcpuEvent::Debug
    /// [`VcpuEvent::DirtyRingFull`]: crate::VcpuEvent::DirtyRingFull
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`], [`Error::Deadline`], [`Error::Refused`] for a vCPU that isn't paused,
    /// [`Error::Gone`].
    pub fn acknowledge(&self, id: impl Into<VcpuId>, deadline: Duration) -> Result<()> {
        self.one(id.into(), Request::Acknowledge, deadline)
            .map(drop)
    }

    /// Takes the states of all vCPUs, which must be paused, on their own threads.
    ///
    /// # Errors
    /// [`Error::Deadline`], [`Error::Refused`] for a vCPU that isn't paused, [`Error::Host`], [`Error::Gone`].
    pub fn save(&self, deadline: Duration) -> Result<Vec<S>> {
        let replies = self.all(Request::Save, deadline)?;
        Ok(replies
            .into_iter()
            .filter_map(|r| {
                if let Reply::Saved(state) = r {
                    Some(*state)
                } else {
                    None
                }
            })
            .collect())
    }

    /// Gives each vCPU, paused or ended, a state, in the order of [`VcpuSet::ids`]. They are paused then.
    ///
    /// Guest memory, its slots and the state of the whole VM (interrupt controllers, clock) must be there
    /// already. A vCPU whose state was refused before the first change
    /// ([`SaveVcpu::left_unchanged`](crate::SaveVcpu::left_unchanged)) stays what it was; the others have
    /// their new states all the same.
    ///
    /// # Errors
    /// [`Error::WrongStateCount`], [`Error::Deadline`], [`Error::Refused`], [`Error::Host`], [`Error::Gone`].
    pub fn restore(&self, states: Vec<S>, deadline: Duration) -> Result<()> {
        if states.len() != self.vcpus.len() {
            return Err(Error::WrongStateCount {
                given: states.len(),
                vcpus: self.vcpus.len(),
            });
        }
        let (sender, receiver) = channel();
        for (vcpu, state) in self.vcpus.iter().zip(states) {
            vcpu.send(Order::Restore(Box::new(state)), sender.clone(), self.signal);
        }
        drop(sender);
        let all: Vec<VcpuId> = self.ids().collect();
        collect(&receiver, &all, Request::Restore, deadline).map(drop)
    }

    /// Ends the `hlt` of one vCPU of a VM without in-kernel LAPIC. The guest goes on behind it, as after an
    /// interrupt that was handled already; injecting one is not the set's business. On any other vCPU it is
    /// a kick without effect.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`], [`Error::Deadline`], [`Error::Refused`], [`Error::Gone`].
    pub fn wake(&self, id: impl Into<VcpuId>, deadline: Duration) -> Result<()> {
        self.one(id.into(), Request::Wake, deadline).map(drop)
    }

    /// Runs `act` on one vCPU, which must be paused, on its own thread: for what the loop doesn't do itself,
    /// such as breakpoints, or an interrupt of a VM without in-kernel LAPIC (inject it, resume,
    /// [`wake`](VcpuSet::wake)). `V` is the type that the vCPU was spawned with. A panic of `act` fails the vCPU.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`], [`Error::WrongType`], [`Error::Deadline`] (`act` runs later, its result is lost),
    /// [`Error::Refused`], [`Error::Gone`].
    pub fn with_vcpu<V, R>(
        &self,
        id: impl Into<VcpuId>,
        act: impl FnOnce(&mut V) -> R + Send + 'static,
        deadline: Duration,
    ) -> Result<R>
    where
        V: 'static,
        R: Send + 'static,
    {
        let id = id.into();
        let (sender, result) = channel();
        let call: Call = Box::new(move |vcpu| {
            if let Some(vcpu) = vcpu.downcast_mut() {
                // A controller that gave up waiting has dropped its end.
                let _ = sender.send(act(vcpu));
            }
        });
        self.order(id, Order::Call(call), deadline)?;
        result.try_recv().map_err(|_| Error::WrongType {
            id,
            wanted: std::any::type_name::<V>(),
        })
    }

    /// Registers and instruction bytes of one vCPU, which must be paused or have ended. `None` if the vCPU
    /// can't show them.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`], [`Error::Deadline`], [`Error::Refused`], [`Error::Gone`].
    pub fn dump(&self, id: impl Into<VcpuId>, deadline: Duration) -> Result<Option<CpuDump>> {
        match self.one(id.into(), Request::Dump, deadline)? {
            Reply::Dumped(dump) => Ok(*dump),
            _ => Ok(None),
        }
    }

    /// Takes all vCPUs out of the guest and ends and joins their threads. The set is empty then.
    ///
    /// A thread that is gone already needs no stopping. One that misses the deadline stays in the set, so
    /// this can be called again.
    ///
    /// # Errors
    /// [`Error::Deadline`].
    pub fn stop(&mut self, deadline: Duration) -> Result<()> {
        let end = Instant::now().checked_add(deadline);
        let (sender, receiver) = channel();
        for vcpu in &self.vcpus {
            vcpu.send(Order::Plain(Request::Stop), sender.clone(), self.signal);
        }
        drop(sender);
        // Every answer, or the end of every thread, drops its sender; we only wait for that.
        while let Ok(Some(_)) = receive(&receiver, end) {}
        let (done, missed) = std::mem::take(&mut self.vcpus)
            .into_iter()
            .partition(|vcpu| finished(vcpu, end));
        self.vcpus = missed;
        for vcpu in Vec::from_iter::<Vec<VcpuHandle<S>>>(done) {
            // A panic has been reported as an event.
            let _ = vcpu.thread.join();
        }
        if self.vcpus.is_empty() {
            return Ok(());
        }
        let missed = self.ids().collect();
        Err(Error::Deadline {
            request: Request::Stop,
            missed,
            waited: deadline,
        })
    }

    fn all(&self, request: Request, deadline: Duration) -> Result<Vec<Reply<S>>> {
        let (sender, receiver) = channel();
        for vcpu in &self.vcpus {
            vcpu.send(Order::Plain(request), sender.clone(), self.signal);
        }
        drop(sender);
        let all: Vec<VcpuId> = self.ids().collect();
        collect(&receiver, &all, request, deadline)
    }

    fn one(&self, id: VcpuId, request: Request, deadline: Duration) -> Result<Reply<S>> {
        self.order(id, Order::Plain(request), deadline)
    }

    fn order(&self, id: VcpuId, order: Order<S>, deadline: Duration) -> Result<Reply<S>> {
        let request = order.request();
        let vcpu = self
            .vcpus
            .iter()
            .find(|vcpu| vcpu.id == id)
            .ok_or(Error::NoSuchVcpu { id })?;
        let (sender, receiver) = channel();
        vcpu.send(order, sender, self.signal);
        collect(&receiver, &[id], request, deadline)?
            .pop()
            .ok_or(Error::Gone { id })
    }
}

impl<S> Drop for VcpuSet<S> {
    fn drop(&mut self) {
        let end = Instant::now().checked_add(DROP_DEADLINE);
        let (sender, _) = channel();
        for vcpu in &self.vcpus {
            vcpu.send(Order::Plain(Request::Stop), sender.clone(), self.signal);
        }
        for vcpu in std::mem::take(&mut self.vcpus) {
            if finished(&vcpu, end) {
                let _ = vcpu.thread.join();
            } else {
                log::error!("vCPU {} does not stop, leaving its thread behind", vcpu.id);
            }
        }
    }
}

/// Whether the thread has ended by `end`. A thread ends within microseconds of its answer, so the wait is
/// a short poll; a join has no deadline.
fn finished<S>(vcpu: &VcpuHandle<S>, end: Option<Instant>) -> bool {
    loop {
        if vcpu.thread.is_finished() {
            return true;
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return false;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// The next answer; `None` when all senders are gone; an error when time is up.
fn receive<T>(receiver: &Receiver<T>, end: Option<Instant>) -> std::result::Result<Option<T>, ()> {
    let Some(end) = end else {
        return Ok(receiver.recv().ok());
    };
    match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
        Ok(answer) => Ok(Some(answer)),
        Err(RecvTimeoutError::Disconnected) => Ok(None),
        Err(RecvTimeoutError::Timeout) => Err(()),
    }
}

/// Waits for the answers of all of `ids`, and returns them in that order. Every vCPU is waited for before
/// an error is returned; a missed deadline goes before a refusal.
fn collect<S>(
    receiver: &Receiver<(VcpuId, Reply<S>)>,
    ids: &[VcpuId],
    request: Request,
    deadline: Duration,
) -> Result<Vec<Reply<S>>> {
    let end = Instant::now().checked_add(deadline);
    let mut answers: Vec<Option<Reply<S>>> = ids.iter().map(|_| None).collect();
    let missing = |answers: &[Option<Reply<S>>]| -> Vec<VcpuId> {
        ids.iter()
            .zip(answers)
            .filter(|(_, a)| a.is_none())
            .map(|(id, _)| *id)
            .collect()
    };
    while answers.iter().any(Option::is_none) {
        match receive(receiver, end) {
            Ok(Some((id, answer))) => {
                if let Some(at) = ids.iter().position(|other| *other == id) {
                    answers[at] = Some(answer);
                }
            }
            Ok(None) => break,
            Err(()) => {
                let missed = missing(&answers);
                return Err(Error::Deadline {
                    request,
                    missed,
                    waited: deadline,
                });
            }
        }
    }
    if let Some(id) = missing(&answers).first() {
        return Err(Error::Gone { id: *id });
    }
    ids.iter()
        .zip(answers.into_iter().flatten())
        .map(|(id, answer)| match answer {
            Reply::Refused(state) => Err(Error::Refused {
                id: *id,
                request,
                state,
            }),
            Reply::Failed(source) => Err(Error::Host {
                id: *id,
                request,
                source,
            }),
            answer => Ok(answer),
        })
        .collect()
}
