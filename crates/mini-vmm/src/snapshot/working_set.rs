// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a restored machine touched of its memory, so that the next one from the same snapshot need not wait for it.
//!
//! It is a hint: without it, or with another one, a machine only starts slower.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use log::{debug, warn};
use rustix::fs::Advice;
use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use super::Place;
use super::format::{Id, Manifest};
use super::load::{Error, brief, read};
use super::memory;
use super::spans::Spans;
use super::store::{NEW_WORKING_SET, WORKING_SET};
use crate::layout::PAGE_SIZE;
use crate::sys::huge_pages::read_singly;

/// The most bytes of its file.
const MAX_FILE: u64 = 4 << 20;
/// The most ranges in it.
const MAX_RANGES: usize = 1 << 16;
/// The most bytes that are read ahead. A hostile file could otherwise push all else out of the host's cache.
const MAX_AHEAD: u64 = 4 << 30;

/// The file. Ranges are offsets in the memory file: the first byte, and one past the last.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    /// The snapshot that it belongs to.
    id: Id,
    ranges: Vec<(u64, u64)>,
}

/// What a machine from this snapshot has touched, if one was recorded. Without it, the restore is only slower.
pub(super) fn of(place: &Place, manifest: &Manifest) -> Spans {
    let Place::Directory(dir) = place else {
        return Spans::new();
    };
    let path = dir.join(WORKING_SET);
    let bytes = match read(&path, MAX_FILE) {
        Err(Error::Read { reason, .. }) if reason.kind() == io::ErrorKind::NotFound => {
            return Spans::new();
        }
        result => result.map_err(|error| brief(&error)),
    };
    let spans = bytes.and_then(|bytes| {
        let ram = manifest.parts.memory.size;
        parse(&bytes, manifest.id, ram).map_err(|reason| brief(&reason))
    });
    spans.unwrap_or_else(|reason| {
        warn!("{path:?} is not used ({reason}); record it again, or remove it");
        Spans::new()
    })
}

/// Reads ranges of a memory file of `ram` bytes that belongs to the snapshot `id`.
fn parse(bytes: &[u8], id: Id, ram: u64) -> Result<Spans, String> {
    let recorded: Recorded = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if recorded.id != id {
        return Err("it belongs to another snapshot".to_owned());
    }
    if recorded.ranges.len() > MAX_RANGES {
        return Err("it has too many ranges".to_owned());
    }
    let mut end = 0;
    let mut spans = Spans::with_capacity(recorded.ranges.len());
    for (from, to) in recorded.ranges {
        let is_whole = from.is_multiple_of(PAGE_SIZE) && to.is_multiple_of(PAGE_SIZE);
        if !is_whole || from < end || from >= to || to > ram {
            return Err(format!("{from} to {to} is no range, or not in order"));
        }
        end = to;
        spans.push(from..to);
    }
    Ok(spans)
}

/// Lets the host read `spans` of `file`, in a thread that lives until all reads are under way.
pub(super) fn read_ahead(file: &File, spans: Spans) {
    if spans.is_empty() {
        return;
    }
    let Ok(file) = file.try_clone() else {
        return;
    };
    let read = move || {
        for span in within(spans, MAX_AHEAD) {
            let length = std::num::NonZeroU64::new(span.end - span.start);
            // It is only advice.
            let _ = rustix::fs::fadvise(&file, span.start, length, Advice::WillNeed);
        }
    };
    let thread = thread::Builder::new().name("read-ahead".to_owned());
    if let Err(error) = thread.spawn(read) {
        debug!("nothing is read ahead: {error}");
    }
}

/// The first `most` bytes of `spans`.
fn within(spans: Spans, most: u64) -> impl Iterator<Item = Range<u64>> {
    spans.into_iter().scan(most, |left, span| {
        let length = (span.end - span.start).min(*left);
        *left -= length;
        (length > 0).then(|| span.start..span.start + length)
    })
}

/// Records what a machine touches.
#[derive(Debug)]
pub struct Recorder {
    id: Id,
    dir: PathBuf,
    memory: GuestMemoryMmap,
}

impl Recorder {
    /// For a machine that goes on with the snapshot `id` in `dir`, and has this memory.
    ///
    /// The host maps neighbours of a page that is touched if it has them in its cache, and they would count as touched. So
    /// the file leaves the cache, as far as nobody else has it mapped, and is read page by page. This machine is slower.
    pub fn new(id: Id, dir: &Path, memory: &GuestMemoryMmap) -> Self {
        for region in memory.iter() {
            if let Some(file) = region.file_offset() {
                // It is only advice.
                let _ = rustix::fs::fadvise(file.file(), 0, None, Advice::DontNeed);
            }
            read_singly(region);
        }
        Recorder {
            id,
            dir: dir.to_owned(),
            memory: memory.clone(),
        }
    }

    /// Writes what was touched until now, beside the snapshot. A failure is a warning, since the machine has already run.
    pub fn finish(self) {
        match self.write() {
            Ok(bytes) => debug!("the working set has {bytes} bytes"),
            Err(error) => warn!(
                "can't write the working set to {:?} ({error}); the next restores do without",
                self.dir
            ),
        }
    }

    fn write(&self) -> io::Result<u64> {
        let spans = fewer(
            memory::wanted(&self.memory, memory::Entry::is_in_use)?,
            MAX_RANGES,
        );
        let recorded = Recorded {
            id: self.id,
            ranges: spans.iter().map(|span| (span.start, span.end)).collect(),
        };
        let new = self.dir.join(NEW_WORKING_SET);
        // A link of a stranger's snapshot could lead to any file, so what is there goes away, and a new file is made.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec(&recorded)?)?;
        // Not synced: what is lost is only a hint, and half of it can't be parsed.
        fs::rename(new, self.dir.join(WORKING_SET))?;
        Ok(spans.iter().map(|span| span.end - span.start).sum())
    }
}

/// At most `most` ranges, which hold all of `spans` and the shortest gaps between them.
fn fewer(mut spans: Spans, most: usize) -> Spans {
    let mut gap = PAGE_SIZE;
    while spans.len() > most {
        gap *= 2;
        spans.dedup_by(|next, last| {
            let is_near = next.start - last.end <= gap;
            if is_near {
                last.end = next.end;
            }
            is_near
        });
    }
    spans
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: Id = Id([7; 16]);
    const RAM: u64 = 1 << 30;

    fn file(ranges: &[(u64, u64)]) -> Vec<u8> {
        let ranges = ranges.to_vec();
        serde_json::to_vec(&Recorded { id: ID, ranges }).unwrap()
    }

    #[test]
    fn ranges_are_read_as_they_were_written() {
        let good = file(&[(0, 4096), (8192, 16384), (RAM - 4096, RAM)]);
        let spans = parse(&good, ID, RAM).unwrap();
        assert_eq!(spans, [0..4096, 8192..16384, RAM - 4096..RAM]);
        let other = parse(&good, Id([8; 16]), RAM).unwrap_err();
        assert!(other.contains("another snapshot"), "{other}");
    }

    #[test]
    fn lies_are_refused() {
        for ranges in [
            &[(0, 0)][..],
            &[(4096, 0)],
            &[(1, 4096)],
            &[(0, 4097)],
            &[(0, RAM + 4096)],
            &[(8192, 12288), (4096, 8192)],
            &[(0, 8192), (4096, 12288)],
            &[(u64::MAX - 4095, u64::MAX)],
        ] {
            assert!(parse(&file(ranges), ID, RAM).is_err(), "{ranges:?}");
        }
        let many: Vec<_> = (0..=MAX_RANGES as u64)
            .map(|n| (n * 8192, n * 8192 + 4096))
            .collect();
        let error = parse(&file(&many), ID, RAM).unwrap_err();
        assert!(error.contains("too many"), "{error}");
        let good = file(&[(0, 4096)]);
        for end in 0..good.len() {
            assert!(parse(&good[..end], ID, RAM).is_err(), "{end}");
        }
    }

    #[test]
    fn a_link_in_the_snapshot_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        fs::write(&other, "other").unwrap();
        std::os::unix::fs::symlink(&other, dir.path().join(NEW_WORKING_SET)).unwrap();
        let memory = crate::memory::allocate(32 << 20).unwrap();
        Recorder::new(ID, dir.path(), &memory).finish();
        assert_eq!(fs::read(&other).unwrap(), b"other");
        let recorded = fs::read(dir.path().join(WORKING_SET)).unwrap();
        parse(&recorded, ID, 32 << 20).unwrap();
    }

    #[test]
    fn only_so_much_is_read_ahead() {
        let some: Vec<_> = within(vec![0..8192, 12288..20480, 24576..28672], 12288).collect();
        assert_eq!(some, [0..8192, 12288..16384]);
    }

    proptest! {
        /// Whatever was touched stays in it, and it can be read again.
        #[test]
        fn many_ranges_become_fewer(pages in proptest::collection::btree_set(0u64..5000, 1..300), most in 1usize..40) {
            let mut spans = Spans::new();
            for page in &pages {
                match spans.last_mut() {
                    Some(last) if last.end == page * PAGE_SIZE => last.end += PAGE_SIZE,
                    _ => spans.push(page * PAGE_SIZE..(page + 1) * PAGE_SIZE),
                }
            }
            let few = fewer(spans, most);
            prop_assert!(few.len() <= most);
            for page in &pages {
                prop_assert!(few.iter().any(|span| span.contains(&(page * PAGE_SIZE))));
            }
            let ranges: Vec<_> = few.iter().map(|span| (span.start, span.end)).collect();
            prop_assert_eq!(parse(&file(&ranges), ID, RAM).unwrap(), few);
        }
    }
}
