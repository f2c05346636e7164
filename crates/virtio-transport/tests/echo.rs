// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs the suite with the crate's echo device.

use virtio_transport::testing::{Driver, Echo, Memory, Reply, Request, Subject};

/// Requests for both queues of an echo device.
struct Echoes;

impl Echoes {
    fn sent(n: u32) -> Vec<u8> {
        (0..8 + n % 40).map(|i| (i * 7 + n) as u8 & 0x7f).collect()
    }
}

impl Subject for Echoes {
    type Device = Echo<Memory>;

    fn device(&self) -> Self::Device {
        Echo::new()
    }

    fn request(&self, n: u32) -> Request {
        Request {
            queue: (n % 2) as u16,
            readable: Self::sent(n),
            writable: 32,
        }
    }

    fn check(&self, n: u32, features: u64, reply: &Reply) {
        let mut wanted = Self::sent(n);
        wanted.truncate(32);
        if features & 1 != 0 {
            wanted.iter_mut().for_each(|byte| *byte = !*byte);
        }
        if features & 2 != 0 {
            wanted.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
        }
        assert_eq!(reply.len as usize, wanted.len());
        wanted.resize(32, Driver::BLANK);
        assert_eq!(reply.bytes, wanted);
    }
}

virtio_transport::device_suite!(suite, Echoes);
