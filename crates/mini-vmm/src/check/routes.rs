// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The routes for hypercalls on this host, for guests that register for them.

use hypercall_patch::{HypercallInsn, Stub, Vendor};
use kvm_bindings::{KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;
use serde::Serialize;

use vcpu_loop::kvm::shares_registers;

use crate::hypercall::para::{Probe, forward};

/// The hypercall routes, and what each one needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Routes {
    /// Whether a guest can register at all: KVM must leave MSR 0x87655678 to the VMM.
    pub msr_filter: bool,
    /// The route `vendor`.
    pub vendor: VendorRoute,
    /// The route `forward`: whether KVM forwards hypercalls (Xen support).
    pub forward: bool,
    /// The route `pio`: whether KVM shares registers at an exit.
    pub pio: bool,
    /// The route that `auto` takes. `None` if its guests can't register.
    pub auto: Option<AutoRoute>,
}

/// The route on which KVM answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VendorRoute {
    /// The instruction of the guests' CPU. `None` if its vendor is unknown.
    pub instruction: Option<&'static str>,
    /// Whether KVM completed the instruction in a tiny guest.
    pub completes: bool,
    /// If not, why.
    pub reason: Option<String>,
}

/// A route that `auto` can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AutoRoute {
    /// The vendor's instruction.
    Vendor,
    /// Port I/O.
    Pio,
}

impl Routes {
    /// Asks KVM, and tests the vendor's instruction with `probe`.
    pub(super) fn ask(kvm: &Kvm, probe: &Probe) -> Self {
        // These capabilities answer with a plain yes.
        let offers = |capability: u32| kvm.check_extension_raw(u64::from(capability)) == 1;
        let facts = Facts {
            msr_filter: offers(KVM_CAP_X86_USER_SPACE_MSR) && offers(KVM_CAP_X86_MSR_FILTER),
            forward: forward::is_offered(|capability| kvm.check_extension_raw(capability)),
            pio: shares_registers(kvm),
        };
        facts.conclude(vendor(kvm), probe)
    }

    /// Rows of the report: a label and its text.
    pub(super) fn rows(&self) -> Vec<(&'static str, String)> {
        let registration = match (self.msr_filter, self.auto) {
            (false, _) => {
                "no guest can register: this KVM leaves no MSR to the VMM (Linux 5.10 does)"
            }
            (true, None) if self.vendor.completes => {
                "guests can register with --hypercall vendor only"
            }
            (true, None) => "no guest can register: there is no route",
            (true, Some(AutoRoute::Vendor)) => {
                "guests can register; auto takes vendor here: KVM answers, and VMM_HC_* do not exist. \
                 Say --hypercall pio where more than one host runs the guests"
            }
            (true, Some(AutoRoute::Pio)) => {
                "guests can register; auto takes pio here: the VMM answers. Say --hypercall pio where \
                 more than one host runs the guests, on others it may be vendor"
            }
        };
        let vendor = match (&self.vendor.instruction, &self.vendor.reason) {
            (Some(instruction), None) => format!("{instruction}, which this KVM completes"),
            (Some(instruction), Some(reason)) => format!("not by {instruction}: {reason}"),
            (None, reason) => format!("no: {}", reason.as_deref().unwrap_or("unknown vendor")),
        };
        let forward = match self.forward {
            true => "KVM forwards every hypercall",
            false => "no: this KVM has no Xen support",
        };
        let pio = match self.pio {
            true => "by a port, on any CPU",
            false => "no: this KVM does not share registers at an exit (Linux 4.17 does)",
        };
        vec![
            ("Hypercalls", registration.to_owned()),
            ("  vendor", vendor),
            ("  forward", forward.to_owned()),
            ("  pio", pio.to_owned()),
        ]
    }
}

/// What KVM reports.
#[derive(Clone, Copy, Debug)]
struct Facts {
    msr_filter: bool,
    forward: bool,
    pio: bool,
}

impl Facts {
    fn conclude(self, vendor: Result<Vendor, String>, probe: &Probe) -> Routes {
        let vendor = match vendor {
            Err(reason) => VendorRoute {
                instruction: None,
                completes: false,
                reason: Some(reason),
            },
            Ok(vendor) => {
                let reason = probe(Stub::native(vendor)).err();
                VendorRoute {
                    instruction: Some(name(vendor.insn())),
                    completes: reason.is_none(),
                    reason,
                }
            }
        };
        // The choice between the two is made when a guest registers, so a machine with auto needs both.
        let auto = match (self.msr_filter && self.pio, vendor.completes) {
            (false, _) => None,
            (true, true) => Some(AutoRoute::Vendor),
            (true, false) => Some(AutoRoute::Pio),
        };
        Routes {
            msr_filter: self.msr_filter,
            vendor,
            forward: self.forward,
            pio: self.pio,
            auto,
        }
    }
}

/// The vendor of the guests' CPU.
fn vendor(kvm: &Kvm) -> Result<Vendor, String> {
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let cpuid = cpuid.map_err(|error| format!("KVM does not say its CPUID ({error})"))?;
    para_msr::kvm::vendor(&cpuid).map_err(|error| error.to_string())
}

fn name(instruction: HypercallInsn) -> &'static str {
    match instruction {
        HypercallInsn::Vmcall => "vmcall",
        HypercallInsn::Vmmcall => "vmmcall",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;

    const ALL: Facts = Facts {
        msr_filter: true,
        forward: true,
        pio: true,
    };

    fn proved() -> Probe {
        Arc::new(|_| Ok(()))
    }

    fn doubtful() -> Probe {
        Arc::new(|_| Err("it never came back".to_owned()))
    }

    /// Routes for the tests of the report.
    pub(in crate::check) fn pio_only() -> Routes {
        let facts = Facts {
            forward: false,
            ..ALL
        };
        facts.conclude(Ok(Vendor::Intel), &doubtful())
    }

    #[test]
    fn auto_takes_what_was_proved_and_else_a_port() {
        let amd = ALL.conclude(Ok(Vendor::Amd), &proved());
        assert_eq!(amd.auto, Some(AutoRoute::Vendor));
        assert_eq!(amd.vendor.instruction, Some("vmmcall"));
        assert_eq!(pio_only().auto, Some(AutoRoute::Pio));
        let unknown = ALL.conclude(Err("nobody knows it".to_owned()), &proved());
        assert_eq!(unknown.auto, Some(AutoRoute::Pio));
        assert!(!unknown.vendor.completes);
    }

    #[test]
    fn without_a_filter_or_a_route_there_is_no_auto() {
        let no_filter = Facts {
            msr_filter: false,
            ..ALL
        };
        assert_eq!(no_filter.conclude(Ok(Vendor::Intel), &proved()).auto, None);
        let no_pio = Facts { pio: false, ..ALL };
        assert_eq!(no_pio.conclude(Ok(Vendor::Intel), &doubtful()).auto, None);
        // As in `Para::new`: auto doesn't filter the MSR, but the explicit route works.
        let vendor = no_pio.conclude(Ok(Vendor::Intel), &proved());
        assert_eq!((vendor.auto, vendor.vendor.completes), (None, true));
        let rows = format!("{:?}", vendor.rows());
        assert!(rows.contains("--hypercall vendor only"), "{rows}");
    }

    #[test]
    fn rows_say_what_is_missing() {
        let text = |routes: Routes| format!("{:?}", routes.rows());
        let pio = text(pio_only());
        assert!(
            pio.contains("auto takes pio here: the VMM answers"),
            "{pio}"
        );
        assert!(pio.contains("Say --hypercall pio"), "{pio}");
        assert!(pio.contains("not by vmcall: it never came back"), "{pio}");
        assert!(pio.contains("no Xen support"), "{pio}");
        let amd = text(ALL.conclude(Ok(Vendor::Amd), &proved()));
        assert!(amd.contains("vmmcall, which this KVM completes"), "{amd}");
        assert!(amd.contains("auto takes vendor here: KVM answers"), "{amd}");
        assert!(amd.contains("Say --hypercall pio"), "{amd}");
        let nothing = Facts {
            msr_filter: false,
            forward: false,
            pio: false,
        };
        let nothing = text(nothing.conclude(Err("nobody knows it".to_owned()), &proved()));
        for expected in ["Linux 5.10", "Linux 4.17", "no: nobody knows it"] {
            assert!(nothing.contains(expected), "{nothing}");
        }
    }

    #[test]
    fn json_has_one_word_a_fact() {
        let json = serde_json::to_value(pio_only()).unwrap();
        assert_eq!(json["auto"], "pio");
        assert_eq!(json["vendor"]["instruction"], "vmcall");
        assert_eq!(json["vendor"]["completes"], false);
        assert_eq!(json["vendor"]["reason"], "it never came back");
        assert_eq!(json["forward"], false);
        assert_eq!(json["pio"], true);
        assert_eq!(json["msr_filter"], true);
    }
}
