// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tests of all clients need: the program under Firecracker's name, a guest, and a way to wait.
//!
//! `tests/` has one file for each client. The environment variable `MINI_VMM_BIN` names the program.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// A directory with the program as `firecracker`, a guest as `kernel`, and a `disk`.
#[derive(Debug)]
pub struct Place(TempDir);

impl Place {
    /// `None`, with a note, if no guest can run here.
    pub fn new(test: &str) -> Option<Place> {
        if fs::File::open("/dev/kvm").is_err() {
            eprintln!("SKIP: {test}: /dev/kvm can't be opened");
            return None;
        }
        let program = std::env::var_os("MINI_VMM_BIN");
        let program = program.expect("MINI_VMM_BIN names no program");
        let place = Place(tempfile::tempdir().expect("no directory"));
        symlink(
            fs::canonicalize(program).expect("no program"),
            place.path("firecracker"),
        )
        .expect("no link");
        fs::write(place.path("kernel"), kernel()).expect("no kernel");
        fs::write(place.path("disk"), [0; 4096]).expect("no disk");
        Some(place)
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Waits until the guest that prints to `console` has said [`UP`].
    pub fn wait_for_up(console: &Path) {
        while !fs::read(console).is_ok_and(|text| text.ends_with(UP.as_bytes())) {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the process that serves at `socket` has ended by itself: it then removes the socket.
    pub fn wait_for_the_end(socket: &Path) {
        while socket.exists() {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// What the guest prints when it starts.
pub const UP: &str = "Up\n";

/// What it prints before it powers off. It has written these letters to its memory before it said [`UP`].
pub const DOWN: &str = "Down\n";

/// An ELF file with a guest that says `Up`. When its power button is pressed, it says `Down` and powers off.
fn kernel() -> Vec<u8> {
    const AT: u64 = 16 << 20;
    let code = [
        0xc7, 0x04, 0x25, 0x00, 0x00, 0x10, 0x01, // mov dword [17 MiB], 'Down'
        b'D', b'o', b'w', b'n', //
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8: COM1
        0xb0, b'U', 0xee, // mov al, 'U'; out dx, al
        0xb0, b'p', 0xee, //
        0xb0, b'\n', 0xee, //
        0x66, 0xba, 0x03, 0x06, // mov dx, 0x603: events
        0xec, // in al, dx
        0xa8, 0x01, // test al, 1: the power button; a restore is another event
        0x74, 0xf7, // jz: to the mov before the in
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xbe, 0x00, 0x00, 0x10, 0x01, // mov esi, 17 MiB
        0xb9, 0x04, 0x00, 0x00, 0x00, // mov ecx, 4
        0xac, 0xee, 0xe2, 0xfc, // lodsb; out dx, al; loop: to the lodsb
        0xb0, b'\n', 0xee, // mov al, '\n'; out dx, al
        0x66, 0xba, 0x00, 0x06, // mov dx, 0x600: sleep control
        0xb0, 0x34, // mov al, S5 and SLP_EN
        0xee, // out dx, al
        0xf4, // hlt
        0xeb, 0xfd, // jmp: to the hlt
    ];
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    out.extend([2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64, version 1
    for word in [AT, 64, 0] {
        out.extend(u64::to_le_bytes(word)); // entry, program headers, section headers
    }
    out.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    out.extend([1, 0, 0, 0, 7, 0, 0, 0]); // PT_LOAD, all rights
    for word in [120, AT, AT, code.len() as u64, code.len() as u64, 0x1000] {
        out.extend(u64::to_le_bytes(word));
    }
    out.extend(code);
    out
}

/// A machine with Linux, from the arguments of a program in `examples/`.
#[derive(Debug)]
pub struct Linux {
    /// The program under Firecracker's name.
    pub firecracker: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initrd.
    pub initrd: PathBuf,
    /// Its command line.
    pub line: String,
    /// vCPUs.
    pub cpus: u8,
    /// A disk with Debian, whose console logs root in. Without one, the initrd is all, and it runs by itself.
    pub disk: Option<PathBuf>,
}

impl Linux {
    /// What Debian prints when a command can be typed.
    const PROMPT: &str = "root@debian:~#";

    /// What to type then: a command that waits for the end of the boot, and says what is mounted.
    pub const COMMAND: &str =
        "systemctl is-system-running --wait; echo $(findmnt -no SOURCE,FSTYPE /) READY\n";

    /// Reads the arguments.
    pub fn from_arguments() -> Linux {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let (firecracker, kernel, initrd, line, cpus, disk) = match &words[..] {
            [firecracker, kernel, initrd, line, cpus] => {
                (firecracker, kernel, initrd, line, cpus, None)
            }
            [firecracker, kernel, initrd, line, cpus, disk] => {
                (firecracker, kernel, initrd, line, cpus, Some(disk))
            }
            _ => panic!(
                "give the program, the kernel, its initrd, its command line, the number of vCPUs and, if any, a disk"
            ),
        };
        Linux {
            firecracker: firecracker.into(),
            kernel: kernel.into(),
            initrd: initrd.into(),
            line: line.clone(),
            cpus: cpus.parse().expect("no number"),
            disk: disk.map(PathBuf::from),
        }
    }

    /// Whether the guest that printed this waits for [`Linux::COMMAND`].
    pub fn wants_a_command(&self, console: &[u8]) -> bool {
        self.disk.is_some() && String::from_utf8_lossy(console).contains(Self::PROMPT)
    }

    /// Whether the guest that printed this waits for its power button. The initrd says `READY` when it runs, and again
    /// when the button works.
    pub fn is_ready(&self, console: &[u8]) -> bool {
        let console = String::from_utf8_lossy(console);
        match self.disk {
            Some(_) => console.contains("ext4 READY"),
            None => console.matches("READY").count() > 1,
        }
    }
}
