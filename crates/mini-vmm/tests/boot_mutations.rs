// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Slightly damaged images do no harm.

#![allow(clippy::unwrap_used)] // a test may panic

mod images;

use mini_vmm::config::{BootProtocol, Decompress};
use mini_vmm::layout::MIB;
use proptest::prelude::*;

use images::{AT, Bz, CASE, Case, Ph, code, elf, lz4_stored, note};

/// Valid images to start from.
fn seeds() -> Vec<Vec<u8>> {
    let payload = |bytes: &[u8]| Bz {
        payload: lz4_stored(bytes),
        ..Default::default()
    };
    let two = [code(), Ph::load(AT + 0x1000, b"data"), Ph::pvh(AT)];
    vec![
        elf(AT, &two),
        payload(&elf(AT, &two)).build(),
        Bz {
            payload: include_bytes!("data/sample.zst").to_vec(),
            ..Default::default()
        }
        .build(),
        elf(
            AT,
            &[
                code(),
                Ph {
                    data: note(b"Xen\0", 18, &[0; 4]),
                    ..Ph::pvh(0)
                },
            ],
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is changed in a valid image: no panic, and what is loaded lies in RAM and doesn't overlap the initrd.
    #[test]
    fn changed_images_do_no_harm(
        seed in 0..4usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(0), Just(0xff)]), 1..6),
        cut in any::<prop::sample::Index>(),
        is_cut: bool,
        which in 0..9usize,
    ) {
        let mut image = seeds().swap_remove(seed);
        for (index, byte) in changes {
            // Most fields that matter are at the start of an ELF file, and at 0x1f1 of a bzImage.
            let (from, len) = match image.starts_with(b"MZ") {
                true => (0x1f1, 0x80),
                false => (0, 64 + 3 * 56),
            };
            let at = from + index.index(len.min(image.len() - from));
            image[at] = byte;
        }
        if is_cut {
            image.truncate(1 + cut.index(image.len()));
        }
        let case = Case {
            ram: 32 * MIB,
            initrd: Some(b"initrd"),
            protocol: [BootProtocol::Auto, BootProtocol::Linux, BootProtocol::Pvh][which % 3],
            decompress: [Decompress::Auto, Decompress::Host, Decompress::Guest][which / 3],
            ..CASE
        };
        if let Ok(loaded) = case.load(&image) {
            let (initrd, size) = loaded.initrd.unwrap();
            prop_assert!(loaded.kernel_start.0 >= MIB);
            prop_assert!(loaded.entry >= loaded.kernel_start && loaded.entry < loaded.kernel_end);
            prop_assert!(loaded.kernel_end <= initrd && initrd.0 + size <= 32 * MIB);
        }
    }
}
