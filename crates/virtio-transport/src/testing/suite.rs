// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A test suite that each device must pass on each transport.
//!
//! [`device_suite!`](crate::device_suite) makes a test of each function here. A [`Subject`] describes a device: how to
//! create it, requests for it, and a check of its answers.

mod hostile;
mod registers;
mod running;
mod states;

pub use hostile::hostile_rings;
pub use registers::{configuration_at_every_width, every_register_at_every_width};
pub use running::{
    frozen_parameters, negotiation, notifications_of_no_queue, requests, reset_at_every_step,
    reset_in_mid_io,
};
pub use states::{forged_states, save_and_restore, stop_and_start};

use crate::device::Device;

use super::driver::{Driver, Reply, Request};
use super::machine::Machine;
use super::port::Port;
use super::{MEMORY, Memory, memory};

/// A device and its properties.
pub trait Subject {
    /// The device.
    type Device: Device<Memory> + 'static;

    /// Creates a device. All devices must be the same, with the same backend (a file, a socket): one device's saved
    /// state is restored to another.
    fn device(&self) -> Self::Device;

    /// Request number `n`.
    fn request(&self, n: u32) -> Request;

    /// Checks the answer to request number `n`, for a driver that accepted these features. Answers may come in any
    /// order.
    ///
    /// # Panics
    /// If the answer is wrong.
    fn check(&self, n: u32, features: u64, reply: &Reply);
}

/// A machine with the device, before its driver's first access.
fn machine<P: Port, S: Subject>(subject: &S) -> Machine<P> {
    Machine::new(Box::new(subject.device()), &memory(MEMORY))
}

/// Counts requests and their answers.
struct Traffic<'a, S> {
    subject: &'a S,
    driver: Driver,
    /// The number of this driver's first request.
    first: u32,
    answered: u32,
}

impl<'a, S: Subject> Traffic<'a, S> {
    fn start<P: Port>(subject: &'a S, machine: &mut Machine<P>, wanted: u64) -> Self {
        let driver = Driver::start(machine, wanted);
        Traffic {
            subject,
            driver,
            first: 0,
            answered: 0,
        }
    }

    /// Sends requests, each with a notification.
    fn send<P: Port>(&mut self, machine: &mut Machine<P>, count: u32) {
        for _ in 0..count {
            let n = self.first;
            self.first += 1;
            let request = self.subject.request(n);
            assert_eq!(self.driver.send(machine, &request), n);
            machine.kick(request.queue);
        }
    }

    /// Takes and checks the available answers.
    fn receive<P: Port>(&mut self, machine: &Machine<P>) {
        let features = self.driver.features();
        for (n, reply) in self.driver.receive_all(machine) {
            self.subject.check(n, features, &reply);
            self.answered += 1;
        }
    }

    /// Waits until each request has its answer.
    fn finish<P: Port>(&mut self, machine: &mut Machine<P>) {
        machine.pump_until(|machine| {
            self.receive(machine);
            self.driver.in_flight() == 0
        });
        assert_eq!(self.answered, self.first);
        machine.pump();
        assert!(self.driver.receive_all(machine).is_empty());
        assert!(machine.failures.is_empty(), "{:?}", machine.failures);
    }
}

/// Checks that the device works: a driver starts it, and it answers.
fn works<P: Port, S: Subject>(subject: &S, machine: &mut Machine<P>) {
    let mut traffic = Traffic::start(subject, machine, u64::MAX);
    // Ignore failures from before the reset.
    machine.failures.clear();
    traffic.send(machine, 3);
    traffic.finish(machine);
}

/// Defines tests of a device on both transports, in a module named `$name`. Each test uses the [`Subject`] `$subject`.
///
/// ```
/// use virtio_transport::testing::{Echo, Memory, Reply, Request, Subject};
///
/// struct Echoes;
///
/// impl Subject for Echoes {
///     type Device = Echo<Memory>;
///
///     fn device(&self) -> Self::Device {
///         Echo::new()
///     }
///
///     fn request(&self, n: u32) -> Request {
///         let queue = (n % 2) as u16;
///         Request { queue, readable: vec![1, 2], writable: 2 }
///     }
///
///     fn check(&self, _: u32, _: u64, reply: &Reply) {
///         assert_eq!(reply.len, 2);
///     }
/// }
///
/// virtio_transport::device_suite!(echo, Echoes);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! device_suite {
    ($name:ident, $subject:expr) => {
        mod $name {
            mod mmio {
                $crate::device_suite!(@port MmioPort, $subject);
            }

            mod pci {
                $crate::device_suite!(@port PciPort, $subject);
            }
        }
    };
    (@port $port:ident, $subject:expr) => {
        $crate::device_suite!(@tests $port, $subject,
            negotiation requests notifications_of_no_queue frozen_parameters reset_at_every_step
            reset_in_mid_io stop_and_start save_and_restore forged_states hostile_rings
            configuration_at_every_width every_register_at_every_width);
    };
    (@tests $port:ident, $subject:expr, $($test:ident)*) => {
        fn subject() -> impl $crate::testing::Subject {
            use super::super::*;
            $subject
        }

        $(
            #[test]
            fn $test() {
                $crate::testing::suite::$test::<$crate::testing::$port, _>(&subject());
            }
        )*
    };
}
