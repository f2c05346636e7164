// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a disk uses on the host: its back end and its limiter, which the VMM may change.

use std::io;

use virtio_transport::device::Io;
use vm_memory::GuestAddressSpace;

use super::{BELL, Block, DONE, NEXT_DONE, READABLE, TIMER};
use crate::block::backend::Backend;
use crate::block::config::QUEUE_SIZE;
use crate::block::disk::SECTOR;
use crate::block::image::Content;
use crate::rate::Limiter;

impl<M: GuestAddressSpace> Block<M> {
    /// Checks the image's size. Returns whether it has changed.
    pub(super) fn measure(&mut self) -> bool {
        let size = match &self.backend {
            Some(backend) => backend.size(),
            None => self.content().and_then(|content| content.size()),
        };
        // If the size is unknown, keep the old one. Requests then fail with I/O errors.
        let sectors = size.map_or(self.disk.sectors, |size| size / SECTOR);
        std::mem::replace(&mut self.disk.sectors, sectors) != sectors
    }

    fn content(&self) -> io::Result<Content> {
        let content = self.control.content();
        content.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Creates a back end for the image as it is now.
    fn create(&mut self) -> io::Result<(Box<dyn Backend>, Content)> {
        let content = self.content()?;
        let depth = u32::from(QUEUE_SIZE) * u32::from(self.disk.queues);
        Ok((content.backend(depth, &mut self.reporter)?, content))
    }

    /// Whether the image was replaced since the back end was created.
    pub(super) fn is_outdated(&self) -> bool {
        self.version != self.control.version()
    }

    /// Creates the back end if it doesn't exist yet, or is that of an older image. If that fails, an older one stays.
    fn equip(&mut self) -> io::Result<&dyn Backend> {
        if self.backend.is_none() || self.is_outdated() {
            // Not later: it may be replaced again meanwhile.
            let version = self.control.version();
            match self.create() {
                Ok((backend, content)) => {
                    self.backend = Some(backend);
                    self.adopt(&content, version);
                }
                Err(error) if self.backend.is_some() => self.keep(version, error),
                Err(error) => return Err(error),
            }
        }
        let backend = self.backend.as_deref();
        backend.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Takes over what the driver can't see.
    fn adopt(&mut self, content: &Content, version: u32) {
        self.disk.alignment = content.disk.alignment;
        self.disk.length_alignment = content.disk.length_alignment;
        self.version = version;
    }

    /// Replaces the back end by one for the new image. On failure the old one stays.
    pub(super) fn replace(&mut self, io: &mut Io<'_>) {
        self.replacing = false;
        let version = self.control.version();
        let token = DONE ^ NEXT_DONE ^ self.done_token;
        let replaced = self.create().and_then(|(backend, content)| {
            io.watch(backend.source(), token, READABLE)?;
            Ok((backend, content))
        });
        match replaced {
            Ok((backend, content)) => {
                if let Some(old) = self.backend.replace(backend) {
                    let _ = io.unwatch(old.source(), self.done_token);
                }
                self.done_token = token;
                self.adopt(&content, version);
                if self.measure() {
                    io.config_changed();
                }
            }
            Err(error) => self.keep(version, error),
        }
    }

    /// Goes on with the old image instead of that of `version`.
    fn keep(&mut self, version: u32, error: io::Error) {
        self.version = version;
        self.reporter.unchanged("image", error);
    }

    /// The capacity of the image that it has when it runs again, and the one that the driver knows.
    pub(super) fn capacities(&self) -> (u64, u64) {
        let known = self.disk.sectors;
        if !self.is_outdated() {
            return (known, known);
        }
        let size = self.content().and_then(|content| content.size());
        (size.map_or(known, |size| size / SECTOR), known)
    }

    /// Makes the limiter, or changes it.
    pub(super) fn limit(&mut self, io: &mut Io<'_>) -> io::Result<()> {
        let limits = self.control.limits();
        let is_new = std::mem::replace(&mut self.limits, limits) != limits;
        match &mut self.limiter {
            Some(limiter) if is_new => limiter.set(limits),
            Some(_) => {}
            None => {
                let limiter = Limiter::new(limits)?;
                if let Some(limiter) = &limiter
                    && self.running.is_some()
                {
                    io.watch(limiter.source(), TIMER, READABLE)?;
                }
                self.limiter = limiter.map(Box::new);
            }
        }
        Ok(())
    }

    /// Does what the VMM asks for, or begins to.
    pub(super) fn obey(&mut self, io: &mut Io<'_>) {
        if let Err(error) = self.limit(io) {
            self.reporter.unchanged("limits", error);
        }
        self.replacing = self.is_outdated();
        if !self.replacing && self.measure() {
            io.config_changed();
        }
    }

    pub(super) fn watch(&mut self, io: &mut Io<'_>) -> io::Result<()> {
        let token = self.done_token;
        let backend = self.equip()?;
        io.watch(backend.source(), token, READABLE)?;
        io.watch(self.control.bell.source()?, BELL, READABLE)?;
        self.limit(io)?;
        match &self.limiter {
            Some(limiter) => io.watch(limiter.source(), TIMER, READABLE),
            None => Ok(()),
        }
    }

    pub(super) fn unwatch(&mut self, io: &mut Io<'_>) {
        if let Some(backend) = &self.backend {
            let _ = io.unwatch(backend.source(), self.done_token);
        }
        if let Ok(bell) = self.control.bell.source() {
            let _ = io.unwatch(bell, BELL);
        }
        if let Some(limiter) = &self.limiter {
            let _ = io.unwatch(limiter.source(), TIMER);
        }
        self.retry.unwatch(io);
        (self.throttled, self.crowded, self.replacing) = (0, false, false);
    }
}
