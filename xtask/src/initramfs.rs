// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The initial RAM file systems of the beds (L1) and of the kernels that mini-vmm boots (L2).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::Tree;
use crate::cpio::Archive;
use crate::kernels::Kernel;
use crate::process::read;

/// Loads the modules listed in /lib/m/order.
const LOAD_MODULES: &str = "for m in $(cat /lib/m/order); do insmod /lib/m/$m.ko; done\n";

/// The start of both kinds of /init. As far as the log level can, it keeps the kernel's own messages off the serial
/// port that carries the command's output.
const PROLOGUE: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=linux
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/net; mount -t devpts pts /dev/pts
dmesg -n 1
";

/// The static busybox: the installed one, otherwise Debian's, unpacked in the cache.
pub fn busybox() -> Result<PathBuf> {
    for installed in ["/usr/bin/busybox", "/bin/busybox"].map(PathBuf::from) {
        if installed.is_file() && is_static(&read(&installed)?) {
            return Ok(installed);
        }
    }
    let tree = Tree {
        name: "busybox",
        pattern: "^busybox-static$",
        choose: &|offered| {
            let found = offered.iter().find(|name| *name == "busybox-static");
            Some(vec![found?.clone()])
        },
    };
    let found = tree.cached(&|place| {
        ["bin/busybox", "usr/bin/busybox"]
            .map(|path| place.join(path))
            .into_iter()
            .find(|path| path.is_file())
            .with_context(|| format!("{} holds no busybox", place.display()))
    })?;
    found.context("Debian offers no busybox-static for this machine; install a static busybox")
}

/// Whether an ELF file names no dynamic loader.
pub fn is_static(elf: &[u8]) -> bool {
    let loader = b"/ld-linux";
    let head = &elf[..elf.len().min(4096)];
    !head.windows(loader.len()).any(|window| window == loader)
}

/// Gives a bed a second source of interrupts, in addition to the local APIC's timer. At each exit of a nested guest,
/// QEMU clears a bit in the CPU's word of requests without a lock (`do_vmexit` in its svm_helper.c). This can lose a
/// request that another thread makes at that moment. The local APIC keeps the interrupt, but the CPU takes it only
/// after the next request. Linux sets its timer for one interrupt at a time: if that one is lost, there is no next one,
/// and the bed stops. While an alarm of the real-time clock is set, the HPET interrupts Linux 64 times a second to
/// check the time. The alarm itself is nearly a day ahead, which is the maximum.
const SECOND_CLOCK: &str = "echo +80000 >/sys/class/rtc/rtc0/wakealarm\n";

/// Busybox, the modules and the directories that every root file system here has.
fn base(modules: &[(String, Vec<u8>)]) -> Result<Archive> {
    let mut archive = Archive::default();
    for directory in ["/dev", "/proc", "/sys", "/tmp", "/run", "/root"] {
        archive.directory(directory);
    }
    archive.file("/bin/busybox", &read(&busybox()?)?);
    let mut order = String::new();
    for (name, data) in modules {
        order.push_str(&format!("{name}\n"));
        archive.file(&format!("/lib/m/{name}.ko"), data);
    }
    archive.file("/lib/m/order", order.as_bytes());
    Ok(archive)
}

/// The root file system of a bed: runs `/job` on the first serial port and reports its status,
/// marked with `nonce`, on the second, where the kernel's messages also go.
/// With `loses_interrupts`, its emulator loses interrupts, and the bed gets a second source of them.
pub fn bed(
    modules: &[(String, Vec<u8>)],
    script: &str,
    nonce: &str,
    terminal: Option<(u16, u16)>,
    loses_interrupts: bool,
) -> Result<Archive> {
    let clock = if loses_interrupts { SECOND_CLOCK } else { "" };
    let run = match terminal {
        Some(size) => on_terminal(size, "sh /job"),
        None => "stty -F /dev/ttyS0 raw -echo\nsh /job </dev/null >/dev/ttyS0 2>&1\n".to_owned(),
    };
    let mut archive = base(modules)?;
    archive.file("/job", script.as_bytes());
    archive.file(
        "/init",
        format!(
            "{PROLOGUE}{LOAD_MODULES}{clock}{run}status=$?\n\
             echo >/dev/ttyS1; echo \"{nonce} status $status\" >/dev/ttyS1\npoweroff -f\n"
        )
        .as_bytes(),
    );
    Ok(archive)
}

/// Modules for mini-vmm's devices; those that a kernel lacks are omitted.
const GUEST_MODULES: &[&str] = &["pvpanic", "pvpanic-mmio", "button", "evdev"];

/// The drivers of mini-vmm's virtio devices; some kernels have a part of them built in.
const VIRTIO_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_mmio",
    "virtio_rng",
    "virtio_blk",
    "isofs",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "virtio_console",
    "virtiofs",
    "virtio_balloon",
];

/// An archive to append to [`guest`]'s: the modules that [`LOAD_VIRTIO`] loads.
pub fn virtio(kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    let mut order = String::new();
    for (name, data) in kernel.modules(VIRTIO_MODULES)? {
        order.push_str(&format!("{name}\n"));
        archive.file(&format!("/virtio/{name}.ko"), &data);
    }
    archive.file("/virtio/order", order.as_bytes());
    Ok(archive.finish())
}

/// Loads the modules of [`virtio`].
pub const LOAD_VIRTIO: &str = "for m in $(cat /virtio/order); do insmod /virtio/$m.ko; done\n";

/// The root file system of a guest of mini-vmm: runs `/job`, which [`job`] adds, then powers off.
pub fn guest(kernel: Option<&Kernel>) -> Result<Vec<u8>> {
    let modules = match kernel {
        Some(kernel) => kernel.modules(GUEST_MODULES)?,
        None => Vec::new(),
    };
    let mut archive = base(&modules)?;
    archive.file(
        "/init",
        format!("{PROLOGUE}{LOAD_MODULES}. /job\npoweroff -f\n").as_bytes(),
    );
    Ok(archive.finish())
}

/// An archive to append to [`guest`]'s: the shell commands that its /init runs.
pub fn job(script: &str) -> Vec<u8> {
    program("/job", script.as_bytes())
}

/// An archive to append to [`guest`]'s: one more program.
pub fn program(path: &str, data: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.file(path, data);
    archive.finish()
}

/// A guest job that is an interactive shell on the console.
pub fn shell_job(size: (u16, u16)) -> String {
    on_terminal(size, "sh")
}

/// Shell lines that run a command with the first serial port as its terminal, with this many rows and columns.
fn on_terminal((rows, columns): (u16, u16), command: &str) -> String {
    format!(
        "stty -F /dev/ttyS0 rows {rows} columns {columns}\n\
         setsid -c {command} </dev/ttyS0 >/dev/ttyS0 2>&1\n"
    )
}

/// Whether a file needs libraries: a program that names its loader, or a library itself, which names none.
fn needs_libraries(path: &Path, data: &[u8]) -> bool {
    let is_library = path.extension().is_some_and(|ending| ending == "so");
    data.starts_with(b"\x7fELF") && (is_library || !is_static(data))
}

/// Adds a host file at `guest_path`, and the libraries that it needs.
pub fn add_program(archive: &mut Archive, host: &Path, guest_path: &str) -> Result<()> {
    let data = read(host)?;
    archive.file(guest_path, &data);
    if needs_libraries(host, &data) {
        for library in libraries(host)? {
            if !archive.has(&library) {
                archive.file(&library, &read(Path::new(&library))?);
            }
        }
    }
    Ok(())
}

fn libraries(program: &Path) -> Result<Vec<String>> {
    let text = crate::process::capture_text(std::process::Command::new("ldd").arg(program))?;
    let words = text.split_whitespace();
    Ok(words
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_programs_are_told_by_their_loader() {
        assert!(!is_static(b"\x7fELF....\0/lib64/ld-linux-x86-64.so.2\0"));
        assert!(is_static(b"\x7fELF"));
        // This test may be linked dynamically or statically; both answers must be consistent.
        let own = std::env::current_exe().unwrap();
        let is_dynamic = !is_static(&read(&own).unwrap());
        if is_dynamic {
            assert!(
                libraries(&own)
                    .unwrap()
                    .iter()
                    .any(|path| path.contains("libc.so"))
            );
        }
    }

    #[test]
    fn programs_with_a_loader_and_libraries_need_libraries() {
        let needs = |path: &str, data: &[u8]| needs_libraries(Path::new(path), data);
        assert!(needs(
            "program",
            b"\x7fELF....\0/lib64/ld-linux-x86-64.so.2\0"
        ));
        assert!(needs("module.so", b"\x7fELF"));
        assert!(!needs("program", b"\x7fELF"));
        assert!(!needs("linker-script.so", b"GROUP ( libc.so.6 )"));
    }

    #[test]
    fn an_added_program_is_a_file_of_the_archive() {
        let mut archive = Archive::default();
        let own = std::env::current_exe().unwrap();
        add_program(&mut archive, &own, "/bin/own").unwrap();
        let once = archive.clone().finish().len();
        let size = read(&own).unwrap().len();
        assert!(once > size);
        // Its libraries are there already.
        add_program(&mut archive, &own, "/bin/two").unwrap();
        assert!(archive.finish().len() < once + size + 1024);
    }
}
