// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pauses.

use std::sync::Mutex;
use std::time::Instant;

use virtio_transport::Broken;
use virtio_transport::device::{
    Active, Device as VirtioDevice, Event, Io, RestoreError as Misfit, StartError,
};
use virtio_transport::layout::Layout;
use virtio_transport::queue::{NotDrained, QueueState};

use super::*;
use crate::devices::SuspendError;
use crate::sync::lock;

#[test]
fn a_paused_device_touches_nothing_and_looks_at_its_queues_later() {
    let rig = Rig::mmio(echo());
    let mut rings = rig.start(2);
    for queue in [0, 1] {
        send(&rig.memory, &mut rings[queue]);
        rig.write(0x50, queue as u32);
        answer(&mut rings[queue]);
    }
    rig.set.pause().unwrap();
    for ring in &mut rings {
        send(&rig.memory, ring);
        rig.write(0x50, 0);
    }
    // Later requests to the thread are handled later.
    rig.set.save().unwrap();
    assert!(rings.iter_mut().all(|ring| ring.take().is_none()));
    rig.set.resume();
    for ring in &mut rings {
        answer(ring);
    }
}

/// An echo that keeps the deadlines of its stops, and may have requests that never end.
struct Watched {
    echo: Echo<Memory>,
    deadlines: Deadlines,
    stops: bool,
}

type Deadlines = Arc<Mutex<Vec<Instant>>>;

impl Watched {
    fn model(deadlines: &Deadlines, stops: bool) -> Model {
        let deadlines = Arc::clone(deadlines);
        Model::new("watched", move |_| {
            Ok(Box::new(Watched {
                echo: Echo::new(),
                deadlines: Arc::clone(&deadlines),
                stops,
            }))
        })
    }
}

impl VirtioDevice<Memory> for Watched {
    type State = <Echo<Memory> as VirtioDevice<Memory>>::State;

    const KIND: &'static str = "watched";
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
        VirtioDevice::process(&mut self.echo, io, event)
    }
    fn stop(
        &mut self,
        io: &mut Io<'_>,
        by: Instant,
    ) -> Result<Vec<Option<QueueState>>, NotDrained> {
        lock(&self.deadlines).push(by);
        match self.stops {
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

#[test]
fn all_devices_have_one_deadline() {
    let deadlines = Deadlines::default();
    let models = vec![Watched::model(&deadlines, true); 2];
    let slots = mmio::plan(models, &mut Pins::new(), Announced::InDsdt).unwrap();
    let mut rig = Rig::new(&slots);
    for slot in &slots {
        rig.base = slot.windows[0].base;
        rig.start(1);
    }
    lock(&deadlines).clear();
    rig.set.pause().unwrap();
    let deadlines = lock(&deadlines);
    assert!(
        deadlines.len() == 2 && deadlines[0] == deadlines[1],
        "{deadlines:?}"
    );
}

#[test]
fn a_device_that_does_not_stop_fails_the_pause_and_goes_on() {
    let rig = Rig::mmio(Watched::model(&Deadlines::default(), false));
    let mut ring = rig.start(1).remove(0);
    let error = rig.set.pause().unwrap_err();
    assert!(
        matches!(&error, SuspendError::Busy { device } if device == "watched"),
        "{error}"
    );
    send(&rig.memory, &mut ring);
    rig.write(0x50, 0);
    assert_eq!(answer(&mut ring).len, 4);
    rig.set.save().unwrap_err();
}
