// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An echo device that calls back.

use std::time::Instant;

use virtio_transport::Broken;
use virtio_transport::device::{
    Active, Device as VirtioDevice, Event, Io, RestoreError as Misfit, StartError,
};
use virtio_transport::layout::Layout;
use virtio_transport::queue::{NotDrained, QueueState};

use super::*;

/// What it calls on its thread.
#[derive(Clone)]
pub(super) struct Hooks {
    /// For each event.
    process: Arc<dyn Fn() + Send + Sync>,
    /// For each stop, with its deadline. Returns whether all requests have ended.
    stop: Arc<dyn Fn(Instant) -> bool + Send + Sync>,
}

impl Hooks {
    pub fn process(process: impl Fn() + Send + Sync + 'static) -> Self {
        Hooks {
            process: Arc::new(process),
            stop: Arc::new(|_| true),
        }
    }

    pub fn stop(stop: impl Fn(Instant) -> bool + Send + Sync + 'static) -> Self {
        Hooks {
            process: Arc::new(|| ()),
            stop: Arc::new(stop),
        }
    }

    pub fn model(&self) -> Model {
        let hooks = self.clone();
        Model::new("hooked", move |_| {
            Ok(Box::new(Hooked {
                echo: Echo::new(),
                hooks: hooks.clone(),
            }))
        })
    }
}

struct Hooked {
    echo: Echo<Memory>,
    hooks: Hooks,
}

impl VirtioDevice<Memory> for Hooked {
    type State = <Echo<Memory> as VirtioDevice<Memory>>::State;

    const KIND: &'static str = "hooked";
    const VERSION: u32 = 1;

    fn layout(&self) -> Layout {
        VirtioDevice::layout(&self.echo)
    }
    fn config(&self, out: &mut Vec<u8>) {
        VirtioDevice::config(&self.echo, out);
    }
    fn start(&mut self, io: &mut Io<'_>, active: Active<Memory>) -> Result<(), StartError> {
        VirtioDevice::start(&mut self.echo, io, active)
    }
    fn process(&mut self, io: &mut Io<'_>, event: Event) -> Result<(), Broken> {
        (self.hooks.process)();
        VirtioDevice::process(&mut self.echo, io, event)
    }
    fn stop(
        &mut self,
        io: &mut Io<'_>,
        by: Instant,
    ) -> Result<Vec<Option<QueueState>>, NotDrained> {
        match (self.hooks.stop)(by) {
            true => VirtioDevice::stop(&mut self.echo, io, by),
            false => Err(NotDrained { in_flight: 1 }),
        }
    }
    fn reset(&mut self) {
        VirtioDevice::reset(&mut self.echo);
    }
    fn save(&self) -> Self::State {
        VirtioDevice::save(&self.echo)
    }
    fn restore(&mut self, version: u32, state: Self::State) -> Result<(), Misfit> {
        VirtioDevice::restore(&mut self.echo, version, state)
    }
}
