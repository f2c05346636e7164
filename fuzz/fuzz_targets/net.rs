// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A network device whose driver and host send what the input says: buffers and frames of any lengths with any header,
//! commands, links that fail; or rings made of bytes. A frame for the guest arrives whole and in order or is dropped, each
//! frame of the guest is returned, and the device works after a reset.

#![no_main]

use std::collections::VecDeque;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use virtio_models::net::{
    Frame, HEADER, Link, LinkError, MAX_FRAME, Mac, Net, NetConfig, Offloads, Room,
};
use virtio_transport::testing::{Driver, MEMORY, Machine, Memory, MmioPort, Request, memory};
use vm_memory::{Bytes, GuestAddress};

const MQ: u64 = 1 << 22;

/// The host's side of a link.
#[derive(Default)]
struct Host {
    /// Frames for the guest: header, fill, length.
    frames: VecDeque<([u8; HEADER], u8, usize)>,
    faults: u8,
}

struct Fake {
    host: Arc<Mutex<Host>>,
    /// Never readable. The tests notify the queues.
    source: (PipeReader, PipeWriter),
}

impl Host {
    fn fault(&mut self) -> Result<(), LinkError> {
        self.faults = self.faults.rotate_left(1);
        let error = io::ErrorKind::NetworkDown.into();
        match self.faults & 0x11 {
            0x11 => Err(LinkError::Refused(error)),
            0x10 => Err(LinkError::Busy),
            _ => Ok(()),
        }
    }
}

impl Link for Fake {
    fn source(&self) -> BorrowedFd<'_> {
        self.source.0.as_fd()
    }

    fn has_headers(&self) -> bool {
        true
    }

    fn configure(&mut self, _: Offloads) -> Result<(), LinkError> {
        Ok(())
    }

    fn set_active(&mut self, _: bool) -> Result<(), LinkError> {
        Ok(())
    }

    fn send(&mut self, frame: &mut Frame<'_>) -> Result<(), LinkError> {
        self.host.lock().expect("no panic").fault()?;
        assert!((14..=MAX_FRAME).contains(&frame.len()));
        let mut bytes = vec![0; frame.len()];
        assert_eq!(frame.copy_to(0, &mut bytes), bytes.len());
        let header = frame.header();
        assert!(matches!(header[1], 0 | 1 | 4) && header[0] <= 1 && header[10..] == [0, 0]);
        Ok(())
    }

    fn receive(&mut self, room: Room<'_>) -> Result<usize, LinkError> {
        let mut host = self.host.lock().expect("no panic");
        host.fault()?;
        let (header, fill, len) = host.frames.pop_front().ok_or(LinkError::Busy)?;
        room.fill(header, &vec![fill; len]).map_err(LinkError::Lost)
    }
}

/// What a driver or the host does.
fn act(machine: &mut Machine<MmioPort>, driver: &mut Driver, host: &Mutex<Host>, step: &[u8; 8]) {
    let [what, pair, high, low, flags, kind, size, fill] = *step;
    let len = usize::from(u16::from_be_bytes([high, low]));
    let mut header = vec![0; HEADER];
    (header[0], header[1], header[4], header[11]) = (flags, kind, size, fill);
    let pair = u16::from(pair % 2);
    let request = match what % 4 {
        0 => Request {
            queue: 2 * pair,
            readable: vec![0; usize::from(flags % 2)],
            writable: (len as u32).clamp(HEADER as u32, 70_000),
        },
        1 => {
            header.resize(len.saturating_sub(usize::from(size) % 16), fill);
            Request {
                queue: 2 * pair + 1,
                readable: header,
                writable: u32::from(size / 200),
            }
        }
        2 => Request {
            // Without `VIRTIO_NET_F_MQ` it is the third.
            queue: if driver.features() & MQ != 0 { 4 } else { 2 },
            readable: [flags % 8, kind % 3, size % 4, fill % 2][..usize::from(high % 5)].to_vec(),
            writable: u32::from(low % 3),
        },
        _ => {
            let header = header.try_into().expect("a header");
            let frame = (header, fill, len.max(1));
            host.lock().expect("no panic").frames.push_back(frame);
            return;
        }
    };
    // A chain has at least one buffer. And a driver has limited memory, also for what the device holds.
    let is_chain = !request.readable.is_empty() || request.writable != 0;
    if is_chain && driver.in_flight() < 8 {
        let queue = request.queue;
        driver.send(machine, &request);
        machine.kick(queue);
        machine.pump();
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&[choices, faults, raw], bytes)) = input.split_first_chunk() else {
        return;
    };
    let host = Arc::new(Mutex::new(Host::default()));
    let link = || {
        let (host, source) = (Arc::clone(&host), io::pipe().expect("a pipe"));
        Box::new(Fake { host, source }) as Box<dyn Link>
    };
    let config = NetConfig {
        mtu: (choices & 1 != 0).then_some(1500),
        ..NetConfig::new(Mac([2, 0, 0, 0, 0, 1]))
    };
    let net = Net::<Memory>::new(config, vec![link(), link()], Box::new(|_| ()));
    let counters = net.counters();
    let mut machine = Machine::<MmioPort>::new(Box::new(net), &memory(MEMORY));
    // Leaves out merged buffers, checksums with segmentation, or a ring's feature.
    let without = [0, 1 << 15, MQ, 0x1983, 1 << 28, 1 << 29];
    let without = without[usize::from(choices >> 1) % without.len()];
    let mut driver = Driver::start(&mut machine, !without);
    machine.pump();
    host.lock().expect("no panic").faults = faults;
    if raw % 2 == 0 {
        let bytes = &bytes[..bytes.len().min(0x6000)];
        let written = machine.memory.write_slice(bytes, GuestAddress(0));
        written.expect("guest memory");
        (0..5).for_each(|queue| machine.kick(queue));
        machine.pump();
    } else {
        for step in bytes.as_chunks().0 {
            act(&mut machine, &mut driver, &host, step);
            driver.receive_all(&machine);
        }
        assert!(machine.failures.is_empty());
        machine.pause().expect("a device that drains");
        machine.resume();
    }
    *host.lock().expect("no panic") = Host::default();
    let mut driver = Driver::start(&mut machine, u64::MAX);
    machine.pump();
    let before = (counters.received(), counters.sent());
    let frame = ([0; HEADER], 7, 100);
    host.lock().expect("no panic").frames.push_back(frame);
    for (queue, readable, writable) in [(0, 0, 200), (1, 80, 0)] {
        let readable = vec![0; readable];
        driver.send(
            &machine,
            &Request {
                queue,
                readable,
                writable,
            },
        );
        machine.kick(queue);
        machine.pump();
    }
    assert_eq!(driver.receive_all(&machine).len(), 2, "both frames");
    let after = (counters.received(), counters.sent());
    assert_eq!(after, (before.0 + 1, before.1 + 1));
});
