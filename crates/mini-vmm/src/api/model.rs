// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine that clients describe, in the words of Firecracker's API.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use serde_json::{Value, json};

use super::cpu::Template;
use super::drives::{Drive, bucket, limiter, limits};
use super::fields::{Fields, wrong};
use super::http::Fault;
use super::logger::Logger;
use super::mmds::Mmds;
use super::nets::Net;
use super::{Error, MAX_BODY, balloon, vsock};
use crate::config::{
    self, Draft, HotplugSlots, Limits, NetError, RngSpec, SerialSpec, VirtioSpec, VmSpec,
};
use crate::inputs;
use crate::layout::MIB;
use crate::start_time::Moment;
use crate::telemetry;

/// Why metrics take no words of the client's.
const NO_WORDS: &str = "lines of metrics have counters only";

/// The slots for new devices of a machine in Firecracker's place.
const SLOTS: u8 = 8;

/// A description under construction.
#[derive(Clone, Debug)]
pub struct Model {
    pub(super) spec: VmSpec,
    /// The command line for a boot source without one.
    default_cmdline: String,
    /// The CPU without a template.
    default_cpu: Template,
    /// The CPU template that the CPU of `spec` comes from.
    template: Option<Value>,
    /// The disks of `spec`, in the same order.
    pub(super) drives: Vec<Drive>,
    /// The networks of `spec`, in the same order.
    pub(super) nets: Vec<Net>,
    pub(super) mmds: Mmds,
    /// The log, if a client or a file has changed it.
    pub(super) logger: Option<Logger>,
    /// Whether the guest has a boot timer.
    boot_timer: bool,
    /// Whether something other than a kernel, a disk or a network was described that a snapshot has.
    pub(super) is_described: bool,
    /// Appended to the command line when the machine starts.
    suffix: &'static str,
}

/// What is wrong with a description, as a fault of `field`.
fn faulty(field: &'static str) -> impl Fn(config::Error) -> Fault {
    move |error| wrong(field, error)
}

/// What a template can change.
fn cpu_of(spec: &VmSpec) -> Template {
    Template {
        features: spec.cpu_features.clone(),
        msrs: spec.msrs.clone(),
        capabilities: spec.kvm_capabilities.clone(),
    }
}

impl Model {
    /// Begins with `spec`, whose kernel may be missing (an empty path). `suffix` ends each command line.
    pub fn new(spec: VmSpec, suffix: &'static str) -> Self {
        let mut model = Model {
            default_cmdline: spec.cmdline.clone(),
            default_cpu: cpu_of(&spec),
            template: None,
            drives: Vec::new(),
            nets: Vec::new(),
            mmds: Mmds::new(MAX_BODY),
            logger: None,
            boot_timer: false,
            is_described: false,
            spec,
            suffix,
        };
        model.name_drives();
        model.name_nets();
        model.mmds.adopt(model.spec.mmds.as_ref(), &model.nets);
        model
    }

    /// Begins as Firecracker does. Unless `pci`, devices are memory-mapped, and both ACPI and the command line name them,
    /// because clients boot kernels with and without ACPI.
    pub fn firecracker(pci: bool) -> Self {
        let (virtio, slots, suffix) = match pci {
            true => (VirtioSpec::Pci, SLOTS, ""),
            false => (VirtioSpec::MmioBoth, 0, " pci=off"),
        };
        let spec = VmSpec {
            virtio,
            // Its clients add devices without saying so before.
            hotplug: HotplugSlots(slots),
            memory: 128 * MIB,
            // Clients look for threads with these names.
            vcpu_thread: "fc_vcpu ",
            ..VmSpec::new("")
        };
        Model::new(spec, suffix)
    }

    /// Sets the file or FIFO for metrics.
    pub fn set_metrics(&mut self, path: Option<PathBuf>) {
        self.spec.metrics = path;
    }

    /// Notes what the command line said about the log, for `GET /vm/config`.
    pub fn set_logger(&mut self, logger: Logger) {
        self.logger = (logger != Logger::default()).then_some(logger);
    }

    /// Gives the guest a boot timer, which counts from when the start is ordered.
    pub fn set_boot_timer(&mut self, has: bool) {
        self.boot_timer = has;
    }

    /// Names the disks that `spec` has.
    fn name_drives(&mut self) {
        let disks = self.spec.disk.iter().enumerate();
        self.drives = disks
            .map(|(index, disk)| Drive::of_spec(index, disk))
            .collect();
    }

    /// Names the networks that `spec` has.
    fn name_nets(&mut self) {
        let nets = self.spec.net.iter().enumerate();
        self.nets = nets.map(|(index, net)| Net::of_spec(index, net)).collect();
    }

    /// Whether nothing may be opened once the guest runs.
    pub(super) fn is_sealed(&self) -> bool {
        self.spec.sealed
    }

    /// Names a kernel, whatever it is.
    #[cfg(any(test, feature = "test-utils"))]
    pub(super) fn set_kernel(&mut self, path: &str) {
        self.spec.kernel = path.into();
    }

    /// Whether a kernel is named.
    pub(super) fn has_kernel(&self) -> bool {
        !self.spec.kernel.as_os_str().is_empty()
    }

    /// Whether nothing was described yet that belongs to a machine's start.
    pub(super) fn is_empty(&self) -> bool {
        let has_devices = !self.drives.is_empty() || !self.nets.is_empty();
        !self.is_described && !self.has_kernel() && !has_devices
    }

    /// The whole description.
    ///
    /// # Errors
    /// [`Error::Model`] says what is missing or not possible.
    pub fn finish(&self) -> Result<VmSpec, Error> {
        self.complete().map_err(|fault| Error::Model(fault.message))
    }

    /// As [`finish`](Self::finish), for a request.
    pub(super) fn complete(&self) -> Result<VmSpec, Fault> {
        if !self.has_kernel() {
            let why = "there is no kernel to start; name one by PUT /boot-source";
            return Err(wrong("kernel_image_path", why));
        }
        let mut spec = self.spec.clone();
        spec.boot_timer = self.boot_timer.then(Moment::now);
        spec.cmdline.push_str(self.suffix);
        // The root disk is always the first one.
        if let Some(words) = self.drives.first().and_then(Drive::root_words) {
            spec.cmdline.push_str(&words);
        }
        spec.mmds = self.mmds.spec(&self.nets)?;
        spec.validate()
            .map_err(|error| Fault::new(error.to_string()))?;
        Ok(spec)
    }

    /// `PUT /boot-source`.
    pub(super) fn put_boot_source(&mut self, mut fields: Fields) -> Result<(), Fault> {
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
    pub(super) fn put_machine(&mut self, fields: Fields) -> Result<(), Fault> {
        self.set_machine(fields, true)
    }

    /// `PATCH /machine-config`: the fields that are given.
    pub(super) fn patch_machine(&mut self, fields: Fields) -> Result<(), Fault> {
        self.set_machine(fields, false)
    }

    fn set_machine(&mut self, mut fields: Fields, is_whole: bool) -> Result<(), Fault> {
        let cpus = fields.number("vcpu_count")?;
        let mib = fields.number("mem_size_mib")?;
        let off = Value::Bool(false);
        fields.only("smt", &off, "vCPUs are cores of one thread")?;
        let tracks = fields.switch("track_dirty_pages")?;
        fields.only(
            "huge_pages",
            &json!("None"),
            "the host's settings decide about huge pages",
        )?;
        let why =
            "PUT /cpu-config, or cpu-features by PATCH /options, says which features a guest has";
        fields.only("cpu_template", &json!("None"), why)?;
        fields.finish()?;
        if is_whole {
            Fields::required("vcpu_count", cpus)?;
            Fields::required("mem_size_mib", mib)?;
        } else if cpus.or(mib).is_none() && tracks.is_none() {
            return Err(Fault::new(
                "nothing is to be changed; give vcpu_count, mem_size_mib or track_dirty_pages",
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
            spec.check_balloon()
                .map_err(|error| wrong("mem_size_mib", error))?;
        }
        // A PUT without it means the default.
        spec.track_dirty_pages = tracks.unwrap_or(!is_whole && spec.track_dirty_pages);
        self.spec = spec;
        self.is_described = true;
        Ok(())
    }

    /// Sets what a template asks for, whose JSON is `body`. It follows what there is without a template.
    pub(super) fn set_template(&mut self, template: Template, body: Value) -> Result<(), Fault> {
        let before = self.default_cpu.clone();
        let msrs = [before.msrs, template.msrs].concat();
        config::check_msrs(&msrs).map_err(faulty("msr_modifiers"))?;
        self.spec.msrs = msrs;
        self.spec.cpu_features = [before.features, template.features].concat();
        self.spec.kvm_capabilities = [before.capabilities, template.capabilities].concat();
        self.template = Some(body);
        self.is_described = true;
        Ok(())
    }

    /// `PUT /drives/{id}`: adds a disk, or replaces the one with that ID.
    pub(super) fn put_drive(&mut self, id: &str, fields: Fields) -> Result<(), Fault> {
        let drive = Drive::parse(id, fields)?;
        let mut drives = self.drives.clone();
        let old = drives.iter().position(|drive| drive.id == id);
        match old {
            Some(old) => drives[old] = drive,
            None => drives.push(drive),
        }
        if drives.iter().filter(|drive| drive.is_root).count() > 1 {
            let why = "there is a root device already; only one is possible";
            return Err(wrong("is_root_device", why));
        }
        // The guest knows the root disk as its first one.
        drives.sort_by_key(|drive| !drive.is_root);
        let disk = drives.iter().map(|drive| drive.spec.clone()).collect();
        let spec = VmSpec {
            disk,
            ..self.spec.clone()
        };
        spec.check_disks().map_err(faulty("path_on_host"))?;
        (self.spec, self.drives) = (spec, drives);
        Ok(())
    }

    /// `PUT /network-interfaces/{id}`: adds a network, or replaces the one with that ID.
    pub(super) fn put_net(&mut self, id: &str, fields: Fields) -> Result<(), Fault> {
        let net = Net::parse(id, fields)?;
        let mut nets = self.nets.clone();
        match nets.iter().position(|net| net.id == id) {
            Some(old) => nets[old] = net,
            None => nets.push(net),
        }
        let spec = VmSpec {
            net: nets.iter().map(|net| net.spec.clone()).collect(),
            ..self.spec.clone()
        };
        spec.check_nets().map_err(|error| {
            let field = match error {
                config::Error::SameMac { .. } | config::Error::Net(NetError::Mac { .. }) => {
                    "guest_mac"
                }
                config::Error::Net(NetError::Mtu { .. }) => "mtu",
                _ => "host_dev_name",
            };
            wrong(field, error)
        })?;
        (self.spec, self.nets) = (spec, nets);
        Ok(())
    }

    /// `PUT /entropy`.
    pub(super) fn put_entropy(&mut self, mut fields: Fields) -> Result<(), Fault> {
        let limiter = fields.take("rate_limiter");
        fields.finish()?;
        let Limits { bandwidth, iops } = limits("rate_limiter", limiter, Limits::default())?;
        self.spec.rng = Some(RngSpec { bandwidth, iops });
        self.is_described = true;
        Ok(())
    }

    /// `PUT /vsock`.
    pub(super) fn put_vsock(&mut self, fields: Fields) -> Result<(), Fault> {
        self.spec = vsock::put(&self.spec, fields)?;
        self.is_described = true;
        Ok(())
    }

    /// `PUT /logger`, in every phase.
    pub(super) fn put_logger(&mut self, fields: Fields, may_open: bool) -> Result<(), Fault> {
        let logger = Logger::parse(fields)?;
        if logger.path.is_some() && !may_open {
            let why = "a sealed machine has started, so no file can be opened; set it before";
            return Err(wrong("log_path", why));
        }
        if let Some(path) = &logger.path
            && inputs::same_as(path, &self.spec).is_some()
        {
            let why = "the machine is made from this file; choose another one";
            return Err(wrong("log_path", why));
        }
        let whole = logger.clone().over(self.logger.clone().unwrap_or_default());
        logger.set(&whole)?;
        self.logger = Some(whole);
        Ok(())
    }

    /// `PUT /serial`.
    pub(super) fn put_serial(&mut self, mut fields: Fields) -> Result<(), Fault> {
        let path = fields.path("serial_out_path")?;
        let limiter = fields.take("rate_limiter");
        fields.finish()?;
        self.spec.serial_bandwidth = bucket("rate_limiter", limiter, None)?;
        self.spec.serial = path.map_or(SerialSpec::Stdio, SerialSpec::File);
        Ok(())
    }

    /// `PUT /metrics`.
    pub(super) fn put_metrics(&mut self, mut fields: Fields) -> Result<(), Fault> {
        let path = Fields::required("metrics_path", fields.path("metrics_path")?)?;
        fields.only("emit_id", &Value::Bool(false), NO_WORDS)?;
        fields.only("properties", &json!({}), NO_WORDS)?;
        fields.finish()?;
        telemetry::check(&path).map_err(|error| wrong("metrics_path", error))?;
        self.spec.metrics = Some(path);
        Ok(())
    }

    /// `PATCH /options`: the keys of our own config files.
    pub(super) fn patch_options(&mut self, body: &[u8]) -> Result<(), Fault> {
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
        let has_new_disks = spec.disk != self.spec.disk;
        let has_new_nets = spec.net != self.spec.net;
        if cpu_of(&spec) != cpu_of(&self.spec) {
            self.template = None;
        }
        self.spec = spec;
        if has_new_disks {
            self.name_drives();
        }
        if has_new_nets {
            self.name_nets();
        }
        Ok(())
    }

    /// `GET /options`.
    pub(super) fn options(&self) -> Result<Value, Fault> {
        serde_json::to_value(&self.spec)
            .map_err(|error| Fault::new(format!("JSON can't hold this machine: {error}")))
    }

    /// `GET /machine-config`.
    pub(super) fn machine(&self) -> Value {
        json!({
            "vcpu_count": self.spec.cpus,
            "mem_size_mib": self.spec.memory / MIB,
            "smt": false,
            "track_dirty_pages": self.spec.track_dirty_pages,
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
    pub(super) fn whole(&self) -> Value {
        json!({
            "balloon": self.spec.balloon.as_ref().map(balloon::json),
            "drives": self.drives.iter().map(Drive::json).collect::<Vec<_>>(),
            "boot-source": self.boot_source(),
            "cpu-config": self.template,
            "logger": self.logger.as_ref().map(Logger::json),
            "machine-config": self.machine(),
            "metrics": self.spec.metrics.as_ref().map(|path| json!({ "metrics_path": path.to_string_lossy() })),
            "memory-hotplug": null,
            "mmds-config": self.mmds.json(),
            "network-interfaces": self.nets.iter().map(Net::json).collect::<Vec<_>>(),
            "vsock": self.spec.vsock.as_ref().map(vsock::json),
            "entropy": self.spec.rng.map(|rng| json!({ "rate_limiter": limiter(rng.limits()) })),
            "pmem": [],
        })
    }
}

/// Checks that this process may read the file of a field. Opens nothing, because it may be a pipe.
pub(super) fn check_readable(field: &str, path: &Path) -> Result<(), Fault> {
    access(path, Access::READ_OK).map_err(|errno| {
        let error = std::io::Error::from(errno);
        let what = format_args!("{path:?} can't be read: {error}; name a file of this host");
        wrong(field, what)
    })
}
