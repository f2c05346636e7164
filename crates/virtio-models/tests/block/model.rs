// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random requests, compared to a model of the disk.

use proptest::prelude::*;
use virtio_models::block::{Cache, Disk};

use crate::support::*;

const SECTORS: usize = 48;

#[derive(Clone, Debug)]
enum Ask {
    Read { sector: u64, len: u32 },
    Write { sector: u64, len: u32, fill: u8 },
    Zero { sector: u64, count: u32, flags: u32 },
    Flush,
    Other { kind: u32, sector: u64 },
}

fn asks() -> impl Strategy<Value = Ask> {
    let sector = prop_oneof![8 => 0..50_u64, 1 => any::<u64>()];
    let len = prop_oneof![6 => (0..9_u32).prop_map(|n| n * 512), 1 => 0..3000_u32];
    prop_oneof![
        (sector.clone(), len.clone()).prop_map(|(sector, len)| Ask::Read { sector, len }),
        (sector.clone(), len, any::<u8>()).prop_map(|(sector, len, fill)| Ask::Write {
            sector,
            len,
            fill
        }),
        (sector.clone(), 0..9_u32, 0..3_u32).prop_map(|(sector, count, flags)| Ask::Zero {
            sector,
            count,
            flags
        }),
        Just(Ask::Flush),
        (14..99_u32, sector).prop_map(|(kind, sector)| Ask::Other { kind, sector }),
    ]
}

/// A request's range on the disk, if it is entirely inside.
fn place(sector: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(sector).ok()?.checked_mul(512)?;
    let end = start.checked_add(len)?;
    (len.is_multiple_of(512) && end <= SECTORS * 512).then_some(start..end)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_disk_is_as_its_model(
        asks in proptest::collection::vec(asks(), 1..40),
        short in prop_oneof![Just(0_usize), 1..2000_usize],
        no_zeroes: bool,
        alignment in prop_oneof![Just(1_u32), Just(512), Just(4096)],
        writeback: bool,
    ) {
        let cache = if writeback { Cache::Writeback } else { Cache::Writethrough };
        let disk = Disk { alignment, cache, ..Disk::default() };
        let mut guest = Guest::with(SECTORS as u64, disk, u64::MAX);
        guest.disk().short = short;
        guest.disk().no_zeroes = no_zeroes;
        let mut model: Vec<u8> = (0..SECTORS * 512).map(pattern).collect();
        for ask in asks {
            match ask {
                Ask::Read { sector, len } => {
                    let (status, data) = guest.read(sector, len);
                    match place(sector, len as usize) {
                        Some(at) => {
                            prop_assert_eq!(status, OK);
                            prop_assert_eq!(&data[..], &model[at]);
                        }
                        None => prop_assert_eq!(status, IOERR),
                    }
                }
                Ask::Write { sector, len, fill } => {
                    let data: Vec<u8> = (0..len).map(|i| (i / 3) as u8 ^ fill).collect();
                    let status = guest.write(sector, &data);
                    match place(sector, len as usize) {
                        Some(at) => {
                            prop_assert_eq!(status, OK);
                            model[at].copy_from_slice(&data);
                        }
                        None => prop_assert_eq!(status, IOERR),
                    }
                }
                Ask::Zero { sector, count, flags } => {
                    let status = guest.zero(WRITE_ZEROES, sector, count, flags);
                    match place(sector, count as usize * 512) {
                        _ if flags & !1 != 0 => prop_assert_eq!(status, UNSUPP),
                        Some(at) => {
                            prop_assert_eq!(status, OK);
                            model[at].fill(0);
                        }
                        None => prop_assert_eq!(status, IOERR),
                    }
                }
                Ask::Flush => prop_assert_eq!(guest.status(header(FLUSH, 0)), OK),
                Ask::Other { kind, sector } => {
                    prop_assert_eq!(guest.status(header(kind, sector)), UNSUPP);
                }
            }
            prop_assert!(guest.disk().bytes == model);
        }
        // Of zeros at most.
        prop_assert!(guest.notices().len() <= usize::from(no_zeroes));
    }
}
