// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The effect of each request.

use virtio_models::block::{Cache, Disk};
use virtio_transport::testing::{MmioPort, Port};

use crate::support::*;

const FLUSH_FEATURE: u64 = 1 << 9;

#[test]
fn reads_and_writes_move_what_they_say() {
    let mut guest = Guest::new(64);
    let wanted: Vec<u8> = (512..2048).map(pattern).collect();
    assert_eq!(guest.read(1, 1536), (OK, wanted));
    assert_eq!(guest.write(3, &[0xee; 1024]), OK);
    assert_eq!(guest.disk().bytes[1536..2560], [0xee; 1024]);
    assert_eq!(guest.read(63, 512).0, OK);
}

#[test]
fn what_is_not_on_the_disk_is_an_error() {
    let mut guest = Guest::new(64);
    for (sector, len) in [
        (64, 512),
        (63, 1024),
        (0, 511),
        (0, 513),
        (u64::MAX, 512),
        (u64::MAX / 512 + 1, 512),
        (u64::MAX / 512, 512),
        (1 << 55, 512),
    ] {
        assert_eq!(guest.read(sector, len).0, IOERR, "{sector} {len}");
        assert_eq!(guest.write(sector, &vec![1; len as usize]), IOERR);
    }
    assert!(guest.disk().log.is_empty());
    assert!(guest.notices().is_empty(), "no fault of the host's");
    assert_eq!(guest.read(0, 512).0, OK);
}

/// Section 2.7.8.2: a driver may take the first `len` bytes for written.
#[test]
fn the_used_length_is_what_was_written_from_the_start_on() {
    let mut guest = Guest::new(64);
    let mut reply = |readable, writable| {
        let reply = guest.ask(readable, writable);
        (reply.len, reply.bytes.last().copied())
    };
    // The status follows data that nobody wrote.
    assert_eq!(reply(header(IN, 64), 513), (0, Some(IOERR)));
    assert_eq!(reply(header(IN, 0), 500), (0, Some(IOERR)));
    assert_eq!(reply(header(99, 0), 513), (0, Some(UNSUPP)));
    assert_eq!(reply(header(FLUSH, 0), 3), (0, Some(OK)));
    assert_eq!(reply(header(GET_ID, 0), 6), (0, Some(IOERR)));
    assert_eq!(reply(header(GET_ID, 0), 30), (20, Some(OK)));
    let write = [header(OUT, 0), vec![1; 512]].concat();
    assert_eq!(reply(write.clone(), 2), (0, Some(OK)));
    // It follows what was written.
    assert_eq!(reply(header(IN, 0), 513), (513, Some(OK)));
    assert_eq!(reply(header(IN, 0), 1), (1, Some(OK)));
    assert_eq!(reply(header(GET_ID, 0), 21), (21, Some(OK)));
    assert_eq!(reply(write, 1), (1, Some(OK)));
    assert_eq!(reply(header(99, 0), 1), (1, Some(UNSUPP)));
}

#[test]
fn a_short_header_and_an_unknown_kind_are_answered() {
    let mut guest = Guest::new(64);
    assert_eq!(guest.status(vec![0; 15]), IOERR);
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(guest.status(header(kind, 0)), UNSUPP, "{kind}");
    }
    // There is no byte for the status.
    assert_eq!(guest.ask(header(IN, 0), 0).len, 0);
    assert_eq!(guest.write(0, &[2; 512]), OK);
}

#[test]
fn the_serial_number_needs_its_room() {
    let serial = *b"S123\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let disk = Disk {
        serial,
        ..Disk::default()
    };
    let mut guest = Guest::with(64, disk, u64::MAX);
    let reply = guest.ask(header(GET_ID, 0), 21);
    assert_eq!((reply.len, reply.bytes[20]), (21, OK));
    assert_eq!(reply.bytes[..20], serial);
    assert_eq!(guest.ask(header(GET_ID, 0), 20).bytes[19], IOERR);
}

#[test]
fn ranges_are_checked() {
    let mut guest = Guest::new(64);
    for kind in [DISCARD, WRITE_ZEROES] {
        for (sector, count) in [(64, 1), (60, 5), (u64::MAX, 1), (1 << 55, 1), (0, u32::MAX)] {
            assert_eq!(
                guest.zero(kind, sector, count, 0),
                IOERR,
                "{sector} {count}"
            );
        }
        for flags in [2, 0x8000_0000] {
            assert_eq!(guest.zero(kind, 0, 1, flags), UNSUPP, "{flags}");
        }
        let two = [header(kind, 0), range(0, 1, 0), range(1, 1, 0)].concat();
        assert_eq!(guest.status(two), IOERR);
        assert_eq!(guest.status(header(kind, 0)), IOERR);
        assert_eq!(guest.status([header(kind, 0), vec![0; 15]].concat()), IOERR);
        assert_eq!(guest.zero(kind, 0, 0, 0), OK);
    }
    assert_eq!(guest.zero(DISCARD, 0, 1, 1), UNSUPP);
    assert!(guest.disk().log.is_empty());
    assert_eq!(guest.zero(DISCARD, 2, 2, 0), OK);
    assert_eq!(guest.zero(WRITE_ZEROES, 60, 4, 0), OK);
    assert_eq!(guest.zero(WRITE_ZEROES, 1, 1, 1), OK);
    let log = ["discard 1024 1024", "zeroes 30720 2048", "zeroes 512 512"];
    assert_eq!(guest.disk().log, log);
    assert_eq!(guest.read(60, 2048), (OK, vec![0; 2048]));
}

#[test]
fn zeros_are_written_where_the_host_makes_none() {
    let mut guest = Guest::new(64);
    guest.disk().no_zeroes = true;
    guest.disk().short = 1000;
    assert_eq!(guest.zero(WRITE_ZEROES, 8, 16, 0), OK);
    let disk = guest.disk();
    assert!(disk.bytes[8 * 512..24 * 512].iter().all(|byte| *byte == 0));
    assert_eq!(disk.bytes[24 * 512], pattern(24 * 512));
    assert_eq!(disk.bytes[8 * 512 - 1], pattern(8 * 512 - 1));
}

#[test]
fn a_read_only_disk_is_not_written() {
    let disk = Disk {
        readonly: true,
        ..Disk::default()
    };
    let mut guest = Guest::with(64, disk, u64::MAX);
    assert_ne!(guest.driver.features() & 1 << 5, 0);
    assert_eq!(guest.write(0, &[1; 512]), IOERR);
    assert_eq!(guest.zero(DISCARD, 0, 1, 0), UNSUPP);
    assert_eq!(guest.zero(WRITE_ZEROES, 0, 1, 0), UNSUPP);
    assert!(guest.disk().log.is_empty());
    assert_eq!(guest.read(0, 512).0, OK);
}

#[test]
fn a_flush_waits_for_the_writes_before_it() {
    let mut guest = Guest::new(64);
    guest.disk().held = true;
    guest.disk().backwards = true;
    for sector in [0, 8] {
        guest.send([header(OUT, sector), vec![1; 512]].concat(), 1);
    }
    guest.send(header(FLUSH, 0), 1);
    guest.send([header(OUT, 16), vec![1; 512]].concat(), 1);
    guest.machine.pump();
    guest.disk().held = false;
    let (driver, machine) = (&mut guest.driver, &mut guest.machine);
    machine.kick(0);
    machine.pump_until(|machine| {
        driver.receive_all(machine);
        driver.in_flight() == 0
    });
    let log = guest.disk().log.clone();
    let at = |what: &str| log.iter().position(|entry| entry == what).unwrap();
    assert_eq!(log.len(), 4, "{log:?}");
    assert!(
        at("flush") > at("write 0") && at("flush") > at("write 4096"),
        "{log:?}"
    );
}

#[test]
fn each_write_is_flushed_without_a_cache() {
    // Of a driver that can't flush, and of one that disabled the cache.
    let mut first = Guest::with(64, Disk::default(), !FLUSH_FEATURE);
    assert_eq!(first.status(header(FLUSH, 0)), UNSUPP);
    let mut second = Guest::new(64);
    second.machine.write(MmioPort::CONFIG + 32, &[0]);
    second.machine.pump();
    let disk = Disk {
        cache: Cache::Writethrough,
        ..Disk::default()
    };
    let mut third = Guest::with(64, disk, u64::MAX);
    for guest in [&mut first, &mut second, &mut third] {
        assert_eq!(guest.write(0, &[1; 512]), OK);
        assert_eq!(guest.zero(WRITE_ZEROES, 1, 1, 0), OK);
        let log = ["write 0", "flush", "zeroes 512 512", "flush"];
        assert_eq!(guest.disk().log, log);
    }
    // With a cache, there is no flush.
    let mut guest = Guest::new(64);
    assert_eq!(guest.write(0, &[1; 512]), OK);
    assert_eq!(guest.disk().log, ["write 0"]);
}

#[test]
fn an_unsafe_disk_neither_offers_nor_makes_flushes() {
    const CONFIG_WCE: u64 = 1 << 11;
    let offers = |cache, readonly| {
        let disk = Disk {
            cache,
            readonly,
            ..Disk::default()
        };
        let guest = Guest::with(64, disk, u64::MAX);
        guest.machine.worker.device().layout().features & (FLUSH_FEATURE | CONFIG_WCE)
    };
    assert_eq!(offers(Cache::Writeback, false), FLUSH_FEATURE | CONFIG_WCE);
    assert_eq!(offers(Cache::Writeback, true), FLUSH_FEATURE);
    for readonly in [false, true] {
        assert_eq!(offers(Cache::Unsafe, readonly), 0);
    }
    let disk = Disk {
        cache: Cache::Unsafe,
        ..Disk::default()
    };
    let mut guest = Guest::with(64, disk, u64::MAX);
    // Nor does a driver get them that nobody offered it.
    guest.machine.write(MmioPort::CONFIG + 32, &[0]);
    guest.machine.pump();
    assert_eq!(guest.status(header(FLUSH, 0)), UNSUPP);
    assert_eq!(guest.write(0, &[1; 512]), OK);
    assert_eq!(guest.zero(WRITE_ZEROES, 1, 1, 0), OK);
    assert_eq!(guest.disk().log, ["write 0", "zeroes 512 512"]);
}

#[test]
fn the_configuration_tells_the_disk() {
    let disk = Disk {
        queues: 3,
        block_size: 1024,
        ..Disk::default()
    };
    let guest = Guest::with(64, disk, u64::MAX);
    let config = guest.machine.worker.device().config();
    let field = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!((field(0), field(4)), (64, 0), "the capacity");
    assert_eq!((field(8), field(12)), (0, 254), "the segments");
    assert_eq!(field(20), 1024, "the block size");
    assert_eq!(config[24..28], [2, 0, 4, 0], "the topology");
    assert_eq!(config[32], 1, "the cache");
    assert_eq!(config[34..36], [3, 0], "the queues");
    assert_eq!(config.len(), 60);
}

#[test]
fn requests_are_of_whole_blocks() {
    let disk = Disk {
        block_size: 4096,
        ..Disk::default()
    };
    let mut guest = Guest::with(64, disk, u64::MAX);
    assert_eq!(guest.read(1, 4096).0, IOERR);
    assert_eq!(guest.read(8, 512).0, IOERR);
    assert_eq!(guest.read(8, 4096).0, OK);
}

#[test]
fn a_new_size_is_told() {
    let mut guest = Guest::new(64);
    guest.machine.pump();
    guest.machine.port.take_interrupts();
    guest.disk().bytes.resize(128 * 512, 7);
    assert_eq!(guest.read(64, 512).0, IOERR);
    guest.resize();
    guest.machine.pump();
    assert!(guest.machine.port.take_interrupts().config);
    let mut capacity = [0; 8];
    guest.machine.port.read(MmioPort::CONFIG, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 128);
    assert_eq!(guest.read(64, 512), (OK, vec![7; 512]));
    // An unchanged size is not reported.
    guest.resize();
    guest.machine.pump();
    assert!(!guest.machine.port.take_interrupts().config);
    guest.disk().bytes.truncate(512);
    guest.resize();
    guest.machine.pump();
    assert_eq!(guest.read(1, 512).0, IOERR);
}
