// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages of guest memory as ranges of its addresses.

use serde_json::{Value, json};

use crate::layout::{MIB, PAGE_SIZE};
use crate::memory::{Size, regions};

/// A range of guest-physical addresses: where it starts, and its bytes.
type Range = (u64, u64);

/// The ranges whose bits are in `bitmap`, in a guest with `ram` bytes. A region's end ends a range, too.
fn ranges(bitmap: &[u64], ram: u64) -> Vec<Range> {
    let mut found: Vec<Range> = Vec::new();
    let mut first = 0;
    for (start, size) in regions(ram) {
        let pages = size as u64 / PAGE_SIZE;
        let mut end = None;
        for page in 0..pages {
            let at = first + page;
            let word = bitmap.get((at / 64) as usize).copied().unwrap_or(0);
            if word & (1 << (at % 64)) == 0 {
                continue;
            }
            let address = start.0 + page * PAGE_SIZE;
            match found.last_mut() {
                Some((_, size)) if end == Some(address) => *size += PAGE_SIZE,
                _ => found.push((address, PAGE_SIZE)),
            }
            end = Some(address + PAGE_SIZE);
        }
        first += pages;
    }
    found
}

/// What the answers of `/memory/…` and `/machine-config` say, for people and as JSON. `None` if they say something else.
pub(super) fn describe(which: &str, pages: &Value, machine: &Value) -> Option<(String, Value)> {
    let words = pages.get("bitmap")?.as_array()?.iter().map(Value::as_u64);
    let bitmap = words.collect::<Option<Vec<_>>>()?;
    let ram = machine.get("mem_size_mib")?.as_u64()?.checked_mul(MIB)?;
    // A list is never longer than the guest.
    if bitmap.len() as u64 != (ram / PAGE_SIZE).div_ceil(64) {
        return None;
    }
    let ranges = ranges(&bitmap, ram);
    let total = ranges.iter().map(|(_, size)| size).sum();
    let text = format!("{which}: {} in {} ranges", Size(total), ranges.len());
    let list = ranges
        .iter()
        .map(|(start, size)| json!({ "start": start, "size": size }));
    let list: Vec<_> = list.collect();
    Some((text, json!({ "bytes": total, "ranges": list })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{GIB, HOLE_END, HOLE_START};

    #[test]
    fn bits_are_addresses_on_both_sides_of_the_hole() {
        let ram = 4 * GIB;
        let mut bitmap = vec![0u64; (ram / PAGE_SIZE / 64) as usize];
        let last = (HOLE_START / PAGE_SIZE / 64 - 1) as usize;
        (bitmap[0], bitmap[1], bitmap[last], bitmap[last + 1]) = (6 | 1 << 63, 1, 1 << 63, 1);
        let pages = json!({ "bitmap": bitmap });
        let (text, value) = describe("dirty", &pages, &json!({ "mem_size_mib": 4096 })).unwrap();
        assert_eq!(text, "dirty: 24 KiB in 4 ranges");
        let range = |start: u64, pages: u64| json!({ "start": start, "size": pages * PAGE_SIZE });
        let ranges = [
            range(PAGE_SIZE, 2),
            range(63 * PAGE_SIZE, 2),
            range(HOLE_START - PAGE_SIZE, 1),
            range(HOLE_END, 1),
        ];
        assert_eq!(value, json!({ "bytes": 24 << 10, "ranges": ranges }));
    }

    #[test]
    fn answers_of_others_are_no_list() {
        for (pages, machine) in [
            (json!({}), json!({ "mem_size_mib": 32 })),
            (json!({ "bitmap": [1] }), json!({ "mem_size_mib": 32 })),
            (json!({ "bitmap": [-1] }), json!({ "mem_size_mib": 32 })),
            (json!({ "bitmap": [] }), json!({ "mem_size_mib": u64::MAX })),
            (json!({ "bitmap": [] }), json!({})),
        ] {
            assert_eq!(describe("dirty", &pages, &machine), None, "{pages}");
        }
    }
}
