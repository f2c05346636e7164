// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask boot`: a Debian kernel, or all of Debian, under mini-vmm, on this host or inside the AMD bed.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::bed::{Bed, Vendor, terminal};
use crate::debian::{self, Debian};
use crate::initramfs;
use crate::kernels::Kernel;
use crate::marked::Marked;
use crate::process::{Progress, last_lines, print, sh_words, tied, write};
use crate::workspace::{Scratch, nonce};
use crate::{build, host, packages, para, virtiofsd};

const CMDLINE: &str = "console=ttyS0 quiet panic=-1 cryptomgr.notests";

struct Boot {
    /// Whether Debian 12 is booted from a disk.
    debian: bool,
    kernel: Option<PathBuf>,
    cpus: u32,
    memory: String,
    /// Seconds until mini-vmm ends the guest.
    timeout: Option<u64>,
    /// Whether the driver in `guest/linux` is loaded.
    para: bool,
    /// mini-vmm's hypercall route, if it isn't the default.
    hypercall: Option<String>,
    /// The directory that the guest has at /mnt.
    share: Option<PathBuf>,
    words: Vec<String>,
}

/// How long a command in the guest may take by default, in seconds.
const COMMAND_LIMIT: u64 = 300;

/// The same for all of Debian, which takes minutes to start in a bed.
const DEBIAN_LIMIT: u64 = 1800;

/// The bed's own first disk.
const BED_DISK: &str = "/dev/vda";

/// Seconds for the bed's own start and end.
const BED_OVERHEAD: u64 = 60;

/// `cargo xtask boot`: parses its arguments, boots, returns the command's status, or mini-vmm's.
pub fn command(parser: &mut lexopt::Parser) -> Result<u8> {
    use lexopt::prelude::*;
    let mut boot = Boot {
        debian: false,
        kernel: None,
        cpus: 2,
        memory: "512M".to_owned(),
        timeout: None,
        para: false,
        hypercall: None,
        share: None,
        words: Vec::new(),
    };
    while let Some(argument) = parser.next()? {
        match argument {
            Long("debian") => boot.debian = true,
            Long("kernel") => boot.kernel = Some(parser.value()?.into()),
            Long("cpus") => boot.cpus = parser.value()?.parse()?,
            Long("memory") => boot.memory = parser.value()?.string()?,
            Long("timeout") => boot.timeout = Some(parser.value()?.parse()?),
            Long("para") => boot.para = true,
            Long("hypercall") => boot.hypercall = Some(parser.value()?.string()?),
            Long("share") => boot.share = Some(directory(&parser.value()?)?),
            Value(first) => {
                boot.words.push(first.string()?);
                for word in parser.raw_args()? {
                    boot.words.push(word.string()?);
                }
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if boot.share.is_some() && (boot.debian || boot.kernel.is_some()) {
        bail!("--share is for the Debian kernel with busybox: leave --debian and --kernel out");
    }
    if boot.debian && (boot.para || boot.kernel.is_some()) {
        bail!(
            "--debian boots Debian's own kernel without the driver: leave --kernel and --para out"
        );
    }
    if boot.para && boot.words.is_empty() {
        boot.words.push("para-show".to_owned());
    }
    if !boot.words.is_empty() {
        let limit = match boot.debian {
            true => DEBIAN_LIMIT,
            false => COMMAND_LIMIT,
        };
        boot.timeout.get_or_insert(limit);
    }
    boot.run()
}

/// The whole path of a directory.
fn directory(path: &OsStr) -> Result<PathBuf> {
    let whole = fs::canonicalize(path).ok().filter(|path| path.is_dir());
    whole.with_context(|| format!("--share {path:?}: name a directory"))
}

/// The inputs of mini-vmm.
struct Guest {
    mini_vmm: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    cmdline: String,
    disks: Vec<Disk>,
    /// The guest's memory, in MiB.
    memory: u32,
    /// The program that shares a directory, if one is shared.
    virtiofsd: Option<PathBuf>,
    /// The terminal's size, if the guest runs a shell on it.
    shell: Option<(u16, u16)>,
}

/// A disk of the guest.
struct Disk {
    /// The file on this host.
    host: PathBuf,
    /// The path in the bed.
    in_bed: &'static str,
    /// Further options of `--disk`.
    options: String,
}

impl Disk {
    /// The value of `--disk` for the file at `path`, in which a comma is written twice.
    fn word(&self, path: &str) -> String {
        format!("path={},{}", path.replace(',', ",,"), self.options)
    }
}

/// The console's output while a command runs.
struct Console {
    marked: Marked,
    /// Shown until the command prints something.
    progress: Option<Progress>,
}

impl Console {
    fn feed(&mut self, bytes: &[u8]) {
        let progress = &mut self.progress;
        self.marked.feed(bytes, |bytes| {
            *progress = None;
            print(bytes);
        });
    }
}

impl Boot {
    fn run(&self) -> Result<u8> {
        let shell = terminal().filter(|_| self.words.is_empty());
        if self.words.is_empty() && shell.is_none() {
            bail!(
                "no terminal for a shell here: give a command, as in `cargo xtask boot -- uname -r`"
            );
        }
        let on_host = host::hardware_kvm();
        // Checked before the long build.
        match &on_host {
            Err(_) => Bed::new(Vendor::Amd).require()?,
            Ok(()) if self.has_network() => packages::require(&[("passt", "passt")])?,
            Ok(()) if self.debian => {
                eprintln!("xtask: this host has no default route: Debian gets no network");
            }
            Ok(()) => {}
        }
        let (nonce, scratch) = (nonce(), Scratch::new()?);
        let guest = match self.debian {
            true => self.prepare_debian(shell, &nonce, &scratch)?,
            false => self.prepare(shell, &nonce, &scratch)?,
        };
        let mut console = Console {
            marked: Marked::new(&nonce),
            progress: None,
        };
        if let Err(reason) = &on_host {
            eprintln!("xtask: {reason}: booting inside the AMD bed, an emulated machine");
        }
        if shell.is_none() {
            console.progress = Some(Progress::start("booting"));
        }
        let status = match on_host {
            Ok(()) => self.on_host(&guest, &mut console)?,
            Err(_) => self.in_bed(&guest, &mut console)?,
        };
        console.progress = None;
        if shell.is_some() {
            return Ok(status);
        }
        match console.marked.status() {
            Some(of_command) if status == 0 => Ok(of_command),
            of_command => bail!(
                "mini-vmm ended with status {status} {} the command; the console's last lines:\n{}",
                if of_command.is_some() {
                    "after"
                } else {
                    "before"
                },
                last_lines(&console.marked.log(), 40)
            ),
        }
    }

    /// Builds, fetches and packages what the boot needs.
    fn prepare(&self, shell: Option<(u16, u16)>, nonce: &str, scratch: &Scratch) -> Result<Guest> {
        let debian = match self.kernel {
            Some(_) => None,
            None => Some(Kernel::fetch_any()?),
        };
        let kernel = match (&self.kernel, &debian) {
            (Some(path), _) => fs::canonicalize(path)
                .with_context(|| format!("can't open the kernel {}", path.display()))?,
            (None, Some(debian)) => debian.image.clone(),
            (None, None) => bail!("there is no kernel to boot"),
        };
        let mut job = match shell {
            Some(size) => initramfs::shell_job(size),
            None => Marked::script(nonce, &self.words),
        };
        let mut initrd = initramfs::guest(debian.as_ref())?;
        if let (Some(_), Some(debian)) = (&self.share, &debian) {
            initrd.extend(initramfs::virtio(debian)?);
            let mount = "mkdir -p /mnt; mount -t virtiofs share0 /mnt; cd /mnt\n";
            job.insert_str(0, &format!("{}{mount}", initramfs::LOAD_VIRTIO));
        }
        if self.para {
            let debian = debian.as_ref().context(
                "--para needs Debian's kernel, whose headers can be had: leave --kernel out",
            )?;
            initrd.extend(para::archive(debian)?);
            job.insert_str(0, "insmod /para/para.ko\n");
        }
        initrd.extend(initramfs::job(&job));
        write(&scratch.path("guest-initrd"), initrd)?;
        Ok(Guest {
            mini_vmm: build::mini_vmm()?,
            kernel,
            initrd: scratch.path("guest-initrd"),
            cmdline: CMDLINE.to_owned(),
            disks: Vec::new(),
            memory: self.mebibytes()?,
            virtiofsd: self.virtiofsd()?,
            shell,
        })
    }

    /// The program that shares the directory, if there is one.
    fn virtiofsd(&self) -> Result<Option<PathBuf>> {
        if self.share.is_none() {
            return Ok(None);
        }
        let program = virtiofsd::fetch()?;
        let program =
            program.context("Debian has no libraries for virtiofsd here: leave --share out")?;
        Ok(Some(program))
    }

    /// Makes Debian's disk and the disk with the command.
    fn prepare_debian(
        &self,
        shell: Option<(u16, u16)>,
        nonce: &str,
        scratch: &Scratch,
    ) -> Result<Guest> {
        let memory = self.mebibytes()?;
        let debian = Debian::fetch(&debian::PLAIN)?;
        let mut disks = vec![Disk {
            host: debian.disk,
            in_bed: BED_DISK,
            // What the guest writes is gone at its end.
            options: "overlay=tmp".to_owned(),
        }];
        if shell.is_none() {
            let job = scratch.path("job");
            write(&job, debian::job(&Marked::script(nonce, &self.words)))?;
            disks.push(Disk {
                host: job,
                in_bed: "/job-disk",
                options: format!("readonly,serial={}", debian::JOB),
            });
        }
        Ok(Guest {
            mini_vmm: build::mini_vmm()?,
            kernel: debian.kernel,
            initrd: debian.initrd,
            cmdline: format!("{CMDLINE} {}", debian::CMDLINE),
            disks,
            memory,
            virtiofsd: None,
            shell,
        })
    }

    /// Whether the guest on this host has a network. passt needs a default route of the host's.
    fn has_network(&self) -> bool {
        self.debian && host::has_default_route()
    }

    fn mebibytes(&self) -> Result<u32> {
        mebibytes(&self.memory)
            .with_context(|| format!("--memory {}: say for example 512M or 2G", self.memory))
    }

    /// mini-vmm's arguments for a kernel and an initrd at these paths, and these disks.
    fn arguments(
        &self,
        guest: &Guest,
        kernel: &str,
        initrd: &str,
        disks: &[String],
    ) -> Vec<String> {
        let (cpus, timeout) = (self.cpus.to_string(), self.timeout.map(|s| s.to_string()));
        let mut pairs = vec![
            ["--kernel", kernel],
            ["--initrd", initrd],
            ["--cmdline", &guest.cmdline],
            ["--cpus", &cpus],
            ["--memory", &self.memory],
            ["--serial", "stdio"],
        ];
        pairs.extend(disks.iter().map(|disk| ["--disk", disk]));
        pairs.extend(timeout.iter().map(|seconds| ["--timeout", seconds]));
        pairs.extend(self.hypercall.iter().map(|route| ["--hypercall", route]));
        pairs.concat().into_iter().map(str::to_owned).collect()
    }

    fn on_host(&self, guest: &Guest, console: &mut Console) -> Result<u8> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut command = Command::new(&guest.mini_vmm);
        let disks = guest.disks.iter().map(|disk| disk.word(&text(&disk.host)));
        let disks: Vec<String> = disks.collect();
        command.args(self.arguments(guest, &text(&guest.kernel), &text(&guest.initrd), &disks));
        if self.has_network() {
            command.args(["--net", "user"]);
        }
        if let (Some(share), Some(program)) = (&self.share, &guest.virtiofsd) {
            command.args(["--share", &share_word(&text(share))]);
            let first = program.parent().map(Path::to_owned);
            let path = std::env::var_os("PATH").unwrap_or_default();
            let places = first.into_iter().chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(places)?);
        }
        if guest.shell.is_none() {
            // If xtask is killed, nothing else ends the guest.
            command = tied(&command);
            command.stdin(Stdio::null()).stdout(Stdio::piped());
        }
        let mut child = command.spawn().context("can't start mini-vmm")?;
        if let Some(mut stdout) = child.stdout.take() {
            let mut buffer = [0; 8192];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                console.feed(&buffer[..count]);
            }
        }
        status_of(&mut child)
    }

    fn in_bed(&self, guest: &Guest, console: &mut Console) -> Result<u8> {
        let mut bed = Bed::new(Vendor::Amd);
        bed.timeout = self
            .timeout
            .map(|seconds| Duration::from_secs(seconds.saturating_add(BED_OVERHEAD)));
        bed.memory = bed.memory.max(guest.memory.saturating_add(1024));
        bed.terminal = guest.shell;
        bed.add(&guest.mini_vmm, "/bin/mini-vmm");
        bed.add(&guest.kernel, "/kernel");
        bed.add(&guest.initrd, "/initrd");
        for disk in &guest.disks {
            match disk.in_bed {
                BED_DISK => bed.disks.push(disk.host.clone().into()),
                path => bed.add(&disk.host, path),
            }
        }
        let disks = guest.disks.iter().map(|disk| disk.word(disk.in_bed));
        let disks: Vec<String> = disks.collect();
        let mut words = vec!["mini-vmm".to_owned()];
        words.extend(self.arguments(guest, "/kernel", "/initrd", &disks));
        if let (Some(share), Some(program)) = (&self.share, &guest.virtiofsd) {
            bed.add(program, "/bin/virtiofsd");
            add_copy(&mut bed, share)?;
            // The bed's root file system can't be left for another one.
            words.extend([
                "--share".to_owned(),
                format!("{},sandbox=chroot", share_word(IN_BED)),
            ]);
        }
        let line = sh_words(&words);
        if guest.shell.is_some() {
            return bed.run(&line, &mut |_| ());
        }
        // mini-vmm's own messages come last, so that they don't interrupt the command's output.
        let script = format!("{line} </dev/null 2>/tmp/stderr; s=$?; cat /tmp/stderr; exit $s");
        bed.run(&script, &mut |bytes| console.feed(bytes))
    }
}

/// The value of `--share` for the directory at `path`, in which a comma is written twice.
fn share_word(path: &str) -> String {
    format!("path={}", path.replace(',', ",,"))
}

/// Where the bed has a copy of the shared directory.
const IN_BED: &str = "/share";
/// The most bytes of it: the bed has it in memory.
const MAX_COPY: u64 = 64 << 20;
/// Directories that are no part of it.
const LEFT_OUT: [&str; 2] = [".git", "target"];

/// Copies the files of the directory `from` to the bed, without those that builds make.
fn add_copy(bed: &mut Bed, from: &Path) -> Result<()> {
    eprintln!(
        "xtask: the bed has a copy of the directory: what the guest writes is gone at its end"
    );
    let (mut left, mut bytes) = (vec![from.to_owned()], 0);
    while let Some(directory) = left.pop() {
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("can't list {}", directory.display()))?;
        for entry in entries.flatten() {
            let (path, kind) = (entry.path(), entry.file_type()?);
            let name = entry.file_name();
            if kind.is_dir() && !LEFT_OUT.iter().any(|left_out| name == *left_out) {
                left.push(path);
            } else if kind.is_file() {
                bytes += entry.metadata()?.len();
                let inside = path.strip_prefix(from)?;
                bed.add(&path, &format!("{IN_BED}/{}", inside.display()));
            }
        }
        if bytes > MAX_COPY {
            bail!(
                "--share {}: the bed has room for 64 MiB; name a smaller directory",
                from.display()
            );
        }
    }
    Ok(())
}

fn status_of(child: &mut std::process::Child) -> Result<u8> {
    use std::os::unix::process::ExitStatusExt;
    let status = child.wait()?;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Parses a memory size in bytes, or with the unit M or G, as MiB. mini-vmm also takes others, such as `1T` and
/// `512MiB`, which the beds don't need.
fn mebibytes(text: &str) -> Option<u32> {
    let (digits, scale) = match text.strip_suffix(['M', 'm']) {
        Some(digits) => (digits, 1),
        None => match text.strip_suffix(['G', 'g']) {
            Some(digits) => (digits, 1024),
            None => {
                return text
                    .parse::<u64>()
                    .ok()
                    .and_then(|n| u32::try_from(n >> 20).ok());
            }
        },
    };
    digits.parse::<u32>().ok()?.checked_mul(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_sizes() {
        assert_eq!(mebibytes("512M"), Some(512));
        assert_eq!(mebibytes("2G"), Some(2048));
        assert_eq!(mebibytes("536870912"), Some(512));
        assert_eq!(mebibytes("9999999G"), None);
        assert_eq!(mebibytes("much"), None);
    }
}
