// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The 8259 interrupt controller inside of KVM, as firmware leaves it to a kernel.

use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, kvm_irqchip, kvm_irqchip__bindgen_ty_1, kvm_pic_state};

/// The vector of IRQ 0. Vectors 0 to 31 are the CPU's exceptions (Intel SDM volume 3A, section 6.3.1).
pub const FIRST_VECTOR: u8 = 0x20;
/// IRQ 0 to 2 are always edges: KVM's own value for the bits of the ELCR that can be set.
const LEVEL_CAPABLE: u8 = 0xf8;

/// The first PIC with all inputs masked and its vectors behind the exceptions, for `KVM_SET_IRQCHIP` (KVM API
/// section 4.26).
///
/// KVM resets it to nothing masked and vectors from 0. A guest that passes its interrupts through without programming
/// it (LINT0 = ExtINT, what Linux does for `noapic`) would take COM1's interrupt as exception 4. The second PIC can stay as
/// it is: no device has a line there, and what it says comes through the first one.
pub fn masked() -> kvm_irqchip {
    kvm_irqchip {
        chip_id: KVM_IRQCHIP_PIC_MASTER,
        pad: 0,
        chip: kvm_irqchip__bindgen_ty_1 {
            pic: kvm_pic_state {
                imr: 0xff,
                irq_base: FIRST_VECTOR,
                elcr_mask: LEVEL_CAPABLE,
                ..Default::default()
            },
        },
    }
}
