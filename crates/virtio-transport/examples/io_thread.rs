// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a VMM adds to the crate: a lock, a channel, and a thread. A driver in guest memory then gets an answer from a
//! device.
//!
//! In a VMM this thread runs an event loop: for its mailbox, for the queues' eventfds, and for the devices' sources.
//! Here a channel suffices, since the device watches nothing.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use virtio_transport::chain::Chain;
use virtio_transport::device::{Active, Event, Interest, Io, Poller, RestoreError, StartError};
use virtio_transport::layout::{Layout, RING_FEATURES};
use virtio_transport::memory::View;
use virtio_transport::message::{Answer, Command};
use virtio_transport::mmio::{Line, MmioTransport};
use virtio_transport::queue::{NotDrained, QueueState};
use virtio_transport::registers::{Effect, Notice};
use virtio_transport::testing::{Buffers, DriverRing, Memory, memory};
use virtio_transport::worker::Worker;
use virtio_transport::{AnyDevice, Broken, Device};
use vm_memory::{Bytes, GuestAddress};

/// A device that fills buffers with ones.
#[derive(Default)]
struct Ones {
    active: Option<Active<Memory>>,
    chain: Chain,
}

impl Device<Memory> for Ones {
    type State = ();

    const KIND: &'static str = "ones";
    const VERSION: u32 = 1;

    fn layout(&self) -> Layout {
        Layout {
            id: 4,
            features: RING_FEATURES,
            requires: &[],
            queues: vec![16],
            config_len: 0,
        }
    }

    fn config(&self, _: &mut Vec<u8>) {}

    fn start(&mut self, _: &mut Io<'_>, active: Active<Memory>) -> Result<(), StartError> {
        self.active = Some(active);
        Ok(())
    }

    fn process(&mut self, io: &mut Io<'_>, _: Event) -> Result<(), Broken> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let view = View::new(&*active.memory);
        let Some(Some(queue)) = active.queues.first_mut() else {
            return Ok(());
        };
        for taken in 0.. {
            if taken == queue.size() {
                io.again();
                break;
            }
            if !queue.pop(&view, &mut self.chain)? {
                if queue.enable_kicks(&view)? {
                    continue;
                }
                break;
            }
            let mut writer = self.chain.writer(&view);
            let ones = [1; 4096];
            let len = writer.left().min(4096) as usize;
            // A buffer outside of guest memory is the request's error. Nothing was written then.
            let written = writer.write(&ones[..len]).map_or(0, |()| writer.written());
            queue.push(&view, self.chain.head(), written)?;
        }
        if queue.needs_interrupt(&view)? {
            active.interrupt.queue(0);
        }
        Ok(())
    }

    fn stop(&mut self, _: &mut Io<'_>, _: Instant) -> Result<Vec<Option<QueueState>>, NotDrained> {
        let queues = self.active.take().map(|active| active.queues);
        let queues = queues.into_iter().flatten();
        queues
            .map(|queue| queue.map(|queue| queue.state()).transpose())
            .collect()
    }

    fn reset(&mut self) {}

    fn save(&self) {}

    fn restore(&mut self, _: u32, (): ()) -> Result<(), RestoreError> {
        Ok(())
    }
}

/// The state shared by vCPUs and the device's thread.
struct Shared {
    transport: Mutex<MmioTransport>,
    settled: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, MmioTransport> {
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

enum Mail {
    Command(Command),
    Kick(u16),
    Interrupted,
}

/// A vCPU: its accesses and their effects.
struct Vcpu {
    shared: Arc<Shared>,
    mailbox: Sender<Mail>,
}

impl Vcpu {
    fn write(&self, offset: u64, value: u32) {
        // The lock is held only for the access.
        let effect = self.shared.lock().write(offset, &value.to_le_bytes());
        let (mail, waits) = match effect {
            Effect::None => (None, false),
            Effect::Kick(queue) => (Some(Mail::Kick(queue)), false),
            Effect::Post(command) => (Some(Mail::Command(command)), false),
            Effect::PostAndWait(command) => (Some(Mail::Command(command)), true),
            Effect::Wait => (None, true),
        };
        if let Some(mail) = mail {
            // Fails if the thread has ended.
            let _ = self.mailbox.send(mail);
        }
        if waits {
            // A device that takes longer keeps resetting. Its driver sees that the reset is not done.
            let wait = self.shared.settled.wait_timeout_while(
                self.shared.lock(),
                Duration::from_secs(30),
                |transport| !transport.is_settled(),
            );
            drop(wait);
        }
    }
}

/// This device watches nothing.
struct NoPoller;

impl Poller for NoPoller {
    fn watch(&mut self, _: BorrowedFd<'_>, _: u32, _: Interest) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn unwatch(&mut self, _: BorrowedFd<'_>, _: u32) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The device's thread.
fn serve(shared: &Shared, mut worker: Worker<Memory>, mailbox: &Receiver<Mail>) {
    let mut answers = Vec::new();
    while let Ok(mail) = mailbox.recv() {
        match mail {
            Mail::Command(command) => worker.perform(&mut NoPoller, command, &mut answers),
            Mail::Kick(queue) => {
                worker.process(&mut NoPoller, Event::Queue(queue), &mut answers);
            }
            Mail::Interrupted => return,
        }
        // With a single device, no other one has to get a turn.
        while let Some(event) = worker.again() {
            worker.process(&mut NoPoller, event, &mut answers);
        }
        for answer in answers.drain(..) {
            let mut transport = shared.lock();
            let notice = transport.answer(&answer);
            let interrupt = transport.interrupt();
            drop(transport);
            shared.settled.notify_all();
            if let Answer::NeedsReset { why, .. } = &answer {
                eprintln!("the device needs a reset: {why}");
            }
            if notice == Notice::Config {
                interrupt.config();
            }
        }
    }
}

/// Its interrupt ends the example.
struct Ends(Sender<Mail>);

impl Line for Ends {
    fn raise(&self) {
        let _ = self.0.send(Mail::Interrupted);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let memory = memory(1 << 20);
    let (mailbox, received) = channel();
    let device: Box<dyn AnyDevice<Memory>> = Box::<Ones>::default();
    let line = Arc::new(Ends(mailbox.clone()));
    let transport = MmioTransport::new(device.layout(), device.config(), 0, line)?;
    let worker = Worker::new(device, memory.clone(), transport.interrupt());
    let shared = Arc::new(Shared {
        transport: Mutex::new(transport),
        settled: Condvar::new(),
    });
    let io = Arc::clone(&shared);
    let io = std::thread::spawn(move || serve(&io, worker, &received));

    // The guest: reset, features, a queue, ready.
    let vcpu = Vcpu { shared, mailbox };
    let mut ring = DriverRing::new(&memory, 0x1000, 16);
    let state = ring.state();
    for status in [0, 1, 3] {
        vcpu.write(0x70, status);
    }
    // The feature VERSION_1 is bit 32.
    vcpu.write(0x24, 1);
    vcpu.write(0x20, 1);
    vcpu.write(0x70, 11);
    let registers = [
        (0x80, state.descriptors),
        (0x90, state.available),
        (0xa0, state.used),
    ];
    for (offset, address) in registers {
        vcpu.write(offset, address as u32);
    }
    vcpu.write(0x38, state.size.into());
    vcpu.write(0x44, 1);
    vcpu.write(0x70, 15);
    // A buffer, and a notification.
    ring.send(&Buffers {
        readable: Vec::new(),
        writable: vec![(0x8000, 8)],
    });
    vcpu.write(0x50, 0);
    io.join().map_err(|_| "the device's thread panicked")?;
    let mut data = [0; 8];
    memory.read_slice(&mut data, GuestAddress(0x8000))?;
    println!("{:?}: {data:?}", ring.take());
    assert_eq!(data, [1; 8]);
    Ok(())
}
