// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory whose pages another process brings, by the protocol of Firecracker's page fault handlers.
//!
//! This process connects to the handler's Unix socket, and sends one message: a JSON list of the memory's regions, and a
//! userfaultfd that asks for their pages. The handler then copies each page where it is asked for. Nothing else is said.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use serde_json::json;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::layout::PAGE_SIZE;
use crate::sys::uffd;

/// Why no other process brings the pages.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServedError {
    /// The host gives no userfaultfd.
    #[error(
        "the host gives this process no userfaultfd for its guest's memory ({0}); let it open /dev/userfaultfd, set \
         vm.unprivileged_userfaultfd to 1, or use the memory file"
    )]
    Create(#[source] io::Error),
    /// The handler can't be reached.
    #[error(
        "no page fault handler takes the guest's memory at {path:?} ({reason}); start it first"
    )]
    Handler {
        /// Its socket.
        path: PathBuf,
        /// The host's error.
        reason: io::Error,
    },
}

/// Keeps the guest's page faults alive. Without it, missing pages would be zeros, whatever the handler has.
#[derive(Debug)]
pub struct Served {
    _uffd: OwnedFd,
    /// The handler sees that the machine ends, since this is closed then.
    _handler: OwnedFd,
}

impl Served {
    /// Lets the handler at `socket` bring the pages of `memory`, which was just allocated. Waits for nothing.
    ///
    /// # Errors
    /// [`ServedError`] says what is missing.
    pub fn new(memory: &GuestMemoryMmap, socket: &Path) -> Result<Self, ServedError> {
        let uffd = uffd::create().map_err(ServedError::Create)?;
        for region in memory.iter() {
            uffd::register(&uffd, region).map_err(ServedError::Create)?;
        }
        let handler = introduce(socket, &message(memory), &uffd);
        let handler = handler.map_err(|errno| ServedError::Handler {
            path: socket.to_owned(),
            reason: errno.into(),
        })?;
        Ok(Served {
            _uffd: uffd,
            _handler: handler,
        })
    }
}

/// The regions as handlers expect them. `page_size_kib` is in bytes, as in Firecracker.
fn message(memory: &GuestMemoryMmap) -> String {
    let mut offset = 0;
    let regions: Vec<_> = memory
        .iter()
        .map(|region| {
            let start = offset;
            offset += region.len();
            json!({
                "base_host_virt_addr": region.as_ptr() as u64,
                "size": region.len(),
                "offset": start,
                "page_size": PAGE_SIZE,
                "page_size_kib": PAGE_SIZE,
            })
        })
        .collect();
    json!(regions).to_string()
}

/// Sends the message with the descriptor. A handler that is too busy to take it is an error.
fn introduce(path: &Path, message: &str, uffd: &OwnedFd) -> Result<OwnedFd, rustix::io::Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let handler = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&handler, &SocketAddrUnix::new(path)?)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [uffd.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(rustix::io::Errno::NOBUFS);
    }
    let bytes = [IoSlice::new(message.as_bytes())];
    sendmsg(&handler, &bytes, &mut control, SendFlags::NOSIGNAL)?;
    Ok(handler)
}

#[cfg(any(test, feature = "test-utils"))]
pub mod handler;

#[cfg(test)]
mod tests;
