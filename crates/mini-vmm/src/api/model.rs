// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine that clients describe, in the words of Firecracker's API.

use std::path::Path;

use rustix::fs::{Access, access};
use serde_json::{Value, json};

use super::fields::{Fields, wrong};
use super::http::Fault;
use crate::config::{self, Draft, SerialSpec, VmSpec};
use crate::layout::MIB;

/// Why this API takes no rate limiter.
const NO_LIMITER: &str = "this device has no limits of its own";

/// A description under construction.
#[derive(Clone, Debug)]
pub(super) struct Model {
    spec: VmSpec,
    /// The command line for a boot source without one.
    default_cmdline: String,
    /// Appended to the command line when the machine starts.
    suffix: &'static str,
}

/// What is wrong with a description, as a fault of `field`.
fn faulty(field: &'static str) -> impl Fn(config::Error) -> Fault {
    move |error| wrong(field, error)
}

impl Model {
    /// Begins with `spec`, whose kernel may be missing (an empty path). `suffix` ends each command line.
    pub fn new(spec: VmSpec, suffix: &'static str) -> Self {
        Model {
            default_cmdline: spec.cmdline.clone(),
            spec,
            suffix,
        }
    }

    fn has_kernel(&self) -> bool {
        !self.spec.kernel.as_os_str().is_empty()
    }

    /// The whole description.
    ///
    /// # Errors
    /// Something is missing or not possible.
    pub fn finish(&self) -> Result<VmSpec, Fault> {
        if !self.has_kernel() {
            let why = "there is no kernel to start; name one by PUT /boot-source";
            return Err(wrong("kernel_image_path", why));
        }
        let mut spec = self.spec.clone();
        spec.cmdline.push_str(self.suffix);
        spec.validate()
            .map_err(|error| Fault::new(error.to_string()))?;
        Ok(spec)
    }

    /// `PUT /boot-source`.
    pub fn put_boot_source(&mut self, mut fields: Fields) -> Result<(), Fault> {
        let kernel = fields.path("kernel_image_path")?;
        let kernel = Fields::required("kernel_image_path", kernel)?;
        let initrd = fields.path("initrd_path")?;
        let cmdline = fields.text("boot_args")?;
        fields.finish()?;
        check_readable("kernel_image_path", &kernel)?;
        if let Some(initrd) = &initrd {
            check_readable("initrd_path", initrd)?;
        }
        let cmdline = cmdline.unwrap_or_else(|| self.default_cmdline.clone());
        config::check_cmdline(&cmdline).map_err(|error| wrong("boot_args", error))?;
        self.spec.kernel = kernel;
        self.spec.initrd = initrd;
        self.spec.cmdline = cmdline;
        Ok(())
    }

    /// `PUT /machine-config`.
    pub fn put_machine(&mut self, fields: Fields) -> Result<(), Fault> {
        self.set_machine(fields, true)
    }

    /// `PATCH /machine-config`: the fields that are given.
    pub fn patch_machine(&mut self, fields: Fields) -> Result<(), Fault> {
        self.set_machine(fields, false)
    }

    fn set_machine(&mut self, mut fields: Fields, is_whole: bool) -> Result<(), Fault> {
        let cpus = fields.number("vcpu_count")?;
        let mib = fields.number("mem_size_mib")?;
        let off = Value::Bool(false);
        fields.only("smt", &off, "vCPUs are cores of one thread")?;
        fields.only("track_dirty_pages", &off, "this version has no snapshots")?;
        fields.only(
            "huge_pages",
            &json!("None"),
            "the host's settings decide about huge pages",
        )?;
        let why =
            "--cpu-features, or cpu-features by PATCH /options, says which features a guest has";
        fields.only("cpu_template", &json!("None"), why)?;
        fields.finish()?;
        if is_whole {
            Fields::required("vcpu_count", cpus)?;
            Fields::required("mem_size_mib", mib)?;
        } else if cpus.or(mib).is_none() {
            return Err(Fault::new(
                "nothing is to be changed; give vcpu_count or mem_size_mib",
            ));
        }
        let mut spec = self.spec.clone();
        if let Some(cpus) = cpus {
            // Any larger number is as wrong.
            spec.cpus = u8::try_from(cpus).unwrap_or(u8::MAX);
            spec.check_cpus().map_err(faulty("vcpu_count"))?;
        }
        if let Some(mib) = mib {
            spec.memory = mib.saturating_mul(MIB);
            config::check_memory(spec.memory).map_err(|error| wrong("mem_size_mib", error))?;
        }
        self.spec = spec;
        Ok(())
    }

    /// `PUT /entropy`.
    pub fn put_entropy(&mut self, mut fields: Fields) -> Result<(), Fault> {
        fields.only("rate_limiter", &Value::Null, NO_LIMITER)?;
        fields.finish()?;
        self.spec.rng = true;
        Ok(())
    }

    /// `PUT /serial`.
    pub fn put_serial(&mut self, mut fields: Fields) -> Result<(), Fault> {
        let path = fields.path("serial_out_path")?;
        fields.only("rate_limiter", &Value::Null, NO_LIMITER)?;
        fields.finish()?;
        self.spec.serial = path.map_or(SerialSpec::Stdio, SerialSpec::File);
        Ok(())
    }

    /// `PATCH /options`: the keys of our own config files.
    pub fn patch_options(&mut self, body: &[u8]) -> Result<(), Fault> {
        let text = str::from_utf8(body)
            .map_err(|error| Fault::new(format!("the body is not UTF-8: {error}; send JSON")))?;
        let draft = Draft::from(self.spec.clone());
        let draft = draft.read_json(text).map_err(|error| {
            Fault::new(format!(
                "{error}; GET /options shows all options and their values"
            ))
        })?;
        let spec = draft
            .finish_partly()
            .map_err(|error| Fault::new(error.to_string()))?;
        self.spec = spec;
        Ok(())
    }

    /// `GET /options`.
    pub fn options(&self) -> Result<Value, Fault> {
        serde_json::to_value(&self.spec)
            .map_err(|error| Fault::new(format!("JSON can't hold this machine: {error}")))
    }

    /// `GET /machine-config`.
    pub fn machine(&self) -> Value {
        json!({
            "vcpu_count": self.spec.cpus,
            "mem_size_mib": self.spec.memory / MIB,
            "smt": false,
            "track_dirty_pages": false,
            "huge_pages": "None",
        })
    }

    fn boot_source(&self) -> Value {
        json!({
            "kernel_image_path": self.spec.kernel.to_string_lossy(),
            "initrd_path": self.spec.initrd.as_ref().map(|path| path.to_string_lossy()),
            "boot_args": self.spec.cmdline,
        })
    }

    /// `GET /vm/config`.
    pub fn whole(&self) -> Value {
        json!({
            "balloon": null,
            "drives": [],
            "boot-source": self.boot_source(),
            "cpu-config": null,
            "logger": null,
            "machine-config": self.machine(),
            "metrics": null,
            "memory-hotplug": null,
            "mmds-config": null,
            "network-interfaces": [],
            "vsock": null,
            "entropy": self.spec.rng.then(|| json!({})),
            "pmem": [],
        })
    }
}

/// Checks that this process may read the file of a field. Opens nothing, because it may be a pipe.
fn check_readable(field: &str, path: &Path) -> Result<(), Fault> {
    access(path, Access::READ_OK).map_err(|errno| {
        let error = std::io::Error::from(errno);
        let what = format_args!("{path:?} can't be read: {error}; name a file of this host");
        wrong(field, what)
    })
}
