// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains of snapshots of memory that a test writes to, and their merges. No KVM.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use tempfile::{TempDir, tempdir};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::super::format_1::state;
use super::super::{LoadError, MergeError, Snapshot, manifest, merge};
use super::*;
use crate::layout::{GIB, HOLE_END, MIB, PAGE_SIZE};
use crate::memory::{Returned, allocate};

mod two_files;

const PAGE: usize = PAGE_SIZE as usize;
const RAM: u64 = 32 * MIB;

/// A machine without a guest.
struct Guest {
    dir: TempDir,
    spec: VmSpec,
    memory: GuestMemoryMmap,
    tracker: Tracker,
    returned: Returned,
}

impl Guest {
    fn new(ram: u64) -> Self {
        Guest {
            dir: tempdir().unwrap(),
            spec: spec(ram),
            memory: allocate(ram).unwrap(),
            tracker: Tracker::default(),
            returned: Returned::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn in_dir(&self, name: &str) -> Place {
        Place::Directory(self.path(name))
    }

    fn in_files(&self, name: &str) -> Place {
        Place::Files {
            snapshot: self.path(&format!("{name}.state")),
            memory: self.path(&format!("{name}.memory")),
        }
    }

    fn fill(&self, at: u64, value: u8) {
        let page = [value; PAGE];
        self.memory.write_slice(&page, GuestAddress(at)).unwrap();
    }

    /// Gives pages back to the host.
    fn give_back(&self, pages: Range<u64>) {
        let bytes = pages.start * PAGE_SIZE..pages.end * PAGE_SIZE;
        let len = bytes.end - bytes.start;
        assert_eq!(self.returned.give_back(&self.memory, &[bytes]), len);
    }

    fn save(&mut self, place: &Place, kind: Kind) -> Result<Manifest, Error> {
        let file = state(self.spec.memory);
        let bytes = serde_json::to_vec(&file).unwrap();
        let wish = Wish { place, kind };
        let base = wish.base(Some(&self.tracker), &self.spec)?;
        let made = manifest(&file, &self.spec, &bytes, base)?;
        let content = Content {
            manifest: &made,
            state: &bytes,
            memory: &self.memory,
            is_served: false,
            returned: Some(&self.returned),
            overlays: &[],
        };
        content.put(&self.spec, wish, Some(&mut self.tracker), &|| true)?;
        Ok(made)
    }

    /// Goes on with another snapshot, as another process would.
    fn restore(&mut self, place: &Place) {
        let (_, frozen, tracker) = Snapshot::open(place).unwrap().map().unwrap();
        (self.memory, self.tracker) = (frozen.memory, tracker);
        self.returned = Returned::default();
    }

    /// Checks that a restored machine would have this memory.
    #[track_caller]
    fn is(&self, place: &Place) {
        let (_, frozen, _) = Snapshot::open(place).unwrap().map().unwrap();
        let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        for region in self.memory.iter() {
            let start = region.start_addr();
            for at in (0..region.len()).step_by(1 << 20) {
                let at = start.unchecked_add(at);
                self.memory.read_slice(&mut ours, at).unwrap();
                frozen.memory.read_slice(&mut theirs, at).unwrap();
                assert!(ours == theirs, "{at:?}");
            }
        }
    }
}

/// What the state says of its machine.
fn spec(ram: u64) -> VmSpec {
    let mut machine = state(ram).machine;
    machine.insert("kernel".to_owned(), "k".into());
    serde_json::from_value(machine.into()).unwrap()
}

/// What happens between two snapshots.
#[derive(Clone, Debug)]
struct Round {
    /// Pages, and what they become.
    writes: Vec<(u64, u8)>,
    /// Pages that are given back after some of the writes: before which, where, and how many.
    returns: Vec<(usize, u64, u64)>,
    /// Whether another process goes on from the merged snapshot.
    restores: bool,
    /// Whether the host forgets its marks.
    forgets: bool,
}

fn any_round() -> impl Strategy<Value = Round> {
    let page = prop_oneof![0..16u64, 500..530u64, Just(RAM / PAGE_SIZE - 1)];
    let write = (page, prop_oneof![Just(0u8), any::<u8>()]);
    let writes = prop::collection::vec(write, 0..20);
    let first = prop_oneof![0..16u64, 500..530u64];
    let returns = prop::collection::vec((0..20usize, first, 1..8u64), 0..4);
    let switches = (any::<bool>(), any::<bool>());
    (writes, returns, switches).prop_map(|(writes, returns, (restores, forgets))| Round {
        writes,
        returns,
        restores,
        forgets,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is written when: a Full snapshot and its Diffs are the memory.
    #[test]
    fn a_chain_of_merged_diffs_is_the_memory(rounds in prop::collection::vec(any_round(), 1..6)) {
        let mut guest = Guest::new(RAM);
        let whole = guest.in_dir("whole");
        guest.save(&whole, Kind::Diff).unwrap();
        guest.is(&whole);
        for (number, round) in rounds.iter().enumerate() {
            for number in 0..20 {
                for (_, first, count) in round.returns.iter().filter(|at| at.0 == number) {
                    guest.give_back(*first..first + count);
                }
                if let Some((page, value)) = round.writes.get(number) {
                    guest.fill(page * PAGE_SIZE, *value);
                }
            }
            if round.forgets {
                guest.tracker.forget_marks();
            }
            let diff = format!("diff{number}");
            let made = guest.save(&guest.in_dir(&diff), Kind::Diff).unwrap();
            prop_assert_eq!(made.kind, Kind::Diff);
            merge(&guest.path("whole"), &guest.path(&diff), &guest.path("whole")).unwrap();
            guest.is(&whole);
            if round.restores {
                guest.restore(&whole);
            }
        }
    }
}

/// The bytes that a file has on disk.
fn on_disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().blocks() * 512
}

/// Memory below and above the hole, and more than one window of the list.
#[test]
fn a_diff_has_the_changes_of_all_regions_only() {
    let mut guest = Guest::new(3 * GIB + RAM);
    let high = HOLE_END + RAM - PAGE_SIZE;
    for at in [0, GIB, 3 * GIB - PAGE_SIZE, HOLE_END, high] {
        guest.fill(at, 1);
    }
    for at in (2 * GIB..2 * GIB + 8 * MIB).step_by(PAGE) {
        guest.fill(at, 2);
    }
    guest.save(&guest.in_dir("base"), Kind::Diff).unwrap();
    guest.fill(GIB, 0);
    guest.fill(2 * GIB + PAGE_SIZE, 3);
    guest.fill(high, 4);
    let found = guest.tracker.changed(&guest.memory).unwrap();
    let page = |at| at..at + PAGE_SIZE;
    let changed = [
        page(GIB),
        page(2 * GIB + PAGE_SIZE),
        page(3 * GIB + RAM - PAGE_SIZE),
    ];
    let is_marked = guest.tracker.is_marking();
    match is_marked {
        true => assert_eq!(found, changed),
        false => eprintln!("skipped: this host marks no pages that are written"),
    }
    guest.save(&guest.in_dir("diff"), Kind::Diff).unwrap();
    assert!(!is_marked || on_disk(&guest.path("diff/memory")) < MIB);
    assert!(!is_marked || guest.tracker.changed(&guest.memory).unwrap().is_empty());
    let [base, diff, out] = ["base", "diff", "out"].map(|name| guest.path(name));
    merge(&base, &diff, &out).unwrap();
    guest.is(&guest.in_dir("out"));
    // The restored machine's first Diff needs no marks.
    guest.restore(&guest.in_dir("out"));
    guest.fill(GIB, 7);
    guest.fill(HOLE_END, 0);
    let found = guest.tracker.changed(&guest.memory).unwrap();
    assert_eq!(found, [page(GIB), page(3 * GIB)]);
    guest.save(&guest.in_dir("next"), Kind::Diff).unwrap();
    merge(&out, &guest.path("next"), &out).unwrap();
    guest.is(&guest.in_dir("out"));
}

#[test]
fn a_snapshot_that_fails_loses_no_changes() {
    let mut guest = Guest::new(RAM);
    guest.fill(0, 1);
    guest.save(&guest.in_dir("base"), Kind::Diff).unwrap();
    guest.fill(PAGE_SIZE, 2);
    let nowhere = guest.in_dir("no/such");
    for kind in [Kind::Diff, Kind::Full] {
        guest.save(&nowhere, kind).unwrap_err();
    }
    guest.fill(2 * PAGE_SIZE, 3);
    guest.save(&guest.in_dir("diff"), Kind::Diff).unwrap();
    merge(&guest.path("base"), &guest.path("diff"), &guest.path("out")).unwrap();
    guest.is(&guest.in_dir("out"));
}

#[test]
fn a_full_snapshot_begins_a_new_chain() {
    let mut guest = Guest::new(RAM);
    guest.spec.track_dirty_pages = true;
    guest.fill(0, 1);
    let base = guest.save(&guest.in_dir("base"), Kind::Full).unwrap();
    guest.fill(PAGE_SIZE, 2);
    let full = guest.save(&guest.in_dir("full"), Kind::Full).unwrap();
    guest.fill(3 * PAGE_SIZE, 4);
    let diff = guest.save(&guest.in_dir("diff"), Kind::Diff).unwrap();
    assert_eq!((diff.parent, diff.depth), (Some(full.id), 1));
    let merged = |base| merge(&guest.path(base), &guest.path("diff"), &guest.path("out"));
    let error = merged("base").unwrap_err().to_string();
    let [parent, other] = [full.id, base.id];
    assert!(
        error.contains(&format!("continues snapshot {parent}, not {other}")),
        "{error}"
    );
    assert!(!guest.path("out").exists());
    merged("full").unwrap();
    guest.is(&guest.in_dir("out"));
}

#[test]
fn a_diff_is_not_restored_and_not_put_in_its_bases_place() {
    let mut guest = Guest::new(RAM);
    let base = guest.in_dir("base");
    guest.save(&base, Kind::Diff).unwrap();
    guest.fill(0, 1);
    assert!(matches!(guest.save(&base, Kind::Diff), Err(Error::OwnBase)));
    guest.save(&guest.in_dir("diff"), Kind::Diff).unwrap();
    let error = Snapshot::open(&guest.in_dir("diff")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("mini-vmm snapshot merge BASE DIFF OUT")
    );
    let [base, diff, out] = ["base", "diff", "out"].map(|name| guest.path(name));
    for (first, second, why) in [
        (&diff, &diff, "the first snapshot is a Diff"),
        (&base, &base, "the second snapshot is whole already"),
        (&out, &diff, "can't read"),
    ] {
        let error = merge(first, second, &out).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

/// A base and its Diff, whose list is changed by a test.
fn pair() -> (Guest, Manifest) {
    let mut guest = Guest::new(RAM);
    guest.fill(0, 1);
    guest.save(&guest.in_dir("base"), Kind::Diff).unwrap();
    guest.fill(PAGE_SIZE, 2);
    let diff = guest.save(&guest.in_dir("diff"), Kind::Diff).unwrap();
    (guest, diff)
}

#[test]
fn damaged_diffs_are_refused_before_anything_is_written() {
    // The list's first byte, by the format.
    let list = RAM + 256 * PAGE_SIZE;
    let page = |depth: u64| RAM + depth * PAGE_SIZE;
    type Damage = fn(&File, u64, &Manifest);
    let write: Damage = |file, at, _| file.write_all_at(b"x", at).unwrap();
    let cut: Damage = |file, at, _| file.set_len(at).unwrap();
    let other: Damage = |file, at, made| {
        let tail = Tail {
            id: made.id,
            size: RAM,
            parent: Some(made.id),
        };
        file.write_all_at(tail.text().as_bytes(), at).unwrap();
    };
    for (damage, at, why) in [
        (write, page(1), "not complete"),
        (write, page(1) + 100, "not complete"),
        (cut, page(1), "not complete"),
        (cut, RAM / 2, "not complete"),
        (cut, list, "not complete"),
        (cut, list + RAM / PAGE_SIZE / 8 - 1, "not complete"),
        (other, page(1), "its parents differ"),
    ] {
        let (guest, made) = pair();
        let file = File::options()
            .write(true)
            .open(guest.path("diff/memory"))
            .unwrap();
        damage(&file, at, &made);
        let out = guest.path("out");
        let error = merge(&guest.path("base"), &guest.path("diff"), &out).unwrap_err();
        assert!(matches!(error, MergeError::Part { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert!(!out.exists());
    }
}

/// A guest whose number of pages is no multiple of eight.
#[test]
fn a_list_names_no_page_that_the_guest_lacks() {
    let mut guest = Guest::new(RAM + PAGE_SIZE);
    guest.save(&guest.in_dir("base"), Kind::Diff).unwrap();
    guest.save(&guest.in_dir("diff"), Kind::Diff).unwrap();
    let last = RAM + PAGE_SIZE + 256 * PAGE_SIZE + RAM / PAGE_SIZE / 8;
    let file = File::options()
        .write(true)
        .open(guest.path("diff/memory"))
        .unwrap();
    let merged = || merge(&guest.path("base"), &guest.path("diff"), &guest.path("out"));
    file.write_all_at(&[1], last).unwrap();
    merged().unwrap();
    file.write_all_at(&[2], last).unwrap();
    let error = merged().unwrap_err().to_string();
    assert!(error.contains("pages that the guest lacks"), "{error}");
}

#[test]
fn a_chain_has_an_end() {
    let mut guest = Guest::new(RAM);
    guest.save(&guest.in_dir("base"), Kind::Full).unwrap();
    let base = guest.tracker.base().unwrap();
    let depth = MAX_DEPTH;
    guest
        .tracker
        .saved(&guest.memory, Base { depth, ..base }, false);
    let diff = guest.in_dir("diff");
    assert!(matches!(
        guest.save(&diff, Kind::Diff),
        Err(Error::LongChain)
    ));
    guest.save(&diff, Kind::Full).unwrap();
}

/// What was given back is a hole, wherever it comes from, and its file's bytes do not come back.
#[test]
fn pages_that_went_back_are_zero_in_all_snapshots() {
    let mut guest = Guest::new(RAM);
    for page in 0..1000 {
        guest.fill(page * PAGE_SIZE, 1);
    }
    guest.give_back(0..100);
    guest.save(&guest.in_dir("base"), Kind::Full).unwrap();
    assert!(on_disk(&guest.path("base/memory")) < 900 * PAGE_SIZE + MIB);
    guest.is(&guest.in_dir("base"));
    for (number, name) in [(1, "one"), (2, "two")] {
        // Nothing of these pages is there to be seen.
        guest.give_back(100 * number..100 * number + 50);
        guest.save(&guest.in_dir(name), Kind::Diff).unwrap();
        let [base, diff] = ["base", name].map(|name| guest.path(name));
        merge(&base, &diff, &base).unwrap();
        guest.is(&guest.in_dir("base"));
        guest.restore(&guest.in_dir("base"));
    }
    // Whole ones of a restored machine, without the file's data where it is not mapped any more.
    guest.give_back(400..900);
    guest.save(&guest.in_dir("whole"), Kind::Full).unwrap();
    assert!(on_disk(&guest.path("whole/memory")) < 400 * PAGE_SIZE + MIB);
    guest.is(&guest.in_dir("whole"));
    // The host can still mark pages.
    guest.save(&guest.in_dir("next"), Kind::Diff).unwrap();
    guest.fill(500 * PAGE_SIZE, 9);
    guest.give_back(950..960);
    guest.save(&guest.in_dir("last"), Kind::Diff).unwrap();
    let [base, next, last] = ["whole", "next", "last"].map(|name| guest.path(name));
    merge(&base, &next, &base).unwrap();
    merge(&base, &last, &base).unwrap();
    guest.is(&guest.in_dir("whole"));
}
