// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Buffers that the host's kernel reads and writes.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use libc::iovec;
use thiserror::Error;
use virtio_transport::memory::View;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileSlice};

use super::guest::{Guest, iovec_of, pieces};

/// The most pieces in one system call (Linux's `IOV_MAX`).
const MAX_PIECES: usize = 1024;
/// The largest alignment that direct I/O needs on any file system.
const PAGE: usize = 4096;

/// Memory aligned for direct I/O. Atomic, since the kernel and a thread may write it at once.
#[repr(align(4096))]
struct Page {
    _bytes: [AtomicU8; PAGE],
}

/// A request's data: pieces of memory that stay mapped until this is dropped.
///
/// The guest may read and write the pieces at any time. So they can't be borrowed as slices, only copied.
/// [`advance`](Self::advance) skips what was transferred.
#[derive(Default)]
pub struct Buffers {
    /// Keeps the pieces mapped.
    keeper: Option<Arc<dyn Any + Send + Sync>>,
    pieces: Vec<iovec>,
    /// The first piece that isn't transferred.
    first: usize,
    /// The number of bytes left.
    left: usize,
}

// SAFETY: The pointers are to memory that `keeper` keeps mapped and that has no owner among threads: it is accessed by
// system calls and volatile copies only. `keeper` is `Send`.
unsafe impl Send for Buffers {}

/// Why there are no buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GatherError {
    /// A piece is not in guest memory.
    #[error("{len} bytes at guest address {address:#x} are not in guest memory")]
    Memory {
        /// The guest-physical address.
        address: u64,
        /// The length in bytes.
        len: usize,
    },
    /// The data has more pieces than a system call accepts.
    #[error("the data is in more than {MAX_PIECES} pieces")]
    TooMany,
}

impl Buffers {
    /// Replaces the contents with pieces of guest memory, given as addresses and lengths in bytes. `access` is the
    /// access that follows; for a write, the memory is marked as written now.
    ///
    /// # Errors
    /// [`GatherError`]; there are no pieces then.
    pub(crate) fn gather<T>(
        &mut self,
        guest: &Guest<'_, T>,
        segments: impl IntoIterator<Item = (GuestAddress, usize)>,
        access: Permissions,
    ) -> Result<(), GatherError>
    where
        T: Deref<Target: GuestMemory> + Send + Sync + 'static,
    {
        self.clear();
        for segment in segments {
            if let Err(error) = self.add_guest(guest.view(), segment, access) {
                self.clear();
                return Err(error);
            }
        }
        self.keeper = Some(Arc::clone(guest.memory()) as _);
        Ok(())
    }

    fn add_guest<M: GuestMemory + ?Sized>(
        &mut self,
        view: &View<'_, M>,
        (address, len): (GuestAddress, usize),
        access: Permissions,
    ) -> Result<(), GatherError> {
        let mut added = Ok(());
        let is_there = pieces(view, (address, len), access, |piece| {
            if access == Permissions::Write {
                piece.bitmap().mark_dirty(0, piece.len());
            }
            added = self.add(iovec_of(&piece));
            added.is_ok()
        });
        added?;
        let address = address.0;
        let fault = GatherError::Memory { address, len };
        is_there.then_some(()).ok_or(fault)
    }

    fn add(&mut self, piece: iovec) -> Result<(), GatherError> {
        self.left += piece.iov_len;
        if let Some(last) = self.pieces.last_mut()
            && last.iov_base as usize + last.iov_len == piece.iov_base as usize
        {
            last.iov_len += piece.iov_len;
            return Ok(());
        }
        if self.pieces.len() == MAX_PIECES {
            return Err(GatherError::TooMany);
        }
        self.pieces.push(piece);
        Ok(())
    }

    /// `len` zeroed bytes of host memory, as one page-aligned piece.
    pub fn aligned(len: usize) -> Self {
        let page = |_| Page {
            _bytes: [const { AtomicU8::new(0) }; PAGE],
        };
        let pages: Arc<Vec<Page>> = Arc::new((0..len.div_ceil(PAGE)).map(page).collect());
        let mut buffers = Buffers::default();
        if len != 0 {
            buffers.left = len;
            buffers.pieces.push(iovec {
                iov_base: pages.as_ptr().cast_mut().cast(),
                iov_len: len,
            });
        }
        buffers.keeper = Some(pages);
        buffers
    }

    /// The first `len` remaining bytes, or all that are left. The memory is shared.
    #[must_use]
    pub fn first(&self, len: usize) -> Self {
        let mut first = Buffers {
            keeper: self.keeper.clone(),
            left: len.min(self.left),
            ..Buffers::default()
        };
        first.pieces.extend(self.within(len));
        first
    }

    /// `len` bytes to write: the remaining ones, again and again. The memory is shared.
    ///
    /// # Errors
    /// [`GatherError::TooMany`].
    pub fn repeated(&self, len: usize) -> Result<Self, GatherError> {
        let mut buffers = Buffers {
            keeper: self.keeper.clone(),
            ..Buffers::default()
        };
        while buffers.left < len && self.left != 0 {
            for piece in self.within(len - buffers.left) {
                buffers.add(piece)?;
            }
        }
        Ok(buffers)
    }

    /// The number of bytes left.
    pub const fn left(&self) -> usize {
        self.left
    }

    /// Skips `len` bytes, or all that are left.
    pub fn advance(&mut self, len: usize) {
        let mut len = len.min(self.left);
        self.left -= len;
        while let Some(piece) = self.pieces.get_mut(self.first) {
            if len < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(len);
                piece.iov_len -= len;
                break;
            }
            len -= piece.iov_len;
            self.first += 1;
        }
    }

    /// Removes all pieces, and releases their memory.
    pub fn clear(&mut self) {
        self.pieces.clear();
        (self.first, self.left) = (0, 0);
        self.keeper = None;
    }

    /// Whether the pieces of the first `len` remaining bytes start at multiples of `address` and have lengths that are
    /// multiples of `length`. Both are powers of two.
    pub fn are_aligned(&self, len: usize, address: usize, length: usize) -> bool {
        self.within(len).all(|piece| {
            piece.iov_base as usize & (address - 1) == 0 && piece.iov_len & (length - 1) == 0
        })
    }

    /// Copies from the first remaining bytes. Returns how many.
    pub fn copy_to(&self, mut data: &mut [u8]) -> usize {
        let wanted = data.len();
        self.each(wanted, |piece| {
            let here = piece.copy_to(data);
            data = &mut std::mem::take(&mut data)[here..];
        })
    }

    /// Copies to the first remaining bytes. Returns how many.
    pub fn copy_from(&self, mut data: &[u8]) -> usize {
        self.each(data.len(), |piece| {
            piece.copy_from(&data[..piece.len()]);
            data = &data[piece.len()..];
        })
    }

    /// Copies at most `len` of the first remaining bytes of `from` to the first ones of `self`. Returns how many.
    pub fn copy_across(&self, from: &Buffers, len: usize) -> usize {
        let mut chunk = [0; PAGE];
        let mut done = 0;
        let (mut to, mut from) = (self.first(len), from.first(len));
        while done < len {
            let copied = from.copy_to(&mut chunk[..PAGE.min(len - done)]);
            let copied = to.copy_from(&chunk[..copied]);
            if copied == 0 {
                break;
            }
            from.advance(copied);
            to.advance(copied);
            done += copied;
        }
        done
    }

    /// The pieces of the first `len` remaining bytes.
    fn within(&self, mut len: usize) -> impl Iterator<Item = iovec> + '_ {
        self.pieces().iter().map_while(move |piece| {
            let iov_len = piece.iov_len.min(len);
            len -= iov_len;
            (iov_len != 0).then_some(iovec { iov_len, ..*piece })
        })
    }

    fn each(&self, len: usize, mut copy: impl FnMut(VolatileSlice<'_>)) -> usize {
        let mut done = 0;
        for piece in self.within(len) {
            // SAFETY: `keeper` keeps the piece mapped, for reading and writing, while `self` is borrowed.
            copy(unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) });
            done += piece.iov_len;
        }
        done
    }

    /// The remaining pieces. They are mapped as long as `self` lives.
    pub(super) fn pieces(&self) -> &[iovec] {
        &self.pieces[self.first..]
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers")
            .field("pieces", &self.pieces().len())
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}
