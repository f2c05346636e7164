// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks in real files, with io_uring if the host has it.

use tempfile::NamedTempFile;
use virtio_models::block::{Block, BlockSpec, Engine, open};
use virtio_transport::testing::{Driver, MEMORY, Machine, Memory, MmioPort, Request, memory};

use crate::support::{FLUSH, OK, OUT, header};

fn spec(file: &NamedTempFile) -> BlockSpec {
    file.as_file().set_len(1 << 20).expect("an image");
    BlockSpec::new(file.path())
}

fn machine(spec: &BlockSpec, threads: bool) -> Machine<MmioPort> {
    let image = open(spec).expect("an image that nobody has");
    let image = if threads {
        image.with_engine(Engine::Sync)
    } else {
        image
    };
    let block = Block::<Memory>::new(image, Box::new(|notice| println!("{notice}")));
    Machine::new(Box::new(block), &memory(MEMORY))
}

#[test]
fn more_requests_are_in_flight_than_a_ring_has_completions() {
    const QUEUES: u16 = 32;
    const EACH: usize = 90;
    let file = NamedTempFile::new().expect("an image");
    let mut spec = spec(&file);
    spec.queues = QUEUES;
    let mut machine = machine(&spec, false);
    let mut driver = Driver::start(&mut machine, u64::MAX);
    machine.pump();
    for queue in 0..QUEUES {
        for _ in 0..EACH {
            let request = Request {
                queue,
                readable: header(FLUSH, 0),
                writable: 1,
            };
            driver.send(&machine, &request);
        }
        machine.kick(queue);
    }
    assert!(driver.in_flight() > 2048);
    machine.pump_until(|machine| {
        for (_, reply) in driver.receive_all(machine) {
            assert_eq!(reply.bytes, [OK]);
        }
        driver.in_flight() == 0
    });
}

#[test]
fn an_image_is_free_as_soon_as_its_disk_is_dropped() {
    let file = NamedTempFile::new().expect("an image");
    let spec = spec(&file);
    for n in 0..100 {
        let mut machine = machine(&spec, n % 2 == 1);
        let mut driver = Driver::start(&mut machine, u64::MAX);
        let request = Request {
            queue: 0,
            readable: [header(OUT, 0), vec![1; 4096]].concat(),
            writable: 1,
        };
        driver.send(&machine, &request);
        machine.kick(0);
        machine.pump_until(|machine| driver.receive(machine, 0).is_some());
    }
}
