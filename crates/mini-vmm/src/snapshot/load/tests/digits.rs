// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! KVM's structures as digits, which came after the first snapshots of format 1.

use super::*;

/// The state of format 1 as it is written today.
fn today() -> Value {
    let file: StateFile = serde_json::from_slice(STATE_1).unwrap();
    serde_json::to_value(file).unwrap()
}

#[test]
fn lists_are_read_and_digits_are_written() {
    let (today, then) = (today(), value(STATE_1));
    for at in [
        "/state/vcpus/0/vcpu/cpuid",
        "/state/vcpus/0/vcpu/mp_state",
        "/state/vcpus/0/vcpu/regs",
        "/state/vcpus/0/vcpu/sregs",
        "/state/vcpus/0/vcpu/xsave",
        "/state/vcpus/0/vcpu/xcrs",
        "/state/vcpus/0/vcpu/debug_regs",
        "/state/vcpus/0/vcpu/lapic",
        "/state/vcpus/0/vcpu/msrs",
        "/state/vcpus/0/vcpu/events",
        "/state/vm/chips",
    ] {
        let is = |state: &Value, kind: fn(&Value) -> bool| kind(state.pointer(at).unwrap());
        assert!(
            is(&then, Value::is_array) && is(&today, Value::is_string),
            "{at}"
        );
    }
    let read = parse_state(&today).unwrap().state;
    assert_eq!(serde_json::to_value(&read).unwrap(), today["state"]);
    assert_eq!(serde_json::to_value(saved()).unwrap(), today["state"]);
}

#[test]
fn digits_that_are_no_structure_are_refused_by_its_name() {
    for (at, lie, why) in [
        (
            "/state/vcpus/0/vcpu/lapic",
            "00",
            "kvm_lapic_state has 2 hexadecimal digits",
        ),
        (
            "/state/vcpus/0/vcpu/regs",
            "x",
            "kvm_regs has 1 hexadecimal digits",
        ),
        (
            "/state/vcpus/0/vcpu/msrs",
            "zz",
            "kvm_msr_entry has 2 hexadecimal digits",
        ),
        (
            "/state/vcpus/0/vcpu/xsave",
            "0000000z",
            "u32 has a character that is no",
        ),
        ("/state/vcpus/0/vcpu/cpuid", "", "CPU vendors"),
        ("/state/vm/chips", "", "kvm_irqchip"),
        ("/state/vm/pit", "7", "kvm_pit_state2"),
    ] {
        let mut state = today();
        *state.pointer_mut(at).unwrap() = json!(lie);
        refuses(parse_state(&state), why);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Each is refused with a sentence, or is a machine.
    #[test]
    fn changed_digits_do_no_harm(mut choice in any::<usize>(), word in "[0-9a-fg]{0,64}") {
        let mut state = today();
        replace(&mut state, &mut choice, &json!(word));
        if let Err(error) = parse_state(&state) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
