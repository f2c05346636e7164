// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The other side, for tests: a page fault handler for one machine.

use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

use crate::layout::PAGE_SIZE;
use crate::sys::uffd::answer::copy;

/// `UFFD_EVENT_PAGEFAULT`.
const PAGE_FAULT: u8 = 0x12;

/// Waits for a machine, tells its regions to `told`, and brings its pages until it ends: `page` returns the one at an
/// offset. Returns the offsets of all pages that were asked for, in order.
///
/// # Errors
/// The host's error, or the machine said something that no handler understands.
pub fn serve(
    listener: &UnixListener,
    told: impl FnOnce(&Value),
    page: impl Fn(u64) -> [u8; 4096],
) -> io::Result<Vec<u64>> {
    let (stream, _) = listener.accept()?;
    let mut text = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut text)];
    let got = recvmsg(&stream, into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let regions = serde_json::from_slice(&text[..got.bytes])?;
    let uffd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let uffd = File::from(uffd.ok_or_else(|| io::Error::other("no descriptor came"))?);
    told(&regions);
    let mut asked = Vec::new();
    loop {
        let mut ready = [
            PollFd::new(&uffd, PollFlags::IN),
            PollFd::new(&stream, PollFlags::IN),
        ];
        poll(&mut ready, None)?;
        if !ready[1].revents().is_empty() {
            return Ok(asked);
        }
        // `struct uffd_msg`
        let mut event = [0; 32];
        match (&uffd).read_exact(&mut event) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            result => result?,
        }
        let mut address = [0; 8];
        address.copy_from_slice(&event[16..24]);
        let address = u64::from_ne_bytes(address) & !(PAGE_SIZE - 1);
        if event[0] == PAGE_FAULT {
            let offset = offset(&regions, address);
            let offset = offset.ok_or_else(|| io::Error::other("a fault out of all regions"))?;
            copy(&uffd, address, &page(offset))?;
            asked.push(offset);
        }
    }
}

/// The offset of an address in the memory that `regions` describe.
fn offset(regions: &Value, address: u64) -> Option<u64> {
    regions.as_array()?.iter().find_map(|region| {
        let within = address.checked_sub(region["base_host_virt_addr"].as_u64()?)?;
        let is_here = within < region["size"].as_u64()?;
        is_here.then_some(region["offset"].as_u64()? + within)
    })
}
