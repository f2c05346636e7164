// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The local APIC's two interrupt pins at boot.
//!
//! Registers are those of the Intel SDM, volume 3A, chapter "Advanced Programmable Interrupt
//! Controller (APIC)", section "Local Vector Table".

use std::ffi::c_char;

use kvm_bindings::kvm_lapic_state;

/// Offset of the local vector table's entry for LINT0.
const LVT_LINT0: usize = 0x350;
/// Offset of the local vector table's entry for LINT1.
const LVT_LINT1: usize = 0x360;
/// Delivery mode NMI, in bits 10:8.
const MODE_NMI: u32 = 0b100 << 8;
/// Delivery mode ExtINT, in bits 10:8: the vector comes from the 8259 PIC.
const MODE_EXTINT: u32 = 0b111 << 8;
/// The entry is masked.
const MASKED: u32 = 1 << 16;

/// Sets up a local APIC's pins as firmware does. LINT1 is the NMI, as in the MADT. LINT0 is the 8259 PIC if there is
/// one (`legacy_timer`), else masked.
///
/// KVM starts the boot processor's LINT0 as ExtINT and all others masked. Linux programs both entries itself, so a
/// machine without a PIC works without this call.
pub fn wire(state: &mut kvm_lapic_state, legacy_timer: bool) {
    let lint0 = if legacy_timer {
        MODE_EXTINT
    } else {
        MODE_EXTINT | MASKED
    };
    set(state, LVT_LINT0, lint0);
    set(state, LVT_LINT1, MODE_NMI);
}

/// Writes a register. KVM declares the page as `char`s.
fn set(state: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (to, byte) in state.regs[offset..].iter_mut().zip(value.to_le_bytes()) {
        *to = byte as c_char;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(state: &kvm_lapic_state, offset: usize) -> u32 {
        let bytes = [0, 1, 2, 3].map(|i| state.regs[offset + i] as u8);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn wires_are_as_the_madt_says() {
        let mut before = kvm_lapic_state::default();
        for offset in (0..before.regs.len()).step_by(16) {
            set(&mut before, offset, 0xa5a5_0000 | offset as u32);
        }
        for (legacy_timer, lint0) in [(false, 0x1_0700), (true, 0x700)] {
            let mut state = before;
            wire(&mut state, legacy_timer);
            for offset in (0..state.regs.len()).step_by(16) {
                let expected = match offset {
                    LVT_LINT0 => lint0,
                    LVT_LINT1 => 0x400,
                    _ => get(&before, offset),
                };
                assert_eq!(get(&state, offset), expected, "{offset:#x}");
            }
        }
    }
}
