// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Copies a disk to a file with holes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use crate::Error;

/// Bytes that are read at once, and the least that become a hole.
const BLOCK: usize = 64 << 10;

/// Runs `copy FROM TO`.
pub fn main(words: &[&str]) -> Result<(), Error> {
    let [from, to] = words else {
        return Err("say copy FROM TO".into());
    };
    copy(&mut File::open(from)?, &mut File::create(to)?)
}

fn copy(from: &mut impl Read, to: &mut File) -> Result<(), Error> {
    let (mut block, mut length) = (vec![0; BLOCK], 0);
    loop {
        let count = from.read(&mut block)?;
        if count == 0 {
            return Ok(to.set_len(length)?);
        }
        length += count as u64;
        match block[..count].iter().all(|&byte| byte == 0) {
            true => drop(to.seek(SeekFrom::Current(count as i64))?),
            false => to.write_all(&block[..count])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_is_equal_and_has_holes() {
        let mut data = vec![0; 16 * BLOCK + 5];
        data[3 * BLOCK] = 7;
        let path = std::env::temp_dir().join(format!("probe-copy-{}", std::process::id()));
        copy(&mut data.as_slice(), &mut File::create(&path).unwrap()).unwrap();
        let (copied, blocks) = (
            std::fs::read(&path),
            std::fs::metadata(&path).unwrap().blocks(),
        );
        std::fs::remove_file(&path).unwrap();
        assert!(copied.unwrap() == data);
        assert!(blocks * 512 <= 4 * BLOCK as u64, "{blocks}");
    }
}
