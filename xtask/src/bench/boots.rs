// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots of Debian's kernel: from which file, and with whose command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::guest::Work;
use super::results::Measure;
use super::subject::{Kind, Linux, Setup, Subject, firecracker_config};
use super::timeline;
use crate::initramfs;
use crate::kernels::Kernel;
use crate::process::{last_lines, write};

/// What the guest's init prints first.
pub const INIT: &str = "BENCH-INIT";

/// The kernel's command line where all have the same.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1";

/// What the guest's init does before it powers off: machines that no ACPI power-off ends are ended by a reset.
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
    /// The ELF kernel with the command line that a VMM has when it is told none.
    OwnCmdline,
}

impl Boot {
    const ALL: [Boot; 3] = [Boot::Elf, Boot::BzImage, Boot::OwnCmdline];

    const fn id(self) -> &'static str {
        match self {
            Boot::Elf => "boot",
            Boot::BzImage => "boot-bzimage",
            Boot::OwnCmdline => "boot-own",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Boot::Elf => "Debian's vmlinux, the same command line",
            Boot::BzImage => "Debian's bzImage, the same command line",
            Boot::OwnCmdline => "Debian's vmlinux, each VMM's own command line",
        }
    }

    fn can(self, kind: Kind) -> bool {
        match kind {
            Kind::Floor => false,
            // It boots no ELF file.
            Kind::Kvmtool => self == Boot::BzImage,
            _ => true,
        }
    }
}

/// The words of one boot, for which subject and purpose; none: the timeline.
pub type Run = (Option<Boot>, usize, Vec<String>);

/// One boot of each way per subject, and the timeline of ours; the files that they need are made in `directory`.
pub fn runs(subjects: &[Subject], directory: &Path) -> Result<Vec<Run>> {
    let kernel = Kernel::fetch_any()?;
    let place = |name: &str| directory.join(name);
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let copy = |from: &Path, name: &str| {
        let copied = std::fs::copy(from, place(name));
        copied.with_context(|| format!("can't copy {}", from.display()))
    };
    copy(&kernel.vmlinux()?, "vmlinux")?;
    copy(&kernel.image, "bzImage")?;
    let base = initramfs::guest(None)?;
    for (name, job) in [("initrd", JOB), ("initrd-timeline", TIMELINE_JOB)] {
        let mut initrd = base.clone();
        initrd.extend(initramfs::job(job));
        write(&place(name), initrd)?;
    }
    let setup = Setup::of(Work::Nothing);
    let words = |subject: &Subject, boot: Boot, initrd: &str| -> Result<Vec<String>> {
        let kernel = text(place(match boot {
            Boot::BzImage => "bzImage",
            Boot::Elf | Boot::OwnCmdline => "vmlinux",
        }));
        let (initrd, cmdline) = (text(place(initrd)), cmdline(subject.kind));
        let linux = Linux {
            kernel: &kernel,
            initrd: &initrd,
            cmdline: (boot != Boot::OwnCmdline).then_some(cmdline.as_str()),
            firecracker: &text(place(&format!("{}.json", boot.id()))),
        };
        if subject.kind == Kind::Firecracker {
            let config = firecracker_config(&kernel, Some(&initrd), linux.cmdline, &setup);
            write(Path::new(linux.firecracker), config)?;
        }
        let program = subject.program.to_string_lossy();
        Ok(subject.linux_words(&program, &linux, &setup))
    };
    let mut runs = Vec::new();
    for boot in Boot::ALL {
        for (place, subject) in subjects.iter().enumerate() {
            if boot.can(subject.kind) {
                runs.push((Some(boot), place, words(subject, boot, "initrd")?));
            }
        }
    }
    if let Some(ours) = subjects.iter().position(|s| s.kind == Kind::MiniVmm) {
        let words = words(&subjects[ours], Boot::Elf, "initrd-timeline")?;
        runs.push((None, ours, words));
    }
    Ok(runs)
}

/// Those that no ACPI power-off ends are told how to reset.
fn cmdline(kind: Kind) -> String {
    match kind {
        Kind::Firecracker | Kind::Kvmtool => format!("{CMDLINE} reboot=k"),
        Kind::Qemu => format!("{CMDLINE} reboot=t"),
        _ => CMDLINE.to_owned(),
    }
}

/// What the boots came to.
#[derive(Debug)]
pub struct Boots {
    init: Measure,
    all: Vec<Measure>,
    stages: Measure,
}

impl Boots {
    /// Nothing yet, in this unit.
    pub fn new(unit: &str) -> Boots {
        let whole = |boot: Boot| {
            let title = format!("{}, exec to power-off", boot.title());
            Measure::new(boot.id(), &title, unit, None)
        };
        let init = format!("{}, exec to init", Boot::Elf.title());
        let stages = "mini-vmm and Debian's kernel, by stage";
        Boots {
            init: Measure::new("boot-init", &init, unit, None),
            all: Boot::ALL.map(whole).to_vec(),
            stages: Measure::new("timeline", stages, unit, None),
        }
    }

    /// One boot of `subject` that took `wall` nanoseconds and printed `text`.
    pub fn add(&mut self, boot: Boot, subject: &Subject, wall: f64, text: &str) -> Result<()> {
        let name = &subject.name;
        // Of the others, none has a console of its own accord, where init could be seen.
        let is_seen = boot != Boot::OwnCmdline || subject.kind == Kind::MiniVmm;
        let init = timeline::stamp_of(text, INIT);
        if init.is_none() && is_seen {
            bail!("{name} booted to no init:\n{}", last_lines(text, 5));
        }
        if let (Boot::Elf, Some(time)) = (boot, init) {
            self.init.push(None, name, time / 1e6);
        }
        let measure = self.all.iter_mut().find(|all| all.id == boot.id());
        if let Some(measure) = measure {
            measure.push(None, name, wall / 1e6);
        }
        Ok(())
    }

    /// The boot of the timeline.
    pub fn add_timeline(&mut self, wall: f64, text: &str) {
        for (stage, time) in timeline::stages(text, wall) {
            self.stages.push(None, &stage, time / 1e6);
        }
    }

    /// In the order of a report.
    pub fn into_measures(self) -> impl Iterator<Item = Measure> {
        [self.init].into_iter().chain(self.all).chain([self.stages])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_that_nobody_saw_is_a_failed_boot_unless_there_is_no_console() {
        let subject = |kind| Subject {
            name: "a".to_owned(),
            kind,
            program: "/a".into(),
        };
        let (a, ours) = (subject(Kind::Firecracker), subject(Kind::MiniVmm));
        let mut boots = Boots::new("ms");
        let (init, panic) = ("400000000 BENCH-INIT\n", "Kernel panic\n");
        boots.add(Boot::Elf, &a, 9e8, init).unwrap();
        boots.add(Boot::BzImage, &a, 8e8, panic).unwrap_err();
        boots.add(Boot::OwnCmdline, &a, 7e8, "").unwrap();
        boots.add(Boot::OwnCmdline, &ours, 7e8, panic).unwrap_err();
        let measures: Vec<Measure> = boots.into_measures().collect();
        let found = |id: &str| {
            let measure = measures.iter().find(|measure| measure.id == id).unwrap();
            measure
                .point()
                .and_then(|point| point.samples("a"))
                .map(<[f64]>::to_vec)
        };
        assert_eq!(found("boot-init"), Some(vec![400.0]));
        assert_eq!(found("boot"), Some(vec![900.0]));
        assert_eq!(found("boot-bzimage"), None);
        assert_eq!(found("boot-own"), Some(vec![700.0]));
    }

    #[test]
    fn kvmtool_boots_what_debian_ships() {
        let ways = |kind| Boot::ALL.map(|boot| boot.can(kind));
        assert_eq!(ways(Kind::Kvmtool), [false, true, false]);
        assert_eq!(ways(Kind::Floor), [false; 3]);
        assert_eq!(ways(Kind::Firecracker), [true; 3]);
    }
}
