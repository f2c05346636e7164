// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the VMM changes while a disk runs.

use std::fs::File;
use std::sync::{Arc, mpsc};

use rustix::fs::{Mode, OFlags};
use tempfile::NamedTempFile;
use virtio_models::block::{
    Block, BlockSpec, Control, Disk, Engine, Format, Image, Notice, ReplaceError, open,
};
use virtio_models::rate::{Limit, Limits};
use virtio_transport::AnyDevice;
use virtio_transport::testing::{Driver, MEMORY, Machine, Memory, MmioPort, Port, Request, memory};

use crate::support::{FLUSH, Guest, IN, OK, header};

/// A byte per second: one request, and then none for minutes.
const SLOW: Limits = Limits {
    bandwidth: Limit::per_second(1),
    iops: None,
};

#[test]
fn limits_change_while_requests_wait() {
    let mut guest = Guest::new(64);
    assert_eq!(guest.read(0, 512).0, OK);
    guest.control.limit(SLOW);
    guest.machine.pump();
    assert_eq!(guest.read(0, 512).0, OK);
    guest.send(header(IN, 1), 513);
    guest.machine.pump();
    assert!(guest.driver.receive(&guest.machine, 0).is_none());
    // A limit that stays the same still holds.
    let iops = Limit::per_second(1000);
    guest.control.limit(Limits { iops, ..SLOW });
    guest.machine.pump();
    assert!(guest.driver.receive(&guest.machine, 0).is_none());
    // Another one starts anew.
    let bandwidth = Limit::per_second(2);
    guest.control.limit(Limits { iops, bandwidth });
    guest.machine.pump();
    assert!(guest.driver.receive(&guest.machine, 0).is_some());
    guest.send(header(IN, 1), 513);
    guest.machine.pump();
    assert!(guest.driver.receive(&guest.machine, 0).is_none());
    guest.control.limit(Limits::default());
    guest.machine.pump();
    assert!(guest.driver.receive(&guest.machine, 0).is_some());
    for _ in 0..100 {
        assert_eq!(guest.read(0, 512).0, OK);
    }
    assert!(guest.notices().is_empty());
}

/// An image whose bytes are all `byte`.
fn image(byte: u8, sectors: usize) -> NamedTempFile {
    let file = NamedTempFile::new().expect("an image");
    std::fs::write(file.path(), vec![byte; sectors * 512]).expect("an image");
    file
}

struct Raw {
    machine: Machine<MmioPort>,
    driver: Driver,
    control: Arc<Control>,
}

impl Raw {
    fn new(file: &NamedTempFile, threads: bool) -> Self {
        let image = open(&BlockSpec::new(file.path())).expect("an image that nobody has");
        let image = if threads {
            image.with_engine(Engine::Sync)
        } else {
            image
        };
        let block = Block::<Memory>::new(image, Box::new(|notice| panic!("{notice}")));
        let control = block.control();
        let mut machine = Machine::new(Box::new(block), &memory(MEMORY));
        let driver = Driver::start(&mut machine, u64::MAX);
        Raw {
            machine,
            driver,
            control,
        }
    }

    fn send(&mut self, sector: u64) {
        let request = Request {
            queue: 0,
            readable: header(IN, sector),
            writable: 4097,
        };
        self.driver.send(&self.machine, &request);
        self.machine.kick(0);
    }

    /// What all requests in flight read.
    fn read(&mut self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let driver = &mut self.driver;
        self.machine.pump_until(|machine| {
            all.extend(
                driver
                    .receive_all(machine)
                    .into_iter()
                    .map(|(_, reply)| reply.bytes),
            );
            driver.in_flight() == 0
        });
        all
    }

    fn replace(&self, file: &NamedTempFile) {
        let image = open(&BlockSpec::new(file.path())).expect("an image that nobody has");
        self.control.replace(&image).expect("an image that fits");
    }

    fn sectors(&mut self) -> u64 {
        let mut capacity = [0; 8];
        self.machine.port.read(MmioPort::CONFIG, &mut capacity);
        u64::from_le_bytes(capacity)
    }
}

/// The answer to a read of an image of this byte.
fn answer(byte: u8) -> Vec<u8> {
    [vec![byte; 4096], vec![OK]].concat()
}

#[test]
fn an_image_is_replaced_between_requests_and_the_old_one_is_free() {
    for threads in [false, true] {
        let files = [image(1, 64), image(2, 128)];
        let mut disk = Raw::new(&files[0], threads);
        disk.send(0);
        assert_eq!(disk.read(), [answer(1)]);
        disk.machine.port.take_interrupts();
        for round in 1..20_usize {
            for sector in 0..8 {
                disk.send(8 * (sector % 4));
            }
            if round % 2 == 0 {
                // Some are in flight then.
                disk.machine.step();
            }
            let new = round % 2;
            disk.replace(&files[new]);
            for bytes in disk.read() {
                assert!([answer(1), answer(2)].contains(&bytes), "of two images");
            }
            disk.machine.pump();
            assert!(disk.machine.port.take_interrupts().config);
            assert_eq!(disk.sectors(), [64, 128][new]);
            disk.send(0);
            assert_eq!(disk.read(), [answer(new as u8 + 1)]);
            // Its lock is gone, too.
            drop(open(&BlockSpec::new(files[1 - new].path())).expect("a free image"));
            open(&BlockSpec::new(files[new].path())).expect_err("a locked image");
        }
    }
}

/// More requests than the device takes at once, and no notification after them.
#[test]
fn many_requests_that_wait_for_an_image_are_all_answered() {
    for threads in [false, true] {
        let files = [image(1, 64), image(2, 64)];
        let mut disk = Raw::new(&files[0], threads);
        for round in 1..20 {
            // Takes a while, so the replacement must wait for it.
            std::fs::write(files[1 - round % 2].path(), vec![3; 64 * 512]).expect("an image");
            let flush = Request {
                queue: 0,
                readable: header(FLUSH, 0),
                writable: 1,
            };
            disk.driver.send(&disk.machine, &flush);
            disk.machine.kick(0);
            disk.machine.step();
            disk.replace(&files[round % 2]);
            disk.machine.step();
            for _ in 0..68 {
                disk.send(0);
            }
            assert_eq!(disk.read().len(), 69);
        }
    }
}

#[test]
fn an_idle_disk_has_the_new_image_and_limits_when_it_starts() {
    let files = [image(1, 64), image(2, 128)];
    let image = open(&BlockSpec::new(files[0].path())).unwrap();
    // Another machine has it later.
    let later = image.clone();
    for (image, changes) in [(image, true), (later, false)] {
        let block = Block::<Memory>::new(image, Box::new(|notice| panic!("{notice}")));
        if changes {
            let new = open(&BlockSpec::new(files[1].path())).unwrap();
            block.control().replace(&new).unwrap();
            block.control().limit(SLOW);
        }
        let control = block.control();
        let mut machine = Machine::new(Box::new(block), &memory(MEMORY));
        let driver = Driver::start(&mut machine, u64::MAX);
        let mut disk = Raw {
            machine,
            driver,
            control,
        };
        disk.machine.pump();
        assert_eq!(disk.sectors(), 128);
        disk.send(0);
        assert_eq!(disk.read(), [answer(2)]);
        disk.send(0);
        disk.machine.pump();
        assert_eq!(disk.driver.in_flight(), 1);
    }
    drop(open(&BlockSpec::new(files[0].path())).expect("a free image"));
}

#[test]
fn a_guest_would_notice_another_kind_of_image() {
    let files = [image(1, 64), image(2, 64)];
    let disk = Raw::new(&files[0], false);
    let other = |change: &dyn Fn(&mut BlockSpec)| {
        let mut spec = BlockSpec::new(files[1].path());
        change(&mut spec);
        disk.control.replace(&open(&spec).expect("an image"))
    };
    assert_eq!(
        other(&|spec| spec.readonly = true),
        Err(ReplaceError::Readonly)
    );
    #[cfg(feature = "qcow2")]
    assert_eq!(
        other(&|spec| spec.overlay = Some(std::env::temp_dir())),
        Err(ReplaceError::NotRaw)
    );
    assert_eq!(other(&|spec| spec.format = Format::Raw), Ok(()));
}

/// A file that io_uring refuses, of this many sectors.
fn refused_by_rings(sectors: usize) -> Image {
    let file = image(2, sectors);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = rustix::fs::open(file.path(), flags, Mode::empty()).expect("a file");
    Image::raw(File::from(file), Disk::default()).expect("an image")
}

#[test]
fn a_disk_keeps_its_image_if_another_one_can_not_be_had() {
    let file = image(1, 64);
    let spec = BlockSpec {
        engine: Engine::Async,
        ..BlockSpec::new(file.path())
    };
    let first = match open(&spec) {
        Ok(image) => image,
        Err(error) => return println!("SKIP: a_disk_keeps_its_image…: {error}"),
    };
    let (say, said) = mpsc::channel();
    let report = Box::new(move |notice: Notice| say.send(notice.to_string()).expect("a listener"));
    let block = Block::<Memory>::new(first, report);
    let control = block.control();
    let mut machine = Machine::new(Box::new(block), &memory(MEMORY));
    let driver = Driver::start(&mut machine, u64::MAX);
    let mut disk = Raw {
        machine,
        driver,
        control,
    };
    for is_paused in [false, true] {
        disk.send(0);
        assert_eq!(disk.read(), [answer(1)]);
        if is_paused {
            disk.machine.pause().expect("a pause");
        }
        let other = refused_by_rings(128);
        disk.control.replace(&other).expect("an image that fits");
        if is_paused {
            disk.machine.resume();
        }
        disk.machine.pump();
        let notices: Vec<_> = said.try_iter().collect();
        assert_eq!(notices.len(), 1, "{notices:?}");
        assert!(
            notices[0].contains("the disk's image can't be changed"),
            "{notices:?}"
        );
        disk.send(0);
        assert_eq!(disk.read(), [answer(1)]);
        assert_eq!(disk.sectors(), 64);
    }
}

#[test]
fn a_state_is_of_the_image_that_a_paused_disk_will_have() {
    for sectors in [32, 64, 128] {
        let files = [image(1, 64), image(2, sectors)];
        let mut disk = Raw::new(&files[0], false);
        disk.machine.pump();
        disk.machine.pause().expect("a pause");
        disk.replace(&files[1]);
        let saved = disk.machine.worker.device().save().expect("a state");
        drop(disk);
        assert_eq!(saved.state["sectors"], sectors);
        assert_eq!(saved.state["known"].as_u64(), (sectors != 64).then_some(64));
        let image = open(&BlockSpec::new(files[1].path())).expect("a free image");
        let mut block = Block::<Memory>::new(image, Box::new(|notice| panic!("{notice}")));
        AnyDevice::<Memory>::restore(&mut block, &saved).expect("a state that fits");
        // The driver learns of another size at the start.
        let control = block.control();
        let mut machine = Machine::<MmioPort>::new(Box::new(block), &memory(MEMORY));
        let driver = Driver::start(&mut machine, u64::MAX);
        machine.port.take_interrupts();
        let mut disk = Raw {
            machine,
            driver,
            control,
        };
        disk.machine.pump();
        assert_eq!(disk.machine.port.take_interrupts().config, sectors != 64);
        assert_eq!(disk.sectors(), sectors as u64);
    }
}
