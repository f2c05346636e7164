// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The 8259 interrupt controllers in KVM, as firmware would leave them.

use std::ops::Range;

use kvm_bindings::{
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_irqchip__bindgen_ty_1,
    kvm_pic_state,
};

/// The vector of IRQ 0. Vectors 0 to 31 are the CPU's exceptions (Intel SDM volume 3A, section 6.3.1).
pub const FIRST_VECTOR: u8 = 0x20;
/// The GSIs of the second PIC.
pub const SECOND_GSIS: Range<u32> = 8..16;

/// The state of the first PIC for `KVM_SET_IRQCHIP` (KVM API section 4.26): all inputs masked, vectors above the CPU's
/// exceptions.
///
/// After KVM's reset, nothing is masked and vectors start at 0. A guest may let its interrupts through without
/// programming it: Linux with `noapic` sets LINT0 to ExtINT. COM1's interrupt would then look like exception 4.
pub fn first() -> kvm_irqchip {
    // IRQ 0 to 2 are always edges: KVM's mask of the ELCR bits that can be set.
    masked(KVM_IRQCHIP_PIC_MASTER, FIRST_VECTOR, 0xf8)
}

/// The same for the second PIC, whose vectors follow. Needed only in a machine with a device on [`SECOND_GSIS`].
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
