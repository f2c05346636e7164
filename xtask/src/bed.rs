// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the two test beds share: the description of the machine, the script that runs in it, the status.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::initramfs;
use crate::kernels::{Kernel, Series};
use crate::process::{Progress, last_lines, print, read, sh_words, write};
use crate::watch::{Hang, Patience};
use crate::workspace::{Scratch, nonce};
use crate::{bed_amd, bed_intel};

/// The vendor of a bed's virtualization extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// SVM, kvm-amd, under QEMU.
    Amd,
    /// VMX, kvm-intel, under Bochs.
    Intel,
}

/// A bed: an emulated machine with real KVM, in which a Debian kernel runs a script as root.
#[derive(Clone, Debug)]
pub struct Bed {
    /// The vendor of its virtualization extension.
    pub vendor: Vendor,
    /// Its CPUs.
    pub cpus: u32,
    /// Its memory, in MiB.
    pub memory: u32,
    /// The time limit after which it is killed.
    pub timeout: Option<Duration>,
    /// What counts as a hang; then it is killed.
    pub patience: Option<Patience>,
    /// Its kernel; by default the preferred one that Debian offers here.
    pub series: Option<Series>,
    /// Host files and their paths in the bed.
    pub files: Vec<(PathBuf, String)>,
    /// Its disks /dev/vda, /dev/vdb, ... (AMD only).
    pub disks: Vec<Disk>,
    /// Rows and columns of the script's terminal. Without one, the script has no input.
    pub terminal: Option<(u16, u16)>,
    /// Its clocks count executed instructions, one per nanosecond, so that times are the same in every run, however
    /// busy the host is (AMD only, one CPU).
    pub counted: bool,
}

/// A disk of a bed: a host file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The host file.
    pub image: PathBuf,
    /// What becomes of writes.
    pub writes: Writes,
}

/// What becomes of a bed's writes to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// They are refused.
    Refused,
    /// They end with the bed.
    Dropped,
    /// They reach the host file.
    Kept,
}

impl From<PathBuf> for Disk {
    fn from(image: PathBuf) -> Disk {
        Disk {
            image,
            writes: Writes::Refused,
        }
    }
}

/// An emulator's inputs, and where it writes the kernel's messages and the status.
pub struct Machine<'a> {
    /// The description it was made from.
    pub bed: &'a Bed,
    /// The L1 kernel.
    pub kernel: PathBuf,
    /// The L1 root file system.
    pub initrd: PathBuf,
    /// What the second serial port printed.
    pub log: PathBuf,
    /// For the emulator's own files.
    pub scratch: &'a Scratch,
}

/// Receives the script's output as it is printed.
pub type Sink<'a> = &'a mut (dyn FnMut(&[u8]) + Send);

impl Bed {
    /// A bed of the usual size.
    pub fn new(vendor: Vendor) -> Bed {
        Bed {
            vendor,
            // With two CPUs, an interrupt of the bed's kernel sometimes reaches a nested guest: bare guests triple
            // fault, and the bed itself may hang.
            cpus: 1,
            memory: match vendor {
                Vendor::Amd => 3072,
                Vendor::Intel => 1024,
            },
            timeout: Some(Duration::from_secs(300)),
            patience: None,
            series: None,
            files: Vec::new(),
            disks: Vec::new(),
            terminal: None,
            counted: false,
        }
    }

    /// Adds a host file.
    pub fn add(&mut self, host: &Path, guest: &str) {
        self.files.push((host.to_owned(), guest.to_owned()));
    }

    /// Adds a disk, unless it can't change and is there already. Returns its path in the bed.
    pub fn attach(&mut self, disk: Disk) -> String {
        let present = self.disks.iter().position(|present| *present == disk);
        let place = present
            .filter(|_| disk.writes == Writes::Refused)
            .unwrap_or_else(|| {
                self.disks.push(disk);
                self.disks.len() - 1
            });
        format!("/dev/vd{}", char::from(b'a' + place as u8))
    }

    /// Makes sure that the programs that it needs are installed, and that it supports this description.
    pub fn require(&self) -> Result<()> {
        match self.vendor {
            Vendor::Amd => bed_amd::require(),
            Vendor::Intel => bed_intel::require(self),
        }
    }

    /// Runs `script` (busybox sh) and returns its exit status. Its output goes to `sink`, or directly to the terminal
    /// if it has one.
    pub fn run(&self, script: &str, sink: Sink) -> Result<u8> {
        self.require()?;
        let kernel = match self.series {
            Some(series) => Kernel::fetch(series)?,
            None => Kernel::fetch_any()?,
        };
        let scratch = Scratch::new()?;
        let nonce = nonce();
        let mut modules = kernel.modules(match self.vendor {
            Vendor::Amd => &["kvm-amd", "tun", "loop", "virtio_pci", "virtio_blk"],
            Vendor::Intel => &["kvm-intel"],
        })?;
        if self.vendor == Vendor::Intel {
            bed_intel::strip_modules(&mut modules, &scratch)?;
        }
        // QEMU's timers have their own thread, unless they follow its count of instructions.
        let loses_interrupts = self.vendor == Vendor::Amd && !self.counted;
        let mut archive =
            initramfs::bed(&modules, script, &nonce, self.terminal, loses_interrupts)?;
        for (host, guest) in &self.files {
            initramfs::add_program(&mut archive, host, guest)?;
        }
        let machine = Machine {
            bed: self,
            kernel: kernel.image,
            initrd: scratch.path("initrd"),
            log: scratch.path("log"),
            scratch: &scratch,
        };
        write(&machine.initrd, archive.finish())?;
        write(&machine.log, "")?;
        let end = match self.vendor {
            Vendor::Amd => bed_amd::run(&machine, sink)?,
            Vendor::Intel => bed_intel::run(&machine, sink)?,
        };
        let log = String::from_utf8_lossy(&read(&machine.log)?).into_owned();
        match status(&log, &nonce) {
            Some(status) => Ok(status),
            None => Err(failure(&log, &end, self)),
        }
    }
}

/// How an emulator ended.
#[derive(Debug)]
pub enum End {
    /// By itself, with its stderr.
    Exited(String),
    /// Killed after the timeout.
    TimedOut,
    /// Killed because it hung.
    Hung(Hang),
}

/// The error for a bed that hung.
#[derive(Debug)]
pub struct Hung(String);

impl fmt::Display for Hung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Hung {}

/// The status that the bed's init reported on the second serial port.
fn status(log: &str, nonce: &str) -> Option<u8> {
    log.lines().find_map(|line| {
        let status = line.trim().strip_prefix(nonce)?.strip_prefix(" status ")?;
        status.parse().ok()
    })
}

fn failure(log: &str, end: &End, bed: &Bed) -> anyhow::Error {
    let mut text = match end {
        End::TimedOut => format!(
            "the {:?} bed was killed: it ran over its {} s (--timeout sets this limit)",
            bed.vendor,
            bed.timeout.unwrap_or_default().as_secs()
        ),
        End::Hung(hang) => format!("the {:?} bed was killed: it {hang}", bed.vendor),
        End::Exited(_) => format!("the {:?} bed ended before its job did", bed.vendor),
    };
    if let End::Exited(stderr) = end
        && !stderr.trim().is_empty()
    {
        text.push_str(&format!("\nthe emulator said:\n{}", last_lines(stderr, 20)));
    }
    // A line of one dot is a sign of life, see test/beds/job.sh.
    let said = log.lines().filter(|line| line.trim() != ".");
    let log = said.collect::<Vec<_>>().join("\n");
    if !log.trim().is_empty() {
        text.push_str(&format!(
            "\nits kernel's last lines:\n{}",
            last_lines(&log, 20)
        ));
    }
    match end {
        End::Hung(_) => anyhow::Error::new(Hung(text)),
        _ => anyhow::anyhow!(text),
    }
}

/// Rows and columns of the terminal, if stdin and stdout are one.
pub fn terminal() -> Option<(u16, u16)> {
    use std::io::IsTerminal;
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return None;
    }
    let output = std::process::Command::new("stty").arg("size").output().ok();
    let size = output.and_then(|output| {
        let text = String::from_utf8(output.stdout).ok()?;
        let (rows, columns) = text.trim().split_once(' ')?;
        Some((rows.parse().ok()?, columns.parse().ok()?))
    });
    Some(size.filter(|&size| size != (0, 0)).unwrap_or((24, 80)))
}

/// `cargo xtask bed`: parses its arguments, runs the command, returns its status.
pub fn command(parser: &mut lexopt::Parser) -> Result<u8> {
    use lexopt::prelude::*;
    let vendor = parser.value().context("which bed: amd or intel?")?;
    let mut bed = Bed::new(match vendor.to_str() {
        Some("amd") => Vendor::Amd,
        Some("intel") => Vendor::Intel,
        _ => bail!(
            "there is no {} bed: say amd or intel",
            vendor.to_string_lossy()
        ),
    });
    bed.timeout = None;
    let mut words: Vec<String> = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("cpus") => bed.cpus = parser.value()?.parse()?,
            Long("memory") => bed.memory = parser.value()?.parse()?,
            Long("timeout") => bed.timeout = Some(Duration::from_secs(parser.value()?.parse()?)),
            Long("kernel") => bed.series = Some(parse_series(&parser.value()?.string()?)?),
            Long("add") => bed.files.push(parse_added(&parser.value()?.string()?)?),
            Long("disk") => bed.disks.push(PathBuf::from(parser.value()?).into()),
            Long("counted") => bed.counted = true,
            Value(first) => {
                words.push(first.string()?);
                for word in parser.raw_args()? {
                    words.push(word.string()?);
                }
            }
            other => return Err(other.unexpected().into()),
        }
    }
    if bed.counted {
        if bed.vendor == Vendor::Intel {
            bail!("--counted: only the amd bed can count its time");
        }
        bed.cpus = 1;
    }
    bed.terminal = terminal().filter(|_| vendor != "intel");
    if words.is_empty() && bed.terminal.is_none() {
        bail!(
            "no terminal for a shell here: give a command, as in `cargo xtask bed amd -- uname -a`"
        );
    }
    // Checked before the long build.
    bed.require()?;
    let mini_vmm = crate::build::mini_vmm()?;
    bed.add(&mini_vmm, "/bin/mini-vmm");
    let script = match words.as_slice() {
        [] => "exec sh".to_owned(),
        words => sh_words(words),
    };
    let mut progress = bed
        .terminal
        .is_none()
        .then(|| Progress::start("starting the bed"));
    bed.run(&script, &mut |bytes| {
        progress = None;
        print(bytes);
    })
}

fn parse_series(text: &str) -> Result<Series> {
    Series::parse(text).with_context(|| format!("--kernel {text}: the beds have 6.1 and 6.12"))
}

/// `FILE[:PATH]`: without PATH the file goes to /bin.
fn parse_added(text: &str) -> Result<(PathBuf, String)> {
    if let Some((host, guest)) = text.rsplit_once(':')
        && guest.starts_with('/')
    {
        return Ok((host.into(), guest.to_owned()));
    }
    let host = PathBuf::from(text);
    let name = host.file_name().and_then(|name| name.to_str());
    let guest = format!(
        "/bin/{}",
        name.with_context(|| format!("--add {text}: no file name"))?
    );
    Ok((host, guest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read_from_the_marked_line_only() {
        let log = "[ 1.0] x status 9\r\n\r\n1a-2b status 3\r\n[ 2.0] reboot: Power down\r\n";
        assert_eq!(status(log, "1a-2b"), Some(3));
        assert_eq!(status(log, "x"), None);
        assert_eq!(status("1a-2b status \n", "1a-2b"), None);
    }

    #[test]
    fn a_bed_without_status_says_why() {
        let bed = Bed::new(Vendor::Amd);
        let text = failure("Kernel panic - not syncing", &End::TimedOut, &bed).to_string();
        assert!(
            text.contains("ran over its 300 s") && text.contains("not syncing"),
            "{text}"
        );
        let hung = End::Hung(Hang::Idle(Duration::from_secs(120)));
        let error = failure("last words\n.\r\n.\r\n", &hung, &bed);
        let text = error.to_string();
        assert!(
            error.is::<Hung>() && text.contains("idle for 120 s"),
            "{text}"
        );
        assert!(text.ends_with("last words"), "{text}");
        let text = failure("", &End::Exited("no such accelerator".into()), &bed).to_string();
        assert!(text.contains("no such accelerator"), "{text}");
    }

    #[test]
    fn only_disks_that_do_not_change_are_shared() {
        let mut bed = Bed::new(Vendor::Amd);
        let disk = |writes| Disk {
            image: "debian".into(),
            writes,
        };
        let order = [
            Writes::Refused,
            Writes::Dropped,
            Writes::Refused,
            Writes::Kept,
        ];
        let paths = order.map(|writes| bed.attach(disk(writes)));
        assert_eq!(paths, ["/dev/vda", "/dev/vdb", "/dev/vda", "/dev/vdc"]);
    }

    #[test]
    fn added_files_have_a_place() {
        let added = |text| parse_added(text).unwrap();
        assert_eq!(added("a/b:/x/y"), ("a/b".into(), "/x/y".to_owned()));
        assert_eq!(added("a/b"), ("a/b".into(), "/bin/b".to_owned()));
        assert_eq!(added("a:b"), ("a:b".into(), "/bin/a:b".to_owned()));
        assert!(parse_added("/").is_err());
    }
}
