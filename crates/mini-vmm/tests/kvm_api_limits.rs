// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Limits that a client of the API sets, as the guest or the host sees them.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use bare::http::Client;
use bare::namespace::{is_inside, make_tap, shell};
use bare::virtio::{ENTROPY, by_mmio, network};
use bare::{Asm, Running, Vm, guest};

/// A bucket that gets its next unit after years.
fn bucket(size: u32, once: u32) -> String {
    format!(r#"{{"size": {size}, "refill_time": 1000000000000, "one_time_burst": {once}}}"#)
}

/// A waiting process with memory-mapped devices, and a client that has described its machine.
fn waiting(test: &str, guest: &Asm) -> Option<(Running, Client)> {
    let mut vm = Vm::waiting(test, guest)?;
    let api = vm.path("api");
    let mut running = vm.start();
    let mut client = Client::connect(&mut running, &api);
    client.describe();
    client.done("PATCH", "/options", r#"{"virtio": "mmio"}"#);
    Some((running, client))
}

#[test]
fn the_consoles_output_ends_at_its_limit() {
    let test = "the_consoles_output_ends_at_its_limit";
    let talks = guest(|asm| {
        asm.print("0123456789").power_off();
    });
    let Some((running, mut client)) = waiting(test, &talks) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (out, metrics) = (dir.path().join("out"), dir.path().join("metrics"));
    let body = format!(
        r#"{{"serial_out_path": {out:?}, "rate_limiter": {}}}"#,
        bucket(4, 2)
    );
    client.done("PUT", "/serial", &body);
    client.done(
        "PUT",
        "/metrics",
        &format!(r#"{{"metrics_path": {metrics:?}}}"#),
    );
    client.act("InstanceStart");
    running.end().expect(0);
    assert_eq!(fs::read_to_string(out).unwrap(), "012345");
    let metrics = fs::read_to_string(metrics).unwrap();
    assert!(
        metrics.contains(r#""uart":{"rate_limiter_dropped_bytes":4}"#),
        "{metrics}"
    );
}

#[test]
fn a_guest_gets_as_many_random_numbers_as_it_may() {
    let test = "a_guest_gets_as_many_random_numbers_as_it_may";
    let asks = by_mmio(&ENTROPY, |asm| {
        asm.print(".");
    });
    let out = tempfile::NamedTempFile::new().unwrap();
    let path = out.path();
    for (limiter, answers) in [("ops", 2 + 3), ("bandwidth", 3)] {
        let Some((mut running, mut client)) = waiting(test, &asks) else {
            return;
        };
        client.done(
            "PUT",
            "/serial",
            &format!(r#"{{"serial_out_path": {path:?}}}"#),
        );
        // Requests are of 32 bytes, and one that has begun is answered.
        let bucket = match limiter {
            "ops" => bucket(2, 3),
            _ => bucket(64, 1),
        };
        let body = format!(r#"{{"rate_limiter": {{"{limiter}": {bucket}}}}}"#);
        client.done("PUT", "/entropy", &body);
        client.act("InstanceStart");
        let count = || fs::read(path).unwrap().len();
        while count() < answers {
            assert!(running.is_alive(), "{running:?}");
            std::thread::yield_now();
        }
        // A guest without a limit would have thousands.
        for _ in 0..100 {
            client.state();
        }
        client.act("Stop");
        running.end().expect(0);
        assert_eq!(count(), answers, "{limiter}");
    }
}

/// A datagram of 10.0.0.2's to port 7777, for all of the network.
const DATAGRAM: &[u8] = b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x02\x08\0\
    \x45\0\0\x32\0\0\x40\0\x40\x11\x25\xbb\x0a\0\0\x02\x0a\0\0\xff\
    \x1e\x62\x1e\x61\0\x1e\0\0a frame from the guest";

/// The host's end of `tap0`.
fn host() -> UdpSocket {
    assert!(make_tap("tap0", ""));
    shell("ip addr add 10.0.0.1/24 dev tap0; ip link set tap0 up");
    let socket = UdpSocket::bind("0.0.0.0:7777").unwrap();
    socket.set_broadcast(true).unwrap();
    let look_every = Duration::from_millis(10);
    socket.set_read_timeout(Some(look_every)).unwrap();
    socket
}

/// Sends the guest a frame, at which it sends one. Says whether one came soon.
fn answers(socket: &UdpSocket) -> bool {
    socket.send_to(b"word", "10.0.0.255:7778").unwrap();
    socket.recv_from(&mut [0; 100]).is_ok()
}

/// The guest sends a frame for each that it receives, so either limit stops it.
#[test]
fn a_running_network_gets_other_limits() {
    let test = "a_running_network_gets_other_limits";
    if !is_inside(test) {
        return;
    }
    let socket = host();
    let Some((mut running, mut client)) = waiting(test, &by_mmio(&network(DATAGRAM), |_| ()))
    else {
        return;
    };
    client.done(
        "PUT",
        "/network-interfaces/n",
        r#"{"host_dev_name": "tap0"}"#,
    );
    client.act("InstanceStart");
    let mut await_answer = || {
        while !answers(&socket) {
            assert!(running.is_alive(), "{running:?}");
        }
    };
    await_answer();
    for (direction, limiter) in [
        ("tx", "ops"),
        ("rx", "bandwidth"),
        ("rx", "ops"),
        ("tx", "bandwidth"),
    ] {
        let mut limit = |bucket: &str| {
            let body = format!(r#"{{"{direction}_rate_limiter": {{"{limiter}": {bucket}}}}}"#);
            client.done("PATCH", "/network-interfaces/n", &body);
        };
        limit(&bucket(1, 0));
        let stands = (0..100).any(|_| (0..20).all(|_| !answers(&socket)));
        assert!(
            stands,
            "{direction} {limiter}: the guest goes on without a limit"
        );
        limit(r#"{"size": 0, "refill_time": 0}"#);
        await_answer();
    }
    client.act("Stop");
    running.end().expect(0);
}
