// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saving and restoring with a fake host that rejects MSRs like KVM.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use para_msr::saved::{MAX_BATCH, MAX_SAVED, MsrAccess, MsrClass, MsrPolicy, MsrValue, SavedError};
use proptest::prelude::*;

/// Knows some MSRs. Like KVM, it processes a list up to the first unknown one, and refuses more than 255.
#[derive(Default)]
struct Host {
    msrs: BTreeMap<u32, u64>,
    /// Each of these is rejected until the other MSR has been written.
    after: BTreeMap<u32, u32>,
    written: Vec<u32>,
    calls: usize,
    fails: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("E2BIG or worse")]
struct Failed;

impl Host {
    fn check(&mut self, count: usize) -> Result<(), Failed> {
        self.calls += 1;
        match self.fails || count > 255 {
            true => Err(Failed),
            false => Ok(()),
        }
    }
}

impl MsrAccess for Host {
    type Error = Failed;

    fn get(&mut self, values: &mut [MsrValue]) -> Result<usize, Failed> {
        self.check(values.len())?;
        for (at, value) in values.iter_mut().enumerate() {
            match self.msrs.get(&value.index) {
                Some(known) => value.value = *known,
                None => return Ok(at),
            }
        }
        Ok(values.len())
    }

    fn set(&mut self, values: &[MsrValue]) -> Result<usize, Failed> {
        self.check(values.len())?;
        for (at, value) in values.iter().enumerate() {
            let early = self
                .after
                .get(&value.index)
                .is_some_and(|other| !self.written.contains(other));
            match self.msrs.get_mut(&value.index) {
                Some(known) if !early => *known = value.value,
                _ => return Ok(at),
            }
            self.written.push(value.index);
        }
        Ok(values.len())
    }
}

fn host(indices: impl IntoIterator<Item = u32>) -> Host {
    Host {
        msrs: indices.into_iter().map(|index| (index, 0)).collect(),
        ..Default::default()
    }
}

fn values(indices: impl IntoIterator<Item = u32>) -> Vec<MsrValue> {
    let value = |index| MsrValue {
        index,
        value: u64::from(index) + 1,
    };
    indices.into_iter().map(value).collect()
}

#[test]
fn one_rejected_msr_stops_nothing() {
    let mut host = host([0x10, 0x277, 0xc000_0080]);
    let state = values([0x10, 0x122, 0x48f, 0x277, 0xc000_0080]);
    let report = MsrPolicy::linux().restore(&mut host, &state).unwrap();
    assert_eq!(report.written, 3);
    assert_eq!(report.skipped, values([0x122, 0x48f]));
    assert_eq!(host.msrs[&0xc000_0080], 0xc000_0081);
    report.check().unwrap();
}

#[test]
fn a_required_msr_that_is_rejected_is_an_error_after_all_the_rest() {
    let mut host = host([0x10, 0xc000_0102]);
    let state = values([0xc000_0082, 0x10, 0xc000_0102]);
    let policy = MsrPolicy::linux();
    let report = policy.restore(&mut host, &state).unwrap();
    assert_eq!((report.written, report.missing.len()), (2, 1));
    let error = report.check().unwrap_err();
    assert_eq!(error.indices, [0xc000_0082]);
    assert_eq!(
        error.to_string(),
        "this host rejected MSRs that the guest needs: 0xc0000082; \
         restore it on a host like the one it was saved on"
    );
    // The same with vcpu-loop's list.
    policy.judge(&[0x122, 0x1234]).unwrap();
    assert_eq!(policy.judge(&[0x122, 0xc000_0082]), Err(error));
    let saved = policy.save(&mut host, &[0x10, 0x277, 0x999]).unwrap();
    assert_eq!(
        (saved.missing.clone(), saved.skipped.clone()),
        (vec![0x277], vec![0x999])
    );
    assert!(saved.check().is_err());
}

#[test]
fn denied_msrs_are_neither_saved_nor_restored() {
    let mut host = host([0x10, 0x49, 0x802, 0x8765_5678]);
    let policy = MsrPolicy::linux().deny(0x8765_5678);
    let all = [0x10, 0x49, 0x802, 0x8765_5678, 0x10];
    assert_eq!(policy.indices(all), [0x10]);
    let saved = policy.save(&mut host, &all).unwrap();
    assert_eq!(
        saved.values.iter().map(|msr| msr.index).collect::<Vec<_>>(),
        [0x10]
    );
    let report = policy.restore(&mut host, &values(all)).unwrap();
    assert_eq!(report.denied, [0x49, 0x802, 0x8765_5678]);
    assert_eq!(host.written, [0x10, 0x10]);
    // A later rule changes the class.
    assert_eq!(policy.skip(0x49).class(0x49), MsrClass::Skippable);
}

#[test]
fn the_deadline_comes_last_and_a_dependent_msr_gets_a_second_chance() {
    let mut host = host([0x10, 0x6e0, 0x400, 0x179]);
    host.after.insert(0x400, 0x179);
    let state = values([0x6e0, 0x400, 0x179, 0x10]);
    let report = MsrPolicy::linux().restore(&mut host, &state).unwrap();
    assert_eq!((report.written, report.skipped), (4, vec![]));
    assert_eq!(host.written, [0x179, 0x10, 0x6e0, 0x400]);
}

#[test]
fn long_lists_go_in_batches_that_kvm_takes() {
    let mut all = host(0..2000);
    let policy = MsrPolicy::new();
    let indices: Vec<u32> = (0..2000).collect();
    assert_eq!(policy.save(&mut all, &indices).unwrap().values.len(), 2000);
    assert_eq!(all.calls, 2000usize.div_ceil(MAX_BATCH));
    let report = policy.restore(&mut all, &values(0..2000)).unwrap();
    assert_eq!(report.written, 2000);
    let forged = values(0..=MAX_SAVED as u32);
    let error = policy.restore(&mut all, &forged).unwrap_err();
    assert_eq!(
        error,
        SavedError::TooMany {
            count: MAX_SAVED + 1
        }
    );
}

#[test]
fn a_failing_host_is_an_error_with_the_msr_it_failed_at() {
    let mut broken = host([0x10]);
    broken.fails = true;
    let policy = MsrPolicy::new();
    let error = policy.restore(&mut broken, &values([0x10])).unwrap_err();
    assert_eq!(
        error,
        SavedError::Host {
            index: 0x10,
            source: Failed
        }
    );
    assert!(policy.save(&mut broken, &[0x10]).is_err());
}

/// Claims to have processed more than it was asked for.
struct Liar;

impl MsrAccess for Liar {
    type Error = Failed;
    fn get(&mut self, _: &mut [MsrValue]) -> Result<usize, Failed> {
        Ok(usize::MAX)
    }
    fn set(&mut self, _: &[MsrValue]) -> Result<usize, Failed> {
        Ok(usize::MAX)
    }
}

#[test]
fn a_count_that_is_too_large_counts_as_all() {
    let policy = MsrPolicy::new();
    assert_eq!(
        policy.restore(&mut Liar, &values(0..300)).unwrap().written,
        300
    );
    assert_eq!(policy.save(&mut Liar, &[1, 2]).unwrap().values.len(), 2);
}

proptest! {
    #[test]
    fn everything_is_either_written_or_reported(
        known in prop::collection::btree_set(0..1200u32, 0..600),
        state in prop::collection::vec(0..1200u32, 0..900),
        required in 0..1200u32,
        denied in 0..1200u32,
    ) {
        let mut host = host(known.iter().copied());
        let policy = MsrPolicy::new().require(required).deny(denied);
        let report = policy.restore(&mut host, &values(state.iter().copied())).unwrap();
        let total = report.written + report.skipped.len() + report.missing.len() + report.denied.len();
        prop_assert_eq!(total, state.len());
        let wanted: BTreeSet<u32> = state.iter().copied().filter(|n| *n != denied).collect();
        let written: BTreeSet<u32> = host.written.iter().copied().collect();
        prop_assert_eq!(&written, &wanted.intersection(&known).copied().collect());
        let missing = wanted.contains(&required) && !known.contains(&required);
        prop_assert_eq!(report.check().is_err(), missing);
    }
}

#[cfg(feature = "serde")]
#[test]
fn values_survive_serialization() {
    let state = values([0x10, 0xffff_ffff]);
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(
        text,
        r#"[{"index":16,"value":17},{"index":4294967295,"value":4294967296}]"#
    );
    assert_eq!(serde_json::from_str::<Vec<MsrValue>>(&text).unwrap(), state);
    assert!(serde_json::from_str::<MsrValue>(r#"{"index":4294967296,"value":0}"#).is_err());
}
