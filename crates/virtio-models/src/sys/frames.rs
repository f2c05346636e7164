// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Frames in guest memory: the pieces that system calls read and write.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::{Deref, Range};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use libc::iovec;
use virtio_transport::memory::View;
use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileSlice};

use super::guest::{Guest, iovec_of, pieces};

/// The length of `struct virtio_net_hdr` in bytes (virtio 1.4, 5.1.9). It precedes each frame.
pub const HEADER: usize = 12;
/// The longest frame in bytes: 14 of Ethernet's header, 4 of a VLAN's, 40 of IPv6's, and 65,535 (5.1.9.3).
pub const MAX_FRAME: usize = 14 + 4 + 40 + 65_535;
/// The most pieces in one system call (Linux's `IOV_MAX`).
const MAX_PIECES: usize = 1024;

const NO_PIECE: iovec = iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Adds the pieces of a range of guest memory. Returns `false` if it is not guest memory.
fn add<M: GuestMemory + ?Sized>(
    list: &mut Vec<iovec>,
    view: &View<'_, M>,
    range: (GuestAddress, usize),
    access: Permissions,
) -> bool {
    pieces(view, range, access, |piece| {
        list.push(iovec_of(&piece));
        true
    })
}

fn piece_of(bytes: &[u8]) -> iovec {
    iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

/// Calls readv(2) or writev(2). The C library's functions also let other threads cancel this one, which takes 40 more
/// instructions.
///
/// # Safety
/// The pieces must be mapped, for writing if they are read into. There must be at most IOV_MAX.
unsafe fn call(number: libc::c_long, file: BorrowedFd<'_>, pieces: &[iovec]) -> isize {
    // SAFETY: See above. The arguments are those of both calls.
    let returned =
        unsafe { libc::syscall(number, file.as_raw_fd(), pieces.as_ptr(), pieces.len()) };
    returned as isize
}

fn result(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

/// Describes frames to send, one after the other, with a single allocation.
#[derive(Default)]
pub(crate) struct Gather {
    pieces: Vec<iovec>,
    header: [u8; HEADER],
}

// SAFETY: Outside of a `Frame`, which borrows it and is not `Send`, the pointers are not used.
unsafe impl Send for Gather {}

impl Gather {
    /// Describes a frame that is in these segments of guest memory behind the first `HEADER` bytes. Returns `None` if
    /// they are not guest memory, or too many.
    pub(crate) fn frame<'a, M: GuestMemory + ?Sized>(
        &'a mut self,
        view: &'a View<'_, M>,
        header: [u8; HEADER],
        segments: impl IntoIterator<Item = (GuestAddress, usize)>,
    ) -> Option<Frame<'a>> {
        self.header = header;
        self.pieces.clear();
        self.pieces.push(NO_PIECE);
        let (mut skip, mut total) = (HEADER, 0);
        for (address, len) in segments {
            let here = skip.min(len);
            skip -= here;
            if here == len {
                continue;
            }
            let address = GuestAddress(address.0.checked_add(here as u64)?);
            let is_there = add(
                &mut self.pieces,
                view,
                (address, len - here),
                Permissions::Read,
            );
            if !is_there || self.pieces.len() > MAX_PIECES {
                return None;
            }
            total += len - here;
        }
        Some(Frame {
            header: &self.header,
            pieces: &mut self.pieces,
            len: total,
        })
    }
}

/// A frame to send. Its bytes are in guest memory, and the guest may change them at any time.
pub struct Frame<'a> {
    header: &'a [u8; HEADER],
    /// The first one is for what precedes the frame. The others are mapped, and may be read, during `'a`.
    pieces: &'a mut [iovec],
    len: usize,
}

impl Frame<'_> {
    /// Its `struct virtio_net_hdr`, checked: the driver uses only what it negotiated. A copy, which doesn't change.
    pub const fn header(&self) -> &[u8; HEADER] {
        self.header
    }

    /// Its length in bytes, without the header.
    #[allow(clippy::len_without_is_empty)]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Copies the bytes from `skip` on. Returns how many.
    pub fn copy_to(&self, mut skip: usize, mut data: &mut [u8]) -> usize {
        let wanted = data.len();
        for piece in &self.pieces[1..] {
            let start = skip.min(piece.iov_len);
            skip -= start;
            let here = (piece.iov_len - start).min(data.len());
            if here == 0 {
                continue;
            }
            let base = piece.iov_base.wrapping_byte_add(start).cast();
            // SAFETY: The piece is mapped while `self` lives.
            let copied = unsafe { VolatileSlice::new(base, here) }.copy_to(&mut data[..here]);
            data = &mut std::mem::take(&mut data)[copied..];
        }
        wanted - data.len()
    }

    /// Writes the header and the frame to a tap.
    pub(crate) fn write(&mut self, tap: BorrowedFd<'_>) -> io::Result<usize> {
        self.pieces[0] = piece_of(self.header);
        // SAFETY: The pieces are mapped while `self` lives, and so is the header. There are at most IOV_MAX.
        result(unsafe { call(libc::SYS_writev, tap, self.pieces) })
    }

    /// Sends `prefix` and the frame to a stream socket. Doesn't wait.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>, prefix: &[u8]) -> io::Result<usize> {
        self.pieces[0] = piece_of(prefix);
        // SAFETY: All zeros is a valid `msghdr`: an empty message.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.pieces.as_mut_ptr();
        message.msg_iovlen = self.pieces.len() as _;
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: The pieces are mapped while `self` lives, and so is the prefix. There are at most IOV_MAX.
        result(unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) })
    }
}

impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("header", &self.header)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Whether the buffers of a chain were added to a [`Space`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    Added,
    /// They are too many for one system call, together with those that are there.
    Full,
    /// They are not guest memory.
    Bad,
}

/// Buffers in guest memory for frames to receive, one part for each chain. The first [`HEADER`] bytes of the first part
/// are left to the caller.
pub(crate) struct Space<T> {
    parts: VecDeque<Part<T>>,
    pieces: Pieces,
}

struct Part<T> {
    /// Keeps the pieces mapped.
    _memory: Arc<T>,
    pieces: usize,
}

/// The pieces of all parts.
struct Pieces {
    /// The one before `first` is for the header.
    all: Vec<iovec>,
    first: usize,
    /// The number of bytes in the pieces.
    len: usize,
    header: [u8; HEADER],
    /// Takes the rest of a frame for which there are too few pieces. Empty before the first frame.
    spill: Vec<u8>,
    spilled: Range<usize>,
}

// SAFETY: The pointers are to memory that `Space::parts` keeps mapped and that has no owner among threads: it is
// accessed by system calls and volatile copies only.
unsafe impl Send for Pieces {}

impl<T> Space<T> {
    pub(crate) fn new() -> Self {
        Space {
            parts: VecDeque::new(),
            pieces: Pieces {
                all: vec![NO_PIECE],
                first: 1,
                len: 0,
                header: [0; HEADER],
                spill: Vec::new(),
                spilled: 0..0,
            },
        }
    }

    /// The number of bytes for a frame.
    pub(crate) const fn len(&self) -> usize {
        self.pieces.len
    }

    /// The header of the last frame received.
    pub(crate) const fn header(&mut self) -> &mut [u8; HEADER] {
        &mut self.pieces.header
    }

    /// Receives a frame.
    pub(crate) fn room(&mut self) -> Room<'_> {
        Room(&mut self.pieces)
    }

    /// Adds the buffers of a chain. They take what was spilled.
    pub(crate) fn add(
        &mut self,
        guest: &Guest<'_, T>,
        segments: impl IntoIterator<Item = (GuestAddress, usize)>,
    ) -> Fit
    where
        T: Deref<Target: GuestMemory>,
    {
        let pieces = &mut self.pieces;
        pieces.compact();
        let before = pieces.all.len();
        for segment in segments {
            if !add(&mut pieces.all, guest.view(), segment, Permissions::Write) {
                pieces.all.truncate(before);
                return Fit::Bad;
            }
            // Two more are for the header and what is spilled.
            if pieces.all.len() - pieces.first > MAX_PIECES - 2 {
                pieces.all.truncate(before);
                return Fit::Full;
            }
        }
        let added = &pieces.all[before..];
        pieces.len += added.iter().map(|piece| piece.iov_len).sum::<usize>();
        self.parts.push_back(Part {
            _memory: Arc::clone(guest.memory()),
            pieces: added.len(),
        });
        if self.parts.len() == 1 {
            self.skip_header();
        }
        self.pieces.unspill(before);
        Fit::Added
    }

    /// Removes the first part.
    pub(crate) fn remove_first(&mut self) {
        if let Some(part) = self.parts.pop_front() {
            let pieces = &mut self.pieces;
            let end = pieces.first + part.pieces;
            let removed = pieces.all[pieces.first..end].iter();
            pieces.len -= removed.map(|piece| piece.iov_len).sum::<usize>();
            pieces.first = end;
        }
        self.skip_header();
    }

    /// Leaves out the header's bytes of the part that became the first one.
    fn skip_header(&mut self) {
        let Some(part) = self.parts.front_mut() else {
            return;
        };
        let pieces = &mut self.pieces;
        let mut left = HEADER;
        while left != 0 && part.pieces != 0 {
            let piece = &mut pieces.all[pieces.first];
            let here = left.min(piece.iov_len);
            left -= here;
            pieces.len -= here;
            piece.iov_base = piece.iov_base.wrapping_byte_add(here);
            piece.iov_len -= here;
            if piece.iov_len == 0 {
                pieces.first += 1;
                part.pieces -= 1;
            }
        }
    }

    /// Drops what was spilled of a frame.
    pub(crate) const fn forget(&mut self) {
        self.pieces.spilled = 0..0;
    }
}

impl Pieces {
    /// Forgets pieces of removed parts, from time to time.
    fn compact(&mut self) {
        if self.first == self.all.len() || self.first > MAX_PIECES {
            self.all.drain(1..self.first);
            self.first = 1;
        }
    }

    /// Copies what was spilled to the pieces from `at` on.
    fn unspill(&mut self, at: usize) {
        for piece in &self.all[at.max(self.first)..] {
            let spilled = &self.spill[self.spilled.clone()];
            if spilled.is_empty() {
                return;
            }
            let here = copy(spilled, piece);
            self.spilled.start += here;
        }
    }
}

/// Copies to a piece of a `Pieces`, as much as fits. Returns how much.
fn copy(data: &[u8], piece: &iovec) -> usize {
    let here = data.len().min(piece.iov_len);
    // SAFETY: The part that the piece belongs to keeps it mapped.
    unsafe { VolatileSlice::new(piece.iov_base.cast(), here) }.copy_from(&data[..here]);
    here
}

/// Space for one frame to receive: the driver's buffers, and host memory if these are too small for the frame.
pub struct Room<'a>(&'a mut Pieces);

impl Room<'_> {
    /// Puts a frame there, of up to [`MAX_FRAME`] bytes, with its `struct virtio_net_hdr`. Returns its length.
    ///
    /// # Errors
    /// [`InvalidData`](io::ErrorKind::InvalidData) if the frame is longer.
    pub fn fill(self, header: [u8; HEADER], frame: &[u8]) -> io::Result<usize> {
        if frame.len() > MAX_FRAME {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let pieces = self.0;
        pieces.header = header;
        let mut left = frame;
        for piece in &pieces.all[pieces.first..] {
            if left.is_empty() {
                break;
            }
            let copied = copy(left, piece);
            left = &left[copied..];
        }
        pieces.spill.resize(MAX_FRAME, 0);
        pieces.spill[..left.len()].copy_from_slice(left);
        pieces.spilled = 0..left.len();
        Ok(frame.len())
    }

    /// Reads a header and a frame from a tap. Returns the frame's length.
    pub(crate) fn read(self, tap: BorrowedFd<'_>) -> io::Result<usize> {
        let pieces = self.0;
        pieces.spill.resize(MAX_FRAME, 0);
        let start = pieces.first - 1;
        pieces.all[start] = iovec {
            iov_base: pieces.header.as_mut_ptr().cast(),
            iov_len: HEADER,
        };
        pieces.all.push(iovec {
            iov_base: pieces.spill.as_mut_ptr().cast(),
            iov_len: MAX_FRAME,
        });
        let all = &pieces.all[start..];
        // SAFETY: The parts keep the pieces mapped, for writing. Header and spill are borrowed exclusively, and not used
        // as slices during the call. There are at most IOV_MAX pieces.
        let read = result(unsafe { call(libc::SYS_readv, tap, all) });
        pieces.all.pop();
        let len = read?
            .checked_sub(HEADER)
            .ok_or(io::ErrorKind::InvalidData)?;
        pieces.spilled = 0..len.saturating_sub(pieces.len);
        Ok(len)
    }
}

impl fmt::Debug for Room<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room")
            .field("len", &self.0.len)
            .finish_non_exhaustive()
    }
}
