// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All vCPUs of a VM, controlled together: send to all, then wait for all, with a deadline.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::builder::StoppedVcpu;
use crate::counters::ExitCounters;
use crate::dispatch::Unclaimed;
use crate::error::{Error, Result};
use crate::event::VcpuEventSender;
use crate::handle::{VcpuHandle, collect, receive};
use crate::hooks::Call;
use crate::kick::KickSignal;
use crate::report::CpuDump;
use crate::state::Request;
use crate::thread::{Order, Reply};
use crate::vcpu::VcpuId;

/// How long [`VcpuSet`]'s `Drop` waits for its threads before it leaves them behind.
const DROP_DEADLINE: Duration = Duration::from_secs(1);

/// The vCPUs of one VM, each on its own thread.
///
/// `S` is a vCPU's saved state. Methods take a deadline for all vCPUs together; one that misses it is
/// named by the error, and obeys the request later, when it can. Waiting happens on the caller's thread:
/// a [`VcpuIo`](crate::VcpuIo) must therefore never call into the set, nor wait for the thread that does.
///
/// Kicks are signals whose handler is installed without `SA_RESTART`: a system call that a [`VcpuIo`](crate::VcpuIo) makes
/// on the vCPU's thread may return `EINTR`, and has to be repeated.
///
/// Dropping the set stops all threads and waits for one second at most. A thread that takes longer, because a
/// device or a hook holds it, is left behind, which an error in the log says. It still owns its vCPU and its I/O
/// object, so their memory and descriptors stay. It runs no guest code any more, except to complete the access
/// that it answers, and it ends as soon as the device or the hook returns. Call [`VcpuSet::stop`] first to hear
/// of it.
pub struct VcpuSet<S> {
    pub(crate) vcpus: Vec<VcpuHandle<S>>,
    /// Threads that ended by a request that others missed, with their vCPUs.
    stopped: Vec<VcpuHandle<S>>,
    pub(crate) events: VcpuEventSender,
    pub(crate) signal: KickSignal,
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

    /// As [`VcpuSet::new`], with another kick signal.
    ///
    /// The first spawn installs the signal's handler, for the whole process and the rest of its life. A handler of
    /// somebody else's is not overwritten: the spawn fails.
    pub fn with_signal(events: VcpuEventSender, signal: KickSignal) -> Self {
        VcpuSet {
            vcpus: Vec::new(),
            stopped: Vec::new(),
            events,
            signal,
        }
    }

    /// The ids, in the order of [`VcpuSet::spawn`], which is also the order of saved states.
    pub fn ids(&self) -> impl Iterator<Item = VcpuId> + '_ {
        self.vcpus.iter().map(|vcpu| vcpu.id)
    }

    /// The counters of accesses that nobody claimed. `None` if there is no such vCPU: also after
    /// [`VcpuSet::stop`], which counters that were asked for before outlive.
    pub fn unclaimed(&self, id: impl Into<VcpuId>) -> Option<Arc<Unclaimed>> {
        let vcpu = self.find(id.into()).ok()?;
        Some(Arc::clone(&vcpu.unclaimed))
    }

    /// The counters of one vCPU's exits, which can be read while it runs, and outlive it. `None` if there is no
    /// such vCPU.
    pub fn exits(&self, id: impl Into<VcpuId>) -> Option<Arc<ExitCounters>> {
        let vcpu = self.find(id.into()).ok()?;
        Some(Arc::clone(&vcpu.exits))
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
    /// that, no resume does, whoever asks for it. For a vCPU that was paused by a request, this does nothing.
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
        self.run_on(id.into(), Request::Access, act, deadline)
    }

    /// Runs `act` on one vCPU, running or paused, on its own thread: for what KVM does only there, such as an NMI
    /// or its statistics. A running vCPU leaves the guest for it with nothing pending, as for a pause, and goes on
    /// afterwards; it is not told of a pause. `V` is the type that it was spawned with. A panic of `act` fails it.
    ///
    /// # Errors
    /// As [`with_vcpu`](VcpuSet::with_vcpu).
    pub fn call<V, R>(
        &self,
        id: impl Into<VcpuId>,
        act: impl FnOnce(&mut V) -> R + Send + 'static,
        deadline: Duration,
    ) -> Result<R>
    where
        V: 'static,
        R: Send + 'static,
    {
        self.run_on(id.into(), Request::Call, act, deadline)
    }

    fn run_on<V, R>(
        &self,
        id: VcpuId,
        request: Request,
        act: impl FnOnce(&mut V) -> R + Send + 'static,
        deadline: Duration,
    ) -> Result<R>
    where
        V: 'static,
        R: Send + 'static,
    {
        let (sender, result) = channel();
        let call: Call = Box::new(move |vcpu| {
            if let Some(vcpu) = vcpu.downcast_mut() {
                // A controller that gave up waiting has dropped its end.
                let _ = sender.send(act(vcpu));
            }
        });
        self.order(id, Order::Call(request, call), deadline)?;
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

    /// Takes all vCPUs out of the guest, ends and joins their threads, and returns them. The set is
    /// empty then.
    ///
    /// A thread that is gone already needs no stopping; one that was lost in a panic returns nothing. One that
    /// misses the deadline stays in the set, so this can be called again: the vCPUs that were stopped are
    /// returned by the call that stops the last, or one by one by [`stop_vcpu`](VcpuSet::stop_vcpu).
    ///
    /// # Errors
    /// [`Error::Deadline`].
    pub fn stop(&mut self, deadline: Duration) -> Result<Vec<StoppedVcpu>> {
        let all: Vec<VcpuId> = self.ids().collect();
        self.stop_these(&all, deadline)?;
        let stopped = std::mem::take(&mut self.stopped);
        Ok(stopped.into_iter().filter_map(VcpuHandle::join).collect())
    }

    /// As [`VcpuSet::stop`], for one vCPU. The others stay as they are. It also returns one that stopped in a
    /// [`stop`](VcpuSet::stop) whose deadline others missed.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`], [`Error::Deadline`].
    pub fn stop_vcpu(
        &mut self,
        id: impl Into<VcpuId>,
        deadline: Duration,
    ) -> Result<Option<StoppedVcpu>> {
        let id = id.into();
        if self.find(id).is_ok() {
            self.stop_these(&[id], deadline)?;
        }
        let newest = self.stopped.iter().rposition(|vcpu| vcpu.id == id);
        let at = newest.ok_or(Error::NoSuchVcpu { id })?;
        Ok(self.stopped.remove(at).join())
    }

    /// Moves those of `ids` that stop in time out of the set.
    fn stop_these(&mut self, ids: &[VcpuId], deadline: Duration) -> Result<()> {
        let end = Instant::now().checked_add(deadline);
        let (sender, receiver) = channel();
        for vcpu in self.vcpus.iter().filter(|vcpu| ids.contains(&vcpu.id)) {
            let reply = match vcpu.is_unattended() {
                true => channel().0,
                false => sender.clone(),
            };
            vcpu.send(Order::Plain(Request::Stop), reply, self.signal);
        }
        drop(sender);
        // Every answer, or the end of every thread, drops its sender; we only wait for that.
        while let Ok(Some(_)) = receive(&receiver, end) {}
        let is_done = |vcpu: &VcpuHandle<S>| ids.contains(&vcpu.id) && vcpu.is_finished_by(end);
        let (done, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.vcpus)
            .into_iter()
            .partition(is_done);
        self.vcpus = others;
        self.stopped.extend(done);
        let missed: Vec<VcpuId> = self.ids().filter(|id| ids.contains(id)).collect();
        if missed.is_empty() {
            return Ok(());
        }
        Err(Error::Deadline {
            request: Request::Stop,
            missed,
            waited: deadline,
        })
    }

    fn find(&self, id: VcpuId) -> Result<&VcpuHandle<S>> {
        let mut vcpus = self.vcpus.iter();
        vcpus
            .find(|vcpu| vcpu.id == id)
            .ok_or(Error::NoSuchVcpu { id })
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
        let (sender, receiver) = channel();
        self.find(id)?.send(order, sender, self.signal);
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
        let stopped = std::mem::take(&mut self.stopped);
        for vcpu in std::mem::take(&mut self.vcpus).into_iter().chain(stopped) {
            if vcpu.is_finished_by(end) {
                // The caller may be unwinding already: a device that panics in its own `drop` must not end the process.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(vcpu.join())));
            } else {
                log::error!("vCPU {} does not stop, leaving its thread behind", vcpu.id);
            }
        }
    }
}
