// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Real taps, in a network namespace of their own. The host's kernel is the peer.

use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use virtio_models::net::{Link, Tap, TapError};

use crate::support::*;

/// Runs the tests in `inside` in a network namespace.
#[test]
fn taps() {
    let in_namespace = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new("unshare");
        // Without root it is also a namespace of users, which has only one.
        let is_root = rustix::process::geteuid().is_root();
        command.arg(if is_root { "-n" } else { "-rn" }).arg(program);
        command.args(arguments).output()
    };
    let is_possible = Path::new("/dev/net/tun").exists()
        && in_namespace(Path::new("ip"), &["tuntap", "add", "tap0", "mode", "tap"])
            .is_ok_and(|output| output.status.success());
    if !is_possible {
        eprintln!("SKIP: taps: no network namespace with a tap can be made here");
        return;
    }
    let program = std::env::current_exe().expect("this test");
    let arguments = [
        "tap::inside",
        "--ignored",
        "--test-threads=1",
        "--nocapture",
    ];
    let output = in_namespace(&program, &arguments).expect("this test");
    // What was skipped, too.
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("7 passed"),
        "{text}"
    );
}

fn ip(arguments: &str) {
    let ran = Command::new("ip").args(arguments.split(' ')).status();
    assert!(ran.is_ok_and(|status| status.success()), "ip {arguments}");
}

const HOST: [u8; 4] = [192, 0, 2, 1];
const GUEST: [u8; 4] = [192, 0, 2, 2];
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PORT: u16 = 7000;

/// A guest on taps of this name.
fn guest(name: &str, pairs: u16, wanted: u64) -> Guest {
    let taps = Tap::open(name, pairs).expect("a tap");
    assert!(taps.iter().all(|tap| tap.name() == name));
    let links = taps.into_iter().map(|tap| Box::new(tap) as Box<dyn Link>);
    let mut guest = Guest::on(config(), links.collect(), wanted, (None, None));
    for _ in 0..100 {
        guest.post(0, &[1526]);
    }
    guest.machine.kick(0);
    guest.machine.pump();
    guest
}

/// Lets the device work until there is a result. The limit only ends a hang.
fn wait<T>(guest: &mut Guest, mut result: impl FnMut(&mut Guest) -> Option<T>) -> T {
    for _ in 0..60_000 {
        guest.machine.pump();
        if let Some(result) = result(guest) {
            return result;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the device hangs");
}

/// Waits for a frame of this kind.
fn receive(guest: &mut Guest, is_it: impl Fn(&[u8]) -> bool) -> ([u8; HEADER], Vec<u8>) {
    wait(guest, |guest| {
        let mut received = guest.received().into_iter();
        received.find(|(_, frame)| is_it(frame))
    })
}

fn ethernet(kind: u16) -> Vec<u8> {
    [&[0xff; 6][..], &MAC, &kind.to_be_bytes()].concat()
}

/// Asks for the host's MAC address.
fn arp_request() -> Vec<u8> {
    let what = [0, 1, 8, 0, 6, 4, 0, 1];
    [&ethernet(0x806)[..], &what, &MAC, &GUEST, &[0; 6], &HOST].concat()
}

/// Asks for the host's MAC address, until the answer comes: the host's kernel drops frames until a moment after a tap was
/// opened.
fn resolve(guest: &mut Guest) -> Vec<u8> {
    let mut turns = 0;
    wait(guest, |guest| {
        if turns % 100 == 0 {
            guest.send(&[0; HEADER], &arp_request());
        }
        turns += 1;
        let mut received = guest.received().into_iter();
        received.find(|(_, frame)| is_arp_reply(frame))
    })
    .1
}

fn is_arp_reply(frame: &[u8]) -> bool {
    frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[28..32] == HOST
}

/// The sum of big-endian words, not complemented.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| {
        let low = word.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([word[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// The addresses, the protocol and the length that a checksum covers, too.
fn pseudo(source: [u8; 4], to: [u8; 4], len: u16) -> Vec<u8> {
    [&source[..], &to, &[0, 17], &len.to_be_bytes()].concat()
}

/// A datagram to the host, without a checksum of its data.
fn datagram(data: &[u8]) -> Vec<u8> {
    let len = 8 + data.len() as u16;
    let mut ip = [
        &[0x45, 0],
        &(20 + len).to_be_bytes()[..],
        &[0, 0, 0, 0, 64, 17, 0, 0],
    ]
    .concat();
    ip.extend([GUEST, HOST].concat());
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let partial = sum(&pseudo(GUEST, HOST, len));
    let udp = [PORT, PORT, len, partial].map(u16::to_be_bytes).concat();
    [&ethernet(0x800), &ip[..], &udp, data].concat()
}

/// Whether the checksum of a datagram to the guest is complete.
fn is_complete(frame: &[u8]) -> bool {
    let udp = &frame[34..];
    sum(&[&pseudo(HOST, GUEST, udp.len() as u16), udp].concat()) == 0xffff
}

mod inside {
    use super::*;

    #[test]
    #[ignore = "needs a network namespace"]
    fn what_can_not_be_opened_is_told() {
        ip("tuntap add single mode tap");
        ip("tuntap add several mode tap multi_queue");
        ip("tuntap add routed mode tun");
        let error = |name: &str, pairs| Tap::open(name, pairs).expect_err(name);
        for name in ["", "a/b", "a b", "sixteen-letters-", "..", "%d", "é"] {
            assert!(matches!(error(name, 1), TapError::Name(_)), "{name}");
        }
        for pairs in [1, 2] {
            assert!(matches!(error("nothing", pairs), TapError::Missing(_)));
            assert!(matches!(error("lo", pairs), TapError::NotTap(_)));
            assert!(matches!(error("routed", pairs), TapError::NotTap(_)));
        }
        let names = Command::new("ip")
            .args(["-o", "link"])
            .output()
            .expect("ip");
        assert!(!String::from_utf8_lossy(&names.stdout).contains("nothing"));
        assert!(matches!(error("single", 2), TapError::SingleQueue(_)));
        let first = Tap::open("single", 1).expect("a tap");
        assert!(matches!(error("single", 1), TapError::Busy(_)));
        assert!(matches!(error("single", 2), TapError::SingleQueue(_)));
        drop(first);
        assert_eq!(Tap::open("single", 1).expect("a tap").len(), 1);
        for pairs in [1, 2, 5] {
            let taps = Tap::open("several", pairs).expect("a tap");
            assert_eq!(taps.len(), usize::from(pairs));
        }
    }

    /// The kernel asks for the owner, or for a capability in the tap's namespace.
    #[test]
    #[ignore = "needs a network namespace"]
    fn a_tap_of_another_user_is_refused() {
        let make = "tuntap add foreign mode tap user 1".split(' ');
        if !Command::new("ip")
            .args(make)
            .status()
            .is_ok_and(|made| made.success())
        {
            eprintln!("SKIP: a tap of another user: this namespace has no other user");
            return;
        }
        // Capabilities are a thread's.
        let opened = std::thread::spawn(|| {
            let mut sets = capabilities(None).expect("this thread's capabilities");
            sets.effective.remove(CapabilitySet::NET_ADMIN);
            set_capabilities(None, sets).expect("fewer capabilities");
            Tap::open("foreign", 1)
        });
        let opened = opened.join().expect("the thread");
        assert!(matches!(opened, Err(TapError::Denied(_))), "{opened:?}");
        assert_eq!(Tap::open("foreign", 1).expect("a tap").len(), 1);
    }

    #[test]
    #[ignore = "needs a network namespace"]
    fn an_open_file_may_be_a_tap() {
        ip("tuntap add given mode tap");
        let taps = Tap::open("given", 1).expect("a tap");
        let copy = taps[0].source().try_clone_to_owned().expect("a file");
        drop(taps);
        assert_eq!(Tap::from_fd(copy).expect("a tap").name(), "given");
        for path in ["/dev/null", "/dev/net/tun", "/proc/self/status"] {
            let file = File::open(path).expect("a file").into();
            assert!(
                matches!(Tap::from_fd(file), Err(TapError::NotTapFd)),
                "{path}"
            );
        }
    }

    #[test]
    #[ignore = "needs a network namespace"]
    fn frames_pass_both_ways() {
        ip("tuntap add tap0 mode tap");
        ip("addr add 192.0.2.1/24 dev tap0");
        ip("link set tap0 up");
        let socket = UdpSocket::bind((Ipv4Addr::from(HOST), PORT)).expect("a port");
        for wanted in [
            u64::MAX,
            !GUEST_CSUM & !GUEST_TSO4 & !GUEST_TSO6,
            !MRG_RXBUF,
        ] {
            let mut guest = guest("tap0", 1, wanted);
            let reply = resolve(&mut guest);
            assert_eq!(reply[..6], MAC);
            // The host completes the checksum.
            let header = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
            guest.send(&header, &datagram(b"to the host"));
            let mut data = [0; 100];
            let (len, from) = socket.recv_from(&mut data).expect("a datagram");
            assert_eq!(data[..len], *b"to the host");
            socket.send_to(b"to the guest", from).expect("a socket");
            let is_it = |frame: &[u8]| frame.ends_with(b"to the guest");
            let (header, frame) = receive(&mut guest, is_it);
            if wanted & GUEST_CSUM == 0 {
                assert!(header[0] == 0 && is_complete(&frame));
            } else {
                assert_eq!(header[..10], [1, 0, 0, 0, 0, 0, 34, 0, 6, 0]);
            }
            assert_eq!(guest.counters.sent_dropped(), 0);
            assert!(guest.is_link_up() && guest.notices().is_empty());
            // A checksum outside of the frame.
            if wanted & CSUM != 0 {
                guest.send(&[1, 0, 0, 0, 0, 0, 0xff, 0xff, 6, 0, 0, 0], &datagram(b""));
                assert_eq!(guest.counters.sent_dropped(), 1);
                assert!(guest.is_link_up() && guest.notices().len() == 1);
            }
        }
    }

    #[test]
    #[ignore = "needs a network namespace"]
    fn a_tap_goes_down_and_comes_back() {
        ip("tuntap add tap1 mode tap");
        ip("addr add 192.0.2.1/24 dev tap1");
        ip("link set tap1 up");
        let mut guest = guest("tap1", 1, u64::MAX);
        ip("link set tap1 down");
        for _ in 0..3 {
            guest.send(&[0; HEADER], &arp_request());
        }
        assert!(!guest.is_link_up() && guest.notices().len() == 1);
        assert_eq!(guest.counters.sent_dropped(), 3);
        ip("link set tap1 up");
        wait(&mut guest, |guest| guest.is_link_up().then_some(()));
        assert_eq!(guest.notices().len(), 2);
        resolve(&mut guest);
        ip("link del tap1");
    }

    #[test]
    #[ignore = "needs a network namespace"]
    fn a_tap_that_is_deleted_is_lost() {
        for sends in [false, true] {
            ip("tuntap add tap2 mode tap");
            ip("link set tap2 up");
            let mut guest = guest("tap2", 1, u64::MAX);
            ip("link del tap2");
            if sends {
                guest.send(&[0; HEADER], &arp_request());
            }
            guest.machine.pump();
            assert!(!guest.is_link_up() && guest.notices().len() == 1);
            assert_eq!(guest.watched(), 0);
            guest.restart(u64::MAX);
            guest.send(&[0; HEADER], &arp_request());
            assert!(!guest.is_link_up() && guest.notices().len() == 1);
            assert!(guest.machine.failures.is_empty());
        }
    }

    #[test]
    #[ignore = "needs a network namespace"]
    fn a_tap_has_a_queue_for_each_pair() {
        ip("tuntap add tap3 mode tap multi_queue");
        ip("addr add 192.0.2.1/24 dev tap3");
        ip("link set tap3 up");
        let mut guest = guest("tap3", 2, u64::MAX);
        // All frames come to the first pair, until the driver uses the second one.
        for _ in 0..5 {
            resolve(&mut guest);
        }
        assert_eq!(guest.command(4, &[4, 0, 2, 0]), 0);
        guest.queue(3, &[&[0; HEADER][..], &arp_request()].concat(), &[], 0);
        guest.machine.kick(3);
        guest.machine.pump();
        assert_eq!((guest.used(3).len(), guest.counters.sent_dropped()), (1, 0));
        for _ in 0..2 {
            assert_eq!(guest.command(4, &[4, 0, 1, 0]), 0);
            assert_eq!(guest.command(4, &[4, 0, 2, 0]), 0);
        }
        assert!(guest.is_link_up() && guest.notices().is_empty());
        guest.restart(u64::MAX);
        assert!(guest.is_link_up() && guest.notices().is_empty());
        ip("link del tap3");
    }
}
