// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use super::*;

/// Goes on in bash, where there is one: dash has no redirections of numbers with two digits.
const BASH: &str = "[ -z \"$BASH_VERSION\" ] && [ -x /bin/bash ] && exec /bin/bash \"$0\" \"$@\"";

/// A program in place of passt: a shell script that finds the connection in `$fd`.
fn program(script: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("passt");
    let text = format!("#!/bin/sh\n{BASH}\nfd=$3\n{script}\n");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    (dir, path)
}

fn try_start(script: &str) -> Result<UnixStream, String> {
    let (_dir, program) = program(script);
    let started = start(program.as_os_str(), &[], None, &|| true);
    started
        .map(UnixStream::from)
        .map_err(|error| error.to_string())
}

fn forward(host: u16) -> Forward {
    Forward {
        address: None,
        host,
        guest: 80,
    }
}

/// What it sends comes back until its end is closed; then the program ends, and so does the connection.
#[test]
fn it_has_the_connection_and_ends_with_it() {
    let mut stream = try_start("{ cat <&$fd >&$fd; echo END >&$fd; } & exit 0").unwrap();
    stream.write_all(b"frame").unwrap();
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"frame");
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "END\n");
}

#[test]
fn its_last_reason_is_passed_on() {
    let said = "echo 'a first line' >&2\necho \"Don't run as root. Changing to nobody...\" >&2\n";
    let error = try_start(&format!(
        "{said}printf 'it is\\033 so\\n' >&2; echo >&2; exit 1"
    ));
    let error = error.unwrap_err();
    assert!(
        error.contains("can't start: a first line, it is\\u{1b} so; "),
        "{error}"
    );
    let error = try_start(&format!("{said}exit 3")).unwrap_err();
    assert!(error.contains("a first line"), "{error}");
    let error = try_start("echo 'Failed to send 47 bytes to syslog' >&2; exit 3").unwrap_err();
    assert!(error.contains("no reason (exit status: 3)"), "{error}");
    let error = try_start("yes 0123456789 | head -c 200000 >&2; exit 1").unwrap_err();
    assert!(error.len() < 500, "{error}");
}

#[test]
fn a_missing_program_is_named_with_its_package() {
    let error = start(OsStr::new("no-such-passt"), &[], None, &|| true).unwrap_err();
    assert!(
        error.to_string().ends_with("install the package passt"),
        "{error}"
    );
    let dir = tempfile::tempdir().unwrap();
    let error = start(dir.path().as_os_str(), &[], None, &|| true).unwrap_err();
    assert!(matches!(error, PasstError::Start(_)), "{error}");
}

/// The program waits for a signal that never comes, other than the one that kills it.
#[test]
fn a_start_that_hangs_can_be_stopped() {
    let (dir, program) = program("echo $$ >$0.pid; while :; do sleep 1000; done");
    let asked = Cell::new(0);
    let pid_file = dir.path().join("passt.pid");
    let go_on = || {
        asked.set(asked.get() + 1);
        !std::fs::read_to_string(&pid_file).is_ok_and(|pid| pid.ends_with('\n'))
    };
    let error = start(program.as_os_str(), &[], None, &go_on).unwrap_err();
    assert!(matches!(error, PasstError::Stopped), "{error}");
    assert!(asked.get() > 0);
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    assert!(!PathBuf::from(format!("/proc/{}", pid.trim())).exists());
}

#[test]
fn ports_and_mtu_are_arguments() {
    let address = Some(Ipv4Addr::LOCALHOST.into());
    let local = Forward {
        address,
        ..forward(2222)
    };
    assert_eq!(
        arguments(7, &[forward(8080), local], Some(9000)).join(" "),
        "--quiet --fd 7 --mtu 9000 --tcp-ports 8080:80,127.0.0.1/2222:80 --udp-ports none"
    );
    assert_eq!(arguments(7, &[], None).join(" "), "--quiet --fd 7");
}

/// Nothing is started if a port can't be had.
#[test]
fn a_port_in_use_is_told_from_a_foreign_address() {
    for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"] {
        let Ok(user) = TcpListener::bind(address) else {
            eprintln!("skipped: this host has no address {address}");
            continue;
        };
        let at = user.local_addr().unwrap();
        let error = start(
            OsStr::new("no-such-passt"),
            &[forward(at.port())],
            None,
            &|| true,
        );
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("is in use on the host"),
            "{address}: {error}"
        );
        drop(user);
        check_port(&forward(at.port())).unwrap();
    }
    let foreign = Forward {
        address: Some(Ipv4Addr::new(203, 0, 113, 77).into()),
        ..forward(1)
    };
    let error = check_port(&foreign).unwrap_err().to_string();
    assert!(
        error.starts_with("203.0.113.77 is not an address"),
        "{error}"
    );
}

/// The real one answers an ARP request for any address but the guest's.
#[test]
fn the_real_one_answers_the_guest() {
    let started = start(OsStr::new(PROGRAM), &[], None, &|| true);
    let stream = match started {
        Ok(stream) => UnixStream::from(stream),
        Err(error) => {
            eprintln!("skipped: the_real_one_answers_the_guest: {error}");
            return;
        }
    };
    let guest = [2, 0, 0, 0, 0, 9];
    let mut frame = [[0xff; 6], guest].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(guest);
    frame.extend([198, 51, 100, 1, 0, 0, 0, 0, 0, 0, 198, 51, 100, 2]);
    let mut stream = stream;
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream
        .write_all(&[&(frame.len() as u32).to_be_bytes(), &frame[..]].concat())
        .unwrap();
    let mut answer = [0; 4 + 42];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!((answer[3], &answer[4..10]), (42, &guest[..]));
    assert_eq!(&answer[4 + 28..4 + 32], [198, 51, 100, 2]);
}
