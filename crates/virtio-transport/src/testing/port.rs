// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Transports from a driver's view: through their registers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::device::{Interrupt, RestoreError};
use crate::layout::Layout;
use crate::message::{Activation, Answer};
use crate::mmio::{Line, MmioState, MmioTransport};
use crate::pci::{COMMON, DEVICE, NOTIFY, NOTIFY_STEP, PciState, PciTransport, Vectors};
use crate::queue::{Position, QueueState};
use crate::registers::{Effect, Notice, Registers};

/// The interrupts since the driver's last check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// For a queue.
    pub queue: bool,
    /// For the configuration.
    pub config: bool,
}

/// A transport with a driver's accesses to it. The driver uses only [`read`](Self::read) and [`write`](Self::write), as
/// a vCPU's exits do.
pub trait Port: Sized {
    /// Its saved state.
    type State: Serialize + DeserializeOwned + Clone + std::fmt::Debug + PartialEq;

    /// The size of the register range, in bytes.
    const SPAN: u64;
    /// The offset and size of the status register.
    const STATUS: (u64, usize);
    /// The offset of the configuration.
    const CONFIG: u64;

    /// A device before its driver's first access.
    ///
    /// # Panics
    /// If the transport doesn't support the device.
    fn new(layout: Layout, config: Vec<u8>) -> Self;
    /// The driver reads registers.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The driver writes registers.
    fn write(&mut self, offset: u64, data: &[u8]) -> Effect;
    /// Handles an answer of the device.
    fn answer(&mut self, answer: &Answer) -> Notice;
    /// Status, features and queues.
    fn registers(&self) -> &Registers;
    /// The device's way to interrupt.
    fn interrupt(&self) -> Arc<dyn Interrupt>;
    /// Saves it.
    fn save(&self) -> Option<Self::State>;
    /// Restores it.
    ///
    /// # Errors
    /// The transport's error.
    fn restore(
        &mut self,
        state: &Self::State,
        positions: Option<&[Option<Position>]>,
    ) -> Result<Option<Activation>, RestoreError>;

    /// Takes and acknowledges the interrupts since the last call.
    fn take_interrupts(&mut self) -> Seen;
    /// 32 bits of the offered features.
    fn device_features(&mut self, select: u32) -> u32;
    /// Writes 32 bits of the driver's features.
    fn set_driver_features(&mut self, select: u32, value: u32);
    /// The offered size of a queue.
    fn max_queue_size(&mut self, queue: u16) -> u16;
    /// Sets a queue's size and addresses, and enables it.
    fn set_up_queue(&mut self, queue: u16, state: &QueueState);
    /// Whether a queue is enabled.
    fn is_queue_ready(&mut self, queue: u16) -> bool;
    /// Notifies a queue.
    fn kick(&mut self, queue: u16) -> Effect;
    /// The configuration's generation.
    fn generation(&mut self) -> u32;

    /// The status.
    fn status(&mut self) -> u8 {
        let mut data = [0; 4];
        let (at, len) = Self::STATUS;
        self.read(at, &mut data[..len]);
        data[0]
    }

    /// Writes the status.
    fn set_status(&mut self, status: u8) -> Effect {
        let (at, len) = Self::STATUS;
        self.write(at, &[status, 0, 0, 0][..len])
    }
}

/// A write that sets a parameter and has no further effect.
fn set<P: Port>(port: &mut P, offset: u64, data: &[u8]) {
    assert_eq!(
        port.write(offset, data),
        Effect::None,
        "a write at {offset:#x}"
    );
}

fn get_32<P: Port>(port: &mut P, offset: u64) -> u32 {
    let mut data = [0; 4];
    port.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn get_16<P: Port>(port: &mut P, offset: u64) -> u16 {
    let mut data = [0; 2];
    port.read(offset, &mut data);
    u16::from_le_bytes(data)
}

/// Writes a 64-bit address as two halves.
fn set_address<P: Port>(port: &mut P, offset: u64, address: u64) {
    let bytes = address.to_le_bytes();
    set(port, offset, &bytes[..4]);
    set(port, offset + 4, &bytes[4..]);
}

/// A line that records whether it was raised.
#[derive(Debug, Default)]
struct Raised(AtomicBool);

impl Line for Raised {
    fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The MMIO transport.
#[derive(Debug)]
pub struct MmioPort {
    transport: MmioTransport,
    raised: Arc<Raised>,
}

impl MmioPort {
    fn set_32(&mut self, offset: u64, value: u32) {
        set(self, offset, &value.to_le_bytes());
    }
}

impl Port for MmioPort {
    type State = MmioState;

    const SPAN: u64 = 0x200;
    const STATUS: (u64, usize) = (0x70, 4);
    const CONFIG: u64 = 0x100;

    fn new(layout: Layout, config: Vec<u8>) -> Self {
        let raised = Arc::<Raised>::default();
        let transport = MmioTransport::new(layout, config, 0, Arc::clone(&raised) as _);
        MmioPort {
            transport: transport.expect("a device that the transport carries"),
            raised,
        }
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.transport.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        self.transport.write(offset, data)
    }

    fn answer(&mut self, answer: &Answer) -> Notice {
        self.transport.answer(answer)
    }

    fn registers(&self) -> &Registers {
        self.transport.registers()
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        self.transport.interrupt()
    }

    fn save(&self) -> Option<MmioState> {
        self.transport.save()
    }

    fn restore(
        &mut self,
        state: &MmioState,
        positions: Option<&[Option<Position>]>,
    ) -> Result<Option<Activation>, RestoreError> {
        self.transport.restore(state, positions)
    }

    fn take_interrupts(&mut self) -> Seen {
        if !self.raised.0.swap(false, Ordering::SeqCst) {
            return Seen::default();
        }
        let status = get_32(self, 0x60);
        self.set_32(0x64, status);
        Seen {
            queue: status & 1 != 0,
            config: status & 2 != 0,
        }
    }

    fn device_features(&mut self, select: u32) -> u32 {
        self.set_32(0x14, select);
        get_32(self, 0x10)
    }

    fn set_driver_features(&mut self, select: u32, value: u32) {
        self.set_32(0x24, select);
        self.set_32(0x20, value);
    }

    fn max_queue_size(&mut self, queue: u16) -> u16 {
        self.set_32(0x30, queue.into());
        get_32(self, 0x34) as u16
    }

    fn set_up_queue(&mut self, queue: u16, state: &QueueState) {
        self.set_32(0x30, queue.into());
        self.set_32(0x38, state.size.into());
        set_address(self, 0x80, state.descriptors);
        set_address(self, 0x90, state.available);
        set_address(self, 0xa0, state.used);
        self.set_32(0x44, 1);
    }

    fn is_queue_ready(&mut self, queue: u16) -> bool {
        self.set_32(0x30, queue.into());
        get_32(self, 0x44) == 1
    }

    fn kick(&mut self, queue: u16) -> Effect {
        self.write(0x50, &u32::from(queue).to_le_bytes())
    }

    fn generation(&mut self) -> u32 {
        get_32(self, 0xfc)
    }
}

/// Vectors that record whether they were fired, one bit each.
#[derive(Debug)]
struct Fired {
    count: u16,
    bits: AtomicU64,
}

impl Vectors for Fired {
    fn count(&self) -> u16 {
        self.count
    }

    fn fire(&self, vector: u16) {
        self.bits.fetch_or(1 << vector, Ordering::SeqCst);
    }
}

/// The PCI transport of a function with up to 63 queues. Vector 0 is for the configuration, vector `n + 1` for queue
/// `n`.
#[derive(Debug)]
pub struct PciPort {
    transport: PciTransport,
    fired: Arc<Fired>,
}

impl PciPort {
    fn set_16(&mut self, at: u64, value: u16) {
        set(self, COMMON + at, &value.to_le_bytes());
    }

    fn set_32(&mut self, at: u64, value: u32) {
        set(self, COMMON + at, &value.to_le_bytes());
    }
}

impl Port for PciPort {
    type State = PciState;

    const SPAN: u64 = 0x4010;
    const STATUS: (u64, usize) = (COMMON + 0x14, 1);
    const CONFIG: u64 = DEVICE;

    fn new(layout: Layout, config: Vec<u8>) -> Self {
        let fired = Arc::new(Fired {
            count: PciTransport::vectors(&layout),
            bits: AtomicU64::new(0),
        });
        let transport = PciTransport::new(layout, config, Arc::clone(&fired) as _);
        PciPort {
            transport: transport.expect("a device that the transport carries"),
            fired,
        }
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.transport.read_bar(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        self.transport.write_bar(offset, data)
    }

    fn answer(&mut self, answer: &Answer) -> Notice {
        self.transport.answer(answer)
    }

    fn registers(&self) -> &Registers {
        self.transport.registers()
    }

    fn interrupt(&self) -> Arc<dyn Interrupt> {
        self.transport.interrupt()
    }

    fn save(&self) -> Option<PciState> {
        self.transport.save()
    }

    fn restore(
        &mut self,
        state: &PciState,
        positions: Option<&[Option<Position>]>,
    ) -> Result<Option<Activation>, RestoreError> {
        self.transport.restore(state, positions)
    }

    fn take_interrupts(&mut self) -> Seen {
        let bits = self.fired.bits.swap(0, Ordering::SeqCst);
        Seen {
            queue: bits & !1 != 0,
            config: bits & 1 != 0,
        }
    }

    fn device_features(&mut self, select: u32) -> u32 {
        self.set_32(0x00, select);
        get_32(self, COMMON + 0x04)
    }

    fn set_driver_features(&mut self, select: u32, value: u32) {
        self.set_32(0x08, select);
        self.set_32(0x0c, value);
    }

    fn max_queue_size(&mut self, queue: u16) -> u16 {
        self.set_16(0x16, queue);
        get_16(self, COMMON + 0x18)
    }

    fn set_up_queue(&mut self, queue: u16, state: &QueueState) {
        self.set_16(0x10, 0);
        self.set_16(0x16, queue);
        self.set_16(0x18, state.size);
        self.set_16(0x1a, queue + 1);
        set_address(self, COMMON + 0x20, state.descriptors);
        set_address(self, COMMON + 0x28, state.available);
        set_address(self, COMMON + 0x30, state.used);
        self.set_16(0x1c, 1);
    }

    fn is_queue_ready(&mut self, queue: u16) -> bool {
        self.set_16(0x16, queue);
        get_16(self, COMMON + 0x1c) == 1
    }

    fn kick(&mut self, queue: u16) -> Effect {
        self.set_16(0x16, queue);
        let at = u64::from(get_16(self, COMMON + 0x1e)) * u64::from(NOTIFY_STEP);
        self.write(NOTIFY + at, &queue.to_le_bytes())
    }

    fn generation(&mut self) -> u32 {
        let mut data = [0];
        self.read(COMMON + 0x15, &mut data);
        data[0].into()
    }
}
