// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The segments of a chain, for system calls that access them.

use virtio_transport::chain::Segment;
use virtio_transport::memory::View;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use crate::sys::pieces;

/// Segments as addresses and lengths.
pub(crate) fn places(segments: &[Segment]) -> impl Iterator<Item = (GuestAddress, usize)> + '_ {
    let place = |segment: &Segment| (segment.address, segment.len as usize);
    segments.iter().map(place)
}

/// Marks the first `len` bytes of these segments as written.
pub(crate) fn mark<G: GuestMemory>(view: &View<'_, G>, segments: &[Segment], mut len: usize) {
    for (address, here) in places(segments) {
        let here = here.min(len);
        len -= here;
        pieces(view, (address, here), Permissions::Write, |piece| {
            piece.bitmap().mark_dirty(0, piece.len());
            true
        });
    }
}
