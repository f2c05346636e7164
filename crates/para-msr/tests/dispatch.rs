// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Dispatch and the ready-made handlers, without KVM.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::thread;

use para_msr::handlers::{
    Constant, LogGp, NoSuchRow, OnWrite, PerVcpu, PerVcpuValues, ReadOnly, Shadow, StopOnWrite,
    WriteIgnore,
};
use para_msr::saved::MsrValue;
use para_msr::{
    DispatchError, InsertError, MsrCount, MsrDispatch, MsrDispatchBuilder, MsrHandler, MsrRange,
    Outcome,
};
use proptest::prelude::*;

fn range(first: u32, last: u32) -> MsrRange {
    MsrRange::new(first, last).unwrap()
}

fn one(index: u32, handler: impl MsrHandler + 'static) -> MsrDispatch {
    let builder = MsrDispatchBuilder::new().insert(index, handler).unwrap();
    builder.build()
}

#[test]
fn an_overlap_is_refused_and_both_ranges_are_named() {
    let builder = MsrDispatchBuilder::new()
        .insert(range(0x10, 0x1f), Constant::new(1))
        .unwrap()
        .insert(range(0x40, 0x4f), Constant::new(2))
        .unwrap()
        .insert(range(0x20, 0x3f), Constant::new(3))
        .unwrap();
    let ranges: Vec<String> = builder.ranges().map(|range| range.to_string()).collect();
    assert_eq!(ranges, ["0x10-0x1f", "0x20-0x3f", "0x40-0x4f"]);
    let error = builder
        .insert(range(0x4f, 0x5f), Constant::new(4))
        .unwrap_err();
    let (new, existing) = (range(0x4f, 0x5f), range(0x40, 0x4f));
    assert_eq!(
        error.to_string(),
        "MSR range 0x4f-0x5f overlaps 0x40-0x4f, give each MSR to one handler"
    );
    assert_eq!(error.reason, DispatchError::Overlap { new, existing });
    // The earlier handlers are still there.
    let mut msrs = error
        .builder
        .insert(0x50, Constant::new(5))
        .unwrap()
        .build();
    let answers = [0x10, 0x40, 0x20, 0x50, 0x5f].map(|index| msrs.read(index).or_gp());
    assert_eq!(answers, [Some(1), Some(2), Some(3), Some(5), None]);
}

#[test]
fn a_table_goes_where_a_vmm_wants_it() {
    fn is_send_and_sync<T: Send + Sync + Default + 'static>() {}
    is_send_and_sync::<MsrDispatch>();
    fn is_an_error<T: std::error::Error + Send + Sync + 'static>() {}
    is_an_error::<InsertError>();
    let mut msrs = MsrDispatch::default();
    assert_eq!(msrs.read(0), Outcome::NotHandled);
    assert_eq!(msrs.counters().not_handled(), 1);
}

/// Answers every write with `SetInKvm`.
struct InKvm;

impl MsrHandler for InKvm {
    fn read(&mut self, _: u32) -> Outcome<u64> {
        Outcome::NotHandled
    }
    fn write(&mut self, index: u32, value: u64) -> Outcome<()> {
        match value {
            0 => Outcome::GpException,
            value => Outcome::SetInKvm(MsrValue {
                index: index + 1,
                value,
            }),
        }
    }
    fn restore(&mut self, index: u32, value: u64) -> Outcome<()> {
        self.write(index, value)
    }
}

#[test]
fn a_handler_can_stop_the_vcpu_and_give_a_value_to_kvm() {
    let told = Arc::new(Mutex::new(0));
    let count = Arc::clone(&told);
    let tell = move |_, _| *count.lock().unwrap() += 1;
    let stop = StopOnWrite(Shadow::<1>::new(0x20, 7).unwrap().reserved(!7));
    let mut msrs = MsrDispatchBuilder::new()
        .insert(0x20, OnWrite::new(stop, tell.clone()))
        .unwrap()
        .insert(0x30, OnWrite::new(InKvm, tell))
        .unwrap()
        .build();
    assert_eq!(msrs.write(0x20, 1), Outcome::Stop(()));
    assert_eq!(msrs.write(0x20, 8), Outcome::GpException);
    assert_eq!(msrs.read(0x20), Outcome::Handled(1));
    let value = MsrValue {
        index: 0x31,
        value: 9,
    };
    let outcome = msrs.write(0x30, 9);
    assert_eq!(outcome, Outcome::SetInKvm(value));
    assert_eq!(outcome.or_gp(), None, "a VMM that can't is no success");
    // KVM may still refuse.
    assert_eq!(*told.lock().unwrap(), 1);
    let counts: Vec<_> = msrs.counters().iter().map(|count| count.faults).collect();
    assert_eq!(counts, [1, 0]);
    // A restore stops no vCPU, and a value for KVM is refused.
    assert_eq!(msrs.restore(&[(0x20, 2), (0x30, 9)]), [0x30]);
    assert_eq!(msrs.save(), [(0x20, 2)]);
}

/// Answers with the range that it was inserted with.
struct Named(MsrRange);

impl MsrHandler for Named {
    fn read(&mut self, index: u32) -> Outcome<u64> {
        assert!(self.0.contains(index));
        Outcome::Handled(u64::from(self.0.first()))
    }
    fn write(&mut self, _: u32, _: u64) -> Outcome<()> {
        Outcome::NotHandled
    }
}

proptest! {
    /// Compares the table with the list of accepted ranges, and insertion with a pairwise check.
    #[test]
    fn lookups_and_refusals_are_those_of_a_list(
        wanted in prop::collection::vec((0..0x200u32, 0..0x20u32, any::<bool>()), 0..40),
        probes in prop::collection::vec(any::<u32>(), 8),
    ) {
        let mut accepted: Vec<MsrRange> = Vec::new();
        let mut builder = MsrDispatchBuilder::new();
        for (first, len, high) in wanted {
            let first = if high { u32::MAX - first } else { first };
            let new = range(first, first.saturating_add(len));
            match accepted.iter().any(|old| old.overlaps(new)) {
                true => builder = builder.insert(new, Named(new)).unwrap_err().builder,
                false => {
                    builder = builder.insert(new, Named(new)).unwrap();
                    accepted.push(new);
                }
            }
        }
        let mut msrs = builder.build();
        let near = (0..0x240).chain(u32::MAX - 0x240..=u32::MAX).chain(probes);
        let mut missed = 0;
        for index in near {
            let expected = match accepted.iter().find(|range| range.contains(index)) {
                Some(range) => Outcome::Handled(u64::from(range.first())),
                None => {
                    missed += 1;
                    Outcome::NotHandled
                }
            };
            prop_assert_eq!(msrs.read(index), expected);
        }
        prop_assert_eq!(msrs.counters().not_handled(), missed);
    }
}

#[test]
fn counters_are_read_from_another_thread() {
    let mut msrs = MsrDispatchBuilder::new()
        .insert(
            range(0x100, 0x101),
            Shadow::<2>::new(0x100, 0).unwrap().reserved(1),
        )
        .unwrap()
        .insert(0x8b, Named(0x8b.into()))
        .unwrap()
        .build();
    let counters = msrs.counters();
    let vcpu = thread::spawn(move || {
        for index in [0x100, 0x101, 0x102, 0x8b] {
            let _ = msrs.read(index);
            let _ = msrs.write(index, 1);
        }
    });
    vcpu.join().unwrap();
    let seen: Vec<MsrCount> = counters.iter().collect();
    let numbers = |count: &MsrCount| [count.reads, count.writes, count.faults, count.declined];
    assert_eq!(
        seen.iter().map(numbers).collect::<Vec<_>>(),
        [[1, 1, 0, 1], [2, 2, 2, 0]]
    );
    let ranges = [MsrRange::single(0x8b), range(0x100, 0x101)];
    assert_eq!([seen[0].range, seen[1].range], ranges);
    assert_eq!(counters.not_handled(), 2);
    assert_eq!(counters.get(0x101), Some(seen[1]));
    assert_eq!(counters.get(0x102), None);
}

#[test]
fn constants_refuse_writes_unless_these_are_ignored() {
    let mut plain = one(0xce, Constant::new(5));
    assert_eq!(plain.read(0xce), Outcome::Handled(5));
    assert_eq!(plain.write(0xce, 5), Outcome::GpException);
    let mut ignored = one(0x8b, WriteIgnore(Constant::new(5)));
    assert_eq!(ignored.write(0x8b, 9), Outcome::Handled(()));
    assert_eq!(ignored.read(0x8b), Outcome::Handled(5));
    let mut shadow = one(0x10, ReadOnly(Shadow::<1>::new(0x10, 7).unwrap()));
    assert_eq!(shadow.write(0x10, 9), Outcome::GpException);
    assert_eq!(shadow.read(0x10), Outcome::Handled(7));
}

/// MSR_KVM_MIGRATION_CONTROL: "bit 0 ... all other bits are reserved" (msr.rst).
#[test]
fn migration_control_takes_bit_0_alone() {
    const MSR_KVM_MIGRATION_CONTROL: u32 = 0x4b56_4d08;
    let shadow = Shadow::<1>::new(MSR_KVM_MIGRATION_CONTROL, 1)
        .unwrap()
        .reserved(!1);
    let mut msrs = one(MSR_KVM_MIGRATION_CONTROL, shadow);
    for (value, outcome, after) in [
        (0, Outcome::Handled(()), 0),
        (2, Outcome::GpException, 0),
        (1, Outcome::Handled(()), 1),
        (1 << 63 | 1, Outcome::GpException, 1),
        (u64::MAX, Outcome::GpException, 1),
    ] {
        assert_eq!(msrs.write(MSR_KVM_MIGRATION_CONTROL, value), outcome);
        assert_eq!(
            msrs.read(MSR_KVM_MIGRATION_CONTROL),
            Outcome::Handled(after)
        );
    }
}

/// IA32_MISC_ENABLE: BTS and PEBS "unavailable" (bits 11 and 12) are read-only (Intel SDM, table 2-2).
#[test]
fn misc_enable_keeps_its_read_only_bits() {
    let mut msrs = one(
        0x1a0,
        Shadow::<1>::new(0x1a0, 0x1801).unwrap().fixed(0x1800),
    );
    assert_eq!(msrs.write(0x1a0, 1 << 22), Outcome::Handled(()));
    assert_eq!(msrs.read(0x1a0), Outcome::Handled(1 << 22 | 0x1800));
    msrs.reset();
    assert_eq!(msrs.read(0x1a0), Outcome::Handled(0x1801));
}

/// HV_X64_MSR_CRASH_P0 to P4 and CTL: the parameters, then the notification (TLFS, 3.7).
#[test]
fn a_hyperv_crash_reaches_the_vmm() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&told);
    let control = OnWrite::new(WriteIgnore(Constant::new(3 << 62)), move |index, value| {
        events.lock().unwrap().push((index, value));
    });
    let mut msrs = MsrDispatchBuilder::new()
        .insert(
            range(0x4000_0100, 0x4000_0104),
            Shadow::<5>::new(0x4000_0100, 0).unwrap(),
        )
        .unwrap()
        .insert(0x4000_0105, control)
        .unwrap()
        .build();
    for n in 0..5u32 {
        assert_eq!(
            msrs.write(0x4000_0100 + n, u64::from(n) * 16),
            Outcome::Handled(())
        );
    }
    assert_eq!(msrs.read(0x4000_0105), Outcome::Handled(3 << 62));
    assert_eq!(msrs.write(0x4000_0105, 1 << 63), Outcome::Handled(()));
    assert_eq!(*told.lock().unwrap(), [(0x4000_0105, 1 << 63)]);
    let parameters = msrs.handler::<Shadow<5>>(0x4000_0102).unwrap();
    assert_eq!(*parameters.values(), [0, 16, 32, 48, 64]);
    // No callback for a refused write.
    let mut refusing = one(1, OnWrite::new(Constant::new(0), |_, _| panic!("told")));
    assert_eq!(refusing.write(1, 1), Outcome::GpException);
}

#[test]
fn each_vcpu_has_its_own_value_of_a_shared_table() {
    let table = PerVcpuValues::new(2, |vcpu| 10 + vcpu as u64);
    let (mut first, mut second) = (
        one(0x35, table.handler(0)),
        one(0x35, table.writable_handler(1)),
    );
    let mut third = one(0x35, table.handler(2));
    assert_eq!(first.read(0x35), Outcome::Handled(10));
    assert_eq!(first.write(0x35, 1), Outcome::GpException);
    assert_eq!(second.write(0x35, 99), Outcome::Handled(()));
    assert_eq!(
        (table.get(0), table.get(1), table.get(2)),
        (Some(10), Some(99), None)
    );
    assert!(table.set(0, 7) && !table.set(2, 7));
    assert_eq!(first.read(0x35), Outcome::Handled(7));
    assert_eq!(third.read(0x35), Outcome::GpException);
    assert!(first.handler::<PerVcpu>(0x35).is_some());
    assert!(first.handler_mut::<LogGp>(0x35).is_none());
}

#[test]
fn a_shadow_is_a_row_that_exists() {
    assert_eq!(
        Shadow::<1>::new(u32::MAX, 0).unwrap().range(),
        MsrRange::single(u32::MAX)
    );
    let error = Shadow::<2>::new(u32::MAX, 0).unwrap_err();
    assert_eq!(
        error,
        NoSuchRow {
            base: u32::MAX,
            count: 2
        }
    );
    assert!(Shadow::<0>::new(0, 0).is_err());
    // Inserted with another range than its own, it answers only for its own.
    let mut msrs = MsrDispatchBuilder::new()
        .insert(range(0, 9), Shadow::<2>::new(4, 0).unwrap())
        .unwrap()
        .build();
    let answers = [3, 4, 5, 6].map(|index| msrs.read(index));
    let (yes, no) = (Outcome::Handled(0), Outcome::NotHandled);
    assert_eq!(answers, [no, yes, yes, no]);
}

#[test]
fn saved_values_come_back_and_foreign_ones_are_refused() {
    let build = || {
        MsrDispatchBuilder::new()
            .insert(
                range(0x100, 0x101),
                Shadow::<2>::new(0x100, 0).unwrap().reserved(!0xff),
            )
            .unwrap()
            .insert(0x8b, Constant::new(1))
            .unwrap()
            .build()
    };
    let mut old = build();
    assert_eq!(old.write(0x101, 0x42), Outcome::Handled(()));
    let saved = old.save();
    assert_eq!(saved, [(0x100, 0), (0x101, 0x42)]);
    let mut new = build();
    assert!(new.restore(&saved).is_empty());
    assert_eq!(new.read(0x101), Outcome::Handled(0x42));
    // A forged state: a reserved bit, a constant, an MSR without a handler.
    let forged = [(0x100, 0x100), (0x8b, 2), (0x999, 0), (0x100, 3)];
    assert_eq!(new.restore(&forged), [0x100, 0x8b, 0x999]);
    assert_eq!(new.read(0x100), Outcome::Handled(3));
}

#[test]
fn a_handler_saves_nothing_of_its_neighbours() {
    // A row of two whose first MSR has another handler.
    let build = |first| {
        MsrDispatchBuilder::new()
            .insert(0x100, Shadow::<1>::new(0x100, first).unwrap())
            .unwrap()
            .insert(0x101, Shadow::<2>::new(0x100, 5).unwrap())
            .unwrap()
            .build()
    };
    let (old, mut new) = (build(3), build(0));
    assert_eq!(old.save(), [(0x100, 3), (0x101, 5)]);
    assert!(new.restore(&old.save()).is_empty());
    assert_eq!(new.read(0x100), Outcome::Handled(3));
}

#[test]
fn a_shadow_takes_back_every_value_that_it_saves() {
    // Bit 0 reads 1 and a guest must not write it: only a reset can set it.
    let build = || one(0x100, Shadow::<1>::new(0x100, 0x11).unwrap().reserved(0x0f));
    let (mut old, mut new) = (build(), build());
    assert_eq!(old.write(0x100, 0x11), Outcome::GpException);
    assert_eq!(old.save(), [(0x100, 0x11)]);
    assert_eq!(new.write(0x100, 0x20), Outcome::Handled(()));
    assert!(new.restore(&old.save()).is_empty());
    assert_eq!(new.read(0x100), Outcome::Handled(0x11));
    assert_eq!(new.restore(&[(0x100, 0x21)]), [0x100], "but no other");
    assert_eq!(new.read(0x100), Outcome::Handled(0x11));
}

#[test]
fn log_and_gp_refuses_both_directions() {
    let mut msrs = one(0x606, LogGp::new("MSR_RAPL_POWER_UNIT"));
    assert_eq!(msrs.read(0x606), Outcome::GpException);
    assert_eq!(msrs.write(0x606, 1), Outcome::GpException);
    assert_eq!(msrs.counters().get(0x606).unwrap().faults, 2);
}
