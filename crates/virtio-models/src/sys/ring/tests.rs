// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ring on the host's kernel.

use std::os::unix::fs::FileExt;

use super::*;

/// A ring for 8 requests on a file of 4 KiB. `None` if the host refuses io_uring, which is printed.
fn ring(builder: &mut io_uring::Builder) -> Option<Ring> {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(4096).expect("a file");
    match Ring::build(builder, &Arc::new(file), 8) {
        Ok(ring) => Some(ring),
        Err(error) => {
            println!("skipped: the host refuses io_uring: {error}");
            None
        }
    }
}

fn wait(ring: &Ring) {
    let source = ring.source();
    let mut fds = [PollFd::from_borrowed_fd(source, PollFlags::IN)];
    poll(&mut fds, None).expect("a wait");
}

#[test]
fn completions_never_overflow() {
    let Some(mut ring) = ring(&mut IoUring::builder()) else {
        return;
    };
    for token in 0..5000 {
        ring.read(token, 0, Buffers::aligned(512));
    }
    let mut answered = vec![false; 5000];
    while ring.count() != 0 {
        assert!(ring.submit());
        assert!(!ring.ring.submission().cq_overflow());
        wait(&ring);
        ring.reap(|token, result, _| {
            assert_eq!(result.expect("a read"), 512);
            assert!(!std::mem::replace(&mut answered[token as usize], true));
        });
    }
    assert!(answered.iter().all(|answered| *answered));
}

#[test]
fn a_refused_submission_is_repeated() {
    let Some(mut ring) = ring(IoUring::builder().setup_r_disabled()) else {
        return;
    };
    for token in 0..100 {
        ring.write(token, 0, Buffers::aligned(512));
    }
    assert!(!ring.submit(), "the kernel takes nothing");
    ring.reap(|_, _, _| panic!("nothing was taken"));
    ring.ring
        .submitter()
        .register_enable_rings()
        .expect("a ring");
    let mut answered = 0;
    while answered != 100 {
        assert!(ring.submit());
        wait(&ring);
        ring.reap(|_, _, _| answered += 1);
    }
    assert_eq!(ring.count(), 0);
}

#[test]
fn a_dropped_ring_completes_what_it_took() {
    let file = Arc::new(tempfile::tempfile().expect("a file"));
    let Ok(mut ring) = Ring::new(&file, 8) else {
        println!("skipped: the host refuses io_uring");
        return;
    };
    for n in 0..100_u32 {
        let buffers = Buffers::aligned(1);
        buffers.copy_from(&[n as u8]);
        ring.write(n, n.into(), buffers);
    }
    drop(ring);
    let mut bytes = [0; 100];
    file.read_exact_at(&mut bytes, 0).expect("the file");
    assert!(bytes.iter().zip(0..).all(|(byte, n)| *byte == n));
}
