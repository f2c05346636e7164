// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The interface between the device and the host's network.

use std::io;
use std::os::fd::BorrowedFd;

use thiserror::Error;

use crate::sys::{Frame, Room};

/// What moves the frames of a pair of queues to and from the host. It never blocks.
///
/// A frame starts with Ethernet's header, and has no checksum at its end. Where a link [has headers](Self::has_headers),
/// a `struct virtio_net_hdr` (virtio 1.4, 5.1.9) of 12 bytes describes each frame.
pub trait Link: Send {
    /// Becomes readable when there is a frame to receive, and writable when there is space for one to send.
    fn source(&self) -> BorrowedFd<'_>;

    /// A second source, which becomes readable when there is a frame to receive, such as a timer. Constant.
    fn alarm(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether it carries headers. Otherwise the guest can't leave checksums and segmentation to the host, and the other
    /// way round. Constant.
    fn has_headers(&self) -> bool;

    /// Sets what the driver handles in frames that it receives. Called before the first frame of each driver.
    ///
    /// # Errors
    /// [`LinkError`].
    fn configure(&mut self, offloads: Offloads) -> Result<(), LinkError>;

    /// Switches its pair of queues on or off. Switched off, it has no frames to receive.
    ///
    /// # Errors
    /// [`LinkError`].
    fn set_active(&mut self, active: bool) -> Result<(), LinkError>;

    /// Forgets what it knows of the driver, because another one follows. Nothing by default.
    fn forget(&mut self) {}

    /// Sends a frame, completely or not at all.
    ///
    /// # Errors
    /// [`LinkError`]. After [`Busy`](LinkError::Busy) the frame is sent again later.
    fn send(&mut self, frame: &mut Frame<'_>) -> Result<(), LinkError>;

    /// Sends what it still holds of frames that `send` took.
    ///
    /// # Errors
    /// [`LinkError`]; [`Busy`](LinkError::Busy) if it still holds something.
    fn flush(&mut self) -> Result<(), LinkError> {
        Ok(())
    }

    /// Receives a frame. Returns its length in bytes, without the header.
    ///
    /// # Errors
    /// [`LinkError`]; [`Busy`](LinkError::Busy) if there is no frame. Only after an error the source tells of the next
    /// one.
    fn receive(&mut self, room: Room<'_>) -> Result<usize, LinkError>;
}

/// What a driver handles in frames that it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums that are not complete.
    pub csum: bool,
    /// TCP over IPv4 in frames that are longer than the MTU.
    pub tso4: bool,
    /// TCP over IPv6 in frames that are longer than the MTU.
    pub tso6: bool,
}

/// Why a frame is not sent or received.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// Not now: wait for the source.
    #[error("the link is busy")]
    Busy,
    /// Not this frame.
    #[error("the link refused a frame: {0}")]
    Refused(#[source] io::Error),
    /// The link is down. Its source becomes writable when it is up again.
    #[error("the link is down: {0}")]
    Down(#[source] io::Error),
    /// The link is gone for good.
    #[error("the link is lost: {0}")]
    Lost(#[source] io::Error),
}
