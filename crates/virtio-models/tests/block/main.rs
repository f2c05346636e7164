// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The block device: virtio-transport's suite on real files, and its own behaviour on a disk in memory.

mod changes;
mod counters;
mod crowd;
mod device;
mod driver_must;
mod faults;
mod model;
mod opening;
mod parts;
#[cfg(feature = "qcow2")]
mod qcow2;
mod raw;
mod requests;
mod support;

use std::fs::File;
use std::io::Write;

use support::{FLUSH, GET_ID, IN, OK, OUT, header, pattern};
use virtio_models::block::{Block, Disk, Engine, Image};
use virtio_transport::testing::{Memory, Reply, Request, Subject};

/// A raw image of 512 sectors, with io_uring or threads.
struct Raw {
    file: File,
    threads: bool,
    alignment: u32,
}

const SERIAL: &[u8; 20] = b"a disk in a test    ";

fn raw(threads: bool, alignment: u32) -> Raw {
    let mut file = tempfile::tempfile().expect("a disk for a test");
    let bytes: Vec<u8> = (0..512 * 512).map(pattern).collect();
    file.write_all(&bytes).expect("a disk for a test");
    Raw {
        file,
        threads,
        alignment,
    }
}

impl Subject for Raw {
    type Device = Block<Memory>;

    fn device(&self) -> Self::Device {
        let disk = Disk {
            serial: *SERIAL,
            alignment: self.alignment,
            queues: 2,
            ..Disk::default()
        };
        let mut image =
            Image::raw(self.file.try_clone().expect("a disk for a test"), disk).expect("an image");
        if self.threads {
            image = image.with_engine(Engine::Sync);
        }
        Block::new(image, Box::new(|notice| eprintln!("{notice}")))
    }

    fn request(&self, n: u32) -> Request {
        let sector = u64::from(n % 64);
        let (readable, writable) = match n / 2 % 4 {
            0 => (header(IN, sector), 1025),
            1 => ([header(OUT, 128 + sector), vec![n as u8; 1024]].concat(), 1),
            2 => (header(FLUSH, 0), 1),
            _ => (header(GET_ID, 0), 21),
        };
        Request {
            queue: (n % 2) as u16,
            readable,
            writable,
        }
    }

    fn check(&self, n: u32, _: u64, reply: &Reply) {
        let (status, data) = reply.bytes.split_last().expect("a disk for a test");
        assert_eq!(*status, OK, "request {n}");
        assert_eq!(reply.len as usize, reply.bytes.len());
        let start = (n % 64) as usize * 512;
        match n / 2 % 4 {
            0 => assert!(
                data.iter()
                    .zip(start..)
                    .all(|(byte, i)| *byte == pattern(i))
            ),
            3 => assert_eq!(data, SERIAL),
            _ => {}
        }
    }
}

virtio_transport::device_suite!(uring, crate::raw(false, 1));
virtio_transport::device_suite!(threads, crate::raw(true, 1));
virtio_transport::device_suite!(misaligned, crate::raw(false, 4096));
