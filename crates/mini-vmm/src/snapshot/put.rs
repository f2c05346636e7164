// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writes the parts of a snapshot, and notes what a later one has to write.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use vm_memory::GuestMemoryMmap;

use super::format::{Kind, MAX_DEPTH, Manifest};
use super::memory::{self, Zeros};
use super::overlays::Overlay;
use super::spans::{Spans, union};
use super::store::{self, Contents};
use super::tail::{self, Tail};
use super::tracker::{Base, Tracker};
use super::{Error, Place, load};
use crate::config::VmSpec;
use crate::memory::Returned;

/// What a snapshot shall be.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Where.
    pub place: &'a Place,
    /// Which pages it has. A machine without a snapshot has no Diff, and gets a Full one.
    pub kind: Kind,
}

impl Wish<'_> {
    /// The snapshot that a Diff will continue. A Full one continues none.
    ///
    /// # Errors
    /// A Diff would take the place of its base, or its chain is too long.
    pub(super) fn base(
        &self,
        tracker: Option<&Tracker>,
        spec: &VmSpec,
    ) -> Result<Option<Base>, Error> {
        let base = tracker.and_then(Tracker::base);
        let Some(base) = base.filter(|_| self.kind == Kind::Diff) else {
            return Ok(None);
        };
        if base.depth >= MAX_DEPTH {
            return Err(Error::LongChain);
        }
        match load::identity(self.place, spec.memory) {
            Some(id) if id == base.id => Err(Error::OwnBase),
            _ => Ok(Some(base)),
        }
    }
}

/// What a snapshot of a paused machine is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content<'a> {
    pub manifest: &'a Manifest,
    pub state: &'a [u8],
    pub memory: &'a GuestMemoryMmap,
    /// Whether another process brings the memory, so that not all of it is here.
    pub is_served: bool,
    /// What of it went back to the host, if a device does that.
    pub returned: Option<&'a Returned>,
    pub overlays: &'a [Overlay],
}

impl Content<'_> {
    /// Writes the snapshot. `goes_on` is asked every few milliseconds.
    ///
    /// # Errors
    /// [`Error`] says what failed, such as that `goes_on` said no. What was at the place is unchanged.
    pub fn put(
        &self,
        spec: &VmSpec,
        wish: Wish<'_>,
        mut tracker: Option<&mut Tracker>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let manifest = self.manifest;
        let pages = self
            .pages(tracker.as_deref_mut())
            .map_err(|reason| Error::Host {
                what: "read",
                path: PathBuf::from("/proc/self/pagemap"),
                reason,
            })?;
        let zeros = match (wish.place, manifest.kind) {
            // Other tools may merge it, and they see a hole as no change.
            (Place::Files { .. }, Kind::Diff) => Zeros::Written,
            _ => Zeros::Holes,
        };
        let fill = |file: &File| {
            memory::write(file, self.memory, &pages, zeros, goes_on)?;
            finish(file, manifest, &pages)
        };
        self.store(spec, wish.place, &fill, goes_on)?;
        if let Some(tracker) = tracker {
            let base = Base {
                id: manifest.id,
                depth: manifest.depth,
            };
            let marks = spec.track_dirty_pages || wish.kind == Kind::Diff;
            tracker.saved(self.memory, base, marks);
            self.returned.inspect(|returned| returned.saved());
        }
        Ok(())
    }

    /// The pages that the snapshot has.
    fn pages(&self, tracker: Option<&mut Tracker>) -> io::Result<Spans> {
        let Content {
            memory,
            manifest,
            returned,
            ..
        } = *self;
        match (manifest.kind, tracker) {
            (Kind::Diff, Some(tracker)) => {
                let changed = tracker.take(memory)?;
                // The host does not tell that they are zero now.
                let returned = returned.map_or(Spans::new(), Returned::since_snapshot);
                return Ok(union(&changed, &returned));
            }
            (Kind::Full, Some(tracker)) if tracker.is_marking() => drop(tracker.take(memory)?),
            _ => {}
        }
        match self.is_served {
            // What no one has asked for yet is not known here.
            true => Ok(std::iter::once(0..manifest.parts.memory.size).collect()),
            false => {
                let replaced = returned.map_or(Spans::new(), Returned::replaced);
                memory::touched(memory, &replaced)
            }
        }
    }

    fn store(
        &self,
        spec: &VmSpec,
        place: &Place,
        fill: &dyn Fn(&File) -> io::Result<()>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let copy = |disk: usize, to: &File| {
            let mut overlays = self.overlays.iter();
            let overlay = overlays.find(|overlay| overlay.disk() == disk);
            overlay.map_or(Ok(0), |overlay| overlay.copy_to(to, goes_on))
        };
        let disks: Vec<_> = self.overlays.iter().map(Overlay::disk).collect();
        let manifest = |sums: &[u32]| {
            let mut manifest = self.manifest.clone();
            for (part, sum) in manifest.parts.overlays.iter_mut().zip(sums) {
                part.crc32 = *sum;
            }
            Ok(match place {
                Place::Directory(_) => serde_json::to_vec_pretty(&manifest)?,
                Place::Files { .. } => serde_json::to_vec(&manifest)?,
            })
        };
        let contents = Contents {
            manifest: &manifest,
            state: self.state,
            memory: fill,
            overlays: &disks,
            overlay: &copy,
        };
        match place {
            Place::Directory(dir) => store::write_directory(dir, &contents),
            Place::Files { snapshot, memory } => {
                store::write_files(snapshot, memory, spec, &contents)
            }
        }
    }
}

/// Writes what follows the guest's bytes in a memory file.
fn finish(file: &File, manifest: &Manifest, pages: &[Range<u64>]) -> io::Result<()> {
    let ram = manifest.parts.memory.size;
    if manifest.kind == Kind::Diff {
        tail::write_list(file, ram, pages)?;
    }
    let tail = Tail {
        id: manifest.id,
        size: ram,
        parent: manifest.parent,
    };
    file.write_all_at(tail.text().as_bytes(), tail::page_at(ram, manifest.depth))
}

#[cfg(test)]
mod tests;
