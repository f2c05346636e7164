// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The 8259 interrupt controllers inside of KVM, as firmware leaves them to a kernel.

use std::ops::Range;

use kvm_bindings::{
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_irqchip__bindgen_ty_1,
    kvm_pic_state,
};

/// The vector of IRQ 0. Vectors 0 to 31 are the CPU's exceptions (Intel SDM volume 3A, section 6.3.1).
pub const FIRST_VECTOR: u8 = 0x20;
/// The second PIC's interrupts.
pub const SECOND_GSIS: Range<u32> = 8..16;

/// The first PIC with all inputs masked and its vectors behind the exceptions, for `KVM_SET_IRQCHIP` (KVM API
/// section 4.26).
///
/// KVM resets it to nothing masked and vectors from 0. A guest that passes its interrupts through without programming
/// it (LINT0 = ExtINT, what Linux does for `noapic`) would take COM1's interrupt as exception 4.
pub fn first() -> kvm_irqchip {
    // IRQ 0 to 2 are always edges: KVM's own value for the bits of the ELCR that can be set.
    masked(KVM_IRQCHIP_PIC_MASTER, FIRST_VECTOR, 0xf8)
}

/// The same for the second PIC, whose vectors follow. Only a machine with a device on [`SECOND_GSIS`] needs it.
pub fn second() -> kvm_irqchip {
    // IRQ 8 and 13 are always edges.
    masked(KVM_IRQCHIP_PIC_SLAVE, FIRST_VECTOR + 8, 0xde)
}

fn masked(chip_id: u32, irq_base: u8, elcr_mask: u8) -> kvm_irqchip {
    kvm_irqchip {
        chip_id,
        pad: 0,
        chip: kvm_irqchip__bindgen_ty_1 {
            pic: kvm_pic_state {
                imr: 0xff,
                irq_base,
                elcr_mask,
                ..Default::default()
            },
        },
    }
}
