// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! para-abi and hypercall-patch don't depend on each other. Constants that both define must be equal.

#![allow(clippy::unwrap_used)]

use hypercall_patch::{PAGE_SIZE, Stub, Vendor, hyperv, xen};
use para_abi::hyperv as abi;

#[test]
fn r9_a_patch_is_as_long_as_the_abi_lets_it_be() {
    assert_eq!(Stub::LEN, para_abi::STUB_PATCH_LEN);
    assert_eq!(PAGE_SIZE, para_abi::PARA_STATE_SIZE);
    assert_eq!(Stub::identify(&para_abi::STUB_UNPATCHED), None);
}

#[test]
fn a_hypercall_page_is_one_for_both() {
    assert_eq!(
        hyperv::HV_X64_MSR_HYPERCALL_ENABLE,
        abi::HV_X64_MSR_HYPERCALL_ENABLE
    );
    assert_eq!(
        hyperv::HV_X64_MSR_HYPERCALL_LOCKED,
        abi::HV_X64_MSR_HYPERCALL_LOCKED
    );
    for value in [0, 1, 2, 3, 0x7000, 0x7001, 0x1_2345_6003, !0, !1] {
        let msr = hyperv::HypercallMsr(value);
        let page = msr.enabled().then_some(msr.gpa());
        assert_eq!(page, abi::hypercall_page(value), "{value:#x}");
    }
    // A guest calls the slot of para-abi, which is where hypercall-patch writes the code.
    let mut page = [0; PAGE_SIZE];
    xen::write_page(&mut page, Vendor::Amd.insn());
    for number in [0, 1, 127] {
        let at = para_abi::xen::slot_offset(number).unwrap();
        let number = u32::try_from(number).unwrap();
        assert_eq!(page[at..at + 32], xen::slot(number, Vendor::Amd.insn()));
    }
}
