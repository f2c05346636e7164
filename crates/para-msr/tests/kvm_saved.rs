// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! MSR state of real vCPUs. Without a usable /dev/kvm each test prints SKIP.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Machine, kvm};
use para_msr::kvm::KvmMsrs;
use para_msr::saved::{MAX_BATCH, MsrAccess, MsrPolicy, MsrValue};

/// The 2007 API's MSR, which no KVM knows.
const MSR_KVM_API_MAGIC: u32 = 0x8765_5678;
const MSR_STAR: u32 = 0xc000_0081;
const E2BIG: i32 = 7;

#[test]
fn a_restore_on_kvm_goes_on_past_what_it_rejects() {
    let Some(kvm) = kvm("a_restore_on_kvm_goes_on_past_what_it_rejects") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let (old, new) = (machine.vcpu(0), machine.vcpu(1));
    let policy = MsrPolicy::linux().deny(MSR_KVM_API_MAGIC);
    let star = MsrValue {
        index: MSR_STAR,
        value: 0x1122_3344_5566_7788,
    };
    assert_eq!(KvmMsrs(&old).set(&[star]), Ok(1));
    let listed = kvm.get_msr_index_list().unwrap();
    let extra = [0x474f_4f00, MSR_KVM_API_MAGIC, 0x2ff];
    let indices: Vec<u32> = listed.as_slice().iter().copied().chain(extra).collect();
    let saved = policy.save(&mut KvmMsrs(&old), &indices).unwrap();
    saved.check().unwrap();
    assert!(saved.values.contains(&star));
    assert!(
        !saved
            .values
            .iter()
            .any(|msr| msr.index == MSR_KVM_API_MAGIC)
    );
    // A state from another host that starts with MSRs that no KVM has.
    let mut state = vec![
        MsrValue {
            index: 0x4750_0000,
            value: 1,
        },
        MsrValue {
            index: MSR_KVM_API_MAGIC,
            value: 0x1000,
        },
    ];
    state.extend(&saved.values);
    let report = policy.restore(&mut KvmMsrs(&new), &state).unwrap();
    report.check().unwrap();
    assert_eq!(report.denied, [MSR_KVM_API_MAGIC]);
    // With kvm.ignore_msrs=1, KVM accepts MSRs that it doesn't know.
    let accounted = report.written + report.skipped.len() + report.denied.len();
    assert_eq!(accounted, state.len());
    let mut read = [MsrValue {
        index: MSR_STAR,
        value: 0,
    }];
    assert_eq!(KvmMsrs(&new).get(&mut read), Ok(1));
    assert_eq!(read, [star]);
}

#[test]
fn kvm_takes_a_batch_and_not_one_more() {
    let Some(kvm) = kvm("kvm_takes_a_batch_and_not_one_more") else {
        return;
    };
    let machine = Machine::new(&kvm);
    let vcpu = machine.vcpu(0);
    let mut many = vec![
        MsrValue {
            index: MSR_STAR,
            value: 0
        };
        MAX_BATCH + 1
    ];
    assert_eq!(KvmMsrs(&vcpu).get(&mut many[..MAX_BATCH]), Ok(MAX_BATCH));
    let errno = KvmMsrs(&vcpu).get(&mut many).map_err(|error| error.errno());
    assert_eq!(errno, Err(E2BIG));
}
