// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Backends that end, are silent or lie, at each message.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use virtio_models::vhost_user::{Backend, Fault, Kind, Request as Asked, Shape, VhostUser};
use virtio_transport::registers::NEEDS_RESET;
use virtio_transport::testing::{Driver, MEMORY, Machine, PciPort, Port, memory};

use super::support::{CONFIG, shape};

/// What a backend does instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// It closes the connection.
    End,
    /// It says nothing.
    Silence,
    /// It sends a part of the answer, and then nothing.
    Part,
    /// It answers another question.
    Other,
    /// Its answer is longer than any.
    Long,
    /// Its answer has no body.
    Empty,
    /// It sends ones.
    Ones,
    /// It refuses.
    Refusal,
}

const LIES: [Lie; 8] = [
    Lie::End,
    Lie::Silence,
    Lie::Part,
    Lie::Other,
    Lie::Long,
    Lie::Empty,
    Lie::Ones,
    Lie::Refusal,
];

/// How long a silent backend is waited for, where that is the only one that could answer.
const SHORT: Duration = Duration::from_millis(100);
/// How long other backends are waited for.
const EVER: Duration = Duration::from_secs(600);
/// The number of answers from a connection to a running device with two queues, and to its stop.
const TO_OFFER: usize = 5;
const TO_START: usize = TO_OFFER + 2 + 2 * 6;
const TO_STOP: usize = TO_START + 2;

fn number(number: u64) -> Vec<u8> {
    number.to_ne_bytes().to_vec()
}

/// The right answer.
fn answer(request: u32, body: &[u8]) -> Vec<u8> {
    match request {
        1 => number(1 | 1 << 12 | 0b11 << 28 | 1 << 30 | 1 << 32),
        11 => [&body[..4], &7_u32.to_ne_bytes()].concat(),
        15 => number(1 | 1 << 3 | 1 << 9),
        17 => number(2),
        24 => {
            let len = body.len() - 12;
            [&body[..12], &CONFIG.repeat(20)[..len]].concat()
        }
        _ => number(0),
    }
}

fn header(request: u32, len: u32) -> Vec<u8> {
    [request, 5, len]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect()
}

/// Serves a connection. The answer after `honest` ones is a lie.
fn serve(mut socket: UnixStream, honest: usize, lie: Lie) {
    let mut answers = 0;
    let mut head = [0; 12];
    while socket.read_exact(&mut head).is_ok() {
        let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let (request, flags) = (word(0), word(4));
        let mut body = vec![0; word(8) as usize];
        socket.read_exact(&mut body).expect("a body");
        if !matches!(request, 1 | 11 | 15 | 17 | 24) && flags & 8 == 0 {
            continue;
        }
        let body = answer(request, &body);
        let right = [header(request, body.len() as u32), body.clone()].concat();
        let ones = vec![0xff; body.len()];
        let sent = match lie {
            _ if answers != honest => right,
            Lie::End => return,
            Lie::Silence => Vec::new(),
            Lie::Part => right[..right.len() - 1].to_vec(),
            Lie::Other => [header(99, body.len() as u32), body].concat(),
            Lie::Long => header(request, u32::MAX),
            Lie::Empty => header(request, 0),
            Lie::Ones => [header(request, body.len() as u32), ones].concat(),
            Lie::Refusal => [header(request, 8), number(1)].concat(),
        };
        answers += 1;
        if socket.write_all(&sent).is_err() {
            return;
        }
    }
}

/// A backend that lies after `honest` answers, and may take `later` for those after its offer.
fn liar_with(
    shape: Shape,
    honest: usize,
    lie: Lie,
    [first, later]: [Duration; 2],
) -> Result<Arc<Backend>, Fault> {
    let connect = move || {
        let (near, far) = UnixStream::pair()?;
        thread::spawn(move || serve(far, honest, lie));
        Ok(near.into())
    };
    Backend::open_with(shape, Box::new(connect), first, later).map(Arc::new)
}

/// A backend that lies after `honest` answers, before its offer is complete.
fn liar(shape: Shape, honest: usize, lie: Lie) -> Result<Arc<Backend>, Fault> {
    let is_silent = matches!(lie, Lie::Silence | Lie::Part);
    let patience = if is_silent { SHORT } else { EVER };
    liar_with(shape, honest, lie, [patience, EVER])
}

/// A machine whose backend lies after `honest` answers, when its driver has started the device. A start with honest
/// answers has as much time as it needs.
fn started(honest: usize, lie: Lie) -> Machine<PciPort> {
    let is_silent = matches!(lie, Lie::Silence | Lie::Part);
    let mut patience = if is_silent { SHORT } else { EVER };
    loop {
        let backend = liar_with(shape(), honest, lie, [EVER, patience]).expect("honest so far");
        let device = VhostUser::new(backend);
        let mut machine = Machine::<PciPort>::new(Box::new(device), &memory(MEMORY));
        Driver::start(&mut machine, u64::MAX);
        machine.pump();
        if honest < TO_START || machine.worker.is_running() {
            return machine;
        }
        patience *= 2;
        assert!(
            patience < EVER,
            "{lie:?} after {honest}: {:?}",
            machine.failures
        );
    }
}

#[test]
fn a_lie_before_the_guest_starts_is_an_error_or_harmless() {
    for lie in LIES {
        for honest in 0..TO_OFFER {
            match liar(shape(), honest, lie) {
                Ok(_) => assert!(matches!(lie, Lie::Ones | Lie::Refusal), "{lie:?} {honest}"),
                Err(fault) => {
                    let text = fault.to_string();
                    assert!(!text.is_empty() && !text.contains('\n'), "{text}");
                }
            }
        }
    }
}

#[test]
fn each_lie_has_its_sentence() {
    let fault = |lie| liar(shape(), 0, lie).unwrap_err();
    assert!(matches!(fault(Lie::End), Fault::Closed));
    assert!(matches!(
        fault(Lie::Silence),
        Fault::Silent(Asked::GetFeatures)
    ));
    assert!(matches!(
        fault(Lie::Part),
        Fault::Silent(Asked::GetFeatures)
    ));
    for lie in [Lie::Other, Lie::Long, Lie::Empty] {
        assert!(matches!(fault(lie), Fault::Answer(Asked::GetFeatures)));
    }
    assert!(matches!(fault(Lie::Refusal), Fault::Lacks("VERSION_1")));
    // The confirmation of SET_OWNER.
    let fault = liar(shape(), 2, Lie::Refusal).unwrap_err();
    assert!(matches!(fault, Fault::Refused(Asked::SetOwner)));
}

#[test]
fn a_disk_has_a_possible_number_of_queues() {
    // The configuration repeats 1 to 6, so that it has 1,541 queues.
    let fault = liar(Shape::new(Kind::Block), usize::MAX, Lie::End).unwrap_err();
    assert!(matches!(fault, Fault::Config(_)), "{fault}");
}

#[test]
fn a_lie_at_a_start_or_a_stop_costs_the_device_only() {
    for lie in LIES {
        for honest in TO_OFFER..TO_STOP {
            let mut machine = started(honest, lie);
            let status = machine.port.status();
            let is_broken = status & NEEDS_RESET != 0;
            assert_eq!(is_broken, !machine.failures.is_empty());
            assert_eq!(is_broken, honest < TO_START, "{lie:?} after {honest}");
            machine.pause().expect("a stop that ends");
            machine.resume();
            machine.set_status(0);
            machine.pump_until(|machine| machine.port.status() == 0);
            assert_eq!(machine.poller.watched(), 0);
        }
    }
}

#[test]
fn a_reset_ends_though_the_backend_is_silent() {
    for lie in [Lie::Silence, Lie::Part] {
        let mut machine = started(TO_START, lie);
        machine.set_status(0);
        machine.pump_until(|machine| machine.port.status() == 0);
        assert_eq!(machine.poller.watched(), 0);
        // The next driver has a new connection, whose answers may be late.
        Driver::start(&mut machine, u64::MAX);
        machine.pump();
        let why = machine.failures.first().map(ToString::to_string);
        assert!(why.is_none_or(|why| why.contains("in time")));
    }
}

#[test]
fn a_device_whose_backend_speaks_unasked_needs_a_reset() {
    let (near, far) = UnixStream::pair().unwrap();
    let mut speaker = far.try_clone().unwrap();
    thread::spawn(move || serve(far, usize::MAX, Lie::End));
    let mut near = Some(near);
    let connect = move || {
        near.take()
            .map(Into::into)
            .ok_or_else(|| std::io::ErrorKind::NotFound.into())
    };
    let backend = Backend::open(shape(), Box::new(connect)).unwrap();
    let device = VhostUser::new(Arc::new(backend));
    let mut machine = Machine::<PciPort>::new(Box::new(device), &memory(MEMORY));
    Driver::start(&mut machine, u64::MAX);
    machine.pump();
    assert!(machine.failures.is_empty());
    speaker.write_all(&[1]).unwrap();
    machine.pump_until(|machine| machine.port.status() & NEEDS_RESET != 0);
    let why = machine.failures[0].to_string();
    assert!(why.contains("breaks the protocol"), "{why}");
}
