// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Decompression of payloads in every format, as written by that format's own program. Also damaged and truncated ones,
//! and wrong sizes.

use mini_vmm::boot::{self, Compression, NotDecompressed, Unwatched, Zeroed};
use proptest::prelude::*;

const LIMIT: u64 = 1 << 20;

fn decompress(payload: &[u8], limit: u64) -> Result<(Compression, Zeroed), NotDecompressed> {
    boot::decompress(payload, limit, &Unwatched)
}

/// One payload per format, with its trailer.
const SAMPLES: [(Compression, &[u8]); 7] = [
    (Compression::Gzip, include_bytes!("data/sample.gz")),
    (Compression::Bzip2, include_bytes!("data/sample.bz2")),
    (Compression::Lzma, include_bytes!("data/sample.lzma")),
    (Compression::Xz, include_bytes!("data/sample.xz")),
    (Compression::Lzo, include_bytes!("data/sample.lzo")),
    (Compression::Lz4, include_bytes!("data/sample.lz4")),
    (Compression::Zstd, include_bytes!("data/sample.zst")),
];

/// The samples' content. It has x86 calls, so that xz's filter has work to do.
fn sample() -> Vec<u8> {
    let mut out = Vec::new();
    for i in 0..2000u32 {
        if i % 3 == 0 {
            out.push(0xe8);
            out.extend(0x1000u32.wrapping_sub(5 * i).to_le_bytes());
        } else {
            out.extend([i as u8, (i * 7) as u8, 0x48, 0x89, 0xc3]);
        }
    }
    out
}

#[test]
fn every_format_of_the_kernel_build_is_decompressed() {
    for (format, payload) in SAMPLES {
        let (found, out) = decompress(payload, LIMIT).unwrap_or_else(|e| panic!("{format}: {e}"));
        assert_eq!(found, format);
        assert!(*out == *sample(), "{format}");
    }
}

#[test]
fn stored_lzo_blocks_are_copied() {
    let (_, gold) = SAMPLES[4];
    let mut payload = gold[..38].to_vec(); // up to the first block
    for block in [&b"plain"[..], b" text"] {
        let len = (block.len() as u32).to_be_bytes();
        payload.extend([len, len, [0; 4]].concat());
        payload.extend(block);
    }
    payload.extend([0; 4]);
    payload.extend(10u32.to_le_bytes());
    let (_, out) = decompress(&payload, LIMIT).unwrap();
    assert_eq!(*out, *b"plain text");
}

#[test]
fn cut_off_payloads_are_refused() {
    for (format, payload) in SAMPLES {
        let (body, trailer) = payload.split_at(payload.len() - 4);
        for keep in [6, body.len() / 2, body.len() - body.len() / 8] {
            let cut = [&body[..keep], trailer].concat();
            assert!(decompress(&cut, LIMIT).is_err(), "{format} cut to {keep}");
        }
    }
}

#[test]
fn lying_sizes_are_refused() {
    for (format, payload) in SAMPLES {
        let body = &payload[..payload.len() - 4];
        for size in [0u32, 9_999, 10_001, LIMIT as u32] {
            let lie = [body, &size.to_le_bytes()].concat();
            let result = decompress(&lie, LIMIT);
            assert!(
                matches!(result, Err(NotDecompressed::Damaged { .. })),
                "{format} {size}: {result:?}"
            );
        }
    }
}

#[test]
fn bombs_are_refused_before_memory_is_taken() {
    for (format, payload) in SAMPLES {
        let body = &payload[..payload.len() - 4];
        let bomb = [body, &u32::MAX.to_le_bytes()].concat();
        let error = decompress(&bomb, LIMIT).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "its {format} payload claims to hold 4294967295 bytes, more than the 1 MiB that this machine could use"
            )
        );
    }
}

#[test]
fn other_formats_are_told_apart() {
    for payload in [&b""[..], b"\x1f", b"plain text", &[0; 64]] {
        assert!(matches!(
            decompress(payload, LIMIT),
            Err(NotDecompressed::Unknown)
        ));
    }
}

proptest! {
    /// Whatever is damaged, the result is an error or has the stated size.
    #[test]
    fn damage_does_no_harm(
        which in 0..SAMPLES.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut payload = SAMPLES[which].1.to_vec();
        for (index, byte) in changes {
            let at = index.index(payload.len());
            payload[at] = byte;
        }
        if let Ok((_, out)) = decompress(&payload, LIMIT) {
            let size = u32::from_le_bytes(payload[payload.len() - 4..].try_into().unwrap());
            prop_assert_eq!(out.len(), size as usize);
        }
    }

    #[test]
    fn noise_behind_a_magic_does_no_harm(which in 0..SAMPLES.len(), noise in prop::collection::vec(any::<u8>(), 0..512)) {
        let mut payload = SAMPLES[which].1[..9].to_vec();
        payload.extend(noise);
        payload.extend(4096u32.to_le_bytes());
        let _ = decompress(&payload, LIMIT);
    }
}
