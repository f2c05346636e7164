// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! vCPU events in an event-manager loop.

use std::fmt;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::event::{VcpuEvent, VcpuEvents};

/// [`VcpuEvents`] in an [`event_manager::EventManager`]: calls a closure for every event.
pub struct VcpuEventSubscriber<F> {
    events: VcpuEvents,
    handle: F,
}

impl<F> fmt::Debug for VcpuEventSubscriber<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuEventSubscriber")
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

impl<F: FnMut(VcpuEvent)> VcpuEventSubscriber<F> {
    /// Calls `handle` on the event loop's thread for every event.
    pub fn new(events: VcpuEvents, handle: F) -> Self {
        VcpuEventSubscriber { events, handle }
    }
}

impl<F: FnMut(VcpuEvent)> MutEventSubscriber for VcpuEventSubscriber<F> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.event_set().contains(EventSet::ERROR) {
            log::error!("the vCPU eventfd reports an error, removing it from the event loop");
            if let Err(error) = ops.remove(events) {
                log::error!("can't remove it: {error}");
            }
        }
        self.events.drain(&mut self.handle);
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.events, EventSet::IN)) {
            log::error!("can't watch the vCPU eventfd: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::vcpu_events;
    use crate::vcpu::VcpuId;
    use event_manager::{EventManager, SubscriberOps};
    use std::sync::{Arc, Mutex};

    #[test]
    fn every_event_reaches_the_subscriber_once() {
        let (sender, events) = vcpu_events().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(VcpuEventSubscriber::new(events, move |e| {
            log.lock().unwrap().push(e.id().0)
        }));
        sender.send(VcpuEvent::Halted { id: VcpuId(1) });
        sender.clone().send(VcpuEvent::Paused { id: VcpuId(2) });
        assert_eq!(manager.run_with_timeout(1000).unwrap(), 1);
        assert_eq!(*seen.lock().unwrap(), [1, 2]);
        // Drained: the descriptor is quiet until the next event.
        assert_eq!(manager.run_with_timeout(0).unwrap(), 0);
        sender.send(VcpuEvent::Halted { id: VcpuId(3) });
        assert_eq!(manager.run_with_timeout(1000).unwrap(), 1);
        assert_eq!(*seen.lock().unwrap(), [1, 2, 3]);
    }
}
