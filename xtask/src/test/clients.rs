// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots of Debian by clients of Firecracker's API: its kernels with busybox, and all of it from its disk, up to the shell
//! on its console. Each client pauses and resumes the guest, and presses its power button.

use anyhow::Result;

use super::beds::add_stripped;
use super::cases::{Case, Image, LINUX, POWER_BUTTON};
use crate::bed::Bed;
use crate::kernels::Series;
use crate::process::{sh_words, write};
use crate::workspace::{Scratch, root};
use crate::{build, venv};

/// The program that clients start in the bed.
pub const FIRECRACKER: &str = "/tmp/firecracker";

/// A program that drives mini-vmm with a client.
#[derive(Clone, Copy, Debug)]
pub enum Client {
    /// Of `clients/examples`.
    Rust(&'static str),
    /// Of `clients/python`.
    Python(&'static str),
}

impl Client {
    /// Its path in the bed.
    pub fn path(self) -> String {
        let (Client::Rust(name) | Client::Python(name)) = self;
        format!("/bin/{name}")
    }

    /// Adds it to the bed, with all that it needs.
    pub fn add(self, bed: &mut Bed, scratch: &Scratch) -> Result<()> {
        match self {
            Client::Rust(name) => add_stripped(bed, &build::client(name)?, &self.path(), scratch),
            Client::Python(name) => self.add_script(name, bed, scratch),
        }
    }

    /// Adds a script, its modules at their paths on the host, the interpreter, and a program that starts it.
    fn add_script(self, name: &str, bed: &mut Bed, scratch: &Scratch) -> Result<()> {
        let script = root().join(format!("clients/python/{name}.py"));
        let program = venv::program(&script)?;
        for file in program
            .modules
            .iter()
            .chain([&program.interpreter, &script])
        {
            bed.add(file, &file.to_string_lossy());
        }
        let words = [&program.interpreter, &script].map(|path| path.to_string_lossy().into_owned());
        let packages = program.packages.to_string_lossy().into_owned();
        let start = format!(
            "#!/bin/sh\nexport PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={}\nexec {} \"$@\"\n",
            sh_words(&[packages]),
            sh_words(&words)
        );
        let starter = scratch.path(name);
        write(&starter, start)?;
        bed.add(&starter, &self.path());
        Ok(())
    }
}

const CLIENT: Case = Case {
    cmdline: Some("reboot=k panic=1 pci=off"),
    before: "ln -sf /bin/mini-vmm /tmp/firecracker",
    guest: POWER_BUTTON,
    expect: &["BUTTON"],
    ..LINUX
};

/// The client types a command on the console, as root, and waits for what it prints. Then systemd obeys the button.
const DEBIAN: Case = Case {
    image: Image::AllOfDebian,
    guest: "",
    expect: &["/dev/vda ext4 READY", "Power down"],
    ..CLIENT
};

const FCTOOLS: Option<Client> = Some(Client::Rust("fctools_boots"));
const RS_SDK: Option<Client> = Some(Client::Rust("firecracker_rs_sdk_boots"));
const DUD: Option<Client> = Some(Client::Python("dud_boots"));

/// The cases.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    Case { name: "client-fctools", client: FCTOOLS, image: Image::Debian(Series::V6_1), ..CLIENT },
    Case { name: "client-firecracker-rs-sdk", client: RS_SDK, cpus: 2, image: Image::Debian(Series::V6_12), long: true,
        ..CLIENT },
    Case { name: "client-debian-fctools", client: FCTOOLS, ..DEBIAN },
    Case { name: "client-debian-firecracker-rs-sdk", client: RS_SDK, cpus: 2, long: true, ..DEBIAN },
    Case { name: "client-debian-dud", client: DUD, long: true, ..DEBIAN },
];
