// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device: it passes rings to the backend, notifications to both sides, and takes the rings back.

use std::fmt;
use std::io;
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use virtio_transport::Broken;
use virtio_transport::device::{Active, Device, Event, Io, RestoreError, StartError};
use virtio_transport::layout::Layout;
use virtio_transport::queue::{NotDrained, QueueState};
use vm_memory::GuestAddressSpace;

use super::backend::Backend;
use super::fault::Fault;
use super::rings::{CALLS, Given, Rings, SOCKET, Stopping, TIMER};
use super::session::Session;

/// A device whose requests a process of the host answers.
///
/// That process has all of guest memory, which must be shared mappings of files. It takes requests from the rings and
/// answers there. This device only passes on notifications. If the process ends, breaks the protocol, or is silent for
/// too long, the device needs a reset. A start after that connects again.
pub struct VhostUser<M> {
    backend: Arc<Backend>,
    config: Vec<u8>,
    phase: Phase<M>,
}

enum Phase<M> {
    Idle,
    /// The backend has the rings.
    Running(Rings<M>),
    /// It was asked for them.
    Stopping(Rings<M>, Stopping),
}

/// The state of a [`VhostUser`]: what its driver has seen. The backend's own state stays with the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VhostUserState {
    /// The features that it offered.
    pub features: u64,
}

impl<M: GuestAddressSpace> VhostUser<M> {
    /// A device that this backend serves.
    pub fn new(backend: Arc<Backend>) -> Self {
        VhostUser {
            config: backend.offer().config.clone(),
            backend,
            phase: Phase::Idle,
        }
    }

    /// Does something with the connection.
    fn with_session(
        &mut self,
        act: impl FnOnce(&mut Session, Instant) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let by = self.backend.deadline();
        match &mut self.phase {
            Phase::Running(rings) => rings.with_session(|session| act(session, by)),
            Phase::Stopping(..) => Ok(()),
            Phase::Idle => {
                let mut session = self.backend.take()?;
                let done = act(&mut session, by);
                self.backend.give_back(done.is_ok().then_some(session));
                done
            }
        }
    }

    fn run(&mut self, io: &mut Io<'_>, given: Given<M>) -> Result<(), Fault> {
        let session = self.backend.take()?;
        let rings = Rings::start(io, session, given, self.backend.deadline());
        // A backend with some of the rings is of no use.
        let rings = rings.inspect_err(|_| self.backend.give_back(None))?;
        self.phase = Phase::Running(rings);
        Ok(())
    }

    /// Takes the rings back until `by`. `None` if there were none.
    fn take_back(&mut self, io: &mut Io<'_>, by: Instant) -> Result<Option<Given<M>>, NotDrained> {
        let (mut rings, mut stopping) = match mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle => return Ok(None),
            Phase::Running(mut rings) => {
                let stopping = rings.ask_to_stop(self.backend.deadline());
                (rings, stopping)
            }
            Phase::Stopping(rings, stopping) => (rings, stopping),
        };
        if !rings.collect(&mut stopping, by) {
            rings.arm(&stopping);
            let in_flight = stopping.wanted.len() as u16;
            self.phase = Phase::Stopping(rings, stopping);
            return Err(NotDrained { in_flight });
        }
        rings.unwatch(io);
        let (given, session) = rings.finish();
        self.backend.give_back(session);
        Ok(Some(given))
    }

    /// Goes on after a stop that took too long.
    fn go_on(&mut self, io: &mut Io<'_>) -> Result<(), Broken> {
        let by = self.backend.deadline();
        let given = self.take_back(io, by);
        let given = given.map_err(|_| Broken::Host("its vhost-user backend does not answer"))?;
        let Some(given) = given else {
            return Ok(());
        };
        let queues: Vec<_> = (0..)
            .zip(given.queues.iter().map(Option::is_some))
            .collect();
        let run = self.run(io, given);
        run.map_err(|fault| Broken::Host(fault.reason()))?;
        if let Phase::Running(rings) = &self.phase {
            for (queue, _) in queues.iter().filter(|(_, is_there)| *is_there) {
                rings.kick(*queue);
            }
        }
        Ok(())
    }
}

impl<M: GuestAddressSpace + Send> Device<M> for VhostUser<M> {
    type State = VhostUserState;

    const KIND: &'static str = "vhost-user";
    const VERSION: u32 = 1;

    fn layout(&self) -> Layout {
        let offer = self.backend.offer();
        Layout {
            id: self.backend.kind().id(),
            features: offer.features,
            requires: &[],
            queues: vec![self.backend.queue_size(); offer.queues.into()],
            config_len: self.config.len() as u32,
        }
    }

    fn config(&self, out: &mut Vec<u8>) {
        out.extend(&self.config);
    }

    fn set_config(&mut self, _: &mut Io<'_>, at: u32, data: &[u8]) {
        let features = self.backend.offer().features;
        if !self.backend.kind().is_writable(features, at, data.len()) {
            return;
        }
        let written = self.with_session(|session, by| session.set_config(at, data, by));
        let place = at as usize..at as usize + data.len();
        // A running device whose backend is lost hears of it by its source.
        if let (Ok(()), Some(place)) = (written, self.config.get_mut(place)) {
            place.copy_from_slice(data);
        }
    }

    fn start(&mut self, io: &mut Io<'_>, active: Active<M>) -> Result<(), StartError> {
        let queues = active.queues.iter().map(Option::as_ref);
        let states = queues.map(|queue| queue.map(|queue| queue.state()).transpose());
        let given = Given {
            features: active.features,
            // A queue that just started has nothing in flight.
            queues: states.collect::<Result<_, _>>().unwrap_or_default(),
            memory: active.memory,
            interrupt: active.interrupt,
        };
        self.run(io, given).map_err(|fault| StartError {
            what: fault.reason(),
            source: io::Error::other(fault),
        })
    }

    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken> {
        match (&mut self.phase, event) {
            (Phase::Idle, _) => Ok(()),
            (Phase::Running(rings), Event::Queue(queue)) => {
                rings.kick(queue);
                Ok(())
            }
            (Phase::Stopping(..), Event::Queue(_)) => self.go_on(io),
            (Phase::Running(rings), Event::Source(SOCKET)) => {
                let lost = rings.with_session(|session| session.unasked());
                lost.map_err(|fault| Broken::Host(fault.reason()))
            }
            // An answer, which the next `stop` takes.
            (Phase::Stopping(..), Event::Source(SOCKET)) => Ok(()),
            (Phase::Running(rings) | Phase::Stopping(rings, _), Event::Source(token)) => {
                match token {
                    TIMER => rings.rest(),
                    token => rings.call(token - CALLS),
                }
                Ok(())
            }
        }
    }

    fn stop(
        &mut self,
        io: &mut Io<'_>,
        by: Instant,
    ) -> Result<Vec<Option<QueueState>>, NotDrained> {
        let given = self.take_back(io, by)?;
        Ok(given.map_or_else(Vec::new, |given| given.queues))
    }

    fn reset(&mut self) {}

    fn save(&self) -> VhostUserState {
        let features = self.backend.offer().features;
        VhostUserState { features }
    }

    fn restore(&mut self, _: u32, state: VhostUserState) -> Result<(), RestoreError> {
        match state.features == self.backend.offer().features {
            true => Ok(()),
            false => Err(RestoreError::Value(
                "the vhost-user backend has other features than the saved machine's",
            )),
        }
    }
}

impl<M> fmt::Debug for VhostUser<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUser")
            .field("backend", &self.backend)
            .field("is_idle", &matches!(self.phase, Phase::Idle))
            .finish_non_exhaustive()
    }
}
