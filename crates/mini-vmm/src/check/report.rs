// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The report of `mini-vmm check`.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::Cap;
use serde::Serialize;

use super::capabilities::{self, Capability};
use super::routes::Routes;
use super::{Error, open};
use crate::hypercall::para;
use crate::layout;
use crate::probe::guest::{self, GuestTest};
use crate::probe::{Cpu, Virtualization};

/// What this host can do, as data. `Display` formats it as one screen of text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The device that was checked.
    pub kvm: PathBuf,
    /// The host's CPU.
    pub cpu: Cpu,
    /// Why KVM can't be used, and the next step.
    pub problem: Option<String>,
    /// KVM's API version.
    pub api_version: Option<i32>,
    /// The most vCPUs of a machine in KVM, and how many KVM recommends.
    pub vcpus: Option<Vcpus>,
    /// The capabilities that mini-vmm uses. Empty if KVM can't be opened.
    pub capabilities: Vec<Capability>,
    /// The result of a tiny guest. `None` if KVM can't be used.
    pub guest_test: Option<GuestTest>,
    /// The nested virtualization that KVM offers. Guests see it with `--nested on`.
    pub nested: Option<Virtualization>,
    /// The routes for guests' hypercalls. `None` if KVM can't be used.
    pub routes: Option<Routes>,
    /// Whether a stock Linux kernel can run here.
    pub stock_kernel: bool,
    /// Why, or why not.
    pub reason: String,
}

/// How many vCPUs a machine may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Vcpus {
    /// The maximum (`KVM_CAP_MAX_VCPUS`).
    pub max: i32,
    /// KVM's recommendation (`KVM_CAP_NR_VCPUS`).
    pub recommended: i32,
}

/// Checks the KVM at `path` and runs a tiny guest on it. Takes a few milliseconds, or two seconds if that guest hangs.
///
/// Installs an empty handler for `SIGRTMIN`, the kick signal of `vcpu-loop`.
pub fn probe(path: &Path) -> Report {
    let mut report = Report::new(path.to_owned(), Cpu::here());
    match open(path) {
        Err(error) => report.problem = Some(error.to_string()),
        Ok(kvm) => {
            let kvm = Arc::new(kvm);
            report.api_version = Some(kvm.get_api_version());
            report.vcpus = Some(Vcpus {
                max: kvm.check_extension_int(Cap::MaxVcpus),
                recommended: kvm.check_extension_int(Cap::NrVcpus),
            });
            report.capabilities = capabilities::all(&kvm);
            match capabilities::missing(&kvm) {
                Some(capability) => {
                    report.problem = Some(Error::Capability { capability }.to_string());
                }
                None => {
                    report.guest_test = Some(guest::test(&kvm));
                    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).ok();
                    report.nested = supported.as_ref().and_then(Virtualization::offered);
                    report.routes = Some(Routes::ask(&kvm, &para::probe(Arc::clone(&kvm))));
                }
            }
        }
    }
    report.conclude();
    report
}

impl Report {
    fn new(kvm: PathBuf, cpu: Cpu) -> Self {
        Report {
            kvm,
            cpu,
            problem: None,
            api_version: None,
            vcpus: None,
            capabilities: Vec::new(),
            guest_test: None,
            nested: None,
            routes: None,
            stock_kernel: false,
            reason: String::new(),
        }
    }

    /// Whether a stock Linux kernel can run here: the exit status of `mini-vmm check`.
    pub fn ok(&self) -> bool {
        self.stock_kernel
    }

    /// Sets the conclusion from the other fields.
    fn conclude(&mut self) {
        let emulated = self.cpu.virtualization.is_none();
        self.stock_kernel = self.problem.is_none() && self.guest_test == Some(GuestTest::Passed);
        self.reason = match (&self.problem, &self.guest_test) {
            (Some(problem), _) => problem.clone(),
            (None, Some(GuestTest::Passed)) => "KVM runs the test guest".to_owned(),
            (None, Some(GuestTest::NotRun { error })) => {
                format!(
                    "the test guest could not be run ({error}); free some memory, or look at the kernel's log"
                )
            }
            (None, Some(test)) if emulated => format!(
                "the test guest {test}: the CPU shows neither vmx nor svm, so this KVM runs guests \
                 in an instruction emulator; tiny guests work, for Linux use a host with vmx or svm"
            ),
            (None, Some(test)) => format!(
                "the test guest {test} although the CPU has hardware virtualization; look at the \
                 kernel's log, and at the outer hypervisor if there is one"
            ),
            (None, None) => "no test guest was run".to_owned(),
        };
    }
}

/// The width of the left column.
const LABEL: usize = 16;
/// The width of a line.
const LINE: usize = 96;

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let device = match (&self.problem, self.api_version) {
            (_, Some(version)) => format!("{}, API version {version}", self.kvm.display()),
            (Some(_), None) => format!("{} can't be used", self.kvm.display()),
            (None, None) => self.kvm.display().to_string(),
        };
        row(f, "KVM", &device)?;
        row(f, "CPU", &self.cpu_line())?;
        if let Some(vcpus) = self.vcpus {
            let max = vcpus.max.min(layout::MAX_CPUS.into());
            let text = format!(
                "up to {max} a machine (KVM: {} at most, {} recommended)",
                vcpus.max, vcpus.recommended
            );
            row(f, "vCPUs", &text)?;
        }
        self.capability_rows(f)?;
        if let Some(test) = &self.guest_test {
            row(f, "Test guest", &test.to_string())?;
        }
        if self.routes.is_some() {
            let nested = match self.nested {
                Some(nested) => format!("{}, hidden from guests unless --nested on", nested.flag()),
                None => "no: this KVM offers guests neither vmx nor svm".to_owned(),
            };
            row(f, "Nested", &nested)?;
        }
        for (label, text) in self.routes.iter().flat_map(Routes::rows) {
            row(f, label, &text)?;
        }
        let verdict = if self.stock_kernel { "yes" } else { "no" };
        row(f, "Stock kernels", &format!("{verdict}: {}", self.reason))
    }
}

impl Report {
    fn cpu_line(&self) -> String {
        let model = if self.cpu.model.is_empty() {
            "unknown model"
        } else {
            &self.cpu.model
        };
        let virtualization = match self.cpu.virtualization {
            Some(virtualization) => virtualization.flag(),
            None => "neither vmx nor svm",
        };
        let place = if self.cpu.is_guest {
            ", in a virtual machine"
        } else {
            ""
        };
        format!("{model} ({}), {virtualization}{place}", self.cpu.vendor)
    }

    /// Names the available capabilities in a few lines. Each missing one gets its own line with its purpose.
    fn capability_rows(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (label, required) in [("Required", true), ("Optional", false)] {
            let of_kind = || {
                self.capabilities
                    .iter()
                    .filter(move |c| c.required == required)
            };
            let there: Vec<_> = of_kind()
                .filter(|c| c.value > 0)
                .map(|c| short(c.name))
                .collect();
            if !there.is_empty() {
                row(f, label, &there.join(" "))?;
            }
            for lacked in of_kind().filter(|c| c.value == 0) {
                let text = format!("no {}: {}", short(lacked.name), lacked.purpose);
                row(f, label, &text)?;
            }
        }
        Ok(())
    }
}

fn short(name: &'static str) -> &'static str {
    name.strip_prefix("KVM_CAP_").unwrap_or(name)
}

/// One labelled paragraph, wrapped at [`LINE`].
fn row(f: &mut Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    let mut line = format!("{label:<LABEL$}");
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.len() + 1 + word.len() > LINE {
            writeln!(f, "{line}")?;
            line = " ".repeat(LABEL);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    writeln!(f, "{}", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::super::routes;
    use super::*;
    use crate::probe::guest::Step;

    fn report(virtualization: Option<Virtualization>, test: Option<GuestTest>) -> Report {
        let cpu = Cpu {
            vendor: "GenuineIntel".to_owned(),
            model: "Some CPU".to_owned(),
            virtualization,
            is_guest: false,
        };
        let capability = |name, required, value| {
            let purpose = "something";
            Capability {
                name,
                purpose,
                required,
                value,
            }
        };
        let mut report = Report {
            api_version: Some(12),
            vcpus: Some(Vcpus {
                max: 1024,
                recommended: 2,
            }),
            capabilities: vec![
                capability("KVM_CAP_IRQCHIP", true, 1),
                capability("KVM_CAP_XSAVE2", false, 4096),
                capability("KVM_CAP_PIT2", false, 0),
            ],
            guest_test: test,
            nested: virtualization,
            routes: Some(routes::tests::pio_only()),
            ..Report::new("/dev/kvm".into(), cpu)
        };
        report.conclude();
        report
    }

    #[test]
    fn hardware_that_runs_the_guest_is_fit() {
        let report = report(Some(Virtualization::Vmx), Some(GuestTest::Passed));
        assert!(report.ok());
        let text = report.to_string();
        for expected in [
            "KVM             /dev/kvm, API version 12\n",
            "CPU             Some CPU (GenuineIntel), vmx\n",
            "vCPUs           up to 64 a machine (KVM: 1024 at most, 2 recommended)\n",
            "Required        IRQCHIP\n",
            "Optional        XSAVE2\n",
            "Optional        no PIT2: something\n",
            "Test guest      passed\n",
            "Nested          vmx, hidden from guests unless --nested on\n",
            "Hypercalls      guests can register; auto takes pio here: the VMM answers.",
            "  pio           by a port, on any CPU\n",
            "Stock kernels   yes: KVM runs the test guest\n",
        ] {
            assert!(text.contains(expected), "{expected:?} in {text}");
        }
    }

    #[test]
    fn an_emulator_is_told_from_broken_hardware() {
        let failed = || GuestTest::Failed {
            step: Step::Cmpxchg16b,
            exit: "X".to_owned(),
        };
        let software = report(None, Some(failed()));
        assert!(!software.ok());
        assert!(
            software.reason.contains("instruction emulator"),
            "{}",
            software.reason
        );
        let broken = report(Some(Virtualization::Svm), Some(failed()));
        assert!(!broken.ok());
        assert!(
            broken.reason.contains("hardware virtualization"),
            "{}",
            broken.reason
        );
        // A KVM that runs the guest is usable, whatever the CPU flags say.
        assert!(report(None, Some(GuestTest::Passed)).ok());
        assert!(!report(Some(Virtualization::Vmx), None).ok());
        let late = report(None, Some(GuestTest::TimedOut { step: Step::Avx }));
        assert!(
            late.reason.contains("never got past AVX"),
            "{}",
            late.reason
        );
    }

    #[test]
    fn lines_fit_a_screen() {
        let failed = GuestTest::Failed {
            step: Step::Avx,
            exit: "word ".repeat(60),
        };
        let text = report(None, Some(failed)).to_string();
        assert!(text.lines().all(|line| line.len() <= LINE), "{text}");
        assert!(text.lines().count() <= 24, "{text}");
        assert!(text.contains("offers guests neither vmx nor svm"), "{text}");
    }

    #[test]
    fn json_has_the_same_facts() {
        let test = GuestTest::TimedOut {
            step: Step::Cmpxchg16b,
        };
        let json = serde_json::to_value(report(Some(Virtualization::Svm), Some(test))).unwrap();
        assert_eq!(json["stock_kernel"], false);
        assert_eq!(json["cpu"]["virtualization"], "svm");
        assert_eq!(json["nested"], "svm");
        assert_eq!(json["vcpus"]["max"], 1024);
        assert_eq!(json["capabilities"][0]["name"], "KVM_CAP_IRQCHIP");
        assert_eq!(json["guest_test"]["result"], "timed_out");
        assert_eq!(json["guest_test"]["step"], "cmpxchg16b");
        assert_eq!(json["routes"]["auto"], "pio");
    }
}
