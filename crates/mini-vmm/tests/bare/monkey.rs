// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver that breaks rules at random: a script of accesses that comes from a seed, and a guest that executes it.
//!
//! The guest must survive what it makes devices do. So its code is at 16 MiB and above, all that devices are told is in
//! `PLAYGROUND`, outside of RAM, or too long to be valid, and messages are plain vectors.

use mini_vmm::layout::{LAPIC, MIB, PCI_ECAM, PCI_LOW, VIRTIO_MMIO};

use super::{Asm, guest};

/// Where the guest has the script.
const SCRIPT: u64 = 24 * MIB;
/// The memory that devices may use.
const PLAYGROUND: u64 = 4 * MIB;
/// The layout of a function's BAR (virtio-transport's `pci`).
const BAR_SIZE: u64 = 0x8000;
const COMMON: u64 = 0x2000;
const NOTIFY: u64 = 0x4000;
/// How many devices there are: the entropy device, a disk and a network.
const DEVICES: u64 = 3;
const DISK: u64 = 1;
const NETWORK: u64 = 2;
const SIZE: u16 = 8;

/// What the guest does with an entry of its script.
#[derive(Clone, Copy)]
enum Access {
    /// Write so many bytes: 1, 2, 4 or 8.
    Write(u8),
    /// Read 32 bits.
    Read,
    /// Read a byte until it is the value.
    Await,
}

/// How the devices are reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Pci,
    Mmio,
}

/// Random numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// An address for a device: usable, or in a hole, in registers, at the end of RAM, or beyond.
    fn address(&mut self) -> u64 {
        match self.below(8) {
            0 => self.of(&[
                PCI_LOW,
                VIRTIO_MMIO,
                PCI_ECAM,
                LAPIC,
                0xd800_0000,
                4096 * MIB,
            ]),
            1 => self.of(&[32 * MIB - 16, u64::MAX, u64::MAX - 15, 1 << 63, 1 << 32]),
            2 => PLAYGROUND + self.below(0x4000),
            _ => PLAYGROUND + (self.below(0x40) << 8),
        }
    }

    /// A register's value.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << (25 + self.below(39)),
            3 => self.address(),
            _ => self.below(16),
        }
    }
}

/// A queue of a device, with rings and buffers of its own. Only the network has a second one, and it comes last.
#[derive(Clone, Copy)]
struct Queue {
    device: u64,
    number: u64,
}

impl Queue {
    /// All of a device.
    fn of(device: u64) -> impl Iterator<Item = Self> {
        let count = if device == NETWORK { 2 } else { 1 };
        (0..count).map(move |number| Queue { device, number })
    }

    /// Its place in the memory for rings and that for buffers.
    const fn offset(self) -> u64 {
        (self.device + self.number) * 0x1000
    }

    const fn rings(self) -> [u64; 3] {
        let at = PLAYGROUND + self.offset();
        [at, at + 0x400, at + 0x800]
    }

    const fn data(self) -> u64 {
        PLAYGROUND + 0x8000 + self.offset()
    }

    /// The buffers of a request that the device can answer: address, length, flags.
    fn buffers(self) -> Vec<(u64, u64, u64)> {
        let data = self.data();
        match (self.device, self.number) {
            // A disk reads its first sector: a header of zeros, the data, and the status.
            (DISK, _) => vec![(data, 16, 1), (data + 0x200, 512, 3), (data + 0x400, 1, 2)],
            // A frame of any bytes behind a header of zeros.
            (NETWORK, 1) => vec![(data, 100, 0)],
            (NETWORK, _) => vec![(data, 2048, 2)],
            _ => vec![(data, 64, 2)],
        }
    }
}

/// A script for the devices.
struct Script {
    random: Random,
    transport: Transport,
    entries: Vec<[u64; 3]>,
}

impl Script {
    fn add(&mut self, access: Access, at: u64, value: u64) {
        let code = match access {
            Access::Write(width) => u64::from(width),
            Access::Read => 0x10,
            Access::Await => 0x20,
        };
        self.entries.push([at, value, code]);
    }

    fn write(&mut self, width: u8, at: u64, value: u64) {
        self.add(Access::Write(width), at, value);
    }

    /// Where the registers are that a well-behaved driver uses.
    fn base(&self, device: u64) -> u64 {
        match self.transport {
            Transport::Pci => PCI_LOW + device * BAR_SIZE,
            Transport::Mmio => VIRTIO_MMIO + device * 0x1000,
        }
    }

    /// Does what a driver should to start a device.
    fn start(&mut self, device: u64) {
        match self.transport {
            Transport::Pci => self.start_pci(device),
            Transport::Mmio => self.start_mmio(device),
        }
    }

    fn start_mmio(&mut self, device: u64) {
        let base = self.base(device);
        for (at, value) in [(0x70, 0), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
            self.write(4, base + at, value);
        }
        for queue in Queue::of(device) {
            self.write(4, base + 0x30, queue.number);
            self.write(4, base + 0x38, SIZE.into());
            for (at, ring) in [0x80, 0x90, 0xa0].into_iter().zip(queue.rings()) {
                self.write(4, base + at, ring);
                self.write(4, base + at + 4, 0);
            }
            self.write(4, base + 0x44, 1);
        }
        self.write(4, base + 0x70, 15);
    }

    fn start_pci(&mut self, device: u64) {
        let base = self.base(device);
        let config = PCI_ECAM + ((device + 1) << 15);
        let common = base + COMMON;
        for (width, at, value) in [
            (2, config + 4, 0),
            (4, config + 0x10, base),
            (4, config + 0x14, 0),
            (2, config + 4, 6),
        ] {
            self.write(width, at, value);
        }
        self.reset(device);
        for (width, at, value) in [(1, 0x14, 3), (4, 8, 1), (4, 0xc, 1), (1, 0x14, 11)] {
            self.write(width, common + at, value);
        }
        for queue in Queue::of(device) {
            self.write(2, common + 0x16, queue.number);
            self.write(2, common + 0x18, SIZE.into());
            for (at, ring) in [0x20, 0x28, 0x30].into_iter().zip(queue.rings()) {
                self.write(4, common + at, ring);
                self.write(4, common + at + 4, 0);
            }
            self.write(2, common + 0x1c, 1);
        }
        self.write(1, common + 0x14, 15);
    }

    /// By PCI, a reset takes as long as requests in flight.
    fn reset(&mut self, device: u64) {
        let base = self.base(device);
        match self.transport {
            Transport::Mmio => self.write(4, base + 0x70, 0),
            Transport::Pci => {
                self.write(1, base + COMMON + 0x14, 0);
                self.add(Access::Await, base + COMMON + 0x14, 0);
            }
        }
    }

    /// A request that the device can answer, at the start of each of its rings.
    fn request(&mut self, device: u64) {
        for queue in Queue::of(device) {
            let [descriptors, available, used] = queue.rings();
            for (next, (at, (address, len, flags))) in
                (1..).zip((descriptors..).step_by(16).zip(queue.buffers()))
            {
                self.write(8, at, address);
                self.write(8, at + 8, len | flags << 32 | next << 48);
            }
            let data = queue.data();
            for at in [data, data + 8] {
                self.write(8, at, 0);
            }
            self.write(1, data + 0x400, 0xff);
            self.write(4, used, 0);
            self.write(8, available, 1 << 16);
        }
    }

    fn notify(&mut self, device: u64) {
        let base = self.base(device);
        for Queue { number, .. } in Queue::of(device) {
            match self.transport {
                Transport::Pci => self.write(2, base + NOTIFY + 4 * number, number),
                Transport::Mmio => self.write(4, base + 0x50, number),
            }
        }
    }

    /// Starts a device and has a request answered. A network receives what it sends, or a frame that it sent before.
    fn work(&mut self, device: u64) {
        // It touches nothing while its rings are prepared.
        self.start(device);
        self.reset(device);
        self.request(device);
        self.start(device);
        self.notify(device);
        let queue = Queue { device, number: 0 };
        let used = queue.rings()[2];
        self.add(Access::Await, used + 2, 1);
        if device == DISK {
            self.add(Access::Await, queue.data() + 0x400, 0);
        }
    }

    /// An access to registers of a PCI function, which may have been moved anywhere.
    fn pci(&mut self, device: u64) {
        let config = PCI_ECAM + ((device + 1) << 15);
        let width = self.random.of(&[1, 2, 4]);
        let base = match self.random.below(4) {
            0 => PCI_LOW + self.random.below(8) * BAR_SIZE,
            _ => self.base(device),
        };
        match self.random.below(10) {
            0 => {
                let at = config + (self.random.below(0x100) & !(u64::from(width) - 1));
                let value = self.random.value();
                self.write(width, at, value);
            }
            1 => {
                // Where it is, or where another function is.
                let bar = PCI_LOW + self.random.below(8) * BAR_SIZE;
                self.write(4, config + 0x10, bar);
                let command = self.random.of(&[0, 2, 6, 6, 6]);
                self.write(2, config + 4, command);
            }
            2 => {
                let entry = base + (self.random.below(3) << 4);
                let address = self.random.of(&[LAPIC, 0, 0xfee0_1000, PCI_LOW]);
                self.write(4, entry, address);
                self.write(4, entry + 8, 0x40 + self.random.0 % 16);
                let masked = self.random.below(2);
                self.write(4, entry + 12, masked);
                let control = self.random.of(&[0, 0x8000, 0xc000]);
                self.write(2, config + 0x42, control);
            }
            3 => {
                let at = base + 0x1000 + self.random.below(BAR_SIZE - 0x1008);
                let value = self.random.value();
                let width = self.random.of(&[1, 2, 4, 8]);
                self.write(width, at, value);
            }
            4 => {
                let at = base + self.random.below(BAR_SIZE - 4);
                self.add(Access::Read, at, 0);
            }
            _ => {
                let at = base + COMMON + (self.random.below(0x40) & !(u64::from(width) - 1));
                let value = self.random.value();
                self.write(width, at, value);
            }
        }
    }

    fn mmio(&mut self, device: u64) {
        const REGISTERS: [u64; 18] = [
            0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x70, 0x80, 0x84, 0x90, 0x94,
            0xa0, 0xa4, 0x100, 0x120,
        ];
        let base = self.base(device);
        let value = self.random.value();
        match self.random.below(8) {
            0 => {
                let at = base + self.random.below(0x1000 - 8);
                let width = self.random.of(&[1, 2, 4, 8]);
                self.write(width, at, value);
            }
            1 => {
                let at = base + self.random.below(0x1000 - 4);
                self.add(Access::Read, at, 0);
            }
            _ => {
                let at = base + self.random.of(&REGISTERS);
                self.write(4, at, value);
            }
        }
    }

    /// Any queue of a device.
    fn queue(&mut self, device: u64) -> Queue {
        let queues: Vec<_> = Queue::of(device).collect();
        self.random.of(&queues)
    }

    /// Something in the memory that devices use: a descriptor, or an index of the available ring.
    fn ring(&mut self, device: u64) {
        let [descriptors, available, _] = self.queue(device).rings();
        match self.random.below(4) {
            0 => {
                let index = self.random.of(&[0, 1, 2, 9, 0x8000, 0xffff]);
                self.write(2, available + 2, index);
            }
            1 => {
                let entry = available + 4 + 2 * self.random.below(SIZE.into());
                let head = self.random.of(&[0, 1, 2, 7, 8, 0xffff]);
                self.write(2, entry, head);
            }
            _ => {
                let at = descriptors + 16 * self.random.below(SIZE.into());
                let address = self.random.address();
                self.write(8, at, address);
                let len = self.random.of(&[0, 1, 16, 512, 0x1_0000, 0xffff_ff00]);
                let flags = self.random.of(&[0, 1, 2, 3, 4, 7]);
                let next = self.random.of(&[0, 1, 2, 3, 7, 8, 0xffff]);
                self.write(8, at + 8, len | flags << 32 | next << 48);
            }
        }
    }

    fn step(&mut self) {
        let device = self.random.below(DEVICES);
        match self.random.below(16) {
            0 => self.start(device),
            1 => {
                self.request(device);
                self.notify(device);
            }
            2 => {
                // Many more than the device handles meanwhile.
                for _ in 0..32 {
                    self.notify(device);
                }
            }
            3 => {
                // A reset, maybe with requests in flight.
                self.request(device);
                self.notify(device);
                self.start(device);
            }
            4..=8 => self.ring(device),
            _ if self.transport == Transport::Pci => self.pci(device),
            _ => self.mmio(device),
        }
    }
}

/// A guest that misuses an entropy device, a disk and a network for about `steps` steps, and then has a request answered by each.
/// Then it powers off.
pub fn monkey(transport: Transport, seed: u64, steps: usize) -> Asm {
    let mut script = Script {
        random: Random(seed),
        transport,
        entries: Vec::new(),
    };
    for _ in 0..steps {
        script.step();
    }
    // A function that shadows another one is out of the way first.
    for device in 0..DEVICES {
        if transport == Transport::Pci {
            script.write(2, PCI_ECAM + ((device + 1) << 15) + 4, 0);
        }
    }
    for device in 0..DEVICES {
        script.work(device);
    }
    let count = script.entries.len() as u32;
    let bytes: Vec<u8> = script
        .entries
        .iter()
        .flatten()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    guest(|asm| {
        asm.out(0x21, 0xff).out(0xa1, 0xff);
        asm.place(&bytes, SCRIPT).rsi(SCRIPT);
        asm.times(count, |asm| {
            asm.raw(&[0x48, 0xad, 0x48, 0x89, 0xc7]); // lodsq; mov rdi, rax
            asm.raw(&[0x48, 0xad, 0x48, 0x89, 0xc2]); // lodsq; mov rdx, rax
            asm.raw(&[0x48, 0xad]); // lodsq
            for (code, instruction) in [
                (1, &[0x88, 0x17][..]),   // mov [rdi], dl
                (2, &[0x66, 0x89, 0x17]), // mov [rdi], dx
                (4, &[0x89, 0x17]),       // mov [rdi], edx
                (8, &[0x48, 0x89, 0x17]), // mov [rdi], rdx
                (0x10, &[0x8b, 0x17]),    // mov edx, [rdi]
            ] {
                asm.compare_al(code).if_equal(|asm| {
                    asm.raw(instruction);
                });
            }
            asm.compare_al(0x20).if_equal(|asm| {
                asm.until_equal(|asm| {
                    asm.raw(&[0x8a, 0x07, 0x38, 0xd0]); // mov al, [rdi]; cmp al, dl
                });
            });
        });
        asm.power_off();
    })
}
