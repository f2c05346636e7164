// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random sequences of driver actions on both transports, and random chains compared to a naive implementation.

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_transport::chain::Chain;
use virtio_transport::layout::INDIRECT_DESC;
use virtio_transport::memory::View;
use virtio_transport::queue::Virtq;
use virtio_transport::testing::{DriverRing, Echo, Flags, MmioPort, PciPort, memory, monkey};

const RAM: usize = 1 << 20;
const TABLE: u64 = 0x1_0000;

/// A descriptor: address, length, flags, next.
type Raw = (u64, u32, u16, u16);

/// Descriptors that are likely to form a chain.
fn descriptor() -> impl Strategy<Value = Raw> {
    let address = prop_oneof![
        6 => 0..RAM as u64,
        1 => Just(TABLE),
        1 => any::<u64>(),
        1 => Just(u64::MAX - 8),
    ];
    let len = prop_oneof![
        4 => 0..64_u32,
        4 => (1..9_u32).prop_map(|n| 16 * n),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![4 => 0..4_u16, 1 => 0..8_u16, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..9_u16, 1 => any::<u16>()];
    (address, len, flags, next).prop_map(|(address, len, flags, next)| {
        // Other tests cover tables at other addresses.
        let is_table = flags & 4 != 0;
        let whole = if is_table {
            (TABLE, len % 129)
        } else {
            (address, len)
        };
        (whole.0, whole.1, flags, next)
    })
}

/// A chain by the standard: its readable and writable buffers, or `None` if it breaks a rule.
fn naive(direct: &[Raw], indirect: &[Raw], negotiated: bool) -> Option<[Vec<(u64, u32)>; 2]> {
    let (mut table, mut index, mut inside) = (direct, 0_usize, false);
    let mut parts = [Vec::new(), Vec::new()];
    let mut written = false;
    for _ in 0..=1024 {
        let (address, len, flags, next) = *table.get(index)?;
        if flags & 4 != 0 {
            let sound = negotiated && !inside && flags & 1 == 0 && len > 0 && len % 16 == 0;
            if !sound {
                return None;
            }
            table = &indirect[..len as usize / 16];
            (index, inside) = (0, true);
            continue;
        }
        let writable = flags & 2 != 0;
        if written && !writable || address.checked_add(len.into()).is_none() {
            return None;
        }
        written = writable;
        if len != 0 {
            parts[usize::from(writable)].push((address, len));
        }
        if flags & 1 == 0 {
            let total: u64 = parts.iter().flatten().map(|(_, len)| u64::from(*len)).sum();
            return (total <= 1 << 32).then_some(parts);
        }
        index = next.into();
    }
    None
}

proptest! {
    #[test]
    fn a_monkey_does_no_harm_by_mmio(input in vec(any::<u8>(), 0..400)) {
        monkey::<MmioPort>(|| Box::new(Echo::new()), &input);
    }

    #[test]
    fn a_monkey_does_no_harm_by_pci(input in vec(any::<u8>(), 0..400)) {
        monkey::<PciPort>(|| Box::new(Echo::new()), &input);
    }

    #[test]
    fn a_chain_is_what_a_naive_walk_finds(
        direct in vec(descriptor(), 8),
        indirect in vec(descriptor(), 8),
        negotiated in prop::bool::weighted(0.9),
    ) {
        let memory = memory(RAM);
        let mut ring = DriverRing::new(&memory, 0, 8);
        for (index, (address, len, flags, next)) in (0..).zip(&direct) {
            ring.descriptor(index, (*address, *len), Flags(*flags), *next);
        }
        for (index, (address, len, flags, next)) in (0..).zip(&indirect) {
            let at = TABLE + 16 * index;
            ring.descriptor_at(at, (*address, *len), Flags(*flags), *next);
        }
        ring.offer(0);
        let features = if negotiated { INDIRECT_DESC } else { 0 };
        let mut queue = Virtq::new(&ring.state(), features, &*memory).expect("a queue");
        let mut chain = Chain::new();
        let found = queue.pop(&View::new(&*memory), &mut chain).ok().map(|taken| {
            assert!(taken);
            let parts = [chain.readable(), chain.writable()];
            parts.map(|part| part.iter().map(|s| (s.address.0, s.len)).collect::<Vec<_>>())
        });
        prop_assert_eq!(found, naive(&direct, &indirect, negotiated));
    }
}
