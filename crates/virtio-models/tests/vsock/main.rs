// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The socket device: virtio-transport's suite, and its own behaviour with a driver in memory and real sockets.

mod clients;
mod credit;
mod dirty;
mod driver_must;
mod ends;
mod hostile;
mod saved;
mod streams;
mod support;

use support::*;
use virtio_models::vsock::{HEADER, Vsock};
use virtio_transport::testing::{Memory, Reply, Request, Subject};

/// A device that resets what belongs to no connection: a packet, and a buffer for its reset, in turn.
struct Resets(Place);

impl Subject for Resets {
    type Device = Vsock<Memory>;

    fn device(&self) -> Self::Device {
        self.0.device(LONG)
    }

    fn request(&self, n: u32) -> Request {
        let unknown = Packet {
            src_port: n,
            ..packet(RW)
        };
        match n % 2 {
            0 => Request {
                queue: TX,
                readable: unknown.with(&bytes(n as usize % 100)).bytes(),
                writable: 0,
            },
            _ => Request {
                queue: RX,
                readable: Vec::new(),
                writable: HEADER as u32 + 1 + n % 3000,
            },
        }
    }

    fn check(&self, n: u32, _: u64, reply: &Reply) {
        if n.is_multiple_of(2) {
            assert_eq!(reply.len, 0);
            return;
        }
        let (written, rest) = reply.bytes.split_at(HEADER);
        assert_eq!(reply.len as usize, HEADER);
        assert_eq!(written[16..20], 52_u32.to_le_bytes());
        assert_eq!(written[24..32], [0, 0, 0, 0, 1, 0, RST as u8, 0]);
        assert!(rest.iter().all(|byte| *byte == 0xa5));
    }
}

virtio_transport::device_suite!(resets, crate::Resets(crate::Place::new()));
