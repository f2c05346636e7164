// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The common part of both transports: status, features, queue parameters and the copy of the configuration, as one
//! state machine.
//!
//! It knows no register addresses. A transport turns accesses into method calls, and passes their [`Effect`] to the
//! VMM. What a driver must not do has no effect, and nothing that it does is an error of the host.

mod queues;
mod saved;

pub use queues::{Half, QueueRegisters, Ring};
pub use saved::RegistersState;

use crate::layout::{Layout, LayoutError};
use crate::message::{Activation, Answer, Command};
use crate::queue::QueueState;

/// The driver has found the device (virtio 1.4, 2.1).
pub const ACKNOWLEDGE: u8 = 1;
/// The driver supports the device.
pub const DRIVER: u8 = 2;
/// The driver is ready.
pub const DRIVER_OK: u8 = 4;
/// The driver has chosen features, and the device accepts them.
pub const FEATURES_OK: u8 = 8;
/// The device needs a reset to continue.
pub const NEEDS_RESET: u8 = 64;
/// The driver has given up.
pub const FAILED: u8 = 128;

/// Each status bit, with the bits that must precede it.
const ORDER: [(u8, u8); 3] = [
    (DRIVER, ACKNOWLEDGE),
    (FEATURES_OK, DRIVER),
    (DRIVER_OK, FEATURES_OK),
];

/// What the VMM must do after an access.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the device waits for it"]
pub enum Effect {
    /// Nothing.
    None,
    /// Wake the device: a queue may have something.
    Kick(u16),
    /// Pass this to the device's thread.
    Post(Command),
    /// Pass this to the device's thread, and hold the vCPU until the transport is settled.
    PostAndWait(Command),
    /// Hold the vCPU until the transport is settled.
    Wait,
}

/// What the VMM must do after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the driver waits for it"]
pub enum Notice {
    /// Nothing.
    None,
    /// Interrupt the driver: the configuration changed, or the device needs a reset.
    Config,
}

/// Status, features, queue parameters and configuration of one device.
///
/// One lock around it suffices, held for one call only. A vCPU that has to wait ([`Effect::PostAndWait`]) does so
/// without the lock.
#[derive(Clone, Debug)]
pub struct Registers {
    layout: Layout,
    config: Config,
    /// What a reset clears. It is replaced as a whole.
    guest: Guest,
    /// The number of resets.
    epoch: u64,
    /// Whether the device knows of this epoch. Then a reset must be done by the device.
    touched: bool,
    resetting: bool,
    /// The number of pending configuration writes.
    config_writes: u32,
}

/// The copy of the configuration that drivers read.
#[derive(Clone, Debug)]
struct Config {
    bytes: Vec<u8>,
    generation: u32,
    /// No driver has read it since it was exchanged.
    is_new: bool,
}

/// What a driver has set since the last reset.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Guest {
    status: u8,
    features: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    queues: Vec<QueueRegisters>,
}

impl Guest {
    fn new(layout: &Layout) -> Self {
        Guest {
            status: 0,
            features: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            queues: layout
                .queues
                .iter()
                .map(|size| QueueRegisters::new(*size))
                .collect(),
        }
    }
}

impl Registers {
    /// A device before its driver's first access. `config` is a copy of its configuration.
    ///
    /// # Errors
    /// [`LayoutError`] if the transports don't support the device.
    pub fn new(layout: Layout, mut config: Vec<u8>) -> Result<Self, LayoutError> {
        layout.check()?;
        config.resize(layout.config_len as usize, 0);
        Ok(Registers {
            config: Config {
                bytes: config,
                generation: 0,
                is_new: false,
            },
            guest: Guest::new(&layout),
            layout,
            epoch: 0,
            touched: false,
            resetting: false,
            config_writes: 0,
        })
    }

    /// The device's layout.
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The number of completed resets.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether the device has answered everything that vCPUs wait for.
    pub const fn is_settled(&self) -> bool {
        !self.resetting && self.config_writes == 0
    }

    /// The status. During a reset it keeps its value, which is not 0.
    pub const fn status(&self) -> u8 {
        self.guest.status
    }

    /// The driver writes the status: 0 for a reset, else it may only add bits.
    pub fn set_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return self.reset();
        }
        let old = self.guest.status & !NEEDS_RESET;
        let mut new = value & (ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED);
        if self.resetting || new & old != old || old & FAILED != 0 {
            return Effect::None;
        }
        if new & FAILED != 0 {
            self.guest.status |= FAILED;
            return Effect::None;
        }
        let in_order = |(bit, before): &(u8, u8)| new & bit == 0 || new & before != 0;
        if !ORDER.iter().all(in_order) || self.guest.status & NEEDS_RESET != 0 {
            return Effect::None;
        }
        if new & !old & FEATURES_OK != 0 && !self.layout.accepts(self.guest.features) {
            new &= !(FEATURES_OK | DRIVER_OK);
        }
        self.guest.status = new;
        if new & !old & DRIVER_OK == 0 {
            return Effect::None;
        }
        self.touched = true;
        Effect::Post(Command::Start(self.activation()))
    }

    fn reset(&mut self) -> Effect {
        if self.resetting {
            return Effect::Wait;
        }
        if !self.touched {
            self.forget();
            return Effect::None;
        }
        self.resetting = true;
        Effect::Post(Command::Reset { epoch: self.epoch })
    }

    /// Clears everything that the driver set.
    fn forget(&mut self) {
        self.guest = Guest::new(&self.layout);
        self.epoch += 1;
        self.touched = false;
        self.resetting = false;
    }

    /// The queues as they are at `DRIVER_OK`.
    fn activation(&self) -> Activation {
        Activation {
            epoch: self.epoch,
            features: self.guest.features,
            queues: self
                .guest
                .queues
                .iter()
                .map(QueueRegisters::frozen)
                .collect(),
        }
    }

    /// The accepted features, and the queues at their first position. Frozen at `DRIVER_OK`.
    pub fn parameters(&self) -> (u64, Vec<Option<QueueState>>) {
        let Activation {
            features, queues, ..
        } = self.activation();
        (features, queues)
    }

    /// Whether the status bits `set` are set, the bits `clear` are clear, and no reset is pending.
    const fn is_at(&self, set: u8, clear: u8) -> bool {
        self.guest.status & (set | clear) == set && !self.resetting
    }

    /// Which 32 bits of the offered features are read.
    pub const fn device_features_select(&self) -> u32 {
        self.guest.device_features_select
    }

    /// Selects which 32 bits of the offered features are read.
    pub fn select_device_features(&mut self, select: u32) {
        if !self.resetting {
            self.guest.device_features_select = select;
        }
    }

    /// 32 bits of the offered features; 0 above bit 63.
    pub const fn device_features(&self) -> u32 {
        word(self.layout.offered(), self.guest.device_features_select)
    }

    /// Which 32 bits of the driver's features are written.
    pub const fn driver_features_select(&self) -> u32 {
        self.guest.driver_features_select
    }

    /// Selects which 32 bits of the driver's features are written.
    pub fn select_driver_features(&mut self, select: u32) {
        if !self.resetting {
            self.guest.driver_features_select = select;
        }
    }

    /// 32 bits of the driver's features; 0 above bit 63.
    pub const fn driver_features(&self) -> u32 {
        word(self.guest.features, self.guest.driver_features_select)
    }

    /// The driver writes 32 bits of its features, between `DRIVER` and `FEATURES_OK`. Bits above 63 are dropped, since
    /// none of them is offered.
    pub fn set_driver_features(&mut self, value: u32) {
        let select = self.guest.driver_features_select;
        if select > 1 || !self.is_at(DRIVER, FEATURES_OK | FAILED | NEEDS_RESET) {
            return;
        }
        let shift = 32 * select;
        let kept = self.guest.features & !(u64::from(u32::MAX) << shift);
        self.guest.features = kept | u64::from(value) << shift;
    }

    /// The driver notifies a queue. Ignored before `DRIVER_OK`.
    pub fn kick(&self, queue: u32) -> Effect {
        let ready = self
            .guest
            .queues
            .get(queue as usize)
            .is_some_and(QueueRegisters::is_ready);
        if ready && self.is_at(DRIVER_OK, FAILED | NEEDS_RESET) {
            // Fits: there are fewer than 2^16 queues.
            return Effect::Kick(queue as u16);
        }
        Effect::None
    }

    /// Changes when a driver reads another copy of the configuration than the last time. It counts reads, not copies.
    /// So its lowest eight bits, which PCI has, can't wrap to the same value between two reads (4.1.4.3.1).
    pub const fn generation(&self) -> u32 {
        self.config.generation
    }

    /// Reads the configuration at offset `at`. Beyond its end there are zeros.
    pub fn read_config(&mut self, at: u64, data: &mut [u8]) {
        if std::mem::take(&mut self.config.is_new) {
            self.config.generation = self.config.generation.wrapping_add(1);
        }
        let from = usize::try_from(at).unwrap_or(usize::MAX);
        let bytes = self.config.bytes.get(from..).unwrap_or_default();
        let len = bytes.len().min(data.len());
        data[..len].copy_from_slice(&bytes[..len]);
        data[len..].fill(0);
    }

    /// The driver writes to the configuration, at offset `at`. Ignored before `FEATURES_OK` (3.1.1). The vCPU waits for
    /// the device, so that the driver then reads the result, and each vCPU has at most one pending write.
    pub fn write_config(&mut self, at: u64, data: &[u8]) -> Effect {
        let inside = at
            .checked_add(data.len() as u64)
            .is_some_and(|end| end <= u64::from(self.layout.config_len));
        let mut bytes = [0; 8];
        let Some(copy) = bytes.get_mut(..data.len()) else {
            return Effect::None;
        };
        if !inside || data.is_empty() || !self.is_at(FEATURES_OK, FAILED | NEEDS_RESET) {
            return Effect::None;
        }
        copy.copy_from_slice(data);
        self.touched = true;
        self.config_writes += 1;
        Effect::PostAndWait(Command::SetConfig {
            epoch: self.epoch,
            // Fits: it is inside a configuration, and at most eight bytes.
            at: at as u32,
            data: bytes,
            len: data.len() as u8,
        })
    }

    /// Handles an answer of the device's thread.
    pub fn answer(&mut self, answer: &Answer) -> Notice {
        match answer {
            Answer::Reset { epoch, config } => {
                if self.resetting && *epoch == self.epoch {
                    self.forget();
                    self.publish(config);
                }
                Notice::None
            }
            Answer::ConfigSet { config } => {
                self.config_writes = self.config_writes.saturating_sub(1);
                self.publish(config);
                Notice::None
            }
            Answer::Config { config } => {
                if self.publish(config) {
                    self.notice()
                } else {
                    Notice::None
                }
            }
            Answer::NeedsReset { epoch, .. } => {
                if *epoch != self.epoch || self.resetting {
                    return Notice::None;
                }
                self.guest.status |= NEEDS_RESET;
                self.notice()
            }
        }
    }

    /// A notice of a configuration change, if the driver is ready for it (2.1.2).
    const fn notice(&self) -> Notice {
        if self.is_at(DRIVER_OK, FAILED) {
            Notice::Config
        } else {
            Notice::None
        }
    }

    /// Replaces the copy that drivers read. Returns whether it differs.
    fn publish(&mut self, config: &[u8]) -> bool {
        if config == self.config.bytes {
            return false;
        }
        let mut bytes = config.to_vec();
        bytes.resize(self.layout.config_len as usize, 0);
        self.config.bytes = bytes;
        self.config.is_new = true;
        true
    }
}

/// The `select`th 32 bits of `value`.
const fn word(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}
