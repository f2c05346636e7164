// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device's registers, for vCPUs.

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use virtio_transport::AnyDevice;
use virtio_transport::device::{Interrupt, RestoreError as Misfit};
use virtio_transport::message::{Activation, Answer};
use virtio_transport::mmio::{MmioState, MmioTransport};
use virtio_transport::pci::{PciState, PciTransport};
use virtio_transport::queue::Position;
use virtio_transport::registers::{Effect, Notice};
use virtio_transport::worker::{Worker, WorkerState};

use super::doorbells::Doorbells;
use super::io_thread::{DRAIN, IoThread};
use super::seat::Answered;
use super::{Memory, Seat};
use crate::devices::{RestoreError, SuspendError};
use crate::sync::lock;

/// How long an access of a vCPU may wait for a device. Then the vCPU continues, and the guest sees that nothing has
/// happened.
const PATIENCE: Duration = Duration::from_secs(5);

/// The common interface of both transports.
pub(super) trait Transport: Send + fmt::Debug + 'static {
    type State: Serialize + DeserializeOwned;

    fn answer(&mut self, answer: &Answer) -> Notice;
    fn is_settled(&self) -> bool;
    fn save(&self) -> Option<Self::State>;
    fn restore(
        &mut self,
        state: &Self::State,
        positions: Option<&[Option<Position>]>,
    ) -> Result<Option<Activation>, Misfit>;
}

macro_rules! transport {
    ($transport:ty, $state:ty) => {
        impl Transport for $transport {
            type State = $state;

            fn answer(&mut self, answer: &Answer) -> Notice {
                self.answer(answer)
            }
            fn is_settled(&self) -> bool {
                self.is_settled()
            }
            fn save(&self) -> Option<$state> {
                self.save()
            }
            fn restore(
                &mut self,
                state: &$state,
                positions: Option<&[Option<Position>]>,
            ) -> Result<Option<Activation>, Misfit> {
                self.restore(state, positions)
            }
        }
    };
}

transport!(MmioTransport, MmioState);
transport!(PciTransport, PciState);

/// A device's registers, and the connection to the device. The lock is held for one register access only, never during
/// calls to other code.
pub(super) struct Port<T> {
    id: String,
    transport: Mutex<T>,
    /// Signalled when the transport may be settled.
    settled: Condvar,
    interrupt: Arc<dyn Interrupt>,
    doorbells: Arc<Doorbells>,
    io: Arc<IoThread>,
    seat: usize,
}

/// The saved state of a device.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PortState<S> {
    transport: S,
    device: WorkerState,
}

impl<T: Transport> Port<T> {
    /// Adds `device` to the thread `io`, with `transport` in front of it, which interrupts through `interrupt`.
    pub fn new(
        id: &str,
        device: Box<dyn AnyDevice<Memory>>,
        (transport, interrupt): (T, Arc<dyn Interrupt>),
        doorbells: Doorbells,
        memory: &Memory,
        io: &Arc<IoThread>,
    ) -> io::Result<Arc<Self>> {
        let worker = Worker::new(device, Arc::clone(memory), Arc::clone(&interrupt));
        io.add(|seat| {
            let port = Arc::new(Port {
                id: id.to_owned(),
                transport: Mutex::new(transport),
                settled: Condvar::new(),
                interrupt,
                doorbells: Arc::new(doorbells),
                io: Arc::clone(io),
                seat,
            });
            let doorbells = Arc::clone(&port.doorbells);
            let answered = Arc::clone(&port) as Arc<dyn Answered>;
            (Seat::new(seat, worker, answered, doorbells), port)
        })
    }

    /// Locks the registers, for a read.
    pub fn registers(&self) -> MutexGuard<'_, T> {
        lock(&self.transport)
    }

    /// The guest's notifications that KVM handles.
    pub fn doorbells(&self) -> &Doorbells {
        &self.doorbells
    }

    /// An access of the guest that may have an effect on the device.
    pub fn access(&self, access: impl FnOnce(&mut T) -> Effect) {
        let effect = access(&mut self.registers());
        match effect {
            Effect::None => {}
            Effect::Kick(queue) => self.doorbells.ring(queue),
            Effect::Post(command) => self.io.post(self.seat, command),
            Effect::PostAndWait(command) => {
                self.io.post(self.seat, command);
                self.wait();
            }
            Effect::Wait => self.wait(),
        }
    }

    fn wait(&self) {
        let wait = self
            .settled
            .wait_timeout_while(self.registers(), PATIENCE, |transport| {
                !transport.is_settled()
            });
        let (transport, waited) = wait.unwrap_or_else(PoisonError::into_inner);
        drop(transport);
        if waited.timed_out() {
            log::warn!("device {} does not answer its driver in time", self.id);
        }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Takes the device from its thread after its requests in flight, and disconnects it from KVM. Returns `false` if they
    /// don't end until `by`: then the thread keeps it.
    pub fn remove(&self, by: Instant) -> bool {
        self.io.remove(self.seat, by)
    }

    /// The state of a paused device, whose thread must answer until a little after `by`.
    pub fn save(&self, by: Instant) -> Result<PortState<T::State>, SuspendError> {
        let device = self
            .io
            .call(self.seat, by, move |seat, _| seat.save(by))
            .map_err(|error| SuspendError::state(&self.id, error))?
            .map_err(|error| SuspendError::state(&self.id, error))?;
        let transport = self.registers().save();
        let transport =
            transport.ok_or_else(|| SuspendError::state(&self.id, "a driver waits for it"))?;
        Ok(PortState { transport, device })
    }

    /// Restores a state to a device that doesn't run. It is paused then.
    pub fn restore(&self, state: PortState<T::State>) -> Result<(), RestoreError> {
        let by = Instant::now() + DRAIN;
        let before = self.save(by)?;
        let PortState { transport, device } = state;
        let activation = self
            .registers()
            .restore(&transport, device.positions.as_deref())
            .map_err(|error| self.misfit(error))?;
        self.restore_device(device, activation, by)
            .inspect_err(|_| {
                // The registers had this state before.
                let _ = self
                    .registers()
                    .restore(&before.transport, before.device.positions.as_deref());
            })
    }

    fn restore_device(
        &self,
        device: WorkerState,
        activation: Option<Activation>,
        by: Instant,
    ) -> Result<(), RestoreError> {
        if activation.is_some() {
            self.io.need().map_err(|error| self.misfit(error))?;
        }
        let restored = self.io.call(self.seat, by, move |seat, epoll| {
            seat.restore(epoll, &device, activation)
        });
        restored
            .map_err(|error| self.misfit(error))?
            .map_err(|error| self.misfit(error))
    }

    fn misfit(&self, reason: impl std::error::Error + Send + Sync + 'static) -> RestoreError {
        RestoreError::Virtio {
            device: self.id.clone(),
            reason: Box::new(reason),
        }
    }
}

impl<T: Transport> Answered for Port<T> {
    fn id(&self) -> &str {
        &self.id
    }

    fn answer(&self, answer: &Answer) {
        if let Answer::NeedsReset { why, .. } = answer {
            log::warn!("device {} stops: {why}", self.id);
        }
        let notice = self.registers().answer(answer);
        self.settled.notify_all();
        if notice == Notice::Config {
            self.interrupt.config();
        }
    }
}

impl<T: Transport> fmt::Debug for Port<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port")
            .field("id", &self.id)
            .field("transport", &self.transport)
            .finish_non_exhaustive()
    }
}
