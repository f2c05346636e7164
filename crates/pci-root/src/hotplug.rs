// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registers of a hotplug controller: which slots have a new device, which devices the guest should give up, and
//! which ones it has given up.
//!
//! These registers have Cloud Hypervisor's layout, which guests know. A slot is a device number of bus 0, and has the
//! bit of that number. The controller's part of the DSDT is in `acpi` (feature `acpi`). The functions come and go by
//! [`PciRoot::plug`](crate::PciRoot::plug) and [`PciRoot::unplug`](crate::PciRoot::unplug).

use std::sync::Mutex;

use crate::function::Reply;
use crate::sync::lock;

/// The size of the registers in bytes.
pub const HOTPLUG_SIZE: u64 = 16;
/// Slots with a new device. Read-only; a read clears it.
pub const UP: u64 = 0;
/// Slots whose device the guest should give up. Read-only; a read clears it.
pub const DOWN: u64 = 4;
/// Slots whose device the guest has given up. Write-only.
pub const EJECT: u64 = 8;
/// The segment that the other registers apply to. There is only segment 0.
pub const SEGMENT: u64 = 12;

/// Device numbers for hotplug: all except for the host bridge's.
pub const SLOTS: std::ops::Range<u8> = 1..32;

/// The slots of a root that keeps `count` device numbers for hotplug: the last ones. All of [`SLOTS`] if `count` is larger
/// than that.
pub fn slots(count: u8) -> std::ops::Range<u8> {
    SLOTS.end.saturating_sub(count).max(SLOTS.start)..SLOTS.end
}

/// Their bits.
const SLOT_BITS: u32 = !1;

/// The effect of a guest's write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the guest waits for the devices to be gone"]
pub enum Written {
    /// Nothing beyond the registers.
    Done,
    /// The guest has given up the devices in these slots: a bit for each device number.
    Eject(u32),
    /// No register claims it.
    Unclaimed,
}

/// The saved registers: plain, untrusted data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HotplugState {
    /// Slots with a new device that the guest has not read yet.
    pub up: u32,
    /// Slots to give up that the guest has not read yet.
    pub down: u32,
    /// The segment that the guest selected.
    pub segment: u32,
}

/// The registers of a hotplug controller, [`HOTPLUG_SIZE`] bytes. They accept accesses of four bytes.
///
/// # Example
/// ```
/// use pci_root::Reply;
/// use pci_root::hotplug::{DOWN, EJECT, HotplugRegisters, Written};
///
/// let registers = HotplugRegisters::default();
/// registers.ask_down(3); // and the VMM raises the guest's event
/// let mut slots = [0; 4];
/// assert_eq!(registers.read(DOWN, &mut slots), Reply::Done);
/// assert_eq!(slots, [8, 0, 0, 0]);
/// assert_eq!(registers.write(EJECT, &slots), Written::Eject(8));
/// ```
#[derive(Debug, Default)]
pub struct HotplugRegisters {
    state: Mutex<HotplugState>,
}

impl HotplugRegisters {
    /// Announces a new device in a slot of [`SLOTS`]. Other slots are ignored.
    pub fn announce_up(&self, slot: u8) {
        lock(&self.state).up |= bit(slot);
    }

    /// Asks the guest to give up the device in a slot of [`SLOTS`]. Other slots are ignored.
    pub fn ask_down(&self, slot: u8) {
        lock(&self.state).down |= bit(slot);
    }

    /// The guest reads `data.len()` bytes at `offset`. If no register claims it, `data` is all ones.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Reply {
        let mut state = lock(&self.state);
        let here = state.segment == 0;
        let value = match offset {
            _ if data.len() != 4 => None,
            UP if here => Some(std::mem::take(&mut state.up)),
            DOWN if here => Some(std::mem::take(&mut state.down)),
            UP | DOWN | EJECT => Some(0),
            SEGMENT => Some(state.segment),
            _ => None,
        };
        match value {
            Some(value) => {
                data.copy_from_slice(&value.to_le_bytes());
                Reply::Done
            }
            None => {
                data.fill(0xff);
                Reply::Unclaimed
            }
        }
    }

    /// The guest writes `data` at `offset`.
    pub fn write(&self, offset: u64, data: &[u8]) -> Written {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else {
            return Written::Unclaimed;
        };
        let mut state = lock(&self.state);
        match offset {
            SEGMENT => state.segment = value,
            EJECT if state.segment == 0 && value & SLOT_BITS != 0 => {
                return Written::Eject(value & SLOT_BITS);
            }
            UP | DOWN | EJECT => {}
            _ => return Written::Unclaimed,
        }
        Written::Done
    }

    /// The state as plain data.
    pub fn save(&self) -> HotplugState {
        *lock(&self.state)
    }

    /// Restores a state. Bits of slots that don't exist are dropped.
    pub fn restore(&self, state: &HotplugState) {
        let HotplugState { up, down, segment } = *state;
        *lock(&self.state) = HotplugState {
            up: up & SLOT_BITS,
            down: down & SLOT_BITS,
            segment,
        };
    }
}

/// The bit of a slot.
fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0) & SLOT_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(registers: &HotplugRegisters, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        assert_eq!(registers.read(offset, &mut data), Reply::Done);
        u32::from_le_bytes(data)
    }

    fn write(registers: &HotplugRegisters, offset: u64, value: u32) -> Written {
        registers.write(offset, &value.to_le_bytes())
    }

    fn busy() -> HotplugRegisters {
        let registers = HotplugRegisters::default();
        for slot in [0, 1, 31, 32, 255] {
            registers.announce_up(slot);
        }
        registers.ask_down(5);
        registers
    }

    #[test]
    fn slots_are_read_once() {
        let registers = busy();
        assert_eq!([UP, DOWN].map(|at| read(&registers, at)), [1 << 31 | 2, 32]);
        assert_eq!([UP, DOWN].map(|at| read(&registers, at)), [0, 0]);
    }

    #[test]
    fn the_host_bridge_is_not_given_up() {
        let registers = busy();
        assert_eq!(write(&registers, EJECT, 0), Written::Done);
        assert_eq!(write(&registers, EJECT, 1), Written::Done);
        assert_eq!(write(&registers, EJECT, u32::MAX), Written::Eject(!1));
    }

    #[test]
    fn other_segments_have_nothing() {
        let registers = busy();
        assert_eq!(write(&registers, SEGMENT, 1), Written::Done);
        assert_eq!(
            [UP, DOWN, EJECT, SEGMENT].map(|at| read(&registers, at)),
            [0, 0, 0, 1]
        );
        assert_eq!(write(&registers, EJECT, 4), Written::Done);
        assert_eq!(write(&registers, SEGMENT, 0), Written::Done);
        assert_eq!(read(&registers, DOWN), 32);
    }

    #[test]
    fn every_register_at_every_width() {
        for len in 1..=8 {
            for offset in (0..24).chain([u64::MAX]) {
                let registers = busy();
                let before = registers.save();
                let good = len == 4 && offset < 16 && offset % 4 == 0;
                let mut data = vec![0xee; len];
                assert_eq!(registers.read(offset, &mut data) == Reply::Done, good);
                assert!(good || data == vec![0xff; len] && registers.save() == before);
                let written = registers.write(offset, &vec![0; len]);
                assert_eq!(written != Written::Unclaimed, good, "{len} at {offset}");
            }
        }
    }

    #[test]
    fn a_state_comes_back() {
        let registers = HotplugRegisters::default();
        let state = busy().save();
        registers.restore(&state);
        assert_eq!(registers.save(), state);
        let forged = HotplugState {
            up: u32::MAX,
            down: 1,
            segment: 7,
        };
        registers.restore(&forged);
        assert_eq!(
            registers.save(),
            HotplugState {
                up: !1,
                down: 0,
                segment: 7
            }
        );
    }
}
