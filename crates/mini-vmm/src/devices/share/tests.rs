// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;
use virtio_models::vhost_user::VhostUser;
use virtio_transport::testing::{Driver, MEMORY, Machine, PciPort, Request, memory};

use super::*;

/// Goes on in bash, where there is one: dash has no redirections of numbers with two digits.
const BASH: &str = "[ -z \"$BASH_VERSION\" ] && [ -x /bin/bash ] && exec /bin/bash \"$0\" \"$@\"";

/// A directory with a program in place of virtiofsd: a shell script.
fn program(script: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(PROGRAM);
    fs::write(&path, format!("#!/bin/sh\n{BASH}\n{script}\n")).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    (dir, path)
}

fn refused(script: &str, sandbox: Sandbox) -> String {
    let (dir, program) = program(script);
    let share = ShareSpec {
        sandbox,
        ..ShareSpec::new(dir.path())
    };
    let started = start(&program, &share, "work".to_owned());
    started.unwrap_err().to_string()
}

#[test]
fn its_last_words_are_the_reason() {
    let error = refused(
        "echo first >&2; echo 'Error entering sandbox: PivotRoot' >&2; exit 1",
        Sandbox::Namespace,
    );
    assert!(error.starts_with("virtiofsd can't share \""), "{error}");
    assert!(
        error.contains(": first, Error entering sandbox: PivotRoot; ")
            && error.ends_with("add `,sandbox=none`"),
        "{error}"
    );
    let error = refused("exit 3", Sandbox::None);
    assert!(
        error.contains(": it has closed the connection; ")
            && error.ends_with("`virtiofsd --help` explains its options"),
        "{error}"
    );
}

#[test]
fn a_program_that_speaks_no_vhost_user_is_ended() {
    let (dir, program) = program("echo $$ >$0.pid; exec sleep 1000");
    let share = ShareSpec::new(dir.path());
    let kind = Kind::Fs {
        tag: "work".to_owned(),
    };
    let (listener, connection) = pair().unwrap();
    let mut command = Command::new(&program);
    command.args(arguments(listener.as_raw_fd(), &share, Sandbox::None));
    child::pass(&mut command, listener);
    let process = Process {
        child: command.spawn().unwrap(),
        said: Said::default(),
    };
    drop(command);
    let file = dir.path().join("virtiofsd.pid");
    while !fs::read_to_string(&file).is_ok_and(|pid| pid.ends_with('\n')) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut connection = Some(connection);
    let connect = move || Ok(connection.take().unwrap());
    let short = Duration::from_millis(50);
    let fault = Backend::open_with(Shape::new(kind), Box::new(connect), short, short);
    let fault = fault.unwrap_err().to_string();
    assert!(fault.starts_with("does not answer GetFeatures"), "{fault}");
    let pid = process.child.id();
    drop(process);
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
}

#[test]
fn nobody_else_is_served() {
    let (listener, _connection) = pair().unwrap();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stranger = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    let refused = connect(&stranger, &getsockname(&listener).unwrap());
    assert_eq!(refused, Err(rustix::io::Errno::AGAIN));
}

#[test]
fn a_share_is_a_directory_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file, dir.path().join("missing")] {
        let share = ShareSpec::new(&path);
        let started = start(Path::new("/nonexistent"), &share, "work".to_owned());
        let error = started.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("can't share {path:?}: ")),
            "{error}"
        );
        assert!(error.ends_with("name a directory that this user can read"));
    }
    let share = ShareSpec::new(dir.path());
    let started = start(Path::new("/nonexistent"), &share, "work".to_owned());
    let error = started.unwrap_err().to_string();
    assert!(error.contains("`cargo install virtiofsd`"), "{error}");
}

#[test]
fn it_is_found_in_path_first() {
    let (dir, program) = program("exit 0");
    let other = dir.path().join("other");
    fs::write(&other, "").unwrap();
    let found = |path: &Path| find_in(path.as_os_str(), [other.clone()].into_iter());
    assert_eq!(found(dir.path()), Some(program));
    assert_eq!(found(Path::new("/nonexistent")), Some(other.clone()));
    assert_eq!(find_in(OsStr::new("/nonexistent"), [].into_iter()), None);
}

#[test]
fn words_are_arguments() {
    let share = ShareSpec {
        readonly: true,
        ..ShareSpec::new("/a b")
    };
    let said = |sandbox| {
        let arguments = arguments(7, &share, sandbox);
        arguments.join(OsStr::new(" ")).into_string().unwrap()
    };
    let start = "--fd 7 --shared-dir /a b --sandbox";
    for (sandbox, word) in [
        (Sandbox::Auto, "namespace"),
        (Sandbox::Namespace, "namespace"),
        (Sandbox::Chroot, "chroot"),
        (Sandbox::None, "none"),
    ] {
        let said = said(sandbox);
        assert!(
            said.starts_with(&format!("{start} {word} --readonly")),
            "{said}"
        );
        assert!(said.contains(" --rlimit-nofile "), "{said}");
        let maps = said.contains("--translate-uid squash-guest:0:");
        assert_eq!(maps, !geteuid().is_root(), "{said}");
    }
}

/// A request of FUSE for a node, and its answer: the error, and the bytes behind the header.
fn ask(
    machine: &mut Machine<PciPort>,
    driver: &mut Driver,
    (opcode, node): (u32, u64),
    body: &[u8],
) -> (i32, Vec<u8>) {
    let len = 40 + body.len() as u32;
    let mut readable = [len, opcode].map(u32::to_le_bytes).concat();
    readable.extend([7, node].map(u64::to_le_bytes).concat());
    readable.extend([0; 16]);
    readable.extend(body);
    let request = Request {
        queue: 1,
        readable,
        writable: 256,
    };
    driver.send(machine, &request);
    machine.kick(1);
    let mut answer = None;
    machine.pump_until(|machine| {
        answer = driver.receive(machine, 1);
        answer.is_some()
    });
    let (_, reply) = answer.unwrap();
    let bytes = &reply.bytes[..reply.len as usize];
    let error = i32::from_le_bytes(bytes[4..8].try_into().unwrap());
    (error, bytes[16..].to_vec())
}

/// With the real program, where there is one: a driver finds a file of the directory, and one makes another.
#[test]
fn virtiofsd_shares_a_directory_until_it_is_dropped() {
    if find().is_err() {
        eprintln!("skipped: there is no virtiofsd");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "contents").unwrap();
    let spec = ShareSpec {
        sandbox: Sandbox::None,
        ..ShareSpec::new(dir.path())
    };
    let shares = open(&[spec.clone(), spec]).unwrap();
    let device = VhostUser::new(Arc::clone(shares[0].backend()));
    let mut machine = Machine::<PciPort>::new(Box::new(device), &memory(MEMORY));
    for _ in 0..2 {
        let mut driver = Driver::start(&mut machine, u64::MAX);
        machine.pump();
        // FUSE_INIT of version 7.31.
        let init = [7, 31, 4096, 0].map(u32::to_le_bytes).concat();
        let (error, version) = ask(&mut machine, &mut driver, (26, 0), &init);
        assert_eq!((error, &version[..4]), (0, &[7, 0, 0, 0][..]));
        // FUSE_LOOKUP in the root. An entry has the node's attributes from byte 40 on, of which the second is the size.
        let (error, entry) = ask(&mut machine, &mut driver, (1, 1), b"file\0");
        assert_eq!((error, entry[48]), (0, 8));
        let (error, _) = ask(&mut machine, &mut driver, (1, 1), b"missing\0");
        assert_eq!(error, -libc::ENOENT);
        assert!(machine.failures.is_empty(), "{:?}", machine.failures);
        // The next driver begins anew.
        machine.pause().unwrap();
        machine.resume();
        let (error, _) = ask(&mut machine, &mut driver, (1, 1), b"file\0");
        assert_eq!(error, 0);
    }
    let pids: Vec<u32> = shares
        .iter()
        .map(|share| share._process.child.id())
        .collect();
    let is_there = |pid: &u32| PathBuf::from(format!("/proc/{pid}")).exists();
    assert!(pids.iter().all(is_there));
    drop((machine, shares));
    assert!(!pids.iter().any(is_there));
}
