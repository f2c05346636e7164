// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any accesses to a vCPU's MSRs, compared with a model of its handlers.
//!
//! Each 13 bytes of the input are an access: a byte of choices, the index, the value.

#![no_main]

#[allow(dead_code)] // The other targets need the rest.
mod guest;

use std::sync::LazyLock;

use guest::STUBS;
use libfuzzer_sys::fuzz_target;
use para_abi::MSR_KVM_API_MAGIC;
use para_msr::handlers::{Constant, PerVcpuValues, ReadOnly, Shadow, WriteIgnore};
use para_msr::{MsrDispatch, MsrDispatchBuilder, MsrRange, Outcome, ParaMsr};
use vm_memory::GuestMemoryMmap;

static MEMORY: LazyLock<GuestMemoryMmap> = LazyLock::new(guest::memory);

const CONSTANT: u32 = 0;
const READ_ONLY: u32 = 0x35;
const IGNORED: u32 = 0x8b;
const ROW: u32 = 0x4000_0100;
const RESERVED: u64 = 0xffff_0000_0000_0000;
const PER_VCPU: u32 = u32::MAX;
const KNOWN: [u32; 6] = [
    CONSTANT,
    READ_ONLY,
    IGNORED,
    ROW,
    MSR_KVM_API_MAGIC,
    PER_VCPU,
];

fn msrs() -> MsrDispatch {
    let build = || -> Result<MsrDispatch, Box<dyn std::error::Error>> {
        let row = Shadow::<6>::new(ROW, 1)?.reserved(RESERVED);
        let last = PerVcpuValues::new(1, |_| 6).writable_handler(0);
        Ok(MsrDispatchBuilder::new()
            .insert(MSR_KVM_API_MAGIC, ParaMsr::new(&*MEMORY, STUBS[0]))?
            .insert(PER_VCPU, last)?
            .insert(MsrRange::new(ROW, ROW + 5)?, row)?
            .insert(CONSTANT, Constant::new(2))?
            .insert(READ_ONLY, ReadOnly(Constant::new(3)))?
            .insert(IGNORED, WriteIgnore(Constant::new(4)))?
            .build())
    };
    build().expect("these MSRs don't collide")
}

/// The values that a guest may have written and can read back.
struct Model {
    row: [u64; 6],
    last: u64,
}

impl Model {
    fn read(&self, index: u32) -> Outcome<u64> {
        match index {
            CONSTANT => Outcome::Handled(2),
            READ_ONLY => Outcome::Handled(3),
            IGNORED => Outcome::Handled(4),
            MSR_KVM_API_MAGIC => Outcome::GpException,
            PER_VCPU => Outcome::Handled(self.last),
            ROW..0x4000_0106 => Outcome::Handled(self.row[(index - ROW) as usize]),
            _ => Outcome::NotHandled,
        }
    }

    /// `None` if it depends on guest memory.
    fn write(&mut self, index: u32, value: u64) -> Option<Outcome<()>> {
        Some(match index {
            CONSTANT | READ_ONLY => Outcome::GpException,
            IGNORED => Outcome::Handled(()),
            MSR_KVM_API_MAGIC if value % 4096 != 0 => Outcome::GpException,
            MSR_KVM_API_MAGIC => return None,
            PER_VCPU => {
                self.last = value;
                Outcome::Handled(())
            }
            ROW..0x4000_0106 if value & RESERVED != 0 => Outcome::GpException,
            ROW..0x4000_0106 => {
                self.row[(index - ROW) as usize] = value;
                Outcome::Handled(())
            }
            _ => Outcome::NotHandled,
        })
    }
}

fuzz_target!(|input: &[u8]| {
    guest::clear(&MEMORY);
    let (mut msrs, mut model) = (
        msrs(),
        Model {
            row: [1; 6],
            last: 6,
        },
    );
    let (mut accesses, mut unclaimed) = (0, 0);
    for access in input.chunks_exact(13).take(256) {
        let Some((index, value)) = access[1..].split_first_chunk() else {
            return;
        };
        let near = u32::from_le_bytes(*index);
        let index = match access[0] >> 2 {
            0 => near,
            known => KNOWN[usize::from(known) % KNOWN.len()].wrapping_add(near % 8),
        };
        let value = u64::from_le_bytes(value.try_into().expect("eight bytes"));
        match access[0] & 3 {
            0 => assert_eq!(msrs.read(index), model.read(index)),
            1 | 2 => {
                let outcome = msrs.write(index, value);
                assert_eq!(model.write(index, value).unwrap_or(outcome), outcome);
            }
            _ => {
                // As if saved and restored in another process, with the guest's value as a forged one.
                let mut values = msrs.save();
                values.push((index, value));
                let refused = msrs.restore(&values);
                assert!(refused.len() <= 1, "of what was saved nothing is refused");
                if refused.is_empty() {
                    let _ = model.write(index, value);
                }
                continue;
            }
        }
        accesses += 1;
        unclaimed += u64::from(model.read(index) == Outcome::NotHandled);
    }
    let counters = msrs.counters();
    let counted: u64 = counters
        .iter()
        .map(|count| count.reads + count.writes)
        .sum();
    assert_eq!(
        (counted + counters.not_handled(), counters.not_handled()),
        (accesses, unclaimed)
    );
});
