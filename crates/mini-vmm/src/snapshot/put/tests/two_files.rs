// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Diffs in Firecracker's words, merged by its tool and by ours.

use super::*;

/// What Firecracker's tool does: it copies the data of the Diff's file, and knows nothing else.
fn rebase(diff: &Path, base: &Path) {
    let diff = File::open(diff).unwrap();
    let base = File::options().write(true).open(base).unwrap();
    let size = diff.metadata().unwrap().len();
    for span in memory::data(&diff, 0..size).unwrap() {
        let mut bytes = vec![0; (span.end.min(size) - span.start) as usize];
        diff.read_exact_at(&mut bytes, span.start).unwrap();
        base.write_all_at(&bytes, span.start).unwrap();
    }
}

#[test]
fn other_tools_merge_diffs_of_two_files() {
    let mut guest = Guest::new(RAM);
    for page in 0..8 {
        guest.fill(page * PAGE_SIZE, 1);
    }
    let base = guest.in_files("base");
    let memory = guest.path("base.memory");
    guest.save(&base, Kind::Full).unwrap();
    let with = |name: &str| Place::Files {
        snapshot: guest.path(&format!("{name}.state")),
        memory: guest.path("base.memory"),
    };
    let wholes = ["one", "two"].map(with);
    for (number, name) in (0..).zip(["one", "two"]) {
        guest.fill(number * PAGE_SIZE, 0);
        guest.fill((20 + number) * PAGE_SIZE, 2);
        let diff = guest.in_files(name);
        guest.save(&diff, Kind::Diff).unwrap();
        let error = Snapshot::open(&diff).unwrap_err();
        assert!(matches!(error, LoadError::Changes { .. }), "{error}");
        let error = Snapshot::open(&wholes[number as usize]).unwrap_err();
        assert!(matches!(error, LoadError::Pair { .. }), "{error}");
    }
    // In the wrong order, the second one has no base.
    let copy = fs::read(&memory).unwrap();
    rebase(&guest.path("two.memory"), &memory);
    let error = Snapshot::open(&wholes[1]).unwrap_err();
    assert!(matches!(error, LoadError::Pair { .. }), "{error}");
    fs::write(&memory, copy).unwrap();
    rebase(&guest.path("one.memory"), &memory);
    rebase(&guest.path("two.memory"), &memory);
    guest.is(&wholes[1]);
    let error = Snapshot::open(&base).unwrap_err();
    assert!(matches!(error, LoadError::Pair { .. }), "{error}");
    // The chain goes on from there.
    guest.restore(&wholes[1]);
    guest.fill(5 * PAGE_SIZE, 0);
    let three = guest.save(&guest.in_files("three"), Kind::Diff).unwrap();
    assert_eq!(three.depth, 3);
    rebase(&guest.path("three.memory"), &memory);
    let whole = Place::Files {
        snapshot: guest.path("three.state"),
        memory,
    };
    guest.is(&whole);
    assert!(matches!(
        guest.save(&whole, Kind::Diff),
        Err(Error::OwnBase)
    ));
}

/// A chain of two files each: a Full snapshot and two Diffs. The last one makes a page zero.
fn chain() -> Guest {
    let mut guest = Guest::new(RAM);
    for page in 0..8 {
        guest.fill(page * PAGE_SIZE, 1);
    }
    guest.save(&guest.in_files("base"), Kind::Full).unwrap();
    guest.fill(PAGE_SIZE, 2);
    guest.save(&guest.in_files("one"), Kind::Diff).unwrap();
    guest.fill(2 * PAGE_SIZE, 0);
    guest.fill(RAM - PAGE_SIZE, 3);
    guest.save(&guest.in_files("two"), Kind::Diff).unwrap();
    guest
}

/// Merges memory files.
fn merged(guest: &Guest, names: [&str; 3]) -> Result<(), MergeError> {
    let [base, diff, out] = names.map(|name| guest.path(name));
    merge(&base, &diff, &out)
}

/// The state of one snapshot with another one's memory.
fn with(guest: &Guest, state: &str, memory: &str) -> Place {
    Place::Files {
        snapshot: guest.path(state),
        memory: guest.path(memory),
    }
}

#[test]
fn memory_files_are_merged_without_their_states() {
    let mut guest = chain();
    merged(&guest, ["base.memory", "one.memory", "whole"]).unwrap();
    Snapshot::open(&with(&guest, "one.state", "whole")).unwrap();
    let copy = fs::read(guest.path("whole")).unwrap();
    merged(&guest, ["whole", "two.memory", "whole"]).unwrap();
    let whole = with(&guest, "two.state", "whole");
    guest.is(&whole);
    // Firecracker's tool makes the same of it, and either goes on with what the other has made.
    fs::write(guest.path("theirs"), copy).unwrap();
    rebase(&guest.path("two.memory"), &guest.path("theirs"));
    guest.is(&with(&guest, "two.state", "theirs"));
    guest.restore(&whole);
    guest.fill(5 * PAGE_SIZE, 0);
    guest.save(&guest.in_files("three"), Kind::Diff).unwrap();
    merged(&guest, ["theirs", "three.memory", "out"]).unwrap();
    guest.is(&with(&guest, "three.state", "out"));
    rebase(&guest.path("three.memory"), &guest.path("whole"));
    guest.is(&with(&guest, "three.state", "whole"));
}

/// A copy that turned zeros into holes: the list still has them.
#[test]
fn a_page_that_became_zero_is_zero_even_if_the_file_has_a_hole_there() {
    let guest = chain();
    let diff = File::options()
        .write(true)
        .open(guest.path("two.memory"))
        .unwrap();
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&diff, punch, 2 * PAGE_SIZE, PAGE_SIZE).unwrap();
    merged(&guest, ["base.memory", "one.memory", "whole"]).unwrap();
    merged(&guest, ["whole", "two.memory", "whole"]).unwrap();
    guest.is(&with(&guest, "two.state", "whole"));
}

#[test]
fn a_directory_of_a_chain_is_a_base_by_its_memory() {
    let mut guest = Guest::new(RAM);
    guest.fill(0, 1);
    guest.save(&guest.in_dir("base"), Kind::Diff).unwrap();
    guest.fill(PAGE_SIZE, 2);
    guest.save(&guest.in_dir("diff"), Kind::Diff).unwrap();
    guest.fill(0, 0);
    guest.save(&guest.in_files("two"), Kind::Diff).unwrap();
    merged(&guest, ["base", "diff", "whole"]).unwrap();
    merged(&guest, ["whole/memory", "two.memory", "out"]).unwrap();
    guest.is(&with(&guest, "two.state", "out"));
}

#[test]
fn files_that_do_not_belong_together_are_not_merged() {
    let mut guest = chain();
    guest.save(&guest.in_dir("dir"), Kind::Full).unwrap();
    let mut larger = Guest::new(RAM + MIB);
    larger.save(&larger.in_files("base"), Kind::Full).unwrap();
    fs::rename(larger.path("base.memory"), guest.path("larger")).unwrap();
    for (names, why) in [
        (
            ["base.memory", "two.memory", "out"],
            "merge Diffs in their order",
        ),
        (
            ["one.memory", "two.memory", "out"],
            "only what changed since snapshot",
        ),
        (
            ["base.memory", "base.memory", "out"],
            "the second snapshot is whole already",
        ),
        (
            ["larger", "one.memory", "out"],
            "not complete or not of mini-vmm",
        ),
        (
            ["base.state", "one.memory", "out"],
            "not complete or not of mini-vmm",
        ),
        (
            ["base.memory", "one.state", "out"],
            "not complete or not of mini-vmm",
        ),
        (["dir", "one.memory", "out"], "is a file and"),
        (["base.memory", "dir", "out"], "is a file and"),
        (["none", "one.memory", "out"], "can't read"),
        (["base.memory", "none", "out"], "can't read"),
        (
            ["base.memory", "one.memory", "base.state"],
            "exists and is no snapshot",
        ),
        (["base.memory", "one.memory", "dir"], "is no regular file"),
    ] {
        let before = fs::read(guest.path("base.state")).unwrap();
        let error = merged(&guest, names).unwrap_err().to_string();
        assert!(error.contains(why), "{names:?}: {error}");
        assert_eq!(fs::read(guest.path("base.state")).unwrap(), before);
        assert!(!guest.path("out").exists());
    }
    // What a merge replaces: nothing, an empty file, and a memory file.
    fs::write(guest.path("out"), "").unwrap();
    for out in ["out", "out", "one.memory"] {
        merged(&guest, ["base.memory", "one.memory", out]).unwrap();
        Snapshot::open(&with(&guest, "one.state", out)).unwrap();
    }
}

/// The sizes of a guest that a Diff's size can tell: also such that the list's last byte is not full.
#[test]
fn the_size_of_a_diff_tells_its_guests() {
    for pages in [0, 1, 7, 8, 9, 8000] {
        let mut guest = Guest::new(RAM + pages * PAGE_SIZE);
        guest.save(&guest.in_files("base"), Kind::Full).unwrap();
        guest.fill(RAM - PAGE_SIZE, 1);
        guest.save(&guest.in_files("one"), Kind::Diff).unwrap();
        merged(&guest, ["base.memory", "one.memory", "whole"]).unwrap();
        Snapshot::open(&with(&guest, "one.state", "whole")).unwrap();
        let file = File::options()
            .write(true)
            .open(guest.path("one.memory"))
            .unwrap();
        let size = file.metadata().unwrap().len();
        for size in [size - 1, size + 1, 0, 1, u64::MAX / 2] {
            file.set_len(size).unwrap_or_default();
            if file.metadata().unwrap().len() == size {
                merged(&guest, ["base.memory", "one.memory", "out"]).unwrap_err();
            }
        }
    }
}
