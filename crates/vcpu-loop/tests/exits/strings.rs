// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! String I/O.

use proptest::prelude::*;
use vcpu_loop::script::{Call, RecordingIo, Reply, Step};
use vcpu_loop::{Access, Exit, Flow, Next, Unclaimed, VcpuId, VcpuIo, dispatch};

use crate::support::{play, step_then_signal};

#[test]
fn string_pio_is_split_for_every_size() {
    for size in [1u8, 2, 4] {
        let width = usize::from(size);
        for count in [1usize, 3, 64, 1024 / width] {
            let bytes: Vec<u8> = (0..count * width).map(|i| i as u8).collect();
            let mut io = RecordingIo::claiming(0x11);
            let calls = io.calls();
            let script = vec![
                Step::PioOut {
                    port: 0x10,
                    size,
                    data: bytes.clone(),
                },
                Step::PioIn {
                    port: 0x20,
                    size,
                    count,
                },
                Step::Signal,
            ];
            let (replies, _, _) = play(script, &mut io);
            assert_eq!(replies[1], Reply::PioIn(vec![0x11; count * width]));
            let calls = calls.get();
            assert_eq!(calls.len(), 2 * count);
            let mut written = Vec::new();
            for call in &calls[..count] {
                let Call::PioWrite(0x10, element) = call else {
                    panic!("{call:?}")
                };
                assert_eq!(element.len(), width);
                written.extend_from_slice(element);
            }
            assert_eq!(written, bytes);
            assert!(
                calls[count..]
                    .iter()
                    .all(|call| *call == Call::PioRead(0x20, width))
            );
        }
    }
}

#[test]
fn a_string_write_is_told_from_out() {
    #[derive(Default)]
    struct Tells(Vec<(bool, Vec<u8>)>);
    impl VcpuIo for Tells {
        fn pio_write(&mut self, _: u16, data: &[u8]) -> Next {
            self.0.push((false, data.to_vec()));
            Next::Continue
        }
        fn pio_write_string(&mut self, _: u16, element: &[u8]) -> Next {
            self.0.push((true, element.to_vec()));
            Next::Unclaimed
        }
    }
    let out = |data: &[u8]| Step::PioOut {
        port: 0xf5,
        size: 1,
        data: data.to_vec(),
    };
    let mut io = Tells::default();
    let (_, unclaimed, _) = play(vec![out(&[1]), out(&[2, 3]), Step::Signal], &mut io);
    assert_eq!(io.0, [(false, vec![1]), (true, vec![2]), (true, vec![3])]);
    assert_eq!(unclaimed.count(Access::PioWrite), 2);
}

#[test]
fn a_partly_unclaimed_string_read_keeps_the_claimed_elements() {
    let mut n = 0;
    let mut io = RecordingIo::new(0, move |_| {
        n += 1;
        if n % 2 == 0 {
            Next::Unclaimed
        } else {
            Next::Continue
        }
    });
    let (replies, unclaimed, _) = play(
        step_then_signal(Step::PioIn {
            port: 1,
            size: 2,
            count: 4,
        }),
        &mut io,
    );
    assert_eq!(
        replies,
        [Reply::PioIn(vec![0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff])]
    );
    assert_eq!(unclaimed.count(Access::PioRead), 2);
}

#[test]
fn a_pause_in_the_middle_of_a_string_finishes_the_string() {
    let mut n = 0;
    let mut io = RecordingIo::new(0, move |_| {
        n += 1;
        if n == 2 { Next::Pause } else { Next::Continue }
    });
    let calls = io.calls();
    let (replies, _, flow) = play(
        vec![Step::PioOut {
            port: 1,
            size: 1,
            data: vec![0; 5],
        }],
        &mut io,
    );
    assert_eq!(
        (replies, flow, calls.get().len()),
        (vec![Reply::PioOut], Flow::Pause, 5)
    );
}

proptest! {
    /// Splitting loses, repeats and reorders nothing, for any length from KVM.
    #[test]
    fn the_pio_split_is_a_partition(size in prop::sample::select(vec![1u8, 2, 4]), data in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut io = RecordingIo::claiming(0);
        let calls = io.calls();
        let exit = Exit::PioOut { port: 0x70, size, data: &data };
        prop_assert_eq!(dispatch(exit, &mut io, VcpuId(0), &Unclaimed::default()), Flow::Continue);
        let mut joined = Vec::new();
        for call in calls.get() {
            let Call::PioWrite(0x70, element) = call else { panic!("{call:?}") };
            prop_assert!(!element.is_empty() && element.len() <= usize::from(size));
            joined.extend(element);
        }
        prop_assert_eq!(joined, data);
    }
}
