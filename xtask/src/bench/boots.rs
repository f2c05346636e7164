// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots of Debian's kernel, with different files and command lines.

use std::path::Path;

use anyhow::{Result, bail};

use super::guest::Work;
use super::results::{OURS, Report};
use super::subject::{Files, Kind, Setup, Subject};
use super::timeline;
use crate::initramfs;
use crate::kernels::Kernel;
use crate::process::{copy, last_lines, write};

/// The first output of the guest's init.
pub const INIT: &str = "BENCH-INIT";

/// The kernel's command line, if all VMMs have the same.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1";

/// The guest's init before it powers off: it resets machines that an ACPI power-off doesn't end.
const JOB: &str = "echo BENCH-INIT >/dev/kmsg; echo BENCH-INIT
case \"$(cat /proc/cmdline)\" in *reboot=[kt]*) reboot -f;; esac
";

/// The same, with the kernel's messages, which take a while.
const TIMELINE_JOB: &str = "echo BENCH-INIT >/dev/kmsg; echo BENCH-INIT; dmesg\n";

/// A way to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// The ELF kernel, all with the same command line.
    Elf,
    /// The bzImage as Debian ships it, all with the same command line.
    BzImage,
    /// The ELF kernel with the VMM's default command line.
    OwnCmdline,
    /// Like the first, with the kernel's messages: of mini-vmm only.
    Timeline,
}

impl Boot {
    const ALL: [Boot; 4] = [Boot::Elf, Boot::BzImage, Boot::OwnCmdline, Boot::Timeline];

    /// The measure's id, and the files of the kernel and of the initial RAM disk.
    const fn names(self) -> [&'static str; 3] {
        match self {
            Boot::Elf => ["boot", "vmlinux", "initrd"],
            Boot::BzImage => ["boot-bzimage", "bzImage", "initrd"],
            Boot::OwnCmdline => ["boot-own", "vmlinux", "initrd"],
            Boot::Timeline => ["timeline", "vmlinux", "initrd-timeline"],
        }
    }

    fn can(self, subject: &Subject) -> bool {
        match subject.kind {
            Kind::Floor => false,
            // kvmtool doesn't boot ELF files.
            Kind::Kvmtool => self == Boot::BzImage,
            _ => self != Boot::Timeline || subject.name == OURS,
        }
    }

    /// The command line that boots a subject this way, with the files in `directory`.
    fn words(self, subject: &Subject, directory: &Path) -> Result<Vec<String>> {
        let [id, kernel, initrd] = self.names();
        let place = |name| directory.join(name).to_string_lossy().into_owned();
        let cmdline = cmdline(subject.kind);
        let files = Files {
            kernel: &place(kernel),
            initrd: Some(&place(initrd)),
            cmdline: (self != Boot::OwnCmdline).then_some(cmdline.as_str()),
            ..Files::default()
        };
        let config = directory.join(format!("{id}.json"));
        subject.boot(&files, &Setup::of(Work::Nothing), &config)
    }
}

/// One boot of each way per subject: the subject and the command line. Creates the files that they need in `directory`.
pub fn runs(subjects: &[Subject], directory: &Path) -> Result<Vec<(Boot, usize, Vec<String>)>> {
    let kernel = Kernel::fetch_any()?;
    for (from, name) in [(&kernel.vmlinux()?, "vmlinux"), (&kernel.image, "bzImage")] {
        copy(from, &directory.join(name))?;
    }
    let base = initramfs::guest(None)?;
    for (name, job) in [("initrd", JOB), ("initrd-timeline", TIMELINE_JOB)] {
        let initrd = [base.as_slice(), &initramfs::job(job)].concat();
        write(&directory.join(name), initrd)?;
    }
    let mut runs = Vec::new();
    for boot in Boot::ALL {
        for (place, subject) in subjects.iter().enumerate() {
            if boot.can(subject) {
                runs.push((boot, place, boot.words(subject, directory)?));
            }
        }
    }
    Ok(runs)
}

/// VMMs that an ACPI power-off doesn't end get a parameter for the way to reset.
pub fn cmdline(kind: Kind) -> String {
    match kind {
        Kind::Firecracker | Kind::Kvmtool => format!("{CMDLINE} reboot=k"),
        Kind::Qemu => format!("{CMDLINE} reboot=t"),
        _ => CMDLINE.to_owned(),
    }
}

/// Reports one boot of `subject` that took `wall` nanoseconds and printed `text`.
pub fn add(
    report: &mut Report,
    boot: Boot,
    subject: &Subject,
    wall: f64,
    text: &str,
) -> Result<()> {
    let name = &subject.name;
    if boot == Boot::Timeline {
        for (stage, time) in timeline::stages(text, wall) {
            report.push("timeline", None, &stage, time / 1e6);
        }
        return Ok(());
    }
    // With their own command lines, the other VMMs have no console that shows init's output.
    let is_seen = boot != Boot::OwnCmdline || subject.kind == Kind::MiniVmm;
    let init = timeline::stamp_of(text, INIT);
    if init.is_none() && is_seen {
        bail!("{name} booted to no init:\n{}", last_lines(text, 5));
    }
    if let (Boot::Elf, Some(time)) = (boot, init) {
        report.push("boot-init", None, name, time / 1e6);
    }
    report.push(boot.names()[0], None, name, wall / 1e6);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(kind: Kind) -> Subject {
        Subject::new("a", kind, Path::new("/a"))
    }

    #[test]
    fn an_init_that_nobody_saw_is_a_failed_boot_unless_there_is_no_console() {
        let (a, ours) = (subject(Kind::Firecracker), subject(Kind::MiniVmm));
        let mut report = Report::default();
        let mut add =
            |boot, subject, wall, text| super::add(&mut report, boot, subject, wall, text);
        let (init, panic) = ("400000000 BENCH-INIT\n", "Kernel panic\n");
        add(Boot::Elf, &a, 9e8, init).unwrap();
        add(Boot::BzImage, &a, 8e8, panic).unwrap_err();
        add(Boot::OwnCmdline, &a, 7e8, "").unwrap();
        add(Boot::OwnCmdline, &ours, 7e8, panic).unwrap_err();
        let found = |id: &str| {
            let point = report.find(id)?.point()?;
            point.samples("a").map(<[f64]>::to_vec)
        };
        assert_eq!(found("boot-init"), Some(vec![400.0]));
        assert_eq!(found("boot"), Some(vec![900.0]));
        assert_eq!(found("boot-bzimage"), None);
        assert_eq!(found("boot-own"), Some(vec![700.0]));
    }

    #[test]
    fn kvmtool_boots_what_debian_ships() {
        let ways = |kind| {
            let subject = subject(kind);
            Boot::ALL.map(|boot| boot.can(&subject))
        };
        assert_eq!(ways(Kind::Kvmtool), [false, true, false, false]);
        assert_eq!(ways(Kind::Floor), [false; 4]);
        assert_eq!(ways(Kind::Firecracker), [true, true, true, false]);
    }
}
