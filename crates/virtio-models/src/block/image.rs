// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An opened image.

use std::fmt;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io;
use std::sync::Arc;

use super::backend::Backend;
use super::control::{Control, ReplaceError};
use super::disk::Disk;
use super::pool::{Blocking, Pool, file_size};
use super::report::Reporter;
use super::spec::Engine;
use super::uring::Uring;
use crate::rate::Limits;

/// An opened image with its disk's properties. Its lock is held until it and its clones are dropped.
///
/// A clone is the same image: for a machine that is built anew after a reset. So what its [`Control`] changes holds for
/// all clones.
#[derive(Clone, Debug)]
pub struct Image(Arc<Control>);

/// What an image is now.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub disk: Disk,
    source: Source,
    engine: Engine,
}

/// What is read and written.
#[derive(Clone)]
enum Source {
    Raw(Arc<File>),
    Blocking(Arc<dyn Blocking>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Raw(file) => f.debug_tuple("Raw").field(file).finish(),
            Source::Blocking(_) => f.debug_tuple("Blocking").finish(),
        }
    }
}

/// Only clones are the same image.
impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Image {}

impl Hash for Image {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl Image {
    /// An image of any format. Threads perform its operations. `disk.sectors` is set from its size.
    ///
    /// # Errors
    /// The image's failure; `ErrorKind::InvalidInput` if a field of `disk` is out of range.
    pub fn blocking(image: Arc<dyn Blocking>, disk: Disk) -> io::Result<Self> {
        if !disk.is_possible() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let sectors = image.size()? / super::SECTOR;
        Ok(Image::new(Content {
            disk: Disk { sectors, ..disk },
            source: Source::Blocking(image),
            engine: Engine::Sync,
        }))
    }

    /// A raw image in a file or block device that the caller opened. It is not locked. `disk.sectors` is set from the
    /// file.
    ///
    /// # Errors
    /// The host's failure; `ErrorKind::InvalidInput` if a field of `disk` is out of range.
    pub fn raw(file: impl Into<Arc<File>>, disk: Disk) -> io::Result<Self> {
        if !disk.is_possible() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file = file.into();
        let sectors = file_size(&file)? / super::SECTOR;
        Ok(Image::new(Content {
            disk: Disk { sectors, ..disk },
            source: Source::Raw(file),
            engine: Engine::Auto,
        }))
    }

    fn new(content: Content) -> Self {
        Image(Arc::new(Control::new(content)))
    }

    /// Chooses what reads and writes a raw image. Threads do it for others.
    #[must_use]
    pub fn with_engine(self, engine: Engine) -> Self {
        self.0.edit(|content| content.engine = engine);
        self
    }

    /// Sets the disk's limits per second.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        self.0.limit(limits);
        self
    }

    /// The disk's properties, as the driver sees them. Its size is that at the time when the image was opened.
    pub fn disk(&self) -> Disk {
        self.content()
            .map_or_else(Disk::default, |content| content.disk)
    }

    pub(super) fn into_control(self) -> Arc<Control> {
        self.0
    }

    pub(super) fn content(&self) -> Option<Content> {
        self.0.content()
    }
}

impl Content {
    /// Becomes `new`, if the guest notices nothing but another size.
    pub fn replace(&mut self, new: Content) -> Result<(), ReplaceError> {
        let (old, disk) = (self.disk, new.disk);
        let is_raw = |content: &Content| matches!(content.source, Source::Raw(_));
        if !is_raw(self) || !is_raw(&new) {
            return Err(ReplaceError::NotRaw);
        }
        if old.readonly != disk.readonly {
            return Err(ReplaceError::Readonly);
        }
        if old.block_size != disk.block_size {
            let (old, new) = (old.block_size, disk.block_size);
            return Err(ReplaceError::BlockSize { old, new });
        }
        self.disk = Disk {
            sectors: disk.sectors,
            alignment: disk.alignment,
            length_alignment: disk.length_alignment,
            ..old
        };
        self.source = new.source;
        Ok(())
    }

    /// The current size in bytes.
    pub fn size(&self) -> io::Result<u64> {
        match &self.source {
            Source::Raw(file) => file_size(file),
            Source::Blocking(image) => image.size(),
        }
    }

    /// A handle to the file of an overlay.
    pub fn overlay(&self) -> io::Result<Option<File>> {
        match &self.source {
            Source::Raw(_) => Ok(None),
            Source::Blocking(image) => image.overlay().map(File::try_clone).transpose(),
        }
    }

    /// Creates a back end for up to `depth` operations in flight.
    pub fn backend(&self, depth: u32, reporter: &mut Reporter) -> io::Result<Box<dyn Backend>> {
        let file = match &self.source {
            Source::Raw(file) => file,
            Source::Blocking(image) => return Ok(Box::new(Pool::new(Arc::clone(image))?)),
        };
        match self.engine {
            Engine::Auto => choose(Uring::new(file, depth), file, reporter),
            Engine::Sync => threads(file),
            Engine::Async => Ok(Box::new(Uring::new(file, depth)?)),
        }
    }
}

fn threads(file: &Arc<File>) -> io::Result<Box<dyn Backend>> {
    Ok(Box::new(Pool::new(Arc::clone(file) as _)?))
}

/// The ring, or threads if the host refused it.
fn choose(
    ring: io::Result<Uring>,
    file: &Arc<File>,
    reporter: &mut Reporter,
) -> io::Result<Box<dyn Backend>> {
    match ring {
        Ok(ring) => Ok(Box::new(ring)),
        Err(error) => {
            reporter.no_uring(error);
            threads(file)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::block::{Notice, Operation};

    #[test]
    fn threads_do_what_a_refused_ring_would() {
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        for errno in [libc::ENOSYS, libc::EPERM, libc::ENOMEM] {
            let (said, notices) = mpsc::channel();
            let mut reporter = Reporter::new(Box::new(move |notice| {
                said.send(notice).expect("a listener");
            }));
            let refused = Err(io::Error::from_raw_os_error(errno));
            let mut backend = choose(refused, &file, &mut reporter).expect("threads");
            let told: Vec<Notice> = notices.try_iter().collect();
            assert!(matches!(told[..], [Notice::NoUring(_)]), "{told:?}");
            backend.push(7, Operation::Flush);
            assert!(backend.submit());
            let mut done = Vec::new();
            while done.is_empty() {
                let source = backend.source();
                let mut fds = [PollFd::from_borrowed_fd(source, PollFlags::IN)];
                poll(&mut fds, None).expect("a wait");
                backend.reap(&mut done);
            }
            assert!(done[0].token == 7 && done[0].result.is_ok());
        }
    }
}
