// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Glue: what a vCPU's accesses reach. The one file that names both the vCPU loop and the machine.

use std::sync::Arc;

use vcpu_loop::bus::Bus;
use vcpu_loop::{Next, VcpuIo};

use crate::outcome::OutcomeLatch;

/// One vCPU's view of the machine: the frozen bus, and whether the run is over.
#[derive(Clone, Debug)]
pub struct MachineIo {
    bus: Arc<Bus>,
    latch: OutcomeLatch,
}

impl MachineIo {
    /// A view of `bus` for one vCPU, which leaves the guest once `latch` is set.
    pub fn new(bus: Arc<Bus>, latch: OutcomeLatch) -> Self {
        MachineIo { bus, latch }
    }

    /// After a device decided that the run is over, no guest instruction runs on this vCPU.
    fn after(&self, next: Next) -> Next {
        if self.latch.is_set() {
            Next::Pause
        } else {
            next
        }
    }
}

impl VcpuIo for MachineIo {
    fn pio_read(&mut self, port: u16, data: &mut [u8]) -> Next {
        self.after(self.bus.pio_read(port, data))
    }

    fn pio_write(&mut self, port: u16, data: &[u8]) -> Next {
        self.after(self.bus.pio_write(port, data))
    }

    fn mmio_read(&mut self, addr: u64, data: &mut [u8]) -> Next {
        self.after(self.bus.mmio_read(addr, data))
    }

    fn mmio_write(&mut self, addr: u64, data: &[u8]) -> Next {
        self.after(self.bus.mmio_write(addr, data))
    }
}
