// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The common configuration (virtio 1.4, 4.1.4.3).

use crate::registers::{Effect, Half, Ring};

use super::PciTransport;

/// Its length in bytes.
pub(super) const LEN: usize = 0x40;

impl PciTransport {
    /// All of it, as the driver reads it.
    fn common(&self) -> [u8; LEN] {
        let registers = &self.registers;
        let selected = registers.queue_select();
        let queue = registers.queue();
        let address = |ring| queue.map_or(0, |queue| queue.address(ring));
        let mut image = [0; LEN];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &registers.device_features_select().to_le_bytes());
        put(0x04, &registers.device_features().to_le_bytes());
        put(0x08, &registers.driver_features_select().to_le_bytes());
        put(0x0c, &registers.driver_features().to_le_bytes());
        put(0x10, &self.interrupt.get(None).to_le_bytes());
        // Fits: there are at most 1,024 queues.
        put(
            0x12,
            &(registers.layout().queues.len() as u16).to_le_bytes(),
        );
        // Here the generation has eight bits.
        put(0x14, &[registers.status(), registers.generation() as u8]);
        put(0x16, &(selected as u16).to_le_bytes());
        put(0x18, &queue.map_or(0, |queue| queue.size()).to_le_bytes());
        put(0x1a, &self.interrupt.get(Some(selected)).to_le_bytes());
        put(
            0x1c,
            &u16::from(queue.is_some_and(|queue| queue.is_ready())).to_le_bytes(),
        );
        // A queue's notification address follows from its number.
        put(0x1e, &queue.map_or(0, |_| selected as u16).to_le_bytes());
        put(0x20, &address(Ring::Descriptors).to_le_bytes());
        put(0x28, &address(Ring::Available).to_le_bytes());
        put(0x30, &address(Ring::Used).to_le_bytes());
        image
    }

    pub(super) fn read_common(&self, at: u64, data: &mut [u8]) {
        let image = self.common();
        // Fits: `at` is inside the BAR.
        let bytes = image.get(at as usize..).unwrap_or_default();
        let len = bytes.len().min(data.len());
        data[..len].copy_from_slice(&bytes[..len]);
    }

    pub(super) fn write_common(&mut self, at: u64, data: &[u8]) -> Effect {
        match *data {
            [value] if at == 0x14 => return self.set_status(value),
            [a, b] => self.write_16(at, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_32(at, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if matches!(at, 0x20 | 0x28 | 0x30) => {
                self.write_32(at, u32::from_le_bytes([a, b, c, d]));
                self.write_32(at + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
        Effect::None
    }

    fn set_status(&mut self, value: u8) -> Effect {
        let epoch = self.registers.epoch();
        let effect = self.registers.set_status(value);
        if self.registers.epoch() != epoch {
            self.interrupt.reset();
        }
        // The driver reads the status until it is 0 (4.1.4.3.2), so the vCPU need not wait.
        match effect {
            Effect::Wait => Effect::None,
            other => other,
        }
    }

    fn write_16(&mut self, at: u64, value: u16) {
        let registers = &mut self.registers;
        match at {
            0x10 => self.interrupt.set(None, value),
            0x16 => registers.select_queue(value.into()),
            0x18 => registers.set_queue_size(value.into()),
            0x1a => self.interrupt.set(Some(registers.queue_select()), value),
            // A driver must not write 0 (4.1.4.3.2).
            0x1c if value == 1 => registers.enable_queue(),
            _ => {}
        }
    }

    fn write_32(&mut self, at: u64, value: u32) {
        let registers = &mut self.registers;
        match at {
            0x00 => registers.select_device_features(value),
            0x08 => registers.select_driver_features(value),
            0x0c => registers.set_driver_features(value),
            0x20 => registers.set_queue_address(Ring::Descriptors, Half::Low, value),
            0x24 => registers.set_queue_address(Ring::Descriptors, Half::High, value),
            0x28 => registers.set_queue_address(Ring::Available, Half::Low, value),
            0x2c => registers.set_queue_address(Ring::Available, Half::High, value),
            0x30 => registers.set_queue_address(Ring::Used, Half::Low, value),
            0x34 => registers.set_queue_address(Ring::Used, Half::High, value),
            _ => {}
        }
    }
}
