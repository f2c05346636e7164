// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Adding a vCPU to a set: on a new thread, or on one of the caller.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{channel, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::builder::{SpawnError, StoppedVcpu, VcpuBuilder};
use crate::counters::ExitCounters;
use crate::dispatch::Unclaimed;
use crate::doorbell::{Doorbell, Listener};
use crate::error::Error;
use crate::handle::VcpuHandle;
use crate::runner::VcpuRunner;
use crate::set::VcpuSet;
use crate::thread::Worker;
use crate::vcpu::{ManagedVcpu, VcpuId, VcpuIo};

/// The two ends of a vCPU's mailbox, or the vCPU back.
type BothEnds<V, I, S> = std::result::Result<(Worker<V, I, S>, VcpuHandle<S>), SpawnError<V, I>>;

impl<S: Send + 'static> VcpuSet<S> {
    /// Starts a thread `vcpu<id>` for a vCPU, which is paused until [`VcpuSet::resume`].
    ///
    /// # Errors
    /// [`Error::DuplicateId`], [`Error::SignalTaken`], [`Error::Signal`], [`Error::Thread`]. They return the vCPU.
    pub fn spawn<V, I>(
        &mut self,
        id: impl Into<VcpuId>,
        vcpu: V,
        io: I,
    ) -> std::result::Result<(), SpawnError<V, I>>
    where
        V: ManagedVcpu<State = S> + Send + 'static,
        I: VcpuIo + Send + 'static,
    {
        self.spawn_with(VcpuBuilder::new(id, vcpu, io))
    }

    /// Like [`VcpuSet::spawn`], with the builder's options.
    ///
    /// # Errors
    /// As [`VcpuSet::spawn`].
    pub fn spawn_with<V, I>(
        &mut self,
        mut builder: VcpuBuilder<V, I, S>,
    ) -> std::result::Result<(), SpawnError<V, I>>
    where
        V: ManagedVcpu + Send + 'static,
        I: VcpuIo + Send + 'static,
    {
        let id = builder.id;
        let name = builder.name.take().unwrap_or_else(|| format!("vcpu{id}"));
        let stack_size = builder.stack_size;
        let (worker, mut handle) = self.prepare(builder)?;
        // The thread gets the worker once it exists: a failed start must return the vCPU.
        let (give, take) = sync_channel::<Worker<V, I, S>>(1);
        let body = move || {
            let worker = take.recv().ok()?;
            Some(StoppedVcpu::new(worker.main()))
        };
        match start_thread(name, stack_size, body) {
            Ok(thread) => handle.thread = Some(thread),
            Err(source) => return Err(worker.refused(Error::Thread { id, source })),
        }
        let _ = give.send(worker);
        self.vcpus.push(handle);
        Ok(())
    }

    /// Adds a vCPU that the caller runs on a thread of its own, by [`VcpuRunner::run_here`]. It is controlled like any
    /// other, but `run_here` returns it instead of a stop. The builder's name and stack size are ignored.
    ///
    /// # Errors
    /// As [`VcpuSet::spawn`], except for [`Error::Thread`].
    pub fn attach<V: ManagedVcpu, I: VcpuIo>(
        &mut self,
        builder: VcpuBuilder<V, I, S>,
    ) -> std::result::Result<VcpuRunner<V, I, S>, SpawnError<V, I>> {
        let (worker, handle) = self.prepare(builder)?;
        self.vcpus.push(handle);
        Ok(VcpuRunner(worker))
    }

    /// Creates both ends of the mailbox, unless the set can't take the vCPU.
    fn prepare<V: ManagedVcpu, I>(&self, builder: VcpuBuilder<V, I, S>) -> BothEnds<V, I, S> {
        let id = builder.id;
        let (sender, mailbox) = channel();
        let bell = Arc::new(Doorbell::new(builder.vcpu.kicker()));
        let unclaimed = Arc::new(Unclaimed::default());
        let exits = Arc::new(ExitCounters::default());
        let worker = Worker {
            id,
            vcpu: builder.vcpu,
            io: builder.io,
            hooks: builder.hooks,
            on_start: builder.on_start,
            mailbox,
            listener: Listener(Arc::clone(&bell)),
            events: self.events.clone(),
            unclaimed: Arc::clone(&unclaimed),
            exits: Arc::clone(&exits),
            signal: self.signal,
        };
        if self.vcpus.iter().any(|vcpu| vcpu.id == id) {
            return Err(worker.refused(Error::DuplicateId { id }));
        }
        if let Err(error) = self.signal.install() {
            return Err(worker.refused(error));
        }
        let handle = VcpuHandle {
            id,
            mailbox: sender,
            bell,
            thread: None,
            unclaimed,
            exits,
        };
        Ok((worker, handle))
    }
}

/// Starts a thread. `Builder` would panic on a name with a NUL byte.
fn start_thread<T: Send + 'static>(
    name: String,
    stack_size: Option<usize>,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    if name.contains('\0') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the thread's name has a NUL byte",
        ));
    }
    let thread = Builder::new().name(name);
    match stack_size {
        Some(bytes) => thread.stack_size(bytes),
        None => thread,
    }
    .spawn(body)
}
