// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Drivers of the entropy device, of a disk, of a network, of sockets and of a balloon, by MMIO and by PCI.

use mini_vmm::layout::{LAPIC, MIB, PCI_ECAM, PCI_LOW, VIRTIO_MMIO};

use super::{Asm, guest};

/// Where the guest counts the requests that were answered.
pub const COUNT: u64 = 4 * MIB;
/// The descriptor table, with one chain.
const DESCRIPTORS: u64 = COUNT + 0x1000;
/// The available ring: all its entries are descriptor 0.
const AVAILABLE: u64 = COUNT + 0x2000;
pub const USED: u64 = COUNT + 0x3000;
/// What the device reads or writes.
pub const BUFFER: u64 = COUNT + 0x4000;
/// How many random bytes are asked for.
pub const LEN: u32 = 32;
/// A disk's request: its type, and its sector.
pub const HEADER: u64 = COUNT + 0x5000;
/// A disk's answer, in one byte.
pub const STATUS: u64 = COUNT + 0x6000;
/// The rings of a network's second queue.
const SEND_DESCRIPTORS: u64 = COUNT + 0x7000;
const SEND_AVAILABLE: u64 = COUNT + 0x8000;
const SEND_USED: u64 = COUNT + 0x9000;
/// What that queue sends: a header and a frame.
pub const FRAME: u64 = COUNT + 0xa000;
/// Where a driver notifies the first queue by PCI.
const PCI_NOTIFY: u64 = PCI_LOW + 0x4000;
/// The header before a frame, in bytes.
pub const NET_HEADER: u64 = 12;
const SECTOR: u32 = 512;
const QUEUE_SIZE: u16 = 8;
/// The pin of the first device.
const PIN: u32 = 16;
const VECTOR: u8 = 0x50;

/// Writes a register of 8, 16 or 32 bits.
fn put(asm: &mut Asm, at: u64, width: u8, value: u32) {
    let bytes = value.to_le_bytes();
    match width {
        1 => asm.rdi(at).raw(&[0xc6, 0x07, bytes[0]]),
        2 => asm.rdi(at).raw(&[0x66, 0xc7, 0x07]).raw(&bytes[..2]),
        _ => asm.store(at, value),
    };
}

/// A device's requests, which are of one chain.
pub struct Requests {
    /// Each descriptor: address, length, flags with the next one's number.
    chain: &'static [(u64, u32, u32)],
    /// What happens before each request.
    prepare: fn(&mut Asm),
    /// What the second queue sends before each request: a frame without its header, a multiple of 4 bytes.
    sends: &'static [u8],
    /// Sends back what it received, before each request.
    echo: Option<fn(&mut Asm)>,
}

/// Random bytes.
pub const ENTROPY: Requests = Requests {
    chain: &[(BUFFER, LEN, WRITE)],
    prepare: |asm| {
        asm.store(BUFFER, 0);
    },
    sends: &[],
    echo: None,
};

/// Sends a frame, receives one, and so on.
pub const fn network(sends: &'static [u8]) -> Requests {
    Requests {
        chain: &[(BUFFER, 4096, WRITE)],
        prepare: |_| (),
        sends,
        echo: None,
    }
}

/// Connects to the host's port 52, accepts every connection, and sends back all data.
pub const SOCKETS: Requests = Requests {
    chain: &[(BUFFER, 4096, WRITE)],
    prepare: |_| (),
    sends: &[],
    echo: Some(echo_packet),
};

/// The bytes of the connection that the guest has taken.
const TAKEN: u64 = FRAME;

/// Makes a packet of the host the guest's answer, in its place (virtio 1.4, 5.10.6).
fn echo_packet(asm: &mut Asm) {
    const PORTS: u64 = BUFFER + 16;
    const KIND_AND_OP: u64 = BUFFER + 28;
    asm.store(BUFFER, 3).store(BUFFER + 8, 2);
    // `xchg [rdi], eax`, `mov [rdi], eax`
    asm.load(PORTS).rdi(PORTS + 4).raw(&[0x87, 0x07]);
    asm.rdi(PORTS).raw(&[0x89, 0x07]);
    asm.load(KIND_AND_OP).compare_eax(0x5_0001);
    asm.if_equal(|asm| {
        asm.load(BUFFER + 24).rdi(TAKEN).raw(&[0x01, 0x07]); // add [rdi], eax
    });
    // A response becomes a credit update, a request a response, nothing the first request, and a shutdown a reset.
    for (from, to) in [
        (0x2_0001, 0x6_0001),
        (0x1_0001, 0x2_0001),
        (0, 0x1_0001),
        (0x4_0001, 0x3_0001),
    ] {
        asm.load(KIND_AND_OP).compare_eax(from).if_equal(|asm| {
            asm.store(KIND_AND_OP, to).store(TAKEN, 0);
        });
    }
    asm.store(BUFFER + 36, 0x4_0000);
    asm.load(TAKEN).rdi(BUFFER + 40).raw(&[0x89, 0x07]);
}

/// The page that a guest gives back.
pub const INFLATED: u64 = 16 * MIB;

/// Writes to a page, and gives it back.
pub const INFLATE: Requests = Requests {
    chain: &[(BUFFER, 4, 0)],
    prepare: |asm| {
        asm.store(INFLATED, 0x1234_5678);
        asm.store(BUFFER, (INFLATED >> 12) as u32);
    },
    sends: &[],
    echo: None,
};

/// A disk's second sector is read and written in turn. The number at its start is one more each time.
pub const DISK: Requests = Requests {
    chain: &[
        (HEADER, 16, NEXT | 1 << 16),
        (BUFFER, SECTOR, NEXT | 2 << 16),
        (STATUS, 1, WRITE),
    ],
    prepare: |asm| {
        asm.rdi(HEADER).raw(&[0x83, 0x37, 0x01]); // xor dword [rdi], 1
        asm.rdi(DESCRIPTORS + 16 + 12).raw(&[0x83, 0x37, 0x02]);
        asm.load(HEADER).compare_eax(1).if_equal(|asm| {
            asm.rdi(BUFFER).raw(&[0xff, 0x07]); // inc dword [rdi]
        });
    },
    sends: &[],
    echo: None,
};

const NEXT: u32 = 1;
const WRITE: u32 = 2;

impl Requests {
    /// One request: `inc word [idx]`, and the notification.
    fn make(&self, asm: &mut Asm, notify: u64) {
        (self.prepare)(asm);
        // By PCI each queue also has its address.
        let second = notify + if notify == PCI_NOTIFY { 4 } else { 0 };
        if let Some(echo) = self.echo {
            echo(asm);
            asm.rdi(SEND_AVAILABLE + 2).raw(&[0x66, 0xff, 0x07]);
            put(asm, second, 4, 1);
            Requests::await_sent(asm);
        }
        asm.rdi(AVAILABLE + 2).raw(&[0x66, 0xff, 0x07]);
        put(asm, notify, 4, 0);
        if !self.sends.is_empty() {
            // The only descriptor is the device's until it is used (2.7.13).
            Requests::await_sent(asm);
            asm.raw(&[0x66, 0xff, 0x07]);
            put(asm, second, 4, 1);
        }
    }

    /// Waits until the device has used what was sent: `mov ax, [used]; cmp ax, [available]`
    fn await_sent(asm: &mut Asm) {
        asm.until_equal(|asm| {
            asm.rdi(SEND_USED + 2).raw(&[0x66, 0x8b, 0x07]);
            asm.rdi(SEND_AVAILABLE + 2).raw(&[0x66, 0x3b, 0x07]);
        });
    }

    /// What the second queue sends: an address and a length.
    fn sent(&self) -> Option<(u64, u32)> {
        match self.echo {
            Some(_) => Some((BUFFER, 4096)),
            None if self.sends.is_empty() => None,
            None => Some((FRAME, NET_HEADER as u32 + self.sends.len() as u32)),
        }
    }

    /// The rings, without a request. A disk's first one is a read.
    fn rings(&self, asm: &mut Asm) {
        for ((address, len, flags), at) in self.chain.iter().zip((DESCRIPTORS..).step_by(16)) {
            for (at, value) in [(at, *address as u32), (at + 4, 0), (at + 8, *len)] {
                asm.store(at, value);
            }
            asm.store(at + 12, *flags);
        }
        for (at, value) in [
            (AVAILABLE, 0),
            (USED, 0),
            (COUNT, 0),
            (HEADER, 1),
            (HEADER + 4, 0),
            (HEADER + 8, 1),
            (HEADER + 12, 0),
        ] {
            asm.store(at, value);
        }
        if let Some((from, len)) = self.sent() {
            for (at, value) in [
                (SEND_DESCRIPTORS, from as u32),
                (SEND_DESCRIPTORS + 4, 0),
                (SEND_DESCRIPTORS + 8, len),
                (SEND_DESCRIPTORS + 12, 0),
                (SEND_AVAILABLE, 1), // no interrupts
                (SEND_USED, 0),
            ] {
                asm.store(at, value);
            }
        }
        if self.echo.is_some() {
            // As if the host's port 52 had sent nothing.
            asm.store(BUFFER + 16, 52).store(BUFFER + 20, 1000);
            asm.store(BUFFER + 24, 0).store(BUFFER + 28, 0);
        }
        if !self.sends.is_empty() {
            let frame = [&[0; NET_HEADER as usize], self.sends].concat();
            for (word, at) in frame.chunks_exact(4).zip((FRAME..).step_by(4)) {
                asm.store(at, u32::from_le_bytes(word.try_into().unwrap()));
            }
        }
    }

    /// The addresses of the rings of each queue.
    fn queues(&self) -> Vec<[u32; 3]> {
        let first = [DESCRIPTORS, AVAILABLE, USED];
        let second = [SEND_DESCRIPTORS, SEND_AVAILABLE, SEND_USED];
        let queues = [first, second].map(|queue| queue.map(|at| at as u32));
        queues[..if self.sent().is_none() { 1 } else { 2 }].to_vec()
    }
}

/// A guest that has one request after the other answered, each at the interrupt of the one before, after `set_up`. After
/// each it does what `then` says, with the count in EAX.
fn requester(
    requests: &Requests,
    set_up: impl FnOnce(&mut Asm),
    notify: u64,
    acknowledge: impl FnOnce(&mut Asm),
    then: impl FnOnce(&mut Asm),
) -> Asm {
    guest(|asm| {
        let handler = guest(|asm| {
            acknowledge(asm);
            // An interrupt that was one too many finds nothing used: `mov ax, [used]; cmp ax, [available]`
            asm.rdi(USED + 2).raw(&[0x66, 0x8b, 0x07]);
            asm.rdi(AVAILABLE + 2).raw(&[0x66, 0x3b, 0x07]);
            asm.if_equal(|asm| {
                asm.rdi(COUNT).raw(&[0xff, 0x07]); // inc dword [rdi]
                asm.load(COUNT);
                then(asm);
                requests.make(asm, notify);
            });
            asm.wait_for_interrupts();
        });
        asm.idt(&[(VECTOR, handler)]);
        asm.out(0x21, 0xff).out(0xa1, 0xff);
        requests.rings(asm);
        set_up(asm);
        requests.make(asm, notify);
        asm.wait_for_interrupts();
    })
}

/// By MMIO (virtio 1.4, 4.2.2).
pub fn by_mmio(requests: &Requests, then: impl FnOnce(&mut Asm)) -> Asm {
    let at = |offset: u64| VIRTIO_MMIO + offset;
    let set_up = |asm: &mut Asm| {
        asm.route(PIN, VECTOR);
        for (offset, value) in [
            (0x70, 0),
            (0x70, 1),
            (0x70, 3),
            (0x24, 1), // VIRTIO_F_VERSION_1
            (0x20, 1),
            (0x70, 11),
        ] {
            put(asm, at(offset), 4, value);
        }
        for ([descriptors, available, used], queue) in requests.queues().into_iter().zip(0..) {
            for (offset, value) in [
                (0x30, queue),
                (0x38, QUEUE_SIZE.into()),
                (0x80, descriptors),
                (0x90, available),
                (0xa0, used),
                (0x44, 1),
            ] {
                put(asm, at(offset), 4, value);
            }
        }
        put(asm, at(0x70), 4, 15);
    };
    let acknowledge = |asm: &mut Asm| put(asm, at(0x64), 4, 1);
    requester(requests, set_up, at(0x50), acknowledge, then)
}

/// By PCI (virtio 1.4, 4.1.4): the first function, with its BAR moved below 4 GiB.
pub fn by_pci(requests: &Requests, then: impl FnOnce(&mut Asm)) -> Asm {
    const CONFIG: u64 = PCI_ECAM + (1 << 15);
    const COMMON: u64 = PCI_LOW + 0x2000;
    let set_up = |asm: &mut Asm| {
        asm.store(LAPIC + 0xf0, 0x1ff);
        for (at, width, value) in [
            (CONFIG + 0x10, 4, PCI_LOW as u32),
            (CONFIG + 0x14, 4, 0),
            (CONFIG + 4, 2, 6),
            (CONFIG + 0x42, 2, 0x8000), // MSI-X Enable
            (PCI_LOW, 4, LAPIC as u32),
            (PCI_LOW + 4, 4, 0),
            (PCI_LOW + 8, 4, VECTOR.into()),
            (PCI_LOW + 12, 4, 0),
            (COMMON + 0x14, 1, 0),
            (COMMON + 0x14, 1, 1),
            (COMMON + 0x14, 1, 3),
            (COMMON + 0x8, 4, 1), // VIRTIO_F_VERSION_1
            (COMMON + 0xc, 4, 1),
            (COMMON + 0x14, 1, 11),
        ] {
            put(asm, at, width, value);
        }
        for ([descriptors, available, used], queue) in requests.queues().into_iter().zip(0..) {
            for (at, width, value) in [
                (COMMON + 0x16, 2, queue),
                (COMMON + 0x18, 2, QUEUE_SIZE.into()),
                // Only the first one interrupts.
                (COMMON + 0x1a, 2, if queue == 0 { 0 } else { 0xffff }),
                (COMMON + 0x20, 4, descriptors),
                (COMMON + 0x28, 4, available),
                (COMMON + 0x30, 4, used),
                (COMMON + 0x1c, 2, 1),
            ] {
                put(asm, at, width, value);
            }
        }
        put(asm, COMMON + 0x14, 1, 15);
    };
    requester(requests, set_up, PCI_NOTIFY, |_| (), then)
}
