// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM's control of a running disk.

use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use super::image::{Content, Image};
use crate::bell::Bell;
use crate::rate::Limits;

/// Sends commands to a disk, from any thread. They also hold for later disks of the same [`Image`].
///
/// A device that doesn't run obeys when it starts.
#[derive(Debug, Default)]
pub struct Control {
    pub(super) bell: Bell,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    limits: Limits,
    /// `None` for a back end of the caller's.
    content: Option<Content>,
    /// How often the content was replaced.
    version: u32,
}

/// Why an image can't take the place of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReplaceError {
    /// One of them is no raw image.
    #[error("only a raw image without an overlay can be replaced, and only by one")]
    NotRaw,
    /// The guest knows whether it may write.
    #[error("both images must be readonly, or neither")]
    Readonly,
    /// The guest knows the block size.
    #[error("the images have blocks of different sizes: {old} and {new} bytes")]
    BlockSize {
        /// In bytes.
        old: u32,
        /// In bytes.
        new: u32,
    },
}

impl Control {
    pub(super) fn new(content: Content) -> Self {
        let state = State {
            content: Some(content),
            ..State::default()
        };
        Control {
            bell: Bell::default(),
            state: Mutex::new(state),
        }
    }

    /// Makes the device check the image's size, and tell its driver about a change.
    pub fn resize(&self) {
        self.bell.ring();
    }

    /// Changes the limits. Requests that wait for one that changes wait no longer.
    pub fn limit(&self, limits: Limits) {
        self.state().limits = limits;
        self.bell.ring();
    }

    /// Replaces the image by `new`, with its lock. The device finishes the requests in flight on the old one, and then
    /// closes it and tells its driver about the size of the new one. Requests meanwhile wait for the new one.
    ///
    /// # Errors
    /// [`ReplaceError`]: the guest would notice more than another size, or the old image can't be left behind.
    pub fn replace(&self, new: &Image) -> Result<(), ReplaceError> {
        // Two locks, never at once: the images may be each other's.
        let new = new.content().ok_or(ReplaceError::NotRaw)?;
        let mut state = self.state();
        let old = state.content.as_mut().ok_or(ReplaceError::NotRaw)?;
        old.replace(new)?;
        state.version += 1;
        drop(state);
        self.bell.ring();
        Ok(())
    }

    /// A handle to the overlay's file, if the image has an overlay. What the guest wrote is all in it while the device is
    /// stopped, after a flush. A copy is for [`open_saved`](super::open_saved).
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn overlay(&self) -> io::Result<Option<File>> {
        self.content().map_or(Ok(None), |content| content.overlay())
    }

    pub(super) fn limits(&self) -> Limits {
        self.state().limits
    }

    pub(super) fn version(&self) -> u32 {
        self.state().version
    }

    pub(super) fn content(&self) -> Option<Content> {
        self.state().content.clone()
    }

    /// Changes the content of an image that no device has yet.
    pub(super) fn edit(&self, edit: impl FnOnce(&mut Content)) {
        if let Some(content) = &mut self.state().content {
            edit(content);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
