// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The cost of frames of 1,500 bytes in the network device, 64 at a time, without the host's.
#![allow(missing_docs, clippy::unwrap_used)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use virtio_models::net::{Frame, Link, LinkError, Mac, Net, NetConfig, Offloads, Room};
use virtio_transport::Device;
use virtio_transport::device::{Active, Event, Interrupt, Io};
use virtio_transport::queue::Virtq;
use virtio_transport::testing::{Buffers, DriverRing, TestPoller, memory};

const FRAMES: usize = 64;
const MRG_RXBUF: u64 = 1 << 15;

/// Takes all frames, and always has one whose bytes are there already.
struct Nowhere(OwnedFd);

impl Link for Nowhere {
    fn source(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn has_headers(&self) -> bool {
        true
    }

    fn configure(&mut self, _: Offloads) -> Result<(), LinkError> {
        Ok(())
    }

    fn set_active(&mut self, _: bool) -> Result<(), LinkError> {
        Ok(())
    }

    fn send(&mut self, _: &mut Frame<'_>) -> Result<(), LinkError> {
        Ok(())
    }

    fn receive(&mut self, room: Room<'_>) -> Result<usize, LinkError> {
        room.fill([0; 12], &[7; 1500]).map_err(LinkError::Lost)
    }
}

struct Silent;

impl Interrupt for Silent {
    fn queue(&self, _: u16) {}

    fn config(&self) {}
}

/// The time of the device for rounds of frames in a queue.
fn measure(queue: u16, rounds: u64) -> Duration {
    let memory = memory(1 << 20);
    let mut rings = [0, 0x1_0000].map(|base| DriverRing::new(&memory, base, 256));
    let file = std::fs::File::open("/dev/null").unwrap();
    let link = Box::new(Nowhere(file.into()));
    let config = NetConfig::new(Mac([2, 0, 0, 0, 0, 1]));
    let mut net = Net::new(config, vec![link], Box::new(|_| ()));
    let virtq = |ring: &DriverRing| Virtq::new(&ring.state(), MRG_RXBUF, &*memory).ok();
    let active = Active {
        features: MRG_RXBUF,
        memory: memory.clone(),
        queues: rings.iter().map(virtq).collect(),
        interrupt: Arc::new(Silent),
    };
    let mut poller = TestPoller::default();
    let mut io = Io::new(&mut poller);
    net.start(&mut io, active).unwrap();
    let ring = &mut rings[usize::from(queue)];
    let mut total = Duration::ZERO;
    for _ in 0..rounds {
        for i in 0..FRAMES as u64 {
            let buffer = vec![(0x2_0000 + 0x800 * i, 1536)];
            let mut buffers = Buffers::default();
            if queue == 0 {
                buffers.writable = buffer;
            } else {
                buffers.readable = buffer;
            }
            ring.send(&buffers);
        }
        let start = Instant::now();
        net.process(&mut io, Event::Queue(queue)).unwrap();
        total += start.elapsed();
        assert_eq!(std::iter::from_fn(|| ring.take()).count(), FRAMES);
    }
    total
}

fn frames(criterion: &mut Criterion) {
    for (name, queue) in [("64 frames received and copied", 0), ("64 frames sent", 1)] {
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| measure(queue, rounds));
        });
    }
}

criterion_group!(benches, frames);
criterion_main!(benches);
