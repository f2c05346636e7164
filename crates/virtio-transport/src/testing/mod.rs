// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests of devices without a machine: the driver's side of queues and transports, and a suite that each device must
//! pass on each transport.
//!
//! The code here panics if a test fails.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

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
pub type Memory = Arc<GuestMemoryMmap>;

/// The size of guest memory of the suite's machines, in bytes.
pub const MEMORY: usize = 1 << 20;

/// Guest memory of `len` bytes from address 0 on, followed by a hole. It is a shared mapping of a file, which devices
/// may pass to other processes.
///
/// # Panics
/// If the host has no memory or file descriptor left.
pub fn memory(len: usize) -> Memory {
    let file = memfd_create("guest memory", MemfdFlags::CLOEXEC).expect("a file for a test");
    let file = File::from(file);
    file.set_len(len as u64).expect("a file for a test");
    let ranges = [(GuestAddress(0), len, Some(FileOffset::new(file, 0)))];
    let memory = GuestMemoryMmap::from_ranges_with_files(ranges);
    Arc::new(memory.expect("guest memory for a test"))
}
