// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The balloon: virtio-transport's suite, and its own behaviour with a driver in memory.

mod driver_must;
mod hints;
mod hostile;
mod numbers;
mod sizes;
mod support;

use std::sync::Arc;

use support::*;
use virtio_models::balloon::{Balloon, Control};
use virtio_transport::testing::{Memory, Reply, Request, Subject};

/// Requests of each kind in turn, but none for statistics, which are not answered.
struct Requests;

impl Subject for Requests {
    type Device = Balloon<Memory>;

    fn device(&self) -> Self::Device {
        let control = Arc::new(Control::new(1000, 3600));
        device(ALL, &control, &Notes::default())
    }

    fn request(&self, n: u32) -> Request {
        let (queue, readable, writable) = match n % 4 {
            0 => (INFLATE, numbers(&[n, n + 1, 0]), 0),
            1 => (DEFLATE, numbers(&[n]), 0),
            2 => (HINTS, numbers(&[STOP]), 0),
            _ => (REPORTS, Vec::new(), 1 + n % 3000),
        };
        Request {
            queue,
            readable,
            writable,
        }
    }

    fn check(&self, _: u32, _: u64, reply: &Reply) {
        assert_eq!(reply.len, 0);
        assert!(reply.bytes.iter().all(|byte| *byte == 0xa5));
    }
}

virtio_transport::device_suite!(requests, Requests);
