// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The network device: virtio-transport's suite, and its own behaviour on links in memory, on sockets and on taps.

mod dirty;
mod driver_must;
mod frames;
mod limits;
mod links;
mod queues;
mod support;
mod tap;

use support::{HEADER, Wire, frame, header};
use virtio_models::net::Net;
use virtio_transport::testing::{Memory, Reply, Request, Subject};

/// The length of a frame that is always there.
const LEN: usize = 300;

/// A device whose link always has a frame. With several pairs, it has a control queue.
struct Always {
    pairs: usize,
}

impl Subject for Always {
    type Device = Net<Memory>;

    fn device(&self) -> Self::Device {
        let links = (0..self.pairs).map(|_| Wire::endless(LEN).link());
        let report = Box::new(|notice| eprintln!("{notice}"));
        Net::new(support::config(), links.collect(), report)
    }

    fn request(&self, n: u32) -> Request {
        let (queue, readable, writable) = match n / 2 % 3 {
            0 => (0, Vec::new(), 2000),
            1 => (1, [header(), frame(60 + n as usize % 1000)].concat(), 0),
            // A command that isn't known.
            _ if self.pairs > 1 => (2 * self.pairs as u16, vec![99, 0, 1, 0], 1),
            _ => (1, vec![0; 3], 0),
        };
        Request {
            queue,
            readable,
            writable,
        }
    }

    fn check(&self, n: u32, _: u64, reply: &Reply) {
        match n / 2 % 3 {
            0 => {
                let (written, rest) = reply.bytes.split_at(HEADER + LEN);
                assert_eq!(reply.len as usize, written.len());
                assert_eq!(written[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
                assert_eq!(written[HEADER..], frame(LEN));
                assert!(rest.iter().all(|byte| *byte == 0xa5));
            }
            2 if self.pairs > 1 => assert_eq!((reply.len, reply.bytes[0]), (1, 1)),
            _ => assert_eq!(reply.len, 0),
        }
    }
}

virtio_transport::device_suite!(one_pair, crate::Always { pairs: 1 });
virtio_transport::device_suite!(three_pairs, crate::Always { pairs: 3 });
