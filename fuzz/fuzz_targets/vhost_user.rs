// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A backend whose answers are the input: honest ones, and any bytes. Either there is no device, or it starts or needs a
//! reset, and a reset ends.

#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use virtio_models::vhost_user::{Backend, Kind, Shape, VhostUser};
use virtio_transport::testing::{Driver, MEMORY, Machine, PciPort, Port, memory};

/// Backends end with their input, so none is waited for.
const EVER: Duration = Duration::from_secs(3600);

/// Answers with the parts of `input`: a length, and so many bytes. An empty part is an honest answer. Its end is the
/// backend's.
fn serve(mut socket: UnixStream, mut input: &[u8]) {
    let mut head = [0; 12];
    while socket.read_exact(&mut head).is_ok() {
        let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let (request, flags, len) = (word(0), word(4), word(8) as usize);
        let mut body = vec![0; len];
        if socket.read_exact(&mut body).is_err() {
            return;
        }
        if !matches!(request, 1 | 11 | 15 | 17 | 24) && flags & 8 == 0 {
            continue;
        }
        let Some((&len, rest)) = input.split_first() else {
            break;
        };
        let (part, rest) = rest.split_at(rest.len().min(len.into()));
        input = rest;
        let honest = match request {
            1 => (0b11 << 28 | 1 << 30 | 1_u64 << 32).to_ne_bytes().to_vec(),
            11 | 24 => body,
            15 => (1_u64 | 1 << 3 | 1 << 9).to_ne_bytes().to_vec(),
            17 => 64_u64.to_ne_bytes().to_vec(),
            _ => vec![0; 8],
        };
        let header = [request, 5, honest.len() as u32]
            .map(u32::to_ne_bytes)
            .concat();
        let answer = if part.is_empty() {
            [header, honest].concat()
        } else {
            part.to_vec()
        };
        if socket.write_all(&answer).is_err() {
            return;
        }
    }
    let _ = socket.shutdown(Shutdown::Both);
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, input)) = input.split_first() else {
        return;
    };
    let kind = match kind % 4 {
        0 => Kind::Block,
        1 => Kind::Net,
        2 => Kind::Fs {
            tag: "a".to_owned(),
        },
        _ => Kind::Other {
            id: 42,
            config_len: 6,
        },
    };
    let input = input.to_vec();
    let connect = move || {
        let (near, far) = UnixStream::pair()?;
        let input = input.clone();
        thread::spawn(move || serve(far, &input));
        Ok(near.into())
    };
    let Ok(backend) = Backend::open_with(Shape::new(kind), Box::new(connect), EVER, EVER) else {
        return;
    };
    let device = VhostUser::new(Arc::new(backend));
    let mut machine = Machine::<PciPort>::new(Box::new(device), &memory(MEMORY));
    for _ in 0..2 {
        Driver::start(&mut machine, u64::MAX);
        machine.pump();
        machine.pause().expect("a stop that ends");
        machine.resume();
        machine.set_status(0);
        machine.pump_until(|machine| machine.port.status() == 0);
    }
});
