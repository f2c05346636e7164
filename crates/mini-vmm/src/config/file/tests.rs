// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use proptest::prelude::*;

use super::*;

const PATH: &str = "vm.json";

#[test]
fn bad_json_is_located() {
    let cases: [(&str, &str); 35] = [
        ("", "line 1, column 1: the file ends within a value ("),
        (
            r#"{"kernel": "k""#,
            "column 14: the file ends within an object (",
        ),
        (
            r#"{"EOF while parsing": 1}"#,
            "unknown key \"EOF while parsing\"",
        ),
        (
            "{\n  \"mem\": 1}",
            "unknown key \"mem\"; the keys are kernel, initrd, cmdline, boot-protocol, decompress, cpus, memory,",
        ),
        ("{\n  \"mem\": 1}", "line 2, column 7: unknown key"),
        (
            r#"{"cpu_features": []}"#,
            "unknown key \"cpu_features\"; did you mean \"cpu-features\"? (",
        ),
        (
            r#"{"debugexit": 1}"#,
            "unknown key \"debugexit\"; did you mean \"debug-exit\"? (",
        ),
        (
            "{\"a\\u001b[31m\": 1}",
            "unknown key \"a\\u{1b}[31m\"; the keys",
        ),
        (r#"{"kernel": "k",}"#, "line 1, column 16: trailing comma ("),
        (
            r#"{"kernel": "k"} x"#,
            "line 1, column 17: trailing characters (",
        ),
        (r#"{"cpus": 1, "cpus": 2}"#, "duplicate field `cpus` ("),
        (
            "[]",
            "invalid type: sequence, expected an object such as {\"kernel\"",
        ),
        (
            r#"["vmlinux"]x"#,
            "line 1, column 1: invalid type: sequence, expected an object",
        ),
        (
            r#""vmlinux""#,
            "invalid type: string \"vmlinux\", expected an object",
        ),
        (
            r#"{"cpus": "two"}"#,
            "\"two\" is not a number of vCPUs; write",
        ),
        (
            r#"{"cpus": -1}"#,
            "integer `-1`, expected a whole number of vCPUs such as 2 (",
        ),
        (
            r#"{"memory": 1.5}"#,
            "expected a size such as \"512M\", or a number of bytes",
        ),
        (r#"{"memory": "512MB"}"#, "\"512MB\" is not a size; write"),
        (r#"{"timeout": -1}"#, "expected a time such as \"5m\""),
        (
            r#"{"debug-exit": 65536}"#,
            "expected an I/O port such as \"0xf4\" or 244, true or false",
        ),
        (
            r#"{"timeout": true}"#,
            "boolean `true`, expected a time such as \"5m\"",
        ),
        (
            r#"{"serial": "tty"}"#,
            "\"tty\" is not a place for a console; write off,",
        ),
        (
            r#"{"serial": true}"#,
            "boolean `true`, expected \"off\", \"stdio\"",
        ),
        (
            r#"{"para": "no"}"#,
            "\"no\" is not a switch's position; write on or off (",
        ),
        (
            r#"{"legacy-timer": 1}"#,
            "integer `1`, expected \"on\" or \"off\", true or false (",
        ),
        (
            r#"{"on-reboot": "halt"}"#,
            "invalid value: string \"halt\", expected \"exit\" or \"reset\" (",
        ),
        (
            r#"{"on-reboot": true}"#,
            "boolean `true`, expected \"exit\" or \"reset\" (",
        ),
        (
            r#"{"on-panic": {"exit": null}}"#,
            "invalid type: map, expected \"exit\" or \"continue\" (",
        ),
        (
            r#"{"boot-protocol": ["pvh"]}"#,
            "invalid type: sequence, expected \"auto\", \"linux\" or \"pvh\" (",
        ),
        (
            r#"{"decompress": null, "msr-policy": 1}"#,
            "integer `1`, expected \"allow\", \"deny-unknown\" or \"log\" (",
        ),
        (
            r#"{"hypercall-abi": 2007}"#,
            "integer `2007`, expected \"kvm\", \"2007\" or \"2007-draft\" (",
        ),
        (
            r#"{"cpu-features": true}"#,
            "expected a list of CPU features such as [\"-avx2\"] (",
        ),
        (
            r#"{"cpu-features": ["avx2"]}"#,
            "\"avx2\" is not a CPU feature with its sign; write + before the name",
        ),
        (
            r#"{"cpu-features": "-avx2,"}"#,
            "\"\" is not a CPU feature; write + or -",
        ),
        (
            r#"{"cpu-features": [["-avx2"]]}"#,
            "invalid type: sequence, expected a CPU feature such as \"-avx2\" (",
        ),
    ];
    for (json, part) in cases {
        let error = parse(json.as_bytes(), Path::new(PATH))
            .expect_err(part)
            .to_string();
        assert!(error.contains(part), "{error:?} lacks {part:?}");
        assert!(
            error.starts_with("config file \"vm.json\", line "),
            "{error:?}"
        );
    }
}

#[test]
fn bytes_that_are_no_text_are_located() {
    let error = parse(b"{\n \"kernel\": \"\xff\"}", Path::new(PATH)).unwrap_err();
    let place = "config file \"vm.json\" is not UTF-8 at line 2, column 13; save it as UTF-8";
    assert!(error.to_string().contains(place), "{error}");
}

#[test]
fn deep_nesting_is_refused() {
    let deep = format!("{{\"kernel\": {}", "[".repeat(1 << 20));
    assert!(matches!(
        parse(deep.as_bytes(), Path::new(PATH)),
        Err(Error::Json { .. })
    ));
}

#[test]
fn long_words_leave_room_for_what_to_do() {
    let long = "\u{e9}\\n".repeat(1 << 19);
    for (json, parts) in [
        (
            format!(r#"{{"{long}": 1}}"#),
            ["unknown key", "the keys are kernel"],
        ),
        (
            format!(r#"{{"cpus": "{long}"}}"#),
            ["\"é", "write a whole number"],
        ),
        (
            format!(r#"{{"on-reboot": "{long}"}}"#),
            ["string \"é", "or \"reset\""],
        ),
        (
            format!(r#"{{"kernel": ["{long}"]}}"#),
            ["invalid type", "expected path"],
        ),
        (
            format!(r#"{{"cpu-features": ["{long}"]}}"#),
            ["\"é", "such as -avx2"],
        ),
        (
            format!(r#"{{"debug-exit": {{"{long}": 1}}}}"#),
            ["invalid type", "true or false"],
        ),
    ] {
        let error = parse(json.as_bytes(), Path::new(PATH)).unwrap_err();
        let line = crate::logging::sentence(&error);
        assert!(line.chars().count() < 700, "{line}");
        for part in parts
            .iter()
            .chain(&["(--print-config shows how a file looks)"])
        {
            assert!(line.contains(part), "{line:?} lacks {part:?}");
        }
        assert!(!line.contains('\n'), "{line:?}");
    }
}

#[test]
fn off_is_false_wherever_it_is_a_word() {
    let off = r#"{"kernel": "k", "debug-exit": false, "timeout": false, "serial": false}"#;
    let spec = parse(off.as_bytes(), Path::new(PATH))
        .unwrap()
        .finish()
        .unwrap();
    assert_eq!((spec.debug_exit, spec.timeout), (None, None));
    assert_eq!(spec.serial, config::SerialSpec::Off);
    for on in ["true", "\"on\"", "244"] {
        let json = format!("{{\"kernel\": \"k\", \"debug-exit\": {on}}}");
        let spec = parse(json.as_bytes(), Path::new(PATH))
            .unwrap()
            .finish()
            .unwrap();
        let port = Some(crate::layout::DEBUG_EXIT);
        assert_eq!(spec.debug_exit, port, "{on}");
    }
}

#[test]
fn switches_are_words_or_booleans() {
    for (word, on) in [
        (r#""on""#, true),
        (r#""off""#, false),
        ("true", true),
        ("false", false),
    ] {
        let json = format!(
            r#"{{"kernel": "k", "para": {word}, "legacy-timer": {word}, "nested": {word}, "rtc": {word}, "sealed": {word}}}"#
        );
        let spec = parse(json.as_bytes(), Path::new(PATH))
            .unwrap()
            .finish()
            .unwrap();
        let switches = [
            spec.para,
            spec.legacy_timer,
            spec.nested,
            spec.rtc,
            spec.sealed,
        ];
        assert_eq!(switches, [on; 5], "{json}");
    }
}

#[test]
fn the_words_of_flags_do_in_a_file() {
    let json = "\u{feff}{\"kernel\": \"k\", \"cpus\": \"2\", \"cpu-features\": \"-avx2,+x\", \"hypercall-abi\": \"2007\"}";
    let words = parse(json.as_bytes(), Path::new(PATH)).unwrap();
    let json =
        r#"{"kernel": "k", "cpus": 2, "cpu-features": ["-avx2", "+x"], "hypercall-abi": "2007"}"#;
    let plain = parse(json.as_bytes(), Path::new(PATH)).unwrap();
    assert_eq!(words, plain);
    let spec = words.finish().unwrap();
    assert_eq!(spec.cpus, 2);
    assert_eq!(spec.hypercall_abi, config::HypercallAbi::Para2007);
    assert_eq!(spec.cpu_features.len(), 2);
    let unsaid: Vec<_> = config::KEYS
        .iter()
        .map(|key| format!("\"{key}\": null"))
        .collect();
    let unsaid = parse(
        format!("{{{}}}", unsaid.join(",")).as_bytes(),
        Path::new(PATH),
    )
    .unwrap();
    assert_eq!(unsaid, Draft::default());
}

#[test]
fn unreadable_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.json");
    assert!(matches!(load(&missing), Err(Error::Read { path, .. }) if path == missing));
    assert!(matches!(load(dir.path()), Err(Error::Directory { .. })));
}

#[test]
fn endless_files_are_refused() {
    assert!(matches!(
        load(Path::new("/dev/zero")),
        Err(Error::Huge { .. })
    ));
}

#[test]
fn flags_override_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(PATH);
    let json = r#"{"kernel": "a", "cpus": 2, "memory": "1G", "timeout": "5m", "serial": "off"}"#;
    std::fs::write(&file, json).unwrap();
    let flags = [("cpus", "3"), ("serial", "pty"), ("timeout", "off")];
    let flags = flags.map(|(key, word)| (key, word.into()));
    let spec = resolve(&flags, Some(&file)).unwrap();
    assert_eq!((spec.cpus, spec.memory), (3, 1 << 30));
    assert_eq!(
        (spec.kernel.as_path(), spec.timeout),
        (Path::new("a"), None)
    );
    // The default command line depends on the console that was chosen last.
    assert_eq!(spec.cmdline, "console=ttyS0 panic=-1 cryptomgr.notests");
}

#[test]
fn a_file_may_leave_the_kernel_to_the_flags() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(PATH);
    std::fs::write(&file, "{}").unwrap();
    let silent = resolve(&[], Some(&file));
    assert!(matches!(silent, Err(Error::Spec(config::Error::NoKernel))));
    let flags = [("kernel", "k".into())];
    assert_eq!(resolve(&flags, Some(&file)).unwrap(), VmSpec::new("k"));
}

#[test]
fn names_that_json_can_not_hold_are_an_error() {
    for serial in [false, true] {
        let odd = PathBuf::from(OsStr::from_bytes(b"k\xff"));
        let mut spec = VmSpec::new("k");
        match serial {
            true => spec.serial = config::SerialSpec::File(odd),
            false => spec.kernel = odd,
        }
        let error = to_json(&spec).unwrap_err().to_string();
        assert!(
            error.contains("UTF-8") && error.contains("rename the file"),
            "{error}"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        let _ = parse(&bytes, Path::new(PATH));
    }

    #[test]
    fn any_values_are_read_or_refused(
        key in "(kernel|cmdline|cpus|memory|serial|timeout|debug-exit|cpu-features)",
        value in "(-?[0-9]{1,25}(\\.[0-9])?|\"[0-9]{0,25}[a-zA-Z=/]{0,6}\"|null|true|\\[\\]|\\{\\})",
    ) {
        let json = format!("{{\"kernel\": \"k\", \"{key}\": {value}}}");
        let read = parse(json.as_bytes(), Path::new(PATH)).map(Draft::finish);
        if let Ok(Ok(spec)) = read {
            let again = parse(to_json(&spec).unwrap().as_bytes(), Path::new(PATH)).unwrap();
            prop_assert_eq!(again.finish(), Ok(spec));
        }
    }
}
