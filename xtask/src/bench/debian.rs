// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All of Debian from a disk, with a second disk and a tap: the boot to the login and off, fio, and TCP both ways.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::boots;
use super::guest::Work;
use super::results::Report;
use super::subject::{Files, Setup, Subject};
use super::timeline::stamp_of;
use super::virtio;
use crate::bed::Bed;
use crate::debian::{self, Debian};
use crate::process::{copy, last_lines, write};
use crate::watch::Patience;

/// Whether `only` asks for this. It takes long, so the suite as a whole leaves it out.
pub fn is_wanted(only: &str) -> bool {
    !only.is_empty() && "debian".contains(only)
}

/// The job of the first boot, in which Debian writes what later ones find. It is not measured.
pub const FIRST_JOB: &str = "debian-first-job";
/// The job of the other boots.
pub const JOB: &str = "debian-job";

/// The limit of one run, in seconds of the bed's clock.
const LIMIT: u32 = 180;

/// The limit of the bed. A run prints at its end, after many minutes of CPU time.
pub const PATIENCE: Patience = Patience::of_work(3600);

/// The guest's memory in MiB.
const MEMORY: u32 = 512;

/// Debian's disk in the bed: a copy in memory, because the bed's own disks answer in real time.
const ROOT: &str = "/tmp/root.img";

/// The bed's commands before the first run. The cache of what was copied is dropped, but the second disk is read back into
/// it: else only the first subject would wait for the loop device below that disk.
pub const BED_SCRIPT: &str = "bench-probe copy /dev/vda /tmp/root.img
echo 3 >/proc/sys/vm/drop_caches
cat /tmp/disks/disk >/dev/null
tunctl -t debian0 >/dev/null
echo 1 >/proc/sys/net/ipv6/conf/debian0/disable_ipv6
ip addr add 192.0.2.1/24 dev debian0
ip link set debian0 up
bench-probe tcp 5000 &
";

/// The tap.
const TAP: &str = "debian0";

/// The start of the guest's job, after the login. It waits for all else that systemd starts.
const LOGIN: &str = "echo DEBIAN-LOGIN
systemctl is-system-running --wait >/dev/null
";

/// Each line of a result is the measure's name, its position on the axis, and microseconds per request, or per MiB of TCP.
const WORK: &str = r#"dev=$(ls /sys/class/net | grep -v lo)
ip link set $dev up
ip addr add 192.0.2.2/24 dev $dev
echo 4096 65536 262144 >/proc/sys/net/ipv4/tcp_wmem
# NAME AT FIELD ARGUMENT...: the field of fio's line has the requests per second.
disk() {
    name=$1 at=$2 field=$3
    shift 3
    fio --minimal --name=x --filename=/dev/vdb --size=64M --direct=1 --ioengine=libaio --thread "$@" >/run/fio 2>&1 &&
        tail -n 1 /run/fio | awk -F';' -v name="$name $at" -v field="$field" '{ print "RESULT", name, 1e6 / $field }' ||
        tail -n 1 /run/fio
}
disk debian-random 1 8 --rw=randread --bs=4k --iodepth=1 --io_size=40M
disk debian-random 32 8 --rw=randread --bs=4k --iodepth=32 --io_size=160M
disk debian-read 1 8 --rw=read --bs=1M --iodepth=1 --io_size=512M
disk debian-write 1 49 --rw=write --bs=1M --iodepth=1 --io_size=512M
# NAME BYTES, with dd's words "copied, SECONDS s, ...".
result() {
    awk -v name="$1 $2" -v mib="$3" '/copied/ { sub(/.*copied, /, ""); print "RESULT", name, 1e6 * $1 / mib }' /run/dd
}
tcp() {
    bytes=$1 mib=$2 port=$3
    count=$((mib * 1048576 / bytes))
    dd if=/dev/zero bs=$bytes count=$count 2>/run/dd >/dev/tcp/192.0.2.1/5000
    result debian-send $bytes $mib
    dd of=/dev/null bs=$bytes count=$count iflag=fullblock 2>/run/dd </dev/tcp/192.0.2.1/$port
    result debian-receive $bytes $mib
}
tcp 64 8 5001
tcp 65536 128 5002
"#;

/// The end of the job.
const OFF: &str = r#"echo DEBIAN-OFF
case $(cat /proc/cmdline) in
*reboot=k*) systemctl reboot ;;
*) systemctl poweroff ;;
esac
exit
"#;

/// The measures that the job names, and whether they have an axis.
const AXES: [(&str, bool); 5] = [
    ("debian-random", true),
    ("debian-read", false),
    ("debian-write", false),
    ("debian-send", true),
    ("debian-receive", true),
];

/// How many results the job prints.
const RESULTS: usize = 8;

/// Adds the disk to the bed, and the other files to `directory`, whose files are added later.
pub fn prepare(bed: &mut Bed, directory: &Path) -> Result<()> {
    let debian = Debian::fetch(&debian::BENCH)?;
    copy(&debian.kernel, &directory.join("debian-kernel"))?;
    copy(&debian.initrd, &directory.join("debian-initrd"))?;
    for (name, work) in [(FIRST_JOB, ""), (JOB, WORK)] {
        write(&directory.join(name), debian::job(&job(work)))?;
    }
    bed.disks = vec![debian.disk.into()];
    bed.memory = 4096;
    Ok(())
}

/// What the guest's shell runs. dash, which is sh, has no /dev/tcp.
fn job(work: &str) -> String {
    format!("exec bash <<'END-OF-JOB'\n{LOGIN}{work}{OFF}END-OF-JOB\n")
}

/// The command line of a run of `subject`, with [`FIRST_JOB`] or [`JOB`]. At the limit the VMM is killed, and what it
/// printed until then is kept.
pub fn words(subject: &Subject, job: &str, directory: &Path) -> Result<Vec<String>> {
    let place = |name| directory.join(name).to_string_lossy().into_owned();
    let cmdline = format!("{} {}", boots::cmdline(subject.kind), debian::CMDLINE);
    let job = place(job);
    let files = Files {
        kernel: &place("debian-kernel"),
        initrd: Some(&place("debian-initrd")),
        cmdline: Some(&cmdline),
        disks: &[ROOT, virtio::BED_DISK, &job],
        tap: Some(TAP),
        vsock: None,
    };
    let setup = Setup {
        memory: MEMORY,
        ..Setup::of(Work::Nothing)
    };
    let config = directory.join(format!("debian-{}.json", subject.name));
    let limit = format!("timeout -s KILL {LIMIT}");
    let mut words: Vec<String> = limit.split(' ').map(str::to_owned).collect();
    words.extend(subject.boot(&files, &setup, &config)?);
    Ok(words)
}

/// Reports a run of `subject` that took `wall` nanoseconds and printed `text`. A run that failed is a note, because it
/// took minutes to measure the others.
pub fn add(report: &mut Report, subject: &Subject, wall: f64, text: &str) {
    if let Err(error) = add_results(report, subject, wall, text) {
        report.notes.push(format!("{error:#}"));
    }
}

fn add_results(report: &mut Report, subject: &Subject, wall: f64, text: &str) -> Result<()> {
    let name = &subject.name;
    let stamp = |mark| {
        let found = stamp_of(text, mark);
        found.with_context(|| format!("{name} printed no {mark}:\n{}", last_lines(text, 5)))
    };
    let (login, off) = (stamp("DEBIAN-LOGIN")?, stamp("DEBIAN-OFF")?);
    report.push("debian-login", None, name, login / 1e6);
    report.push("debian-off", None, name, (wall - off) / 1e6);
    report.push("debian-boot", None, name, (login + wall - off) / 1e6);
    let results = text.lines().filter_map(|line| line.split_once(" RESULT "));
    let results: Vec<&str> = results.map(|(_, result)| result).collect();
    if results.len() != RESULTS {
        let found = results.len();
        report.notes.push(format!(
            "{name} printed {found} of the {RESULTS} results of fio and TCP in Debian"
        ));
    }
    for result in results {
        let words: Vec<&str> = result.split_whitespace().collect();
        let [id, at, value] = words[..] else {
            bail!("{name} printed a result that is none: {result}");
        };
        let axis = AXES.iter().find(|(known, _)| *known == id);
        let (id, has_axis) = axis.with_context(|| format!("{name} measured {id}"))?;
        let at = has_axis.then(|| at.parse()).transpose()?;
        report.push(id, at, name, value.parse()?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::subject::Kind;
    use crate::process::capture_ok;

    #[test]
    fn scripts_are_valid_shell() {
        for script in [&job(""), &job(WORK), WORK, BED_SCRIPT] {
            capture_ok(std::process::Command::new("sh").args(["-n", "-c", script])).unwrap();
        }
    }

    #[test]
    fn all_subjects_find_the_second_disk_cached() {
        let at = |text: &str| BED_SCRIPT.find(text).expect(text);
        assert!(at("drop_caches") < at(&format!("cat {} >", virtio::BED_DISK)));
    }

    #[test]
    fn a_run_has_times_and_results() {
        let subject = Subject::new("a", Kind::Firecracker, Path::new("/a"));
        let mut report = Report::default();
        let text = "4000000 DEBIAN-LOGIN\n5 RESULT debian-random 32 8.5\n6 RESULT debian-read 1 1100\n\
            9000000 DEBIAN-OFF\n";
        add(&mut report, &subject, 10e6, text);
        let samples = |id: &str| {
            let measure = report.find(id).unwrap();
            let point = &measure.points[0];
            (point.x, point.samples("a").unwrap().to_vec())
        };
        assert!(report.notes[0].starts_with("a printed 2 of the 8 results"));
        assert_eq!(samples("debian-boot"), (None, vec![5.0]));
        assert_eq!(samples("debian-random"), (Some(32.0), vec![8.5]));
        assert_eq!(samples("debian-read"), (None, vec![1100.0]));
        let cut = text.replace("DEBIAN-OFF", "");
        let mut report = Report::default();
        add(&mut report, &subject, 10e6, &cut);
        assert!(report.measures.is_empty());
        assert!(report.notes[0].starts_with("a printed no DEBIAN-OFF"));
    }
}
