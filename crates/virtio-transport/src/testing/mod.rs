// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests of devices without a machine: the driver's side of queues and transports, and a suite that each device must
//! pass on each transport.
//!
//! The code here panics if a test fails.

mod driver;
mod echo;
mod machine;
mod monkey;
mod port;
mod ring;
pub mod suite;

pub use driver::{Driver, Reply, Request};
pub use echo::{Echo, EchoState};
pub use machine::{Machine, TestPoller};
pub use monkey::monkey;
pub use port::{MmioPort, PciPort, Port, Seen};
pub use ring::{Buffers, DriverRing, Flags, Used};
pub use suite::Subject;

/// Guest memory in tests.
pub type Memory = std::sync::Arc<vm_memory::GuestMemoryMmap>;

/// The size of guest memory of the suite's machines, in bytes.
pub const MEMORY: usize = 1 << 20;

/// Guest memory of `len` bytes from address 0 on, followed by a hole.
///
/// # Panics
/// If the host has no memory left.
pub fn memory(len: usize) -> Memory {
    let ranges = [(vm_memory::GuestAddress(0), len)];
    let memory = vm_memory::GuestMemoryMmap::from_ranges(&ranges);
    std::sync::Arc::new(memory.expect("guest memory for a test"))
}
