// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use hypercall_patch::PioPort;

use super::*;
use crate::config::{CpuFeature, HypercallRoute, SerialSpec};

/// What `write` serializes.
fn written(
    write: impl FnOnce(serde_json::value::Serializer) -> Result<serde_json::Value, serde_json::Error>,
) -> String {
    write(serde_json::value::Serializer)
        .unwrap()
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn sizes_are_binary() {
    let sizes = [
        ("0", 0),
        ("512", 512),
        ("4k", 4 << 10),
        ("512M", 512 << 20),
        ("512MiB", 512 << 20),
        ("2g", 2 << 30),
        ("1T", 1 << 40),
    ];
    for (word, bytes) in sizes {
        assert_eq!(u64::from_word(word), Ok(bytes), "{word}");
    }
    for word in [
        "", "M", "-1", "+1", "1.5G", "512MB", "512 M", "1ib", "1E", "size=1G", "٣M",
    ] {
        assert_eq!(u64::from_word(word), Err(WordError::Size), "{word}");
    }
    for word in ["16777216T", "18446744073709551616"] {
        assert_eq!(u64::from_word(word), Err(WordError::HugeSize), "{word}");
    }
}

#[test]
fn sizes_are_written_in_the_largest_exact_unit() {
    let sizes = [
        (0, "0"),
        (1023, "1023"),
        (1024, "1K"),
        (1 << 50, "1024T"),
        (3 << 29, "1536M"),
    ];
    for (bytes, word) in sizes {
        assert_eq!(ByteSize(bytes).to_string(), word);
    }
}

#[test]
fn times_have_units() {
    let times = [
        ("90", 90_000),
        ("0", 0),
        ("5m", 300_000),
        ("1h", 3_600_000),
        ("1500ms", 1500),
    ];
    for (word, millis) in times {
        let limit = Some(Duration::from_millis(millis));
        assert_eq!(Option::<Duration>::from_word(word), Ok(limit), "{word}");
        let again = written(|to| write_time(&limit, to));
        assert_eq!(Option::<Duration>::from_word(&again), Ok(limit), "{word}");
    }
    assert_eq!(Option::<Duration>::from_word("off"), Ok(None));
    assert_eq!(written(|to| write_time(&None, to)), "off");
    for word in [
        "",
        "s",
        "1.5",
        "-1",
        "5 m",
        "5M",
        "1y",
        "18446744073709551615h",
    ] {
        assert_eq!(
            Option::<Duration>::from_word(word),
            Err(WordError::Time),
            "{word}"
        );
    }
}

#[test]
fn ports_are_decimal_or_hexadecimal() {
    for (word, port) in [("0xF4", 0xf4), ("244", 0xf4), ("0xffff", 0xffff), ("0", 0)] {
        assert_eq!(Option::<u16>::from_word(word), Ok(Some(port)), "{word}");
    }
    assert_eq!(Option::<u16>::from_word("off"), Ok(None));
    for word in ["", "0x", "f4", "+1", "0x+1", "-1", "65536", "0x10000"] {
        assert_eq!(
            Option::<u16>::from_word(word),
            Err(WordError::Port),
            "{word}"
        );
    }
}

#[test]
fn features_have_a_sign_and_a_name() {
    let feature = |name: &str, enable| CpuFeature {
        name: name.into(),
        enable,
    };
    assert_eq!(
        CpuFeature::from_word("+sse4_1"),
        Ok(feature("sse4_1", true))
    );
    assert_eq!(CpuFeature::from_word("-3dnow"), Ok(feature("3dnow", false)));
    let long = format!("+{}", "x".repeat(33));
    // The spelling is checked against the known names later, which can then be suggested.
    assert_eq!(
        CpuFeature::from_word("+SSE4.1"),
        Ok(feature("SSE4.1", true))
    );
    for word in ["avx2", "AVX-512"] {
        assert_eq!(
            CpuFeature::from_word(word),
            Err(WordError::UnsignedFeature),
            "{word}"
        );
    }
    for word in ["", "+", "--cpus", "+.a", "+a b", "=avx", long.as_str()] {
        assert_eq!(
            CpuFeature::from_word(word),
            Err(WordError::Feature),
            "{word}"
        );
    }
}

#[test]
fn serial_words_round_trip() {
    let odd = OsStr::from_bytes(b"file=/tmp/\xff,x=y");
    for word in ["off", "stdio", "pty", "file=a", "socket=/run/x"]
        .map(OsStr::new)
        .into_iter()
        .chain([odd])
    {
        assert_eq!(SerialSpec::from_word(word).unwrap().to_word(), word);
    }
    for word in [
        "",
        "tty",
        "null",
        "file",
        "file=",
        "socket=",
        "file:/tmp/x",
        "Stdio",
    ] {
        assert_eq!(
            SerialSpec::from_word(OsStr::new(word)),
            Err(WordError::Serial),
            "{word}"
        );
    }
}

#[test]
fn routes_are_words_and_a_port() {
    let route = |word: &str| word.parse::<HypercallRoute>();
    let port = |port| HypercallRoute::Pio(Some(PioPort::new(port).unwrap()));
    let routes = [
        ("auto", HypercallRoute::Auto),
        ("vendor", HypercallRoute::Vendor),
        ("forward", HypercallRoute::Forward),
        ("pio", HypercallRoute::Pio(None)),
        ("pio=0xf5", port(0xf5)),
        ("pio=0X10", port(0x10)),
        ("pio=1", port(1)),
    ];
    for (word, meant) in routes {
        assert_eq!(route(word), Ok(meant), "{word}");
        assert_eq!(route(&meant.to_string()), Ok(meant), "{meant}");
    }
    for word in ["", "Auto", "vmcall", "pio:1", "vendor=1"] {
        assert_eq!(route(word), Err(WordError::Route), "{word}");
    }
    for word in ["pio=", "pio=0x100", "pio=-1", "pio=x"] {
        assert_eq!(route(word), Err(WordError::RoutePort), "{word}");
    }
    let error = route("pio=0x70").unwrap_err().to_string();
    assert!(error.contains("0x70") && error.contains("clock"), "{error}");
}
