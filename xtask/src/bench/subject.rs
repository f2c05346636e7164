// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is measured: builds of mini-vmm, the floor, and peers, each with its own command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::guest::{End, Work};
use super::image;
use crate::process::write;

/// A kind of VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A build of this repository.
    MiniVmm,
    /// The fewest KVM calls, made by the probe.
    Floor,
    /// Firecracker, without its API.
    Firecracker,
    /// Cloud Hypervisor.
    CloudHypervisor,
    /// kvmtool's lkvm.
    Kvmtool,
    /// QEMU's microvm.
    Qemu,
}

/// One of the programs that are compared.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its name in tables.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub program: PathBuf,
}

/// What a subject is asked to run.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// What its guest does.
    pub work: Work,
    /// Guest memory, in MiB.
    pub memory: u32,
    /// vCPUs.
    pub cpus: u32,
}

/// The usual machine.
pub const MEMORY: u32 = 256;

impl Setup {
    /// One vCPU and 256 MiB.
    pub fn of(work: Work) -> Setup {
        Setup {
            work,
            memory: MEMORY,
            cpus: 1,
        }
    }
}

/// A Linux guest by its paths where the subject runs.
#[derive(Clone, Copy, Debug)]
pub struct Linux<'a> {
    /// The kernel.
    pub kernel: &'a str,
    /// The initial RAM disk.
    pub initrd: &'a str,
    /// The kernel's command line; none: the VMM's own.
    pub cmdline: Option<&'a str>,
    /// Firecracker's configuration, which has the same in it.
    pub firecracker: &'a str,
}

impl Subject {
    /// `NAME=PATH`.
    pub fn peer(text: &str) -> Result<Subject> {
        let (name, path) = text.split_once('=').with_context(|| {
            format!("--peer {text}: say for example firecracker=/usr/bin/firecracker")
        })?;
        let kind = match name {
            "firecracker" => Kind::Firecracker,
            "cloud-hypervisor" => Kind::CloudHypervisor,
            "kvmtool" => Kind::Kvmtool,
            "qemu" => Kind::Qemu,
            _ => bail!(
                "--peer {text}: the peers are firecracker, cloud-hypervisor, kvmtool and qemu"
            ),
        };
        let program = PathBuf::from(path);
        if !program.is_file() {
            bail!("--peer {text}: there is no such file");
        }
        Ok(Subject {
            name: name.to_owned(),
            kind,
            program,
        })
    }

    /// Files besides the program and its libraries, and where it looks for them when it lies in `/bin`.
    pub fn firmware(&self) -> Vec<(PathBuf, String)> {
        if self.kind != Kind::Qemu {
            return Vec::new();
        }
        let find = |name: &str| {
            let places = ["/usr/share/qemu", "/usr/share/seabios"];
            let found = places.map(|place| Path::new(place).join(name));
            let file = found
                .into_iter()
                .find_map(|path| path.canonicalize().ok())?;
            Some((file, format!("/share/qemu/{name}")))
        };
        let names = [
            "bios-microvm.bin",
            "pvh.bin",
            "linuxboot_dma.bin",
            "kvmvapic.bin",
        ];
        names.into_iter().filter_map(find).collect()
    }

    /// Whether it can run such a guest at all.
    pub fn can(&self, setup: &Setup) -> bool {
        let is_ours_only = matches!(
            setup.work,
            Work::Mmio(_) | Work::Msr(_) | Work::Hypercall(_)
        );
        match self.kind {
            Kind::MiniVmm => true,
            Kind::Floor => !matches!(setup.work, Work::Say | Work::Idle | Work::Reset),
            // Its flat images start in real mode, and it takes no others but Linux'.
            Kind::Kvmtool => false,
            Kind::Firecracker => setup.cpus <= 32 && !is_ours_only,
            Kind::CloudHypervisor | Kind::Qemu => !is_ours_only,
        }
    }

    fn end(&self) -> End {
        match self.kind {
            Kind::MiniVmm | Kind::Floor | Kind::CloudHypervisor => End::Acpi,
            Kind::Firecracker | Kind::Kvmtool | Kind::Qemu => End::Keyboard,
        }
    }

    /// The words of a command line for `setup`, whose files are made in `directory`.
    pub fn words(&self, setup: &Setup, directory: &Path) -> Result<Vec<String>> {
        let tag = format!(
            "{}-{:?}-{}-{}",
            self.name, setup.work, setup.memory, setup.cpus
        );
        let tag = tag.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_");
        let image = directory.join(format!("{tag}.elf"));
        if self.kind != Kind::Floor && !image.is_file() {
            write(&image, image::elf(setup.work, self.end()))?;
        }
        let image = text(&image);
        let (memory, cpus) = (setup.memory.to_string(), setup.cpus.to_string());
        let arguments: Vec<String> = match self.kind {
            Kind::MiniVmm => {
                let mut arguments = strings(&["--kernel", &image, "--cpus", &cpus]);
                arguments.extend(strings(&[
                    "--memory",
                    &format!("{memory}M"),
                    "--serial",
                    "stdio",
                ]));
                arguments.extend(match setup.work {
                    Work::Reset => strings(&["--on-reboot", "reset"]),
                    Work::Msr(_) | Work::Hypercall(_) => strings(&["--hypercall", "pio"]),
                    _ => Vec::new(),
                });
                arguments
            }
            Kind::Floor => {
                let mut arguments = strings(&["floor", &memory, &cpus]);
                let (name, count) = match setup.work {
                    Work::Port(count) => ("port", count),
                    Work::Mmio(count) => ("mmio", count),
                    Work::Msr(count) => ("msr", count),
                    Work::Hypercall(count) => ("hypercall", count),
                    _ => ("nothing", 0),
                };
                arguments.extend([name.to_owned(), count.to_string()]);
                arguments
            }
            Kind::Firecracker => {
                let config = directory.join(format!("{tag}.json"));
                // Others may be reading it: it is written once.
                if !config.is_file() {
                    let text = firecracker_config(&image, None, Some("console=ttyS0"), setup);
                    write(&config, text)?;
                }
                strings(&["--no-api", "--config-file", &text(&config)])
            }
            _ => linux_words(self.kind, &image, None, Some("console=ttyS0"), setup),
        };
        let mut words = vec![text(&self.program)];
        words.extend(arguments);
        Ok(words)
    }

    /// The words of a command line that boots Linux; `program` is where the subject is.
    pub fn linux_words(&self, program: &str, linux: &Linux, setup: &Setup) -> Vec<String> {
        let mut words = vec![program.to_owned()];
        if self.kind == Kind::Firecracker {
            words.extend(strings(&["--no-api", "--config-file", linux.firecracker]));
            return words;
        }
        words.extend(linux_words(
            self.kind,
            linux.kernel,
            Some(linux.initrd),
            linux.cmdline,
            setup,
        ));
        words
    }
}

/// The arguments of those that take a kernel on their command line; with an initrd and a command line, if any.
fn linux_words(
    kind: Kind,
    kernel: &str,
    initrd: Option<&str>,
    cmdline: Option<&str>,
    setup: &Setup,
) -> Vec<String> {
    let (memory, cpus) = (setup.memory.to_string(), setup.cpus.to_string());
    let (mut words, initrd_flag, cmdline_flag) = match kind {
        Kind::CloudHypervisor => {
            let mut words = strings(&["--kernel", kernel]);
            words.extend(strings(&["--cpus", &format!("boot={cpus}")]));
            words.extend(strings(&["--memory", &format!("size={memory}M")]));
            words.extend(strings(&["--serial", "tty", "--console", "off"]));
            (words, "--initramfs", "--cmdline")
        }
        Kind::Kvmtool => {
            let mut words = strings(&["run", "--kernel", kernel]);
            words.extend(strings(&["--cpus", &cpus, "--mem", &memory]));
            words.extend(strings(&["--console", "serial", "--network", "mode=none"]));
            (words, "--initrd", "--params")
        }
        Kind::Qemu => {
            let mut words = strings(&["-M", "microvm", "-enable-kvm", "-cpu", "host"]);
            words.extend(strings(&["-nodefaults", "-no-user-config", "-no-reboot"]));
            words.extend(strings(&["-display", "none", "-serial", "stdio"]));
            words.extend(strings(&["-kernel", kernel, "-smp", &cpus, "-m", &memory]));
            (words, "-initrd", "-append")
        }
        _ => {
            let mut words = strings(&["--kernel", kernel, "--cpus", &cpus]);
            words.extend(strings(&["--memory", &format!("{memory}M")]));
            words.extend(strings(&["--serial", "stdio"]));
            (words, "--initrd", "--cmdline")
        }
    };
    for (flag, value) in [(initrd_flag, initrd), (cmdline_flag, cmdline)] {
        if let Some(value) = value {
            words.extend(strings(&[flag, value]));
        }
    }
    words
}

/// Firecracker's configuration file.
pub fn firecracker_config(
    kernel: &str,
    initrd: Option<&str>,
    cmdline: Option<&str>,
    setup: &Setup,
) -> String {
    let mut boot = serde_json::json!({ "kernel_image_path": kernel });
    for (key, value) in [("initrd_path", initrd), ("boot_args", cmdline)] {
        if let Some(value) = value {
            boot[key] = value.into();
        }
    }
    let config = serde_json::json!({
        "boot-source": boot,
        "drives": [],
        "machine-config": { "vcpu_count": setup.cpus, "mem_size_mib": setup.memory },
    });
    config.to_string()
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Scratch;

    fn subject(kind: Kind) -> Subject {
        Subject {
            name: "x".to_owned(),
            kind,
            program: "/x".into(),
        }
    }

    #[test]
    fn peers_are_named_files() {
        let own = std::env::current_exe().unwrap();
        let peer = Subject::peer(&format!("firecracker={}", own.display())).unwrap();
        assert_eq!(peer.kind, Kind::Firecracker);
        for wrong in ["firecracker", "qemu=/none/such", "bochs=/bin/sh"] {
            let error = Subject::peer(wrong).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn every_subject_is_told_size_and_guest() {
        let scratch = Scratch::new().unwrap();
        let setup = Setup {
            work: Work::Nothing,
            memory: 33,
            cpus: 7,
        };
        for kind in [
            Kind::MiniVmm,
            Kind::Floor,
            Kind::CloudHypervisor,
            Kind::Qemu,
        ] {
            let line = subject(kind)
                .words(&setup, &scratch.path(""))
                .unwrap()
                .join(" ");
            assert!(line.contains("33") && line.contains('7'), "{line}");
        }
        let words = subject(Kind::Firecracker)
            .words(&setup, &scratch.path(""))
            .unwrap();
        let config = std::fs::read_to_string(&words[3]).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["machine-config"]["mem_size_mib"], 33);
        let image = config["boot-source"]["kernel_image_path"].as_str().unwrap();
        assert!(std::fs::read(image).unwrap().starts_with(b"\x7fELF"));
    }

    #[test]
    fn linux_is_booted_with_its_initrd() {
        let linux = Linux {
            kernel: "/k",
            initrd: "/i",
            cmdline: Some("quiet"),
            firecracker: "/f",
        };
        let setup = Setup::of(Work::Nothing);
        for (kind, expected) in [
            (Kind::MiniVmm, "--initrd /i"),
            (Kind::CloudHypervisor, "--initramfs /i"),
            (Kind::Kvmtool, "--params quiet"),
            (Kind::Qemu, "-initrd /i -append quiet"),
            (Kind::Firecracker, "--config-file /f"),
        ] {
            let line = subject(kind).linux_words("/x", &linux, &setup).join(" ");
            assert!(line.contains(expected), "{line}");
            let own = Linux {
                cmdline: None,
                ..linux
            };
            let line = subject(kind).linux_words("/x", &own, &setup).join(" ");
            assert!(!line.contains("quiet"), "{line}");
        }
    }
}
