// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any bytes from a client of the API, to a machine in any state.
//!
//! The first byte chooses the state, the second one how the bytes are cut into pieces. The cut must not matter, and
//! afterwards another client must find one of the known states.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mini_vmm::api::playground::Playground;

const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const PAUSE: &[u8] = b"PATCH /vm HTTP/1.1\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}";
const STOP: &[u8] =
    b"PUT /actions HTTP/1.1\r\nContent-Length: 22\r\n\r\n{\"action_type\":\"Stop\"}";

fn in_state(choice: u8) -> Playground {
    let mut machine = match choice & 7 {
        4 | 5 => return Playground::loading(choice & 1 == 0),
        _ => Playground::default(),
    };
    if choice & 3 > 0 {
        machine.start();
    }
    let way: &[u8] = match choice & 3 {
        2 => PAUSE,
        3 => STOP,
        _ => b"",
    };
    let answers = machine.talk(way, 4096);
    assert!(way.is_empty() || answers.starts_with(b"HTTP/1.1 204 "));
    machine
}

/// The answers without the ones that depend on the cut.
fn answers(machine: &mut Playground, input: &[u8], piece: usize) -> Vec<u8> {
    let mut answers = machine.talk(input, piece);
    while let Some(at) = answers.windows(GO_ON.len()).position(|part| part == GO_ON) {
        answers.drain(at..at + GO_ON.len());
    }
    answers
}

/// Checks that `answers` are whole answers. Returns their number.
fn check(mut answers: &[u8]) -> usize {
    let mut count = 0;
    while !answers.is_empty() {
        let end = answers
            .windows(4)
            .position(|part| part == b"\r\n\r\n")
            .expect("a whole head")
            + 4;
        let head = std::str::from_utf8(&answers[..end]).expect("text");
        let status = head
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .expect("a status");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let length = length.map_or(0, |length| length.parse().expect("a length"));
        let body = &answers[end..end + length];
        match status {
            "204" => assert!(body.is_empty()),
            // The counters, for Prometheus.
            "200" if head.contains("Content-Type: text/plain") => {
                std::str::from_utf8(body).expect("text");
            }
            _ => {
                let value: serde_json::Value = serde_json::from_slice(body).expect("JSON");
                assert_eq!(
                    value["fault_message"].is_string(),
                    status != "200",
                    "{head}"
                );
            }
        }
        answers = &answers[end + length..];
        count += 1;
    }
    count
}

fuzz_target!(|input: &[u8]| {
    let [choice, cut, input @ ..] = input else {
        return;
    };
    let mut machine = in_state(*choice);
    let at_once = answers(&mut machine, input, input.len().max(1));
    check(&at_once);
    let mut other = in_state(*choice);
    let in_pieces = answers(&mut other, input, usize::from(*cut).max(1));
    assert_eq!(at_once, in_pieces, "{:?}", input.escape_ascii().to_string());
    for target in ["/", "/vm/config", "/options"] {
        let request = format!("GET {target} HTTP/1.1\r\n\r\n");
        let answer = machine.talk(request.as_bytes(), 4096);
        assert_eq!(check(&answer), 1);
        let text = String::from_utf8_lossy(&answer);
        let states = ["\"Not started\"", "\"Running\"", "\"Paused\"", "has ended"];
        assert!(
            target != "/" || states.iter().any(|state| text.contains(state)),
            "{text}"
        );
        assert!(target == "/" || text.starts_with("HTTP/1.1 200 "), "{text}");
    }
});
