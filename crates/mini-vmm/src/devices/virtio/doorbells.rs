// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Queue notifications from the guest to a device's thread: an eventfd for each queue, which KVM writes.

use std::fmt;
use std::io;
use std::sync::{Mutex, OnceLock};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::irq::{Doorbell, Irqs};
use crate::sync::lock;

/// The address of a queue's notifications, by the address of the device's registers.
type Place = fn(base: u64, queue: u16) -> Doorbell;

/// The eventfds of a device's queues, and the addresses where KVM writes them.
///
/// An eventfd is created when the driver first starts its queue. It is connected to KVM from a start to a reset, at the
/// current address of the device's registers. A notification that KVM doesn't handle exits, and [`ring`](Self::ring)s.
pub(super) struct Doorbells {
    irqs: Irqs,
    place: Place,
    events: Box<[OnceLock<EventFd>]>,
    connected: Mutex<Connected>,
}

#[derive(Debug, Default)]
struct Connected {
    /// The address of the device's registers, if they are mapped.
    base: Option<u64>,
    /// The running queues.
    queues: Vec<u16>,
    /// The doorbells connected to KVM.
    doorbells: Vec<(u16, Doorbell)>,
}

impl Doorbells {
    /// For a device with `queues` queues.
    pub fn new(irqs: &Irqs, queues: usize, base: Option<u64>, place: Place) -> Self {
        let connected = Connected {
            base,
            ..Default::default()
        };
        Doorbells {
            irqs: irqs.clone(),
            place,
            events: (0..queues).map(|_| OnceLock::new()).collect(),
            connected: Mutex::new(connected),
        }
    }

    /// The eventfd of a queue. Creates it if necessary.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn make(&self, queue: u16) -> io::Result<Option<&EventFd>> {
        let Some(place) = self.events.get(usize::from(queue)) else {
            return Ok(None);
        };
        if let Some(event) = place.get() {
            return Ok(Some(event));
        }
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Some(place.get_or_init(|| event)))
    }

    /// The eventfd of a queue.
    pub fn event(&self, queue: u16) -> Option<&EventFd> {
        self.events.get(usize::from(queue))?.get()
    }

    /// Notifies a queue after an exit. A queue that has not started yet needs no notification, since it is checked when
    /// it starts.
    pub fn ring(&self, queue: u16) {
        if let Some(event) = self.event(queue) {
            // Fails only if the counter is full, and then the thread wakes anyway.
            let _ = event.write(1);
        }
    }

    /// Connects the doorbells of these queues to KVM, and no others.
    pub fn connect(&self, queues: &[u16]) {
        let mut connected = lock(&self.connected);
        connected.queues = queues.to_vec();
        self.reconcile(&mut connected);
    }

    /// Disconnects all from KVM, for good: the device is removed, and a late move of its registers connects nothing.
    pub fn leave(&self) {
        self.connect(&[]);
    }

    /// Sets the registers' address. `base` is called under the lock, so that the last call sees the last of several
    /// moves.
    pub fn moved(&self, base: impl FnOnce() -> Option<u64>) {
        let mut connected = lock(&self.connected);
        connected.base = base();
        self.reconcile(&mut connected);
    }

    fn reconcile(&self, connected: &mut Connected) {
        let queues = connected.queues.iter();
        let wanted: Vec<_> = match connected.base {
            Some(base) => queues
                .map(|&queue| (queue, (self.place)(base, queue)))
                .collect(),
            None => Vec::new(),
        };
        connected.doorbells.retain(|&(queue, doorbell)| {
            let stays = wanted.contains(&(queue, doorbell));
            if !stays && let Some(event) = self.event(queue) {
                // Fails only if KVM has already dropped it.
                let _ = self.irqs.disconnect_doorbell(doorbell, event);
            }
            stays
        });
        for (queue, doorbell) in wanted {
            if connected.doorbells.contains(&(queue, doorbell)) {
                continue;
            }
            let Some(event) = self.event(queue) else {
                continue;
            };
            // The guest may have moved another device there, or the host lacks a resource. Then notifications exit.
            if self.irqs.connect_doorbell(doorbell, event).is_ok() {
                connected.doorbells.push((queue, doorbell));
            }
        }
    }
}

impl fmt::Debug for Doorbells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbells")
            .field("connected", &self.connected)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(base: u64, queue: u16) -> Doorbell {
        Doorbell {
            address: base + u64::from(queue),
            data: None,
        }
    }

    const NOWHERE: [u64; 0] = [];

    /// The addresses connected to KVM, in order.
    fn connected(doorbells: &Doorbells) -> Vec<u64> {
        let connected = lock(&doorbells.connected);
        let addresses = connected.doorbells.iter().map(|(_, at)| at.address);
        addresses.collect()
    }

    #[test]
    fn kvm_has_what_runs_where_it_is() {
        let doorbells = Doorbells::new(&Irqs::unconnected(), 3, None, place);
        doorbells.ring(0);
        for queue in [0, 2, 3] {
            let made = doorbells.make(queue).unwrap().is_some();
            assert_eq!(made, queue < 3);
        }
        doorbells.connect(&[0, 2]);
        assert_eq!(connected(&doorbells), NOWHERE);
        doorbells.moved(|| Some(0x1000));
        assert_eq!(connected(&doorbells), [0x1000, 0x1002]);
        doorbells.moved(|| Some(0x2000));
        assert_eq!(connected(&doorbells), [0x2000, 0x2002]);
        doorbells.connect(&[2]);
        assert_eq!(connected(&doorbells), [0x2002]);
        doorbells.moved(|| None);
        assert_eq!(connected(&doorbells), NOWHERE);
        doorbells.moved(|| Some(0x1000));
        doorbells.connect(&[]);
        assert_eq!(connected(&doorbells), NOWHERE);
        doorbells.ring(2);
        assert_eq!(doorbells.event(2).unwrap().read().unwrap(), 1);
        let (made, again) = (doorbells.event(2).unwrap(), doorbells.make(2).unwrap());
        assert!(std::ptr::eq(made, again.unwrap()), "it is made once");
    }
}
