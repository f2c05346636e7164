// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs the Linux boots of the test beds, and checks their results.
//!
//! The guest's job prints its release and CPUs, then READY, then runs the case's own lines. The bed's script starts
//! mini-vmm as `run`, does the case's commands, and ends with mini-vmm's exit code.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use crate::bed::{Bed, Disk, Writes};
use crate::build;
use crate::debian::{self, Debian};
use crate::elf;
use crate::initramfs;
use crate::kernels::Kernel;
use crate::para as driver;
use crate::process::{read, sh_quote, write};
use crate::small_kernel::SmallKernel;
use crate::virtiofsd;
use crate::workspace::Scratch;

use super::Run;
use super::cases::{self, Case, Image, TIMEOUT};
use super::clients::{Client, FIRECRACKER};
use super::networks;
use super::summary::Tally;

/// The debug-exit port's value in the guest's `/bin/debug-exit`.
const DEBUG_EXIT: (u16, u8) = (0xf4, 3);

/// The start of every case's script in the bed.
const BED_LIBRARY: &str = r#"
ready() {
    until [ "$(grep -c '^READY' /tmp/out)" -ge "$1" ]; do
        kill -0 $vmm || return
        usleep 100000
    done
}
say() { echo "$1" >&3; }
# Interrupts of the bed's second clock.
beats() { awk '/rtc0/ { print $2 }' /proc/interrupts; }
rm -f /tmp/in; mkfifo /tmp/in; exec 3<>/tmp/in
"#;

/// Checks that the bed's second clock ran while mini-vmm did.
const BEATS: &str = "[ \"$(beats)\" -gt \"$before\" ] && echo 'THE SECOND CLOCK RUNS'\n";

/// A program's name, and how it is built.
type Program = (&'static str, fn() -> Result<PathBuf>);

/// The programs that guests have if their commands name them.
const PROGRAMS: [Program; 2] = [
    ("bench-probe", build::bench_probe),
    ("mini-vmm", build::mini_vmm),
];

/// A case, ready to run in a bed.
#[derive(Debug)]
pub struct Boot {
    case: &'static Case,
    /// The release that the guest must print, if a kernel boots.
    release: Option<String>,
    image: String,
    /// The archives of its root file system; the job is the last of them, if it is not on a disk.
    initrd: Vec<String>,
    /// The bed's disk with Debian.
    root_disk: Option<String>,
    /// The disk with the job.
    job_disk: Option<String>,
}

/// The `cases` that `run` asks for; those that it leaves to `--long` are counted.
fn wanted<'a>(run: &Run, cases: &[&'a Case], tally: &mut Tally) -> Vec<&'a Case> {
    let named = cases.iter().filter(|case| name(case).contains(&run.only));
    let (wanted, left): (Vec<&Case>, Vec<&Case>) = named.partition(|case| run.long || !case.long);
    tally.left += left.len();
    wanted
}

/// The cases of `bed` that `run` asks for; adds the files that they need. If Debian does not have a case's kernel, the
/// case is skipped.
pub fn prepare(run: &Run, bed: &mut Bed, scratch: &Scratch) -> Result<(Vec<Boot>, Tally)> {
    let mut boots = Vec::new();
    let mut skips = Tally::default();
    let (cases, impossible) = cases::of(bed);
    let impossible: Vec<&Case> = impossible.iter().collect();
    for case in wanted(run, &impossible, &mut skips) {
        let why = "the KVM of the bed's kernel hands over no hypercalls";
        skips.add(Tally::skip(format!("{}: {why}", name(case))));
    }
    for case in wanted(run, &cases, &mut skips) {
        if case.isolated {
            add_once(bed, networks::passt()?, "/bin/passt");
        }
        if case.arguments.contains("--share") {
            match virtiofsd::fetch()? {
                Some(program) => add_once(bed, program, "/bin/virtiofsd"),
                None => {
                    let why = "Debian has no libraries for virtiofsd on this machine";
                    skips.add(Tally::skip(format!("{}: {why}", name(case))));
                    continue;
                }
            }
        }
        match add(case, bed, scratch)? {
            Ok(boot) => boots.push(boot),
            Err(why) => skips.add(Tally::skip(format!("{}: {why}", name(case)))),
        }
    }
    Ok((boots, skips))
}

/// Adds what a case boots, or says why that can't be had.
pub fn add(case: &'static Case, bed: &mut Bed, scratch: &Scratch) -> Result<Result<Boot, String>> {
    let kernel = match case.image {
        Image::AllOfDebian
        | Image::DebianWithFio
        | Image::CloudDebian
        | Image::Bare
        | Image::NoKernel => {
            return add_other(case, bed, scratch).map(Ok);
        }
        Image::Small => {
            return match SmallKernel::fetch()? {
                Some(kernel) => add_small(case, kernel, bed, scratch).map(Ok),
                None => Ok(Err("Debian has no source of Linux 6.1 here".to_owned())),
            };
        }
        Image::AnyDebian => Kernel::fetch_any()?,
        Image::Debian(series) | Image::Vmlinux(series) => match Kernel::fetch_offered(series)? {
            Some(kernel) => kernel,
            None => {
                let why = format!("Debian has no cloud kernel {series} on this machine");
                return Ok(Err(why));
            }
        },
    };
    add_kernel(case, &kernel, bed, scratch).map(Ok)
}

/// Adds one of Debian's kernels with busybox.
fn add_kernel(
    case: &'static Case,
    kernel: &Kernel,
    bed: &mut Bed,
    scratch: &Scratch,
) -> Result<Boot> {
    let release = &kernel.release;
    let (file, image) = match case.image {
        Image::Vmlinux(_) => (kernel.vmlinux()?, format!("/guest/vmlinux-{release}")),
        _ => (kernel.image.clone(), format!("/guest/bzImage-{release}")),
    };
    add_once(bed, file, &image);
    if let Some(client) = case.client {
        client.add(bed, scratch)?;
    }
    Ok(Boot {
        case,
        release: Some(release.clone()),
        image,
        initrd: add_initrd(case, release, Some(kernel), bed, scratch)?,
        root_disk: None,
        job_disk: None,
    })
}

/// Adds the small kernel with busybox. It has no modules.
fn add_small(
    case: &'static Case,
    kernel: SmallKernel,
    bed: &mut Bed,
    scratch: &Scratch,
) -> Result<Boot> {
    let release = kernel.release;
    let image = format!("/guest/bzImage-{release}");
    add_once(bed, kernel.image, &image);
    let initrd = add_initrd(case, &release, None, bed, scratch)?;
    Ok(Boot {
        case,
        release: Some(release),
        image,
        initrd,
        root_disk: None,
        job_disk: None,
    })
}

/// Adds what is no kernel with busybox.
fn add_other(case: &'static Case, bed: &mut Bed, scratch: &Scratch) -> Result<Boot> {
    let mut boot = Boot {
        case,
        release: None,
        image: "/guest/text".to_owned(),
        initrd: Vec::new(),
        root_disk: None,
        job_disk: None,
    };
    match case.image {
        Image::AllOfDebian => {
            add_debian(&debian::PLAIN, &mut boot, bed)?;
            // A client types the commands.
            match case.client {
                Some(client) => client.add(bed, scratch)?,
                None => add_job_disk(&mut boot, bed, scratch)?,
            }
        }
        Image::DebianWithFio => {
            add_debian(&debian::BENCH, &mut boot, bed)?;
            add_job_disk(&mut boot, bed, scratch)?;
        }
        Image::CloudDebian => add_debian(&debian::CLOUD, &mut boot, bed)?,
        Image::Bare => {
            boot.image = "/guest/bare".to_owned();
            add_once(bed, build::bare_guest()?, &boot.image);
        }
        _ => {
            let text = scratch.path("text");
            write(&text, "This is no kernel.\n".repeat(1000))?;
            add_once(bed, text, &boot.image);
        }
    }
    Ok(boot)
}

/// Adds the disk with the case's job.
fn add_job_disk(boot: &mut Boot, bed: &mut Bed, scratch: &Scratch) -> Result<()> {
    let job = format!("job-{}", boot.case.name);
    write(&scratch.path(&job), debian::job(&guest_job(boot.case)))?;
    let path = format!("/guest/{job}");
    bed.add(&scratch.path(&job), &path);
    boot.job_disk = Some(path);
    Ok(())
}

/// Adds a Debian: its kernel and initrd, and its disk as one of the bed's. A client writes to the disk, because
/// Firecracker's API knows no overlays, so it gets one of its own.
fn add_debian(kind: &debian::Kind, boot: &mut Boot, bed: &mut Bed) -> Result<()> {
    let debian = Debian::fetch(kind)?;
    boot.image = format!("/guest/{}-kernel", kind.name);
    boot.initrd = vec![format!("/guest/{}-initrd", kind.name)];
    add_once(bed, debian.kernel, &boot.image);
    add_once(bed, debian.initrd, &boot.initrd[0]);
    let disk = Disk {
        image: debian.disk,
        writes: match boot.case.client {
            Some(_) => Writes::Dropped,
            None => Writes::Refused,
        },
    };
    boot.root_disk = Some(bed.attach(disk));
    Ok(())
}

/// Adds the guest's root file system, in parts, and the case's own job; returns the paths of the parts. Modules are
/// those of `kernel`.
fn add_initrd(
    case: &Case,
    release: &str,
    kernel: Option<&Kernel>,
    bed: &mut Bed,
    scratch: &Scratch,
) -> Result<Vec<String>> {
    let mut parts = vec![format!("/guest/initrd-{release}")];
    let file = scratch.path(&format!("initrd-{release}"));
    if !file.exists() {
        let mut archive = initramfs::guest(kernel)?;
        archive.extend(initramfs::program(
            "/bin/debug-exit",
            &elf::port_writer(DEBUG_EXIT),
        ));
        write(&file, archive)?;
    }
    add_once(bed, file, &parts[0]);
    if let Some(kernel) = kernel.filter(|_| case.para) {
        let name = format!("para-{release}");
        let file = scratch.path(&name);
        if !file.exists() {
            write(&file, driver::archive(kernel)?)?;
        }
        parts.push(format!("/guest/{name}"));
        add_once(bed, file, &parts[1]);
    }
    if let Some(kernel) = kernel.filter(|_| case.virtio) {
        let name = format!("virtio-{release}");
        let file = scratch.path(&name);
        if !file.exists() {
            write(&file, initramfs::virtio(kernel)?)?;
        }
        parts.push(format!("/guest/{name}"));
        add_once(bed, file, &format!("/guest/{name}"));
    }
    for (name, build) in PROGRAMS {
        if case.guest.contains(name) {
            let file = scratch.path(&format!("guest-{name}"));
            if !file.exists() {
                let path = format!("/bin/{name}");
                write(&file, initramfs::program(&path, &read(&build()?)?))?;
            }
            parts.push(format!("/guest/{name}"));
            add_once(bed, file, &format!("/guest/{name}"));
        }
    }
    let job = scratch.path(&format!("job-{}", case.name));
    write(&job, initramfs::job(&guest_job(case)))?;
    parts.push(format!("/guest/job-{}", case.name));
    bed.add(&job, &parts[parts.len() - 1]);
    Ok(parts)
}

fn add_once(bed: &mut Bed, host: PathBuf, guest: &str) {
    if !bed.files.iter().any(|(_, present)| present == guest) {
        bed.files.push((host, guest.to_owned()));
    }
}

/// How the name of each case begins.
pub const PREFIX: &str = "linux-";

pub fn name(case: &Case) -> String {
    format!("{PREFIX}{}", case.name)
}

fn guest_job(case: &Case) -> String {
    let modules = if case.virtio {
        initramfs::LOAD_VIRTIO
    } else {
        ""
    };
    let mut job = format!(
        "{modules}echo \"release=$(uname -r) cpus=$(nproc).\"\necho READY\n{}\n",
        case.guest
    );
    if let Some(bytes) = case.echo_bytes() {
        // Hardware flow control, because 1 MiB is more than a terminal's buffers. The last line waits for the output.
        job.push_str(&format!(
            "stty -F /dev/ttyS0 raw -echo crtscts\necho GO\n\
             head -c {bytes} </dev/ttyS0\nstty -F /dev/ttyS0 -raw\n"
        ));
    }
    job
}

/// A script that runs mini-vmm by the command `line`. Its status is mini-vmm's, unless `after` changes `$code`.
pub fn framed(before: &str, line: &str, drive: &str, after: &str) -> String {
    format!(
        "{BED_LIBRARY}{before}\n\
         run() {{ {line}\n}}\n\
         run </tmp/in >/tmp/out 2>/tmp/err & vmm=$!\n\
         {drive}\n\
         before=$(beats); wait $vmm; code=$?\n\
         {after}\ncat /tmp/out; echo '--- stderr'; cat /tmp/err\nexit $code\n"
    )
}

impl Boot {
    /// The case's name.
    pub fn name(&self) -> String {
        name(self.case)
    }

    /// Whether its bed counts its time.
    pub fn is_counted(&self) -> bool {
        self.case.counted
    }

    /// Whether its script runs the probe.
    pub fn needs_probe(&self) -> bool {
        let scripts = [self.case.before, self.case.drive];
        self.case.echo_bytes().is_some() || scripts.iter().any(|s| s.contains("bench-probe"))
    }

    /// The script that the bed runs; its status is mini-vmm's.
    /// If mini-vmm hangs, it is killed; its output until then is still shown.
    pub fn script(&self) -> String {
        let case = self.case;
        let initrd = match self.initrd.is_empty() {
            true => String::new(),
            false => format!("cat {} >/tmp/initrd\n", self.initrd.join(" ")),
        };
        let disk = self.root_disk.as_deref().unwrap_or_default();
        let line = match (case.client, case.firecracker, case.echo_bytes()) {
            (Some(client), _, _) => self.client(client),
            (None, Some(fields), _) => self.firecracker(fields),
            (None, None, Some(bytes)) => {
                format!("bench-probe echo {} {bytes} {}", case.echo, self.command())
            }
            (None, None, None) => format!("{} --serial stdio", self.command()),
        };
        // Without the second clock, these rows don't advance.
        let beats = case.echo_bytes().map_or("", |_| BEATS);
        let before = format!("disk={disk}\n{initrd}{}", case.before);
        let after = format!("{beats}{}", case.after);
        let script = framed(&before, &format!("exec {line}"), case.drive, &after);
        match case.isolated {
            true => networks::isolated(&script),
            false => script,
        }
    }

    /// The kernel's command line; none for mini-vmm's default.
    fn cmdline(&self) -> Option<String> {
        let words = self.case.cmdline?;
        Some(format!("console=ttyS0 quiet {words}").trim_end().to_owned())
    }

    /// mini-vmm and its arguments, except for the console's.
    fn command(&self) -> String {
        let case = self.case;
        let mut line = format!("mini-vmm --kernel {}", self.image);
        if !self.initrd.is_empty() {
            line.push_str(" --initrd /tmp/initrd");
        }
        if let Some(cmdline) = self.cmdline() {
            line.push_str(&format!(" --cmdline {}", sh_quote(&cmdline)));
        }
        let (cpus, arguments) = (case.cpus, case.arguments);
        line.push_str(&format!(" --cpus {cpus} --memory 512M {arguments}"));
        if let Some(job) = &self.job_disk {
            let serial = debian::JOB;
            line.push_str(&format!(" --disk path={job},readonly,serial={serial}"));
        }
        line
    }

    /// A client, with the arguments that all of them have.
    fn client(&self, client: Client) -> String {
        let (image, cpus) = (&self.image, self.case.cpus);
        let line = sh_quote(&self.cmdline().unwrap_or_default());
        let disk = self.root_disk.as_deref().unwrap_or_default();
        format!(
            "{} {FIRECRACKER} {image} /tmp/initrd {line} {cpus} {disk}",
            client.path()
        )
    }

    /// mini-vmm in Firecracker's place, with a config file that also has `fields`.
    fn firecracker(&self, fields: &str) -> String {
        let boot = json!({
            "kernel_image_path": self.image,
            "initrd_path": "/tmp/initrd",
            "boot_args": self.cmdline(),
        });
        let machine = json!({"vcpu_count": self.case.cpus, "mem_size_mib": 512});
        let config = format!(r#"{{"boot-source": {boot}, "machine-config": {machine}, {fields}}}"#);
        format!(
            "mini-vmm firecracker --no-api {} --config-file /proc/self/fd/9 9<<'END'\n{config}\nEND\n",
            self.case.arguments
        )
    }

    /// Checks a run's exit code and output.
    pub fn judge(&self, exit: u8, output: &str) -> Tally {
        let mut wrong = Vec::new();
        if exit != self.case.exit {
            wrong.push(format!("exit code {exit}, not {}", self.case.exit));
        }
        let online = self.case.online.unwrap_or(self.case.cpus);
        let of_guest = self
            .release
            .as_ref()
            // A guest that ran out of time may not have printed them yet.
            .filter(|_| self.case.exit != TIMEOUT)
            .map(|release| format!("release={release} cpus={online}."));
        let hung = output.lines().find(|line| line.starts_with("HUNG: "));
        wrong.extend(hung.map(|line| line.trim_end().to_owned()));
        let expect = self.case.expect.iter().chain(self.case.also_expect);
        let expect = expect.map(|&text| text.to_owned());
        let echoed = self.case.echo_bytes().map(|bytes| {
            let clock = "THE SECOND CLOCK RUNS".to_owned();
            [format!("ECHOED {bytes}"), clock]
        });
        let echoed = echoed.into_iter().flatten();
        for text in expect.chain(of_guest).chain(echoed) {
            if !output.contains(&text) {
                wrong.push(format!("the output lacks '{text}'"));
            }
        }
        if wrong.is_empty() {
            return Tally::pass();
        }
        Tally::fail(format!(
            "{}: {}\n{}",
            self.name(),
            wrong.join("; "),
            crate::process::last_lines(output, 40)
        ))
    }
}

#[cfg(test)]
mod tests;
