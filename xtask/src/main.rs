// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Set-up, test beds and checks of mini-vmm: `cargo xtask`.
#![cfg_attr(not(test), deny(clippy::too_many_lines))]

mod apt;
mod bed;
mod bed_amd;
mod bed_intel;
mod bench;
mod boot;
mod build;
mod cpio;
mod debian;
#[cfg(test)]
mod docs;
mod elf;
mod host;
mod initramfs;
mod kernels;
#[cfg(test)]
mod layers;
mod marked;
mod packages;
mod para;
mod process;
mod revision;
#[cfg(test)]
mod rules;
mod small_kernel;
mod test;
mod venv;
mod virtiofsd;
mod watch;
mod whole;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask boot [OPTIONS] [-- COMMAND...]
    Boots a Debian kernel under mini-vmm to a shell, or runs COMMAND in it and passes on its output
    and its status. On /dev/kvm if the CPU has svm or vmx, otherwise inside the AMD bed.
      --debian          all of Debian 12, from a disk, to a login as root. The disk is made (with
                        mmdebstrap) and cached; what the guest writes to it is gone at its end
      --kernel PATH     another kernel (default: Debian's, fetched)
      --cpus N          vCPUs (default 2)
      --memory SIZE     memory (default 512M)
      --timeout S       end the guest by force after S seconds (default: 300 with COMMAND,
                        1800 with --debian and COMMAND)
      --para            load guest/linux's para.ko, built against Debian's headers (fetched), so that the
                        guest registers for hypercalls. Without COMMAND: print the registration and a ping
      --share DIR       give the guest the directory at /mnt, by virtiofsd (built); a copy of it in the bed
      --hypercall R     the route of hypercalls: auto (default), vendor, forward, pio

cargo xtask test [--quick|--long] [--only TEXT] [PART...]
    Checks everything, or the PARTs named: format, licenses, packages, clippy, docs, unit, doctests,
    integration, clients, amd, intel, bench, coverage. The closing line counts the tests that passed,
    failed, were skipped, and were left to --long.
      --quick           only the parts that take less than a minute
      --long            also storms, large transfers and full matrices, which take hours
      --only TEXT       in the beds, only the jobs whose name contains TEXT

cargo xtask bed amd|intel [OPTIONS] [-- COMMAND...]
    Runs COMMAND in an emulated machine with a real KVM, and passes on its output and its status.
    Without COMMAND: a shell. mini-vmm is on its PATH; files of the host are not.
    amd: kvm-amd under QEMU. intel: kvm-intel under Bochs (slower, one CPU, no input).
      --cpus N          CPUs (amd; default 1: with more, the bed sometimes hangs)
      --memory MIB      memory in MiB (default 3072, intel 1024)
      --timeout S       end it by force after S seconds
      --kernel 6.1|6.12 the bed's Debian kernel (default 6.1 if Debian has it)
      --add FILE[:PATH] add a file at PATH (default /bin), with the libraries it needs; repeatable
      --disk FILE       a disk of the bed, which can't write to it: /dev/vda, ...; repeatable (amd)
      --counted         one CPU whose clocks count instructions: the same times in every run (amd)

cargo xtask bench [OPTIONS]
    Measures start, exits, footprint and growth, compared with the fewest KVM calls that do the same.
    Prints Markdown. No number is a failure. --method explains how it measures.
      --quick           few rounds, few sizes
      --peer NAME=PATH  also a peer: firecracker, firecracker-async (io_uring), cloud-hypervisor, kvmtool, qemu;
                        repeatable
      --against BUILD   also another build of mini-vmm, a program or a revision of git, with a test of
                        significance
      --mini-vmm PATH   this build of mini-vmm instead of a new one
      --bed amd         in the AMD bed, in counted time, with a boot of Debian's kernel
      --wall            in the bed: wall time instead of counted time
      --only TEXT       only measures whose name contains TEXT: start, first-byte, growth, exits, idle,
                        instructions, many, resets, disk, net, size; in the bed also boot and debian
      --rounds N        rounds of the single measures
      --json FILE  --markdown FILE  --svg DIRECTORY
";

/// Whether there is a `--help` before `--`, after which the arguments are another program's.
fn asks_for_help() -> bool {
    let words = std::env::args_os().skip(1).take_while(|word| word != "--");
    let mut words = words.filter(|word| word == "--help" || word == "-h");
    words.next().is_some()
}

fn run() -> Result<u8> {
    if asks_for_help() {
        print!("{USAGE}");
        return Ok(0);
    }
    let mut parser = lexopt::Parser::from_env();
    match parser.next()? {
        Some(lexopt::Arg::Value(command)) => match command.to_str() {
            Some("boot") => boot::command(&mut parser),
            Some("test") => test::command(&mut parser),
            Some("bed") => bed::command(&mut parser),
            Some("bench") => bench::command(&mut parser),
            _ => bail!("there is no command {}\n{USAGE}", command.to_string_lossy()),
        },
        Some(other) => Err(other.unexpected().into()),
        None => bail!("which command?\n{USAGE}"),
    }
}

fn main() -> ExitCode {
    if std::env::var_os(test::coverage::AS_RUSTC).is_some() {
        eprintln!("xtask: can't run rustc: {}", test::coverage::become_rustc());
        return ExitCode::FAILURE;
    }
    match run() {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
