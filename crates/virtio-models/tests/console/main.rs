// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The console device: virtio-transport's suite, and its own behaviour with a driver in memory and real descriptors.

mod control;
mod driver_must;
mod hostile;
mod peers;
mod saved;
mod streams;
mod support;

use std::fs::File;

use support::*;
use virtio_models::console::{Console, Stream};
use virtio_transport::testing::{Memory, Reply, Request, Subject};

/// A console that takes everything, and sends zeros without end.
struct Zeros {
    has_ports: bool,
}

impl Subject for Zeros {
    type Device = Console<Memory>;

    fn device(&self) -> Self::Device {
        let open = |path| {
            File::options()
                .read(true)
                .write(true)
                .open(path)
                .expect("a device")
        };
        let zeros = Stream::new(
            Some(open("/dev/zero").into()),
            Some(open("/dev/null").into()),
        );
        let ports = if self.has_ports {
            vec![port("a", silent())]
        } else {
            Vec::new()
        };
        device(Some(shared(zeros)), ports)
    }

    fn request(&self, n: u32) -> Request {
        // With ports, the guest has to open the console before it receives.
        match n % 2 {
            1 if !self.has_ports => Request {
                queue: 0,
                readable: Vec::new(),
                writable: 1 + n * 977 % 40_000,
            },
            _ => Request {
                queue: 1,
                readable: bytes(1 + n as usize * 977 % 40_000),
                writable: 0,
            },
        }
    }

    fn check(&self, n: u32, _: u64, reply: &Reply) {
        if n.is_multiple_of(2) || self.has_ports {
            assert_eq!(reply.len, 0);
            return;
        }
        let (written, rest) = reply.bytes.split_at(reply.len as usize);
        assert_eq!(written.len(), reply.bytes.len().min(16 << 10));
        assert!(written.iter().all(|byte| *byte == 0) && rest.iter().all(|byte| *byte == 0xa5));
    }
}

virtio_transport::device_suite!(console, crate::Zeros { has_ports: false });
virtio_transport::device_suite!(ports, crate::Zeros { has_ports: true });
