// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

/// Networks of every kind, which a machine can have together.
pub(in crate::config) fn any_nets() -> impl Strategy<Value = Vec<NetSpec>> {
    let rate = || shared::tests::any_limit();
    let limits = || (rate(), rate()).prop_map(|(bandwidth, iops)| Limits { bandwidth, iops });
    let port = any::<Option<IpAddr>>();
    let settings = (
        proptest::option::of(68u16..),
        1..=MAX_PAIRS as u16,
        any::<bool>(),
    );
    let net = (0..3u8, port, settings, limits(), limits());
    proptest::collection::vec(net, 0..4).prop_map(|nets| {
        let nets = nets.into_iter().zip(1u8..).map(|(net, number)| {
            let (kind, address, (mtu, queues, has_mac), rx, tx) = net;
            NetSpec {
                link: match kind {
                    0 => LinkSpec::Tap(format!("tap,{number}")),
                    1 => LinkSpec::Fd(u32::from(number)),
                    _ => LinkSpec::User(vec![forward(address, 1, 2); usize::from(number & 1)]),
                },
                mac: has_mac.then_some(Mac([2, 0, 0, 0, 0, number])),
                mtu,
                iothread: has_mac.then(|| IoThreadName::new("n").unwrap()),
                slot: None,
                queues: if kind == 0 { queues } else { 1 },
                rx,
                tx: if number & 2 == 0 { rx } else { tx },
            }
        });
        nets.collect()
    })
}

fn read(word: &str) -> Result<NetSpec, String> {
    let nets = Vec::<NetSpec>::from_word(word).map_err(|error| error.to_string())?;
    assert_eq!(nets.len(), 1);
    Ok(nets[0].clone())
}

fn forward(address: Option<IpAddr>, host: u16, guest: u16) -> Forward {
    Forward {
        address,
        host,
        guest,
    }
}

#[test]
fn a_word_describes_a_network() {
    assert_eq!(
        read("tap=tap0"),
        Ok(NetSpec::new(LinkSpec::Tap("tap0".into())))
    );
    assert_eq!(read("fd=7"), Ok(NetSpec::new(LinkSpec::Fd(7))));
    assert_eq!(read("user"), Ok(NetSpec::new(LinkSpec::User(Vec::new()))));
    let whole = "tap=a,mac=52:54:00:00:00:01,mtu=9000,queues=4,bandwidth=10M,iops=1000,iothread=x";
    let whole_limits = Limits {
        bandwidth: Limit::per_second(10 << 20),
        iops: Limit::per_second(1000),
    };
    let spec = NetSpec {
        mac: Some(Mac([0x52, 0x54, 0, 0, 0, 1])),
        mtu: Some(9000),
        queues: 4,
        rx: whole_limits,
        tx: whole_limits,
        iothread: IoThreadName::new("x"),
        ..NetSpec::new(LinkSpec::Tap("a".into()))
    };
    assert_eq!(read(whole), Ok(spec));
    // Each direction may have its own.
    let own = read("tap=a,bandwidth=10M,tx-bandwidth=1K,rx-iops=1000").unwrap();
    assert_eq!(own.rx, whole_limits);
    let tx = Limits {
        bandwidth: Limit::per_second(1024),
        iops: None,
    };
    assert_eq!(own.tx, tx);
}

#[test]
fn ports_are_forwarded_by_one_key_each() {
    let word = "forward=8080:80,user,forward=127.0.0.1/2222:22,forward=::1/2222:22";
    let ports = vec![
        forward(None, 8080, 80),
        forward(Some(Ipv4Addr::LOCALHOST.into()), 2222, 22),
        forward(Some(Ipv6Addr::LOCALHOST.into()), 2222, 22),
    ];
    assert_eq!(read(word), Ok(NetSpec::new(LinkSpec::User(ports))));
}

#[test]
fn json_means_the_same() {
    for (word, json) in [
        ("tap=t,mtu=1400", r#"{"tap": "t", "mtu": 1400}"#),
        (
            "fd=3,mac=02:00:00:00:00:0a",
            r#"{"fd": 3, "mac": "02:00:00:00:00:0A"}"#,
        ),
        (
            "user,forward=1:2,forward=3:4",
            r#"{"user": true, "forward": ["1:2", "3:4"]}"#,
        ),
        ("user,bandwidth=1M", r#"{"user": "on", "bandwidth": "1M"}"#),
    ] {
        let spec: NetSpec = serde_json::from_str(json).unwrap();
        assert_eq!(read(word).as_ref(), Ok(&spec), "{json}");
        let again = serde_json::to_string(&spec).unwrap();
        assert_eq!(
            serde_json::from_str::<NetSpec>(&again).unwrap(),
            spec,
            "{again}"
        );
    }
}

#[test]
fn mistakes_are_named() {
    for (word, part) in [
        ("", "unknown field ``"),
        ("mtu=1500", "needs one of tap=NAME, fd=N and user"),
        ("tap=a,user", "needs one of"),
        ("tap=a,fd=3", "needs one of"),
        ("user=off", "needs one of"),
        ("tap=a,tap=b", "duplicate field `tap`"),
        ("user,user", "duplicate field `user`"),
        ("tap=a,tpa=b", "unknown field `tpa`"),
        ("tap=a,forward=1:2", "forward= is for user"),
        ("user,queues=2", "queues= is for tap=NAME"),
        ("fd=3,queues=2", "queues= is for tap=NAME"),
        ("tap=a,queues=0", "from 1 to"),
        ("tap=a,queues=65536", "from 1 to"),
        (
            "tap=a,mtu=67",
            "mtu=67 is not a number of bytes from 68 to 65535",
        ),
        ("tap=a,mtu=65536", "mtu=65536 is not"),
        (
            "tap=a,mac=01:00:5e:00:00:01",
            "is a multicast address; give",
        ),
        ("tap=a,mac=ff:ff:ff:ff:ff:ff", "is the broadcast address"),
        ("tap=a,mac=00:00:00:00:00:00", "is no address"),
        ("tap=a,mac=52:54:00:12:34", "is not a MAC address"),
        ("tap=a,iops=0", "iops=0"),
        ("fd=x", "is not a whole number"),
        ("fd=-1", "is not a whole number"),
        ("user,forward=80", "is not a forwarded port; write"),
        ("user,forward=0:80", "is not a forwarded port"),
        ("user,forward=+1:80", "is not a forwarded port"),
        ("user,forward=1:65536", "is not a forwarded port"),
        ("user,forward=localhost/1:2", "is not a forwarded port"),
        (
            "user,forward=1:2,forward=1:3",
            "port 1 of the host is forwarded twice",
        ),
        ("user,forward=1:2,forward=::1/1:2", "forwarded twice"),
    ] {
        let valid = |spec: NetSpec| spec.validate().map_err(|error| error.to_string());
        let error = read(word).and_then(valid).expect_err(word);
        assert!(error.contains(part), "{word}: {error:?} lacks {part:?}");
        assert!(error.contains("; "), "{word}: {error:?} has no next step");
    }
}

#[test]
fn json_mistakes_are_named() {
    for (json, part) in [
        ("{}", "needs one of"),
        (r#"{"user": true, "forward": "1:2"}"#, "expected a sequence"),
        (
            r#"{"user": true, "forward": ["1"]}"#,
            "is not a forwarded port",
        ),
        (r#"{"tap": "a", "mac": 7}"#, "a MAC address such as"),
    ] {
        let error = serde_json::from_str::<NetSpec>(json).expect_err(json);
        assert!(error.to_string().contains(part), "{json}: {error}");
    }
}

proptest! {
    #[test]
    fn any_forward_is_read_back(address: Option<IpAddr>, host in 1u16.., guest in 1u16..) {
        let forward = forward(address, host, guest);
        prop_assert_eq!(Forward::from_word(&forward.to_string()), Ok(forward));
    }

    #[test]
    fn any_text_is_read_or_refused(word: String) {
        let _ = read(&word);
        let _ = read(&format!("user,forward={word}"));
    }
}
