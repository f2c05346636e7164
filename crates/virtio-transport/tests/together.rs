// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains that are returned together.
#![allow(clippy::unwrap_used)]

use virtio_transport::Broken;
use virtio_transport::chain::Chain;
use virtio_transport::layout::EVENT_IDX;
use virtio_transport::memory::View;
use virtio_transport::queue::Virtq;
use virtio_transport::testing::{Buffers, DriverRing, Memory, Used, memory};

fn queue(features: u64) -> (Memory, DriverRing, Virtq) {
    let memory = memory(0x40_0000);
    let ring = DriverRing::new(&memory, 0x1000, 8);
    let queue = Virtq::new(&ring.state(), features, &*memory).unwrap();
    (memory, ring, queue)
}

fn one_byte() -> Buffers {
    Buffers {
        readable: Vec::new(),
        writable: vec![(0x10_0000, 1)],
    }
}

#[test]
fn the_driver_sees_all_of_them_in_order() {
    for features in [0, EVENT_IDX] {
        let (memory, mut ring, mut queue) = queue(features);
        let mut chain = Chain::new();
        // The ring's end is passed several times.
        for round in 0..7 {
            let heads: Vec<u16> = (0..3).map(|_| ring.send(&one_byte())).collect();
            // Any of the three is enough for an interrupt.
            ring.set_used_event(3 * round + round % 3);
            for _ in 0..3 {
                assert_eq!(queue.pop(&View::new(&*memory), &mut chain), Ok(true));
            }
            let returned = [(heads[0], 0), (heads[1], 1), (heads[2], 0)];
            assert_eq!(queue.push_all(&View::new(&*memory), &[]), Ok(()));
            assert_eq!(queue.needs_interrupt(&View::new(&*memory)), Ok(false));
            assert_eq!(queue.push_all(&View::new(&*memory), &returned), Ok(()));
            assert_eq!(queue.needs_interrupt(&View::new(&*memory)), Ok(true));
            let used: Vec<_> = std::iter::from_fn(|| ring.take()).collect();
            let wanted = returned.map(|(head, len)| {
                let head = head.into();
                Used { head, len }
            });
            assert_eq!(used, wanted);
            let position = queue.state().unwrap().position;
            assert_eq!(position.next_used, 3 * (round + 1));
        }
    }
}

#[test]
fn the_driver_sees_none_of_them_if_one_is_not_the_devices() {
    let (memory, mut ring, mut queue) = queue(0);
    let head = ring.send(&one_byte());
    assert_eq!(queue.pop(&View::new(&*memory), &mut Chain::new()), Ok(true));
    let broken = Err(Broken::NotInFlight { head });
    assert_eq!(
        queue.push_all(&View::new(&*memory), &[(head, 0), (head, 0)]),
        broken
    );
    assert_eq!(ring.take(), None);
}
