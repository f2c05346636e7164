// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saved vCPUs on real KVM. Without a usable /dev/kvm each test prints SKIP.
#![allow(clippy::unwrap_used)]

mod common;

use common::{ENTRY, Machine, kvm};
use vcpu_loop::kvm::{Error as KvmError, KvmHost, KvmVcpu, TscOffset, TscState, VcpuState};
use vcpu_loop::{Exit, SaveVcpu, Vcpu};
use vm_memory::{Bytes, GuestAddress};

#[test]
fn state_saved_in_the_middle_of_a_port_read_goes_on_elsewhere() {
    let Some(kvm) = kvm("state_saved_in_the_middle_of_a_port_read_goes_on_elsewhere") else {
        return;
    };
    // in al, 0x42; out 0x80, al; hlt
    let code = b"\xe4\x42\xe6\x80\xf4";
    let machine = Machine::new(&kvm, code);
    let mut vcpu = machine.vcpu(0);
    match vcpu.run().unwrap() {
        Exit::PioIn { data, .. } => data.copy_from_slice(&[0x5a]),
        other => panic!("{other:?}"),
    }
    assert!(matches!(vcpu.save(), Err(KvmError::Incomplete)));
    while !matches!(vcpu.complete().unwrap(), Exit::Interrupted) {}
    let state = vcpu.save().unwrap();
    assert_eq!((state.regs.rip, state.regs.rax & 0xff), (ENTRY + 2, 0x5a));

    let other = Machine::new(&kvm, code);
    let mut restored = KvmVcpu::new(other.vm.create_vcpu(0).unwrap(), &other.host).unwrap();
    restored.restore(&state).unwrap();
    let again = restored.save().unwrap();
    assert_eq!((again.regs, again.sregs), (state.regs, state.sregs));
    assert_eq!((again.xsave, again.events), (state.xsave, state.events));
    match restored.run().unwrap() {
        Exit::PioOut {
            port: 0x80, data, ..
        } => assert_eq!(data, [0x5a]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_restore_forgets_a_pending_exit() {
    let Some(kvm) = kvm("a_restore_forgets_a_pending_exit") else {
        return;
    };
    let machine = Machine::new(&kvm, b"\xe4\x42\xe6\x80\xf4");
    let mut vcpu = machine.vcpu(0);
    let start = vcpu.save().unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::PioIn { .. }));
    let refusal = vcpu.restore(&start).unwrap_err();
    assert!(matches!(refusal, KvmError::Incomplete) && KvmVcpu::left_unchanged(&refusal));
    vcpu.abandon().unwrap();
    vcpu.restore(&start).unwrap();
    assert_eq!(vcpu.fd().get_regs().unwrap().rip, ENTRY);
    assert!(matches!(vcpu.run().unwrap(), Exit::PioIn { .. }));
}

#[test]
fn an_abandoned_access_does_not_reach_restored_memory() {
    let Some(kvm) = kvm("an_abandoned_access_does_not_reach_restored_memory") else {
        return;
    };
    const BUFFER: GuestAddress = GuestAddress(0x2000);
    // mov dx, 0x60; mov cx, 4; mov di, 0x2000; rep insb; hlt
    let machine = Machine::new(&kvm, b"\xba\x60\x00\xb9\x04\x00\xbf\x00\x20\xf3\x6c\xf4");
    let mut vcpu = machine.vcpu(0);
    let start = vcpu.save().unwrap();
    match vcpu.run().unwrap() {
        Exit::PioIn { data, .. } => data.fill(0x5a),
        other => panic!("{other:?}"),
    }
    vcpu.abandon().unwrap();
    vcpu.abandon().unwrap();
    machine.memory.write_slice(&[7; 4], BUFFER).unwrap();
    vcpu.restore(&start).unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::PioIn { .. }));
    let mut buffer = [0; 4];
    machine.memory.read_slice(&mut buffer, BUFFER).unwrap();
    assert_eq!(buffer, [7; 4]);
}

#[cfg(feature = "serde")]
#[test]
fn state_survives_json() {
    let Some(kvm) = kvm("state_survives_json") else {
        return;
    };
    let machine = Machine::new(&kvm, &[0xf4]);
    let mut vcpu = machine.vcpu(0);
    let state = vcpu.save().unwrap();
    let text = serde_json::to_string(&state).unwrap();
    let read: VcpuState = serde_json::from_str(&text).unwrap();
    vcpu.restore(&read).unwrap();
    assert_eq!(
        serde_json::to_string(&vcpu.save().unwrap().regs).unwrap(),
        serde_json::to_string(&state.regs).unwrap()
    );
}

#[test]
fn rejected_msrs_are_listed_and_do_not_stop_a_restore() {
    let Some(kvm) = kvm("rejected_msrs_are_listed_and_do_not_stop_a_restore") else {
        return;
    };
    let machine = Machine::new(&kvm, &[0xf4]);
    let mut vcpu = machine.vcpu(0);
    let mut state = vcpu.save().unwrap();
    let known = state.msrs.len();
    assert!(known > 10);
    // An unknown MSR at the start, in the middle and at the end.
    let alien = kvm_bindings::kvm_msr_entry {
        index: 0x1234_5678,
        data: 1,
        reserved: 0,
    };
    for at in [0, known / 2, known + 2] {
        state.msrs.insert(at, alien);
    }
    vcpu.restore(&state).unwrap();
    let aliens = vcpu
        .skipped_msrs()
        .iter()
        .filter(|index| **index == alien.index)
        .count();
    assert_eq!(aliens, 3);
    assert_eq!(vcpu.save().unwrap().msrs.len(), known);
}

#[test]
fn more_msrs_than_kvm_takes_at_once_are_saved_and_restored() {
    let Some(kvm) = kvm("more_msrs_than_kvm_takes_at_once_are_saved_and_restored") else {
        return;
    };
    let machine = Machine::new(&kvm, &[0xf4]);
    const IA32_SYSENTER_CS: u32 = 0x174;
    let host = KvmHost::with_msrs(&kvm, vec![IA32_SYSENTER_CS; 700]).unwrap();
    let mut vcpu = KvmVcpu::new(machine.vm.create_vcpu(0).unwrap(), &host).unwrap();
    let state = vcpu.save().unwrap();
    assert_eq!(state.msrs.len(), 700);
    vcpu.restore(&state).unwrap();
    assert_eq!(vcpu.skipped_msrs(), &[0u32; 0]);
}

#[test]
fn a_misfit_xsave_area_is_refused_before_anything_changes() {
    let Some(kvm) = kvm("a_misfit_xsave_area_is_refused_before_anything_changes") else {
        return;
    };
    let machine = Machine::new(&kvm, &[0xf4]);
    let mut vcpu = machine.vcpu(0);
    let good = vcpu.save().unwrap();
    let mut short = good.clone();
    short.xsave.truncate(100);
    short.regs.rip = 0x4444;
    let mut long = good.clone();
    long.xsave.extend_from_slice(&[0, 0, 1]);
    long.regs.rip = 0x4444;
    for bad in [&short, &long] {
        assert!(matches!(vcpu.restore(bad), Err(KvmError::Misfit { .. })));
        assert_eq!(vcpu.fd().get_regs().unwrap().rip, ENTRY);
    }
    let mut padded = good;
    padded.xsave.extend_from_slice(&[0; 64]);
    vcpu.restore(&padded).unwrap();
}

#[test]
fn a_refused_state_leaves_a_pending_access_alone() {
    let Some(kvm) = kvm("a_refused_state_leaves_a_pending_access_alone") else {
        return;
    };
    // in al, 0x42; out 0x80, al; hlt
    let machine = Machine::new(&kvm, b"\xe4\x42\xe6\x80\xf4");
    let mut vcpu = machine.vcpu(0);
    let mut flood = vcpu.save().unwrap();
    flood.msrs = vec![kvm_bindings::kvm_msr_entry::default(); 4097];
    match vcpu.run().unwrap() {
        Exit::PioIn { data, .. } => data.copy_from_slice(&[0x5a]),
        other => panic!("{other:?}"),
    }
    assert!(matches!(vcpu.restore(&flood), Err(KvmError::Incomplete)));
    assert!(matches!(vcpu.save(), Err(KvmError::Incomplete)));
    match vcpu.run().unwrap() {
        Exit::PioOut { data, .. } => assert_eq!(data, [0x5a]),
        other => panic!("{other:?}"),
    }
    while !matches!(vcpu.complete().unwrap(), Exit::Interrupted) {}
    let refusal = vcpu.restore(&flood).unwrap_err();
    assert!(matches!(refusal, KvmError::Misfit { what: "MSRs" }));
    assert!(refusal.to_string().contains("nothing was changed"));
}

#[test]
fn nested_state_is_saved_also_as_a_header_alone() {
    let Some(kvm) = kvm("nested_state_is_saved_also_as_a_header_alone") else {
        return;
    };
    if kvm.check_extension_raw(kvm_bindings::KVM_CAP_NESTED_STATE.into()) <= 0 {
        eprintln!("SKIP: nested_state_is_saved_also_as_a_header_alone: KVM has no nested state");
        return;
    }
    let machine = Machine::new(&kvm, &[0xf4]);
    let mut vcpu = machine.vcpu(0);
    let mut state = vcpu.save().unwrap();
    let header = state.nested.as_deref().unwrap();
    assert_eq!(header.size, 128);
    let flags = header.flags;
    vcpu.restore(&state).unwrap();
    state.nested = None;
    vcpu.restore(&state).unwrap();
    let again = vcpu.save().unwrap().nested.unwrap();
    assert_eq!((again.flags, again.size), (flags, 128));
}

#[test]
fn memory_types_come_back() {
    let Some(kvm) = kvm("memory_types_come_back") else {
        return;
    };
    let machine = Machine::new(&kvm, &[0xf4]);
    let mut vcpu = machine.vcpu(0);
    let start = vcpu.save().unwrap();
    let default_type = |state: &VcpuState| {
        let found = state.msrs.iter().find(|msr| msr.index == 0x2ff);
        found.map(|msr| msr.data)
    };
    if default_type(&start).is_none() {
        eprintln!("SKIP: memory_types_come_back: KVM has no MTRRs");
        return;
    }
    // Enabled, write-back.
    let mut other = start.clone();
    for msr in other.msrs.iter_mut().filter(|msr| msr.index == 0x2ff) {
        msr.data = 0x806;
    }
    vcpu.restore(&other).unwrap();
    assert_eq!(default_type(&vcpu.save().unwrap()), Some(0x806));
    vcpu.restore(&start).unwrap();
    assert_eq!(default_type(&vcpu.save().unwrap()), default_type(&start));
}

#[test]
fn the_task_priority_survives_the_first_entry() {
    let Some(kvm) = kvm("the_task_priority_survives_the_first_entry") else {
        return;
    };
    let machine = Machine::new(&kvm, &[0xf4]);
    let mut vcpu = machine.vcpu(0);
    let mut state = vcpu.save().unwrap();
    state.sregs.cr8 = 5;
    vcpu.restore(&state).unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::Hlt));
    assert_eq!(vcpu.fd().get_sregs().unwrap().cr8, 5);
}

/// A machine whose vCPU has all of KVM's supported CPUID, and runs `code`.
fn with_cpuid(kvm: &kvm_ioctls::Kvm, code: &[u8]) -> (Machine, KvmVcpu) {
    let machine = Machine::new(kvm, code);
    let vcpu = machine.vcpu(0);
    set_cpuid(kvm, &vcpu);
    (machine, vcpu)
}

fn set_cpuid(kvm: &kvm_ioctls::Kvm, vcpu: &KvmVcpu) {
    let all = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
    vcpu.fd().set_cpuid2(&all.unwrap()).unwrap();
}

/// `mov eax, cr4; or eax, OSXSAVE; mov cr4, eax; hlt`
const SET_OSXSAVE: &[u8] = b"\x0f\x20\xe0\x66\x0d\x00\x00\x04\x00\x0f\x22\xe0\xf4";

#[test]
fn a_guest_that_changed_its_own_cpuid_bits_is_restored_in_place() {
    let Some(kvm) = kvm("a_guest_that_changed_its_own_cpuid_bits_is_restored_in_place") else {
        return;
    };
    let (_machine, mut vcpu) = with_cpuid(&kvm, SET_OSXSAVE);
    let start = vcpu.save().unwrap();
    // KVM before 6.2 returns the capacity as the number of entries.
    assert_ne!(start.cpuid.last(), Some(&Default::default()));
    assert!(matches!(vcpu.run().unwrap(), Exit::Hlt));
    let changed = vcpu.save().unwrap();
    assert_ne!(changed.cpuid, start.cpuid, "OSXSAVE is visible in CPUID");
    for state in [&start, &changed, &start] {
        vcpu.restore(state).unwrap();
        let again = vcpu.save().unwrap();
        assert_eq!((again.cpuid, again.regs), (state.cpuid.clone(), state.regs));
    }
}

#[test]
fn a_state_with_the_zeros_of_an_older_kvm_is_restored() {
    let Some(kvm) = kvm("a_state_with_the_zeros_of_an_older_kvm_is_restored") else {
        return;
    };
    let (_machine, mut vcpu) = with_cpuid(&kvm, SET_OSXSAVE);
    let mut padded = vcpu.save().unwrap();
    let entries = padded.cpuid.clone();
    padded.cpuid.resize(256, Default::default());
    assert!(matches!(vcpu.run().unwrap(), Exit::Hlt));
    vcpu.restore(&padded).unwrap();
    assert_eq!(vcpu.save().unwrap().cpuid, entries);
}

#[test]
fn a_restore_in_place_with_other_cpuid_changes_nothing() {
    let Some(kvm) = kvm("a_restore_in_place_with_other_cpuid_changes_nothing") else {
        return;
    };
    let (machine, mut vcpu) = with_cpuid(&kvm, SET_OSXSAVE);
    let mut other = vcpu.save().unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::Hlt));
    let before = vcpu.save().unwrap();
    other.cpuid.truncate(1);
    other.tsc_khz = other.tsc_khz.map(|khz| khz + khz / 100);
    let refusal = vcpu.restore(&other).unwrap_err();
    assert!(KvmVcpu::left_unchanged(&refusal), "{refusal}");
    let after = vcpu.save().unwrap();
    assert_eq!((after.cpuid, after.regs), (before.cpuid, before.regs));
    assert_eq!((after.sregs, after.tsc_khz), (before.sregs, before.tsc_khz));
    // A vCPU that never ran accepts it.
    other.tsc_khz = before.tsc_khz;
    machine.vcpu(1).restore(&other).unwrap();
}

#[test]
fn a_tsc_frequency_that_this_host_cannot_give_changes_nothing() {
    let Some(kvm) = kvm("a_tsc_frequency_that_this_host_cannot_give_changes_nothing") else {
        return;
    };
    let (_machine, mut vcpu) = with_cpuid(&kvm, SET_OSXSAVE);
    let start = vcpu.save().unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::Hlt));
    let before = vcpu.save().unwrap();
    // Too slow if KVM can't scale the TSC, too fast if it can.
    for khz in [1, u32::MAX] {
        let mut other = start.clone();
        other.tsc_khz = Some(khz);
        match vcpu.restore(&other) {
            Ok(()) => vcpu.restore(&before).unwrap(),
            Err(refusal) => assert!(KvmVcpu::left_unchanged(&refusal), "{refusal}"),
        }
        let after = vcpu.save().unwrap();
        assert_eq!((after.regs, after.tsc_khz), (before.regs, before.tsc_khz));
    }
}

#[test]
fn a_vcpu_that_triple_faulted_is_restored_in_place() {
    let Some(kvm) = kvm("a_vcpu_that_triple_faulted_is_restored_in_place") else {
        return;
    };
    // mov eax, cr4; or eax, OSXSAVE; mov cr4, eax; ud2
    let code = b"\x0f\x20\xe0\x0d\x00\x00\x04\x00\x0f\x22\xe0\x0f\x0b";
    let machine = Machine::new(&kvm, code);
    let mut vcpu = machine.protected_mode_vcpu(0);
    set_cpuid(&kvm, &vcpu);
    let start = vcpu.save().unwrap();
    for _ in 0..2 {
        assert!(matches!(vcpu.run().unwrap(), Exit::Shutdown));
        vcpu.restore(&start).unwrap();
        let again = vcpu.save().unwrap();
        assert_eq!(again.cpuid, start.cpuid);
        assert_eq!((again.regs, again.sregs), (start.regs, start.sregs));
    }
}

const MSR_TSC: u32 = 0x10;

/// Whether a TSC can be moved at all, which an emulated KVM can't. Sets it by kvm-ioctls, not by this crate's restore.
fn moves_tscs(test: &str, machine: &Machine) -> bool {
    let vcpu = machine.vcpu(100);
    let far = kvm_bindings::kvm_msr_entry {
        index: MSR_TSC,
        data: 1 << 60,
        reserved: 0,
    };
    let block = kvm_bindings::Msrs::from_entries(&[far]).unwrap();
    vcpu.fd().set_msrs(&block).unwrap();
    let offset = TscOffset::of(vcpu.fd()).unwrap().read();
    let moves = offset.is_ok_and(|offset| offset > 1 << 59);
    if !moves {
        eprintln!("SKIP: {test}: KVM can't offset the TSC");
    }
    moves
}

#[test]
fn vcpus_keep_the_distance_of_their_tscs() {
    let Some(kvm) = kvm("vcpus_keep_the_distance_of_their_tscs") else {
        return;
    };
    let machine = Machine::new(&kvm, &[0xf4]);
    if !moves_tscs("vcpus_keep_the_distance_of_their_tscs", &machine) {
        return;
    }
    let mut vcpus = [0, 1].map(|id| machine.vcpu(id));
    let mut states = vcpus.each_mut().map(|vcpu| vcpu.save().unwrap());
    let offset = states[0].tsc.unwrap().offset;
    // A tenth of a second apart, which KVM treats as an attempt to set the same value.
    let apart = u64::from(states[0].tsc_khz.unwrap()) * 100;
    let offsets = [offset, offset.wrapping_sub(apart)];
    for ((vcpu, state), offset) in vcpus.iter_mut().zip(&mut states).zip(offsets) {
        state.tsc.as_mut().unwrap().offset = offset;
        vcpu.restore(state).unwrap();
    }
    let restored = vcpus.each_mut().map(|vcpu| vcpu.save().unwrap());
    assert_eq!(restored.map(|state| state.tsc.unwrap().offset), offsets);
}

#[test]
fn a_tsc_of_another_host_goes_on_from_its_value() {
    let Some(kvm) = kvm("a_tsc_of_another_host_goes_on_from_its_value") else {
        return;
    };
    let machine = Machine::new(&kvm, &[0xf4]);
    if !moves_tscs("a_tsc_of_another_host_goes_on_from_its_value", &machine) {
        return;
    }
    let mut vcpu = machine.vcpu(0);
    let mut state = vcpu.save().unwrap();
    // As if the guest's TSC counted an hour that the host's did not.
    let tsc = state.tsc.as_mut().unwrap();
    tsc.read_at.as_mut().unwrap().realtime_ns -= 3600 * 1_000_000_000;
    let hour = u64::from(state.tsc_khz.unwrap()) * 3_600_000;
    for msr in state.msrs.iter_mut().filter(|msr| msr.index == MSR_TSC) {
        msr.data += hour;
    }
    let value = |state: &VcpuState| {
        let msr = state.msrs.iter().find(|msr| msr.index == MSR_TSC);
        msr.unwrap().data
    };
    vcpu.restore(&state).unwrap();
    assert!(value(&vcpu.save().unwrap()) >= value(&state));
    // An offset for this host is used unchanged.
    state.tsc = Some(TscState {
        offset: 12_345,
        read_at: None,
    });
    vcpu.restore(&state).unwrap();
    assert_eq!(vcpu.save().unwrap().tsc.unwrap().offset, 12_345);
}

#[test]
fn a_refused_state_leaves_registers_that_were_set_for_the_next_entry() {
    let Some(kvm) = kvm("a_refused_state_leaves_registers_that_were_set_for_the_next_entry") else {
        return;
    };
    // out 0x80, al; out 0x80, ax; hlt
    let (_machine, mut vcpu) = with_cpuid(&kvm, b"\xe6\x80\xe7\x80\xf4");
    let Some(registers) = vcpu.sync_registers() else {
        return;
    };
    let mut other = vcpu.save().unwrap();
    other.cpuid.truncate(1);
    assert!(matches!(vcpu.run().unwrap(), Exit::PioOut { .. }));
    while !matches!(vcpu.complete().unwrap(), Exit::Interrupted) {}
    registers.set_rax(0x1234);
    assert!(KvmVcpu::left_unchanged(&vcpu.restore(&other).unwrap_err()));
    match vcpu.run().unwrap() {
        Exit::PioOut { data, .. } => assert_eq!(data, 0x1234u16.to_le_bytes()),
        other => panic!("{other:?}"),
    }
}
