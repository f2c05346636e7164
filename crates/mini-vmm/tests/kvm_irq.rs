// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupts of each kind reach a guest on real KVM: edges, levels, and messages sent in both ways.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;
mod images;

use std::path::Path;

use bare::{AT, Asm, guest, has_kvm};
use images::{Ph, elf};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use mini_vmm::boot::{self, BootRequest, Image};
use mini_vmm::config::{BootProtocol, Decompress};
use mini_vmm::irq::{Irqs, LevelLine, Pins};
use mini_vmm::layout;
use mini_vmm::memory::{self, MappedVm};

/// The port that the guest writes to in its loop: a heartbeat.
const HEARTBEAT: u16 = 0x10;
/// The port for the vector of each interrupt, before EOI.
const INTERRUPT: u16 = 0x11;
/// After this many heartbeats, a raised interrupt counts as lost.
const PATIENCE: u32 = 1_000_000;
/// After this many heartbeats, an unexpected interrupt would have arrived.
const SILENCE: u32 = 500;

const EDGE: u8 = 0x41;
const LEVEL: u8 = 0x42;
const MESSAGES: [u8; 2] = [0x43, 0x44];
/// A message for the local APIC 0.
const ADDRESS: u64 = 0xfee0_0000;
/// The bit for a level-triggered pin, in the lower half of an IOAPIC redirection entry.
const LEVEL_TRIGGERED: u32 = 1 << 15;

fn beat(asm: &mut Asm) {
    asm.raw(&[0xfb]); // sti
    asm.forever(|asm| {
        asm.out(HEARTBEAT, 0);
    });
}

/// Reports an interrupt, sends EOI, and continues.
fn handler(vector: u8) -> (u8, Asm) {
    let handler = guest(|asm| {
        asm.out(INTERRUPT, vector);
        asm.raw(&[0x48, 0xbc])
            .raw(&layout::BOOT_STACK.to_le_bytes()); // mov rsp, stack
        asm.store(layout::LAPIC + 0xb0, 0);
        beat(asm);
    });
    (vector, handler)
}

fn listening_guest(edge: u32, level: u32) -> Asm {
    guest(|asm| {
        let vectors = [EDGE, LEVEL, MESSAGES[0], MESSAGES[1]];
        asm.idt(&vectors.map(handler));
        // Mask the PICs, which get the edge as well.
        asm.out(0x21, 0xff).out(0xa1, 0xff);
        asm.route(edge, EDGE).route(level, LEVEL);
        asm.store(layout::IOAPIC + 0x10, u32::from(LEVEL) | LEVEL_TRIGGERED);
        beat(asm);
    })
}

struct Machine {
    vcpu: VcpuFd,
    irqs: Irqs,
    _mapped: MappedVm,
}

impl Machine {
    /// A machine with an interrupt handler. `None`, with a note, if no guest can run.
    fn new(test: &str, edge: u32, level: u32) -> Option<Machine> {
        if !has_kvm(test) {
            return None;
        }
        let kvm = Kvm::new().unwrap();
        let mem = memory::allocate(32 * layout::MIB).unwrap();
        let guest = elf(AT, &[Ph::load(AT, listening_guest(edge, level).code())]);
        let kernel = Image::from_bytes(guest, Path::new("guest")).unwrap();
        let request = BootRequest {
            kernel: &kernel,
            initrd: None,
            cmdline: "",
            protocol: BootProtocol::Auto,
            decompress: Decompress::Auto,
            rsdp: None,
            reserved: &[],
        };
        let loaded = boot::load(&mem, &request).unwrap();
        let mapped = MappedVm::new(kvm.create_vm().unwrap(), mem).unwrap();
        let vm = mapped.vm();
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .unwrap();
        vm.set_tss_address(layout::KVM_TSS as usize).unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
        vcpu.set_cpuid2(&cpuid.unwrap()).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        loaded.edit_sregs(&mut sregs);
        vcpu.set_sregs(&sregs).unwrap();
        vcpu.set_regs(&loaded.regs()).unwrap();
        let irqs = Irqs::new(vm);
        let mut machine = Machine {
            vcpu,
            irqs,
            _mapped: mapped,
        };
        assert_eq!(machine.next(1), None, "it is ready");
        Some(machine)
    }

    /// The next interrupt within this many heartbeats.
    fn next(&mut self, heartbeats: u32) -> Option<u8> {
        let mut left = heartbeats;
        while left > 0 {
            match self.vcpu.run().unwrap() {
                VcpuExit::IoOut(HEARTBEAT, _) => left -= 1,
                VcpuExit::IoOut(INTERRUPT, data) => return Some(data[0]),
                other => panic!("{other:?}"),
            }
        }
        None
    }

    /// Checks that exactly one interrupt arrives.
    #[track_caller]
    fn expect(&mut self, vector: u8) {
        assert_eq!(self.next(PATIENCE), Some(vector));
        self.expect_nothing();
    }

    /// Whether the guest took an interrupt without EOI: a bit in the local APIC's ISR, 32 to a register. A KVM without
    /// hardware virtualization may clear it at once.
    fn is_in_service(&self, vector: u8) -> bool {
        let regs = self.vcpu.get_lapic().unwrap().regs;
        let (register, bit) = (usize::from(vector / 32), vector % 32);
        regs[0x100 + 0x10 * register + usize::from(bit / 8)] as u8 & 1 << (bit % 8) != 0
    }

    #[track_caller]
    fn expect_nothing(&mut self) {
        assert_eq!(self.next(SILENCE), None);
    }
}

/// A machine, and the pin of its level-triggered line.
fn machine(test: &str) -> Option<(Machine, u32)> {
    let level = Pins::new().take().unwrap();
    Some((Machine::new(test, layout::SERIAL_GSI, level)?, level))
}

#[test]
fn an_edge_interrupts_once() {
    let Some((mut machine, _)) = machine("an_edge_interrupts_once") else {
        return;
    };
    let line = machine.irqs.edge(layout::SERIAL_GSI);
    machine.expect_nothing();
    for _ in 0..3 {
        line.raise().unwrap();
        machine.expect(EDGE);
    }
}

/// Whether the guest has sent an EOI since the last call.
fn was_served(line: &LevelLine) -> bool {
    rustix::io::read(line.served(), &mut [0; 8]).is_ok()
}

#[test]
fn a_level_asks_its_device_after_each_interrupt() {
    let test = "a_level_asks_its_device_after_each_interrupt";
    let Some((mut machine, gsi)) = machine(test) else {
        return;
    };
    let line = machine.irqs.level(gsi).unwrap();
    machine.expect_nothing();
    for _ in 0..3 {
        // The device has a reason, still or again.
        line.raise().unwrap();
        assert_eq!(machine.next(PATIENCE), Some(LEVEL));
        let in_service = machine.is_in_service(LEVEL);
        assert_eq!(was_served(&line), !in_service);
        machine.expect_nothing();
        assert_eq!(was_served(&line), in_service);
    }
}

#[test]
fn a_message_of_this_process_arrives_and_says_so() {
    let test = "a_message_of_this_process_arrives_and_says_so";
    let Some((mut machine, _)) = machine(test) else {
        return;
    };
    let msi = machine.irqs.msi();
    for vector in MESSAGES {
        assert!(msi.signal(ADDRESS, vector.into()).unwrap());
        machine.expect(vector);
    }
    let nobody = ADDRESS | 0x7f << 12;
    assert!(!msi.signal(nobody, MESSAGES[0].into()).unwrap_or(false));
    machine.expect_nothing();
}

#[test]
fn a_message_by_eventfd_follows_its_route() {
    let test = "a_message_by_eventfd_follows_its_route";
    let Some((mut machine, _)) = machine(test) else {
        return;
    };
    let (edge, msi) = (
        machine.irqs.edge(layout::SERIAL_GSI),
        machine.irqs.msi_line().unwrap(),
    );
    edge.raise().unwrap();
    machine.expect(EDGE);
    msi.event().write(1).unwrap();
    msi.event().write(1).unwrap();
    machine.expect_nothing();
    // The earlier write is delivered once.
    let [first, second] = MESSAGES;
    msi.connect(ADDRESS, first.into()).unwrap();
    machine.expect(first);
    msi.event().write(1).unwrap();
    machine.expect(first);
    msi.connect(ADDRESS, second.into()).unwrap();
    machine.expect_nothing();
    msi.event().write(1).unwrap();
    machine.expect(second);
    msi.disconnect().unwrap();
    msi.event().write(1).unwrap();
    machine.expect_nothing();
    msi.connect(ADDRESS, first.into()).unwrap();
    machine.expect(first);
    // The new table also has KVM's default routes.
    edge.raise().unwrap();
    machine.expect(EDGE);
    let other = machine.irqs.msi_line().unwrap();
    other.connect(ADDRESS, second.into()).unwrap();
    let event = msi.event().try_clone().unwrap();
    drop(msi);
    event.write(1).unwrap();
    machine.expect_nothing();
    other.event().write(1).unwrap();
    machine.expect(second);
}
