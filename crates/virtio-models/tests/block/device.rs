// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks in block devices: loop devices, if this user can make them.

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;
use virtio_models::block::{Block, BlockSpec, OpenError, open};
use virtio_transport::testing::{Driver, MEMORY, Machine, Memory, MmioPort, Request, memory};
use vm_memory::{Bytes, GuestAddress};

use crate::support::{DISCARD, IN, OK, OUT, UNSUPP, WRITE_ZEROES, header, range, transfer};

/// A loop device of 1 MiB.
struct Loop {
    node: PathBuf,
    dir: TempDir,
}

impl Loop {
    /// `None` if that isn't possible, which is printed.
    fn new(block_size: u32) -> Option<Self> {
        let dir = TempDir::new().expect("a folder");
        let image = dir.path().join("image");
        fs::write(&image, vec![7; 1 << 20]).expect("an image");
        let made = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &block_size.to_string()])
            .arg(image)
            .output();
        match made {
            Ok(made) if made.status.success() => {
                let node = String::from_utf8_lossy(&made.stdout).trim().into();
                Some(Loop { node, dir })
            }
            other => {
                println!("skipped: no loop device can be made: {other:?}");
                None
            }
        }
    }

    /// Another node of the same device.
    fn other_node(&self) -> Option<PathBuf> {
        let path = self.dir.path().join("node");
        let device = fs::metadata(&self.node).expect("the device").st_rdev();
        match mknodat(
            CWD,
            &path,
            FileType::BlockDevice,
            Mode::RUSR | Mode::WUSR,
            device,
        ) {
            Ok(()) => Some(path),
            Err(error) => {
                println!("skipped: no other node can be made: {error}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.node)
            .status();
    }
}

fn spec(node: &Path, direct: bool) -> BlockSpec {
    let mut spec = BlockSpec::new(node);
    spec.direct = direct;
    spec
}

struct Guest {
    machine: Machine<MmioPort>,
    driver: Driver,
}

impl Guest {
    fn new(spec: &BlockSpec) -> Self {
        let image = open(spec).expect("a disk that nobody has");
        let block = Block::<Memory>::new(image, Box::new(|notice| println!("{notice}")));
        let mut machine = Machine::new(Box::new(block), &memory(MEMORY));
        let driver = Driver::start(&mut machine, u64::MAX);
        Guest { machine, driver }
    }

    fn status(&mut self, readable: Vec<u8>) -> u8 {
        let request = Request {
            queue: 0,
            readable,
            writable: 1,
        };
        self.driver.send(&self.machine, &request);
        self.machine.kick(0);
        let (driver, machine) = (&mut self.driver, &mut self.machine);
        let mut status = None;
        machine.pump_until(|machine| {
            let reply = driver.receive(machine, 0);
            status = reply.map(|(_, reply)| reply.bytes[0]);
            status.is_some()
        });
        status.expect("a status")
    }
}

#[test]
fn two_nodes_of_a_device_are_one_disk() {
    let Some(device) = Loop::new(512) else {
        return;
    };
    let Some(other) = device.other_node() else {
        return;
    };
    for _ in 0..3 {
        let guest = Guest::new(&spec(&device.node, false));
        for node in [&device.node, &other] {
            let error = open(&spec(node, false)).expect_err("a device in use");
            assert!(matches!(error, OpenError::Claimed(_)), "{error}");
        }
        drop(guest);
    }
    let reads = BlockSpec {
        readonly: true,
        ..spec(&device.node, false)
    };
    let readers = (open(&reads), open(&reads));
    assert!(readers.0.is_ok() && readers.1.is_ok(), "{readers:?}");
}

#[test]
fn partial_blocks_of_a_device_are_zeroed_and_not_discarded() {
    let Some(device) = Loop::new(4096) else {
        return;
    };
    let mut guest = Guest::new(&spec(&device.node, false));
    let zero = |kind, sector, count| [header(kind, 0), range(sector, count, 0)].concat();
    assert_eq!(guest.status(zero(WRITE_ZEROES, 1, 2)), OK);
    assert_eq!(guest.status(zero(DISCARD, 17, 1)), UNSUPP);
    drop(guest);
    let bytes = fs::read(&device.node).expect("the device");
    let zeroed = |at| bytes[at] == 0;
    let first = (0..8192).filter(|at| zeroed(*at));
    assert!(first.eq(512..1536));
}

#[test]
fn direct_transfers_are_of_any_buffers() {
    let Some(device) = Loop::new(4096) else {
        return;
    };
    let spec = spec(&device.node, true);
    let disk = match open(&spec) {
        Ok(image) => image.disk(),
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    assert_eq!((disk.block_size, disk.length_alignment), (4096, 4096));
    println!("addresses are aligned to {}", disk.alignment);
    let mut guest = Guest::new(&spec);
    let (data, status) = (0xa_0000, 0xc_0000);
    let memory = guest.machine.memory.clone();
    let write = |bytes: &[u8], at| memory.write_slice(bytes, GuestAddress(at));
    for (n, len) in (1_u8..).zip([512, 1024, 2048, 3072]) {
        // Two buffers at multiples of 512 that are no whole blocks, with a gap between them.
        let halves = [(data, len), (data + 0x2000, 4096 - len)];
        let mut ask = |kind| {
            write(&header(kind, 8), status + 16).expect("a header");
            let ring = &mut guest.driver.rings[0];
            ring.send(&transfer(kind, status + 16, halves, status));
            guest.machine.kick(0);
            guest.machine.pump_until(|_| ring.take().is_some());
            memory
                .read_obj::<u8>(GuestAddress(status))
                .expect("a status")
        };
        write(&vec![n; 4096], data).expect("the data");
        write(&vec![n + 100; 4096], data + 0x2000).expect("the data");
        assert_eq!(ask(OUT), OK);
        write(&vec![0; 0x3000], data).expect("the data");
        assert_eq!(ask(IN), OK);
        let mut read = vec![0; 0x3000];
        memory
            .read_slice(&mut read, GuestAddress(data))
            .expect("the data");
        let len = len as usize;
        assert!(read[..len].iter().all(|byte| *byte == n));
        assert!(
            read[0x2000..0x3000 - len]
                .iter()
                .all(|byte| *byte == n + 100)
        );
    }
}
