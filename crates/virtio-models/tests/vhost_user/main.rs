// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that another process serves: virtio-transport's suite against a backend of another implementation, and
//! backends that end, lie or are silent.

mod hostile;
mod lives;
mod support;

use support::{Host, INVERT, QUEUES};
use virtio_models::vhost_user::VhostUser;
use virtio_transport::testing::{Memory, MmioPort, PciPort, Reply, Request, Subject, suite};

/// Requests of 1 to 60 bytes, for each queue in turn.
struct Echoes(Host);

fn bytes(n: u32) -> Vec<u8> {
    (0..1 + n % 60).map(|at| (n + at) as u8).collect()
}

impl Subject for Echoes {
    type Device = VhostUser<Memory>;

    fn device(&self) -> Self::Device {
        VhostUser::new(self.0.backend())
    }

    fn request(&self, n: u32) -> Request {
        Request {
            queue: (n % u32::from(QUEUES)) as u16,
            readable: bytes(n),
            writable: 1 + n % 60,
        }
    }

    fn check(&self, n: u32, features: u64, reply: &Reply) {
        let mask = if features & INVERT != 0 { 0xff } else { 0 };
        let wanted: Vec<u8> = bytes(n).iter().map(|byte| byte ^ mask).collect();
        assert_eq!((reply.len as usize, &reply.bytes), (wanted.len(), &wanted));
    }
}

/// The suite's tests on both transports. Interrupts and broken rings are the backend's business: `lives` and `hostile`
/// look at those.
macro_rules! of_suite {
    ($($test:ident)*) => {
        $(
            #[test]
            fn $test() {
                let echoes = Echoes(Host::new());
                suite::$test::<MmioPort, _>(&echoes);
                suite::$test::<PciPort, _>(&echoes);
            }
        )*
    };
}

of_suite! {
    negotiation notifications_of_no_queue frozen_parameters reset_at_every_step reset_in_mid_io stop_and_start
    save_and_restore forged_states configuration_at_every_width every_register_at_every_width
}
