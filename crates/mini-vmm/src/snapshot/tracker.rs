// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which pages changed since a machine's last snapshot, or since it was restored.
//!
//! A page that is in use and no page of a file has been written by this process. So a restored machine's first Diff
//! costs nothing before it is taken. Later ones need marks that can be removed: those of userfaultfd (Linux 6.7), else
//! soft-dirty bits. Both see what the guest, KVM and devices write. KVM's dirty log does not see devices. A host with
//! neither leaves the larger list of the first Diff, which is also true.
//!
//! Pages that were given back to the host are known elsewhere ([`Returned`]), since the host forgets them.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::GuestMemoryMmap;

use super::format::Id;
use super::memory::{Entry, PAGE, in_all, pagemap, pages, pages_of, wanted};
use super::pages::Pages;
use super::spans::{Spans, union};
use crate::layout::PAGE_SIZE;
use crate::memory::Returned;
use crate::sys::written::{Marks, Written};

/// The snapshot that a Diff would continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its identity.
    pub id: Id,
    /// How many Diffs lie between it and a Full snapshot.
    pub depth: u32,
}

/// What is known about the changes of a machine's memory. The default is that of a machine without a snapshot.
#[derive(Debug, Default)]
pub struct Tracker {
    base: Option<Base>,
    /// How the host marks pages, if it does.
    marker: Option<Marker>,
    /// Pages whose marks are gone, but which are in no snapshot yet.
    unsaved: Spans,
}

impl Tracker {
    /// For a machine that goes on with the snapshot `base`, and maps its memory.
    pub(super) fn restored(base: Base) -> Self {
        Tracker {
            base: Some(base),
            ..Tracker::default()
        }
    }

    /// The last snapshot, if there is one.
    pub(super) fn base(&self) -> Option<Base> {
        self.base
    }

    /// Whether the host marks pages that are written.
    pub(super) fn is_marking(&self) -> bool {
        self.marker.is_some()
    }

    /// As on a host that can't mark pages.
    #[cfg(test)]
    pub(super) fn forget_marks(&mut self) {
        self.marker = None;
    }

    /// The pages of `memory` that may have changed since the last snapshot, or since the start if there is none.
    ///
    /// # Errors
    /// The host can't tell.
    pub(super) fn changed(&self, memory: &GuestMemoryMmap) -> io::Result<Spans> {
        match &self.marker {
            None => wanted(memory, Entry::is_private),
            Some(marker) => Ok(union(&self.unsaved, &marker.look(memory, Marks::Stay)?)),
        }
    }

    /// The pages of `memory`, which has `ram` bytes, that may have changed since the last snapshot, or since the start if
    /// there is none. `returned` are those that were given back to the host.
    ///
    /// # Errors
    /// The host can't tell.
    pub fn dirty(
        &self,
        memory: &GuestMemoryMmap,
        ram: u64,
        returned: Option<&Returned>,
    ) -> io::Result<Pages> {
        let Some(returned) = returned else {
            return Ok(Pages::new(&self.changed(memory)?, ram));
        };
        // A new mapping would be one that the host has no marks for.
        let changed = returned.hold(|| self.changed(memory))?;
        Ok(Pages::new(
            &union(&changed, &returned.since_snapshot()),
            ram,
        ))
    }

    /// As [`changed`](Self::changed), for a snapshot: from now on, new changes are marked if any are. Call
    /// [`saved`](Self::saved) if the snapshot succeeds.
    ///
    /// # Errors
    /// The host can't tell.
    pub(super) fn take(&mut self, memory: &GuestMemoryMmap) -> io::Result<Spans> {
        let Some(marker) = self.marker.take() else {
            return wanted(memory, Entry::is_private);
        };
        // After an error, some marks are gone. The list without marks has all of them.
        let new = marker.look(memory, Marks::Go)?;
        self.marker = Some(marker);
        self.unsaved = union(&self.unsaved, &new);
        Ok(self.unsaved.clone())
    }

    /// The machine has not run since [`take`](Self::take), and `base` is its snapshot now. `marks` says whether the host
    /// shall mark pages from now on, which costs the first write to each.
    pub(super) fn saved(&mut self, memory: &GuestMemoryMmap, base: Base, marks: bool) {
        self.base = Some(base);
        self.unsaved = Spans::new();
        if marks && self.marker.is_none() {
            self.marker = Marker::new(memory);
        }
    }
}

/// How the host marks pages that are written.
#[derive(Debug)]
enum Marker {
    Written(Written),
    SoftDirty(SoftDirty),
}

impl Marker {
    /// Lets the host mark pages of `memory`, if it can. None is marked at first.
    fn new(memory: &GuestMemoryMmap) -> Option<Self> {
        let written = || {
            let marker = Marker::Written(Written::new(memory)?);
            marker.look(memory, Marks::Go)?;
            Ok(marker)
        };
        let soft_dirty = || Ok(Marker::SoftDirty(SoftDirty::new()?));
        let refused = |error: io::Error| {
            log::debug!("no marks for changed memory: {error}");
            error
        };
        let marker = written().map_err(refused).or_else(|_| soft_dirty());
        marker.map_err(refused).ok()
    }

    /// The pages with marks.
    fn look(&self, memory: &GuestMemoryMmap, marks: Marks) -> io::Result<Spans> {
        let pagemap = pagemap()?;
        let all = in_all(memory, |region| match self {
            Marker::Written(written) => written.look(&pagemap, region, marks),
            Marker::SoftDirty(_) => pages_of(&pagemap, region, Entry::is_soft_dirty),
        })?;
        if let (Marker::SoftDirty(_), Marks::Go) = (self, marks) {
            SoftDirty::clear()?;
        }
        Ok(all)
    }
}

/// The soft-dirty bits of this process (Documentation/admin-guide/mm/soft-dirty.rst of Linux). They are removed for all
/// of it at once, so only one machine can have them.
#[derive(Debug)]
struct SoftDirty;

/// Whether a machine has the soft-dirty bits.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

impl SoftDirty {
    /// Removes the bits. Kernels without them take the request, too, so it is tried.
    fn new() -> io::Result<Self> {
        if IS_TAKEN.swap(true, Ordering::AcqRel) {
            return Err(io::Error::other("another machine has the soft-dirty bits"));
        }
        let taken = SoftDirty;
        let mut trial = vec![1u8; 3 * PAGE];
        let page = (trial.as_ptr() as u64).next_multiple_of(PAGE_SIZE);
        let at = (page - trial.as_ptr() as u64) as usize;
        let pagemap = pagemap()?;
        let is_dirty = || -> io::Result<bool> {
            Ok(!pages(&pagemap, page, PAGE_SIZE, Entry::is_soft_dirty)?.is_empty())
        };
        SoftDirty::clear()?;
        let before = is_dirty()?;
        std::hint::black_box(&mut trial)[at] = 2;
        match (before, is_dirty()?) {
            (false, true) => Ok(taken),
            _ => Err(io::Error::other("this kernel has no soft-dirty bits")),
        }
    }

    fn clear() -> io::Result<()> {
        std::fs::write("/proc/self/clear_refs", "4")
    }
}

impl Drop for SoftDirty {
    fn drop(&mut self) {
        IS_TAKEN.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::layout::MIB;
    use crate::memory::allocate;

    const RAM: u64 = 32 * MIB;

    fn write(memory: &GuestMemoryMmap, page: u64, value: u8) {
        let at = GuestAddress(page * PAGE_SIZE);
        memory.write_obj(value, at).unwrap();
    }

    fn marked(marker: &Marker, memory: &GuestMemoryMmap, marks: Marks) -> Vec<u64> {
        let spans = marker.look(memory, marks).unwrap();
        let pages = |span: &std::ops::Range<u64>| span.start / PAGE_SIZE..span.end / PAGE_SIZE;
        spans.iter().flat_map(pages).collect()
    }

    /// Writes before and after marks are removed, to old pages and new ones.
    fn check(marker: io::Result<Marker>, memory: &GuestMemoryMmap, name: &str) {
        let marker = match marker {
            Ok(marker) => marker,
            Err(error) => return eprintln!("SKIP: {name}: {error}"),
        };
        let used = wanted(memory, Entry::is_in_use).unwrap();
        marker.look(memory, Marks::Go).unwrap();
        assert_eq!(wanted(memory, Entry::is_in_use).unwrap(), used, "{name}");
        assert!(marked(&marker, memory, Marks::Stay).is_empty(), "{name}");
        for (page, value) in [(1, 0), (3, 9), (8000, 7)] {
            write(memory, page, value);
        }
        for marks in [Marks::Stay, Marks::Go] {
            let marked = marked(&marker, memory, marks);
            let (first, rest) = marked.split_at(2);
            assert_eq!(first, [1, 3], "{name}");
            // The host may have taken a huge page for it.
            assert!(rest.contains(&8000), "{name}: {rest:?}");
            assert!(
                rest.iter().all(|page| page / 512 == 8000 / 512),
                "{name}: {rest:?}"
            );
        }
        write(memory, 3, 9);
        assert_eq!(marked(&marker, memory, Marks::Go), [3], "{name}");
        assert!(marked(&marker, memory, Marks::Go).is_empty(), "{name}");
    }

    /// One after the other, as there is one set of soft-dirty bits. The kernels of the beds have these, and run tests with
    /// `kvm` in their names.
    #[test]
    fn kvm_hosts_mark_only_what_was_written_since() {
        let memory = || {
            let memory = allocate(RAM).unwrap();
            (0..10).for_each(|page| write(&memory, page, 1));
            memory
        };
        let first = memory();
        let written = Written::new(&first).map(Marker::Written);
        check(written, &first, "userfaultfd");
        let second = memory();
        let bits = SoftDirty::new();
        match &bits {
            // They are one machine's.
            Ok(_) => assert!(SoftDirty::new().is_err()),
            Err(error) => assert!(std::env::var_os("MINI_VMM_BED").is_none(), "{error}"),
        }
        check(bits.map(Marker::SoftDirty), &second, "soft-dirty bits");
    }
}
