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

/// How long dropping a [`VcpuSet`] waits for its threads before it detaches them.
const DROP_DEADLINE: Duration = Duration::from_secs(1);

/// The vCPUs of one VM, each on its own thread.
///
/// `S` is a vCPU's saved state. Methods take a deadline for all vCPUs together. The error names the vCPUs that miss it;
/// they obey the request later, when they can. Methods wait on the calling thread, so a [`VcpuIo`](crate::VcpuIo) must
/// never call them, nor wait for a thread that does.
///
/// Kicks are signals whose handler is installed without `SA_RESTART`. So a system call that a [`VcpuIo`](crate::VcpuIo)
/// makes on the vCPU's thread may return `EINTR`, and must be repeated.
///
/// Dropping the set stops all threads and waits for at most one second. A thread that takes longer, because a device or
/// a hook blocks it, is detached with an error in the log. It still owns its vCPU and I/O object, so their memory and
/// descriptors stay. It runs no more guest code (it only completes the current access), and ends as soon as the device
/// or hook returns. To get an error instead, call [`VcpuSet::stop`] first.
pub struct VcpuSet<S> {
    pub(crate) vcpus: Vec<VcpuHandle<S>>,
    /// Threads that stopped in time when others missed the deadline, with their vCPUs.
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

    /// Like [`VcpuSet::new`], with another kick signal.
    ///
    /// The first spawn installs the signal's handler, for the rest of the process's life. It fails if the signal has
    /// another handler.
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

    /// The counters of one vCPU's unclaimed accesses, which can be read while it runs, and outlive it. `None` if there
    /// is no such vCPU.
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

    /// Lets all vCPUs run the guest. If one refuses, the others run anyway.
    ///
    /// # Errors
    /// [`Error::Deadline`], [`Error::Start`], [`Error::Refused`] for a vCPU that ended, failed, or stopped by itself
    /// and was not [acknowledged](VcpuSet::acknowledge), [`Error::Gone`].
    pub fn resume(&self, deadline: Duration) -> Result<()> {
        self.all(Request::Resume, deadline).map(drop)
    }

    /// Takes all vCPUs out of the guest. Afterwards nothing is pending: every access that the guest began
    /// is complete. vCPUs that stopped by themselves, ended or failed count as paused.
    ///
    /// # Errors
    /// [`Error::Deadline`], [`Error::Refused`] for a vCPU that fails meanwhile, [`Error::Gone`].
    pub fn pause(&self, deadline: Duration) -> Result<()> {
        self.all(Request::Pause, deadline).map(drop)
    }

    /// Like [`VcpuSet::resume`], for one vCPU only.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`], and as [`VcpuSet::resume`].
    pub fn resume_vcpu(&self, id: impl Into<VcpuId>, deadline: Duration) -> Result<()> {
        self.one(id.into(), Request::Resume, deadline).map(drop)
    }

    /// Like [`VcpuSet::pause`], for one vCPU only.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`], and as [`VcpuSet::pause`].
    pub fn pause_vcpu(&self, id: impl Into<VcpuId>, deadline: Duration) -> Result<()> {
        self.one(id.into(), Request::Pause, deadline).map(drop)
    }

    /// Acknowledges that one vCPU stopped by itself, as reported by [`VcpuEvent::Paused`], [`VcpuEvent::Debug`] or
    /// [`VcpuEvent::DirtyRingFull`]. Until then, every resume is refused; afterwards the vCPU is paused like any other.
    /// For a vCPU that was paused by a request, this does nothing.
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

    /// Saves the states of all vCPUs, which must be paused, on their own threads.
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

    /// Restores a state to each vCPU, which must be paused or ended, in the order of [`VcpuSet::ids`]. The vCPUs are
    /// paused afterwards.
    ///
    /// Restore guest memory, its slots and the state of the whole VM (interrupt controllers, clock) before. If a vCPU
    /// refuses its state before the first change ([`SaveVcpu::left_unchanged`](crate::SaveVcpu::left_unchanged)), it
    /// keeps its old state; the others get their new states anyway.
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

    /// Ends the `hlt` of one vCPU of a VM without in-kernel LAPIC. The guest continues after the `hlt`, as if it had
    /// handled an interrupt; this doesn't inject one. On any other vCPU it is a kick without effect.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`], [`Error::Deadline`], [`Error::Refused`], [`Error::Gone`].
    pub fn wake(&self, id: impl Into<VcpuId>, deadline: Duration) -> Result<()> {
        self.one(id.into(), Request::Wake, deadline).map(drop)
    }

    /// Runs `act` on one vCPU, which must be paused, on its own thread. Use it for what the loop doesn't do itself,
    /// such as breakpoints, or interrupts of a VM without in-kernel LAPIC (inject, resume, [`wake`](VcpuSet::wake)).
    /// `V` is the type that the vCPU was spawned with. If `act` panics, the vCPU fails.
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

    /// Runs `act` on one vCPU, running or paused, on its own thread. Use it for calls that KVM accepts only there, such
    /// as an NMI or statistics. A running vCPU leaves the guest with nothing pending, as for a pause, and continues
    /// afterwards, without the calls to [`ManagedVcpu`](crate::ManagedVcpu) that a pause makes. `V` is the type that
    /// the vCPU was spawned with. If `act` panics, the vCPU fails.
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

    /// Registers and instruction bytes of one vCPU, which must be paused or have ended. `None` if they can't be read.
    ///
    /// # Errors
    /// [`Error::NoSuchVcpu`], [`Error::Deadline`], [`Error::Refused`], [`Error::Gone`].
    pub fn dump(&self, id: impl Into<VcpuId>, deadline: Duration) -> Result<Option<CpuDump>> {
        match self.one(id.into(), Request::Dump, deadline)? {
            Reply::Dumped(dump) => Ok(*dump),
            _ => Ok(None),
        }
    }

    /// Takes all vCPUs out of the guest, ends and joins their threads, and returns the vCPUs. Afterwards the set is
    /// empty.
    ///
    /// A thread that has already ended counts as stopped; after a panic that killed the thread, there is no vCPU to
    /// return. vCPUs that miss the deadline stay in the set, so this can be called again. The vCPUs that stopped in
    /// time are returned by the call that stops the last one, or one by one by [`stop_vcpu`](VcpuSet::stop_vcpu).
    ///
    /// # Errors
    /// [`Error::Deadline`].
    pub fn stop(&mut self, deadline: Duration) -> Result<Vec<StoppedVcpu>> {
        let all: Vec<VcpuId> = self.ids().collect();
        self.stop_these(&all, deadline)?;
        let stopped = std::mem::take(&mut self.stopped);
        Ok(stopped.into_iter().filter_map(VcpuHandle::join).collect())
    }

    /// Like [`VcpuSet::stop`], for one vCPU only. It also returns a vCPU that stopped in time in a
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

    /// Stops `ids`, and moves those that stop in time out of the set.
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
        // A thread drops its sender when it answers or ends; this only waits until all are dropped.
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
                // If the caller is unwinding, a second panic, from a device's `drop`, would abort the process.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(vcpu.join())));
            } else {
                log::error!("vCPU {} does not stop, detaching its thread", vcpu.id);
            }
        }
    }
}
