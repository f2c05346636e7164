// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A handler in a thread. No KVM.

use std::os::unix::net::UnixListener;
use std::sync::mpsc::channel;
use std::thread;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::layout::{GIB, MIB};
use crate::memory::{Returned, allocate};

/// The handler's page at an offset: its number, in each of its 8 bytes.
fn page(offset: u64) -> [u8; 4096] {
    let mut page = [0; 4096];
    for word in page.as_chunks_mut::<8>().0 {
        *word = (offset / PAGE_SIZE + 1).to_le_bytes();
    }
    page
}

#[test]
fn pages_come_from_the_handler_and_only_those_that_are_touched() {
    let test = "pages_come_from_the_handler_and_only_those_that_are_touched";
    if let Err(error) = uffd::create().map_err(ServedError::Create) {
        eprintln!("skipping {test}: {error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("handler");
    let listener = UnixListener::bind(&socket).unwrap();
    let (tell, told) = channel();
    let handler = thread::spawn(move || {
        let told = |regions: &serde_json::Value| tell.send(regions.clone()).unwrap();
        handler::serve(&listener, told, page)
    });
    let memory = allocate(4 * GIB).unwrap();
    let served = Served::new(&memory, &socket).unwrap();
    let regions = told.recv().unwrap();
    assert_eq!(regions.as_array().unwrap().len(), 2);
    assert_eq!(regions[1]["offset"], 3 * GIB);
    assert_eq!(regions[1]["size"], GIB);
    assert_eq!(regions[0]["page_size"], 4096);
    assert_eq!(regions[0]["page_size_kib"], 4096);
    // The last one is in the second region, which is 1 GiB further up for the guest.
    let last = 3 * GIB + PAGE_SIZE;
    for (at, offset) in [(0, 0), (5 * MIB + 8, 5 * MIB), (last + GIB, last)] {
        let number = memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!(number, offset / PAGE_SIZE + 1);
    }
    memory.write_obj(7u64, GuestAddress(5 * MIB)).unwrap();
    let beside = memory.read_obj::<u64>(GuestAddress(5 * MIB + 16)).unwrap();
    assert_eq!(beside, 5 * MIB / PAGE_SIZE + 1);
    drop(served);
    assert_eq!(handler.join().unwrap().unwrap(), [0, 5 * MIB, last]);
}

/// The handler hears of it, else this would wait for ever, and is asked again.
#[test]
fn pages_that_went_back_are_asked_for_again() {
    let test = "pages_that_went_back_are_asked_for_again";
    if let Err(error) = uffd::create().map_err(ServedError::Create) {
        eprintln!("skipping {test}: {error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("handler");
    let listener = UnixListener::bind(&socket).unwrap();
    let handler = thread::spawn(move || handler::serve(&listener, |_| (), page));
    let memory = allocate(32 * MIB).unwrap();
    let served = Served::new(&memory, &socket).unwrap();
    memory.write_obj(7u64, GuestAddress(5 * MIB)).unwrap();
    let returned = Returned::default();
    let given = 4 * MIB..6 * MIB;
    assert_eq!(returned.give_back(&memory, &[given]), 2 * MIB);
    let again = memory.read_obj::<u64>(GuestAddress(5 * MIB)).unwrap();
    assert_eq!(again, 5 * MIB / PAGE_SIZE + 1);
    drop(served);
    assert_eq!(handler.join().unwrap().unwrap(), [5 * MIB, 5 * MIB]);
}

#[test]
fn a_handler_that_is_not_there_is_an_error() {
    let test = "a_handler_that_is_not_there_is_an_error";
    let dir = tempfile::tempdir().unwrap();
    let memory = allocate(32 * MIB).unwrap();
    let none = dir.path().join("none");
    let left = dir.path().join("left");
    drop(UnixListener::bind(&left).unwrap());
    for socket in [none, left] {
        match Served::new(&memory, &socket).unwrap_err() {
            error @ ServedError::Create(_) => eprintln!("skipping {test}: {error}"),
            error => assert!(error.to_string().contains("start it first"), "{error}"),
        }
    }
}

#[test]
fn a_host_that_refuses_is_told_what_to_allow() {
    let error = ServedError::Create(io::Error::from_raw_os_error(libc::EPERM)).to_string();
    let says = |what| error.contains(what);
    assert!(says("/dev/userfaultfd") && says("memory file"), "{error}");
}
