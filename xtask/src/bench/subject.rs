// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The measured programs: builds of mini-vmm, the floor, and peers, each with its own command line.

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

/// Firecracker with io_uring for its disks.
pub const ASYNC: &str = "firecracker-async";

/// A compared program.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its name in tables.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// Its path.
    pub program: PathBuf,
}

/// The machine that a subject runs.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// What its guest does.
    pub work: Work,
    /// Guest memory, in MiB.
    pub memory: u32,
    /// vCPUs.
    pub cpus: u32,
}

impl Setup {
    /// One vCPU and 256 MiB.
    pub fn of(work: Work) -> Setup {
        Setup {
            work,
            memory: 256,
            cpus: 1,
        }
    }
}

/// A guest's files, with their paths where the subject runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files<'a> {
    /// The kernel.
    pub kernel: &'a str,
    /// The initial RAM disk.
    pub initrd: Option<&'a str>,
    /// The kernel's command line; none for the VMM's default.
    pub cmdline: Option<&'a str>,
    /// The images of virtio disks on PCI.
    pub disks: &'a [&'a str],
    /// The name of the tap of a virtio network on PCI.
    pub tap: Option<&'a str>,
    /// The socket of a vsock device on PCI.
    pub vsock: Option<&'a str>,
}

impl Files<'_> {
    /// Whether the machine has a PCI device.
    fn has_pci(&self) -> bool {
        !self.disks.is_empty() || self.tap.is_some() || self.vsock.is_some()
    }
}

impl Subject {
    /// A subject with this name.
    pub fn new(name: &str, kind: Kind, program: &Path) -> Subject {
        Subject {
            name: name.to_owned(),
            kind,
            program: program.to_owned(),
        }
    }

    /// Parses `NAME=PATH`.
    pub fn peer(text: &str) -> Result<Subject> {
        let (name, path) = text.split_once('=').with_context(|| {
            format!("--peer {text}: say for example firecracker=/usr/bin/firecracker")
        })?;
        let kind = match name {
            "firecracker" | ASYNC => Kind::Firecracker,
            "cloud-hypervisor" => Kind::CloudHypervisor,
            "kvmtool" => Kind::Kvmtool,
            "qemu" => Kind::Qemu,
            _ => bail!(
                "--peer {text}: the peers are firecracker, {ASYNC}, cloud-hypervisor, kvmtool and qemu"
            ),
        };
        let program = PathBuf::from(path);
        if !program.is_file() {
            bail!("--peer {text}: there is no such file");
        }
        Ok(Subject::new(name, kind, &program))
    }

    /// Files in addition to the program and its libraries, and their paths for a program in `/bin`.
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
        let names = "bios-microvm.bin pvh.bin linuxboot_dma.bin kvmvapic.bin";
        names.split(' ').filter_map(find).collect()
    }

    /// Whether it can run this guest.
    pub fn can(&self, setup: &Setup) -> bool {
        let is_ours_only = matches!(
            setup.work,
            Work::Mmio(_) | Work::Msr(_) | Work::Hypercall(_)
        );
        match self.kind {
            Kind::MiniVmm => true,
            Kind::Floor => !matches!(setup.work, Work::Say | Work::Idle | Work::Reset),
            // It runs flat images in real mode only, and no others except Linux's.
            Kind::Kvmtool => false,
            Kind::Firecracker => setup.cpus <= 32 && !is_ours_only,
            Kind::CloudHypervisor | Kind::Qemu => !is_ours_only,
        }
    }

    /// How its guests end their machine.
    pub fn end(&self) -> End {
        match self.kind {
            Kind::MiniVmm | Kind::Floor | Kind::CloudHypervisor => End::Acpi,
            Kind::Firecracker | Kind::Kvmtool | Kind::Qemu => End::Keyboard,
        }
    }

    /// The command line for `setup`, whose files are created in `directory`.
    pub fn words(&self, setup: &Setup, directory: &Path) -> Result<Vec<String>> {
        if self.kind == Kind::Floor {
            let (name, count) = match setup.work {
                Work::Port(count) => ("port", count),
                Work::Mmio(count) => ("mmio", count),
                Work::Msr(count) => ("msr", count),
                Work::Hypercall(count) => ("hypercall", count),
                _ => ("nothing", 0),
            };
            let line = format!("floor {} {} {name} {count}", setup.memory, setup.cpus);
            let mut words = vec![text(&self.program)];
            words.extend(line.split(' ').map(str::to_owned));
            return Ok(words);
        }
        let Setup { work, memory, cpus } = setup;
        let tag = format!("{}-{work:?}-{memory}-{cpus}", self.name);
        let tag = tag.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_");
        let image = directory.join(format!("{tag}.elf"));
        if !image.is_file() {
            write(&image, image::elf(*work, self.end()))?;
        }
        let files = Files {
            kernel: &text(&image),
            cmdline: (self.kind != Kind::MiniVmm).then_some("console=ttyS0"),
            ..Files::default()
        };
        let config = directory.join(format!("{tag}.json"));
        let mut words = self.boot(&files, setup, &config)?;
        let more: &[&str] = match (self.kind, work) {
            (Kind::MiniVmm, Work::Reset) => &["--on-reboot", "reset"],
            (Kind::MiniVmm, Work::Msr(_) | Work::Hypercall(_)) => &["--hypercall", "pio"],
            _ => &[],
        };
        words.extend(more.iter().map(|&word| word.to_owned()));
        Ok(words)
    }

    /// The command line that boots `files`. Firecracker reads them from the file `config`, which this creates.
    pub fn boot(&self, files: &Files, setup: &Setup, config: &Path) -> Result<Vec<String>> {
        let config = text(config);
        let (line, initrd, cmdline) = match self.kind {
            Kind::Firecracker => {
                write(Path::new(&config), self.firecracker_config(files, setup))?;
                let has_pci = files.has_pci();
                let pci = has_pci.then_some("--enable-pci");
                let words = ["--no-api", "--config-file", &config]
                    .into_iter()
                    .chain(pci);
                return Ok([&*text(&self.program)]
                    .into_iter()
                    .chain(words)
                    .map(str::to_owned)
                    .collect());
            }
            Kind::MiniVmm | Kind::Floor => (
                "--kernel {kernel} --cpus {cpus} --memory {memory}M --serial stdio",
                "--initrd",
                "--cmdline",
            ),
            Kind::CloudHypervisor => (
                "--kernel {kernel} --cpus boot={cpus} --memory size={memory}M --serial tty --console off",
                "--initramfs",
                "--cmdline",
            ),
            Kind::Kvmtool => (
                "run --kernel {kernel} --cpus {cpus} --mem {memory} --console serial --network mode=none",
                "--initrd",
                "--params",
            ),
            Kind::Qemu => (
                "-M microvm -enable-kvm -cpu host -nodefaults -no-user-config -no-reboot \
                 -display none -serial stdio -kernel {kernel} -smp {cpus} -m {memory}",
                "-initrd",
                "-append",
            ),
        };
        let (memory, cpus) = (setup.memory.to_string(), setup.cpus.to_string());
        let fill = |word: &str| match word {
            "{kernel}" => files.kernel.to_owned(),
            word => word.replace("{cpus}", &cpus).replace("{memory}", &memory),
        };
        let mut words = vec![text(&self.program)];
        words.extend(line.split(' ').map(fill));
        let tap = files.tap.map(|name| format!("tap={name}"));
        let vsock = files.vsock.map(|path| format!("cid=3,socket={path}"));
        words.extend(self.disks(files));
        for (flag, value) in [
            (initrd, files.initrd),
            (cmdline, files.cmdline),
            ("--net", tap.as_deref()),
            ("--vsock", vsock.as_deref()),
        ] {
            let pair = |value: &str| [flag, value].map(str::to_owned);
            words.extend(value.into_iter().flat_map(pair));
        }
        Ok(words)
    }

    /// The words for disks.
    fn disks(&self, files: &Files) -> Vec<String> {
        let flag = || "--disk".to_owned();
        let disks = files.disks.iter().enumerate();
        let words = disks.map(|(place, path)| match self.kind {
            // It takes the flag once, with all disks.
            Kind::CloudHypervisor => {
                let flag = (place == 0).then(flag);
                (flag, format!("path={path},image_type=raw"))
            }
            _ => (Some(flag()), format!("path={path}")),
        });
        words
            .flat_map(|(flag, value)| flag.into_iter().chain([value]))
            .collect()
    }

    fn firecracker_config(&self, files: &Files, setup: &Setup) -> String {
        let io_engine = if self.name == ASYNC { "Async" } else { "Sync" };
        let drive = |(place, path): (usize, &&str)| {
            serde_json::json!({
                "drive_id": format!("d{place}"),
                "path_on_host": path,
                "is_root_device": false,
                "io_engine": io_engine,
            })
        };
        let interface = |name| serde_json::json!({ "iface_id": "n", "host_dev_name": name });
        let interfaces: Vec<_> = files.tap.into_iter().map(interface).collect();
        let drives: Vec<_> = files.disks.iter().enumerate().map(drive).collect();
        let vsock = files
            .vsock
            .map(|path| serde_json::json!({ "guest_cid": 3, "uds_path": path }));
        let config = serde_json::json!({
            "boot-source": {
                "kernel_image_path": files.kernel,
                "initrd_path": files.initrd,
                "boot_args": files.cmdline,
            },
            "drives": drives,
            "network-interfaces": interfaces,
            "vsock": vsock,
            "machine-config": { "vcpu_count": setup.cpus, "mem_size_mib": setup.memory },
        });
        config.to_string()
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Scratch;

    fn subject(kind: Kind) -> Subject {
        Subject::new("x", kind, Path::new("/x"))
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
        let scratch = Scratch::new().unwrap();
        let config = scratch.path("f");
        let files = Files {
            kernel: "/k",
            initrd: Some("/i"),
            cmdline: Some("quiet"),
            disks: &["/d"],
            tap: Some("t"),
            vsock: None,
        };
        let setup = Setup::of(Work::Nothing);
        let with_config = format!("--config-file {}", config.display());
        for (kind, expected) in [
            (Kind::MiniVmm, "--initrd /i"),
            (Kind::CloudHypervisor, "--initramfs /i"),
            (Kind::Kvmtool, "--params quiet"),
            (Kind::Qemu, "-initrd /i -append quiet"),
            (Kind::Firecracker, &with_config),
        ] {
            let boot = |files| {
                subject(kind)
                    .boot(files, &setup, &config)
                    .unwrap()
                    .join(" ")
            };
            let line = boot(&files);
            assert!(line.contains(expected), "{line}");
            let own = Files {
                cmdline: None,
                ..files
            };
            let line = boot(&own);
            assert!(!line.contains("quiet"), "{line}");
        }
    }
}
