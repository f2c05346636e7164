// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What both transports are made of: status, features, queue parameters and the copy of the configuration, as one
//! state machine.
//!
//! It knows no register's address. A transport turns accesses into calls, and hands what they ask for ([`Effect`]) to
//! the VMM. What a driver may not do has no effect; nothing it does is an error of the host's.

mod queues;
mod saved;

pub use queues::{Half, QueueRegisters, Ring};
pub use saved::RegistersState;

use crate::layout::{Layout, LayoutError};
use crate::message::{Activation, Answer, Command};
use crate::queue::QueueState;

/// The driver has seen the device (virtio 1.4, 2.1).
pub const ACKNOWLEDGE: u8 = 1;
/// The driver knows how to drive it.
pub const DRIVER: u8 = 2;
/// The driver is ready.
pub const DRIVER_OK: u8 = 4;
/// The driver has chosen features, and the device takes them.
pub const FEATURES_OK: u8 = 8;
/// The device can't go on.
pub const NEEDS_RESET: u8 = 64;
/// The driver has given up.
pub const FAILED: u8 = 128;

/// Each bit of the status, with the bits that come before it.
const ORDER: [(u8, u8); 3] = [
    (DRIVER, ACKNOWLEDGE),
    (FEATURES_OK, DRIVER),
    (DRIVER_OK, FEATURES_OK),
];

/// What an access asks of the VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the device waits for it"]
pub enum Effect {
    /// Nothing.
    None,
    /// Wake the device: a queue may have something.
    Kick(u16),
    /// Carry this to the device's thread.
    Post(Command),
    /// Carry this to the device's thread, and let the vCPU go on when the transport is settled.
    PostAndWait(Command),
    /// Let the vCPU go on when the transport is settled.
    Wait,
}

/// What an answer asks of the VMM.
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
/// One lock around it is enough, and is held for no longer than one call. A vCPU that has to wait
/// ([`Effect::PostAndWait`]) does so without it.
#[derive(Clone, Debug)]
pub struct Registers {
    layout: Layout,
    config: Config,
    /// What a reset clears: exchanged as a whole.
    guest: Guest,
    /// How many resets there were.
    epoch: u64,
    /// The device knows of this epoch, so that a reset is its to do.
    touched: bool,
    resetting: bool,
    /// How many writes to the configuration are under way.
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

/// What a driver told since the last reset.
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
    /// A device that no driver has touched. `config` is a copy of its configuration.
    ///
    /// # Errors
    /// [`LayoutError`] if no transport can carry the device.
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

    /// What the device is.
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How many resets were done.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether the device has answered all that vCPUs wait for.
    pub const fn is_settled(&self) -> bool {
        !self.resetting && self.config_writes == 0
    }

    /// The status. It stays what it was until a reset is done, which is not 0.
    pub const fn status(&self) -> u8 {
        self.guest.status
    }

    /// The driver writes the status: 0 for a reset, else with no bit less than before.
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

    /// Begins anew, with nothing that the driver told.
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

    /// What the driver took and set up: features, and queues at their beginning. Frozen at `DRIVER_OK`.
    pub fn parameters(&self) -> (u64, Vec<Option<QueueState>>) {
        let Activation {
            features, queues, ..
        } = self.activation();
        (features, queues)
    }

    /// Whether status bits `set` are set and `clear` are not, and no reset is under way.
    const fn is_at(&self, set: u8, clear: u8) -> bool {
        self.guest.status & (set | clear) == set && !self.resetting
    }

    /// Which 32 bits of the offered features are read.
    pub const fn device_features_select(&self) -> u32 {
        self.guest.device_features_select
    }

    /// Chooses which 32 bits of the offered features are read.
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

    /// Chooses which 32 bits of the driver's features are written.
    pub fn select_driver_features(&mut self, select: u32) {
        if !self.resetting {
            self.guest.driver_features_select = select;
        }
    }

    /// 32 bits of the driver's features; 0 above bit 63.
    pub const fn driver_features(&self) -> u32 {
        word(self.guest.features, self.guest.driver_features_select)
    }

    /// The driver writes 32 bits of its features, between `DRIVER` and `FEATURES_OK`. Bits above 63 are not kept: none
    /// of them is offered.
    pub fn set_driver_features(&mut self, value: u32) {
        let select = self.guest.driver_features_select;
        if select > 1 || !self.is_at(DRIVER, FEATURES_OK | FAILED | NEEDS_RESET) {
            return;
        }
        let shift = 32 * select;
        let kept = self.guest.features & !(u64::from(u32::MAX) << shift);
        self.guest.features = kept | u64::from(value) << shift;
    }

    /// The driver notifies of a queue. Before `DRIVER_OK` it may not.
    pub fn kick(&self, queue: u32) -> Effect {
        let ready = self
            .guest
            .queues
            .get(queue as usize)
            .is_some_and(QueueRegisters::is_ready);
        if ready && self.is_at(DRIVER_OK, FAILED | NEEDS_RESET) {
            // Fewer than 2^16 queues exist.
            return Effect::Kick(queue as u16);
        }
        Effect::None
    }

    /// Changes when a driver reads from another copy of the configuration than the last time. That it counts reads and
    /// not copies keeps its lowest eight bits, which PCI has, from being the same again between two reads (4.1.4.3.1).
    pub const fn generation(&self) -> u32 {
        self.config.generation
    }

    /// Reads the configuration at offset `at`. Behind its end there are zeros.
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

    /// The driver writes to the configuration, at offset `at`; not before `FEATURES_OK` (3.1.1). The vCPU waits for the device, so that the driver reads
    /// what the device made of it, and has no more than one write under way.
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
            // They fit: inside of a configuration, and of eight bytes.
            at: at as u32,
            data: bytes,
            len: data.len() as u8,
        })
    }

    /// Takes what the device's thread says.
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

    /// An interrupt for a change of the configuration, if the driver is ready for it (2.1.2).
    const fn notice(&self) -> Notice {
        if self.is_at(DRIVER_OK, FAILED) {
            Notice::Config
        } else {
            Notice::None
        }
    }

    /// Makes this the copy that drivers read; whether it is another one.
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

/// 32 bits of 64.
const fn word(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}
