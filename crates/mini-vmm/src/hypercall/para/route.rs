// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which instructions a guest gets for its calls.

use std::fmt;
use std::sync::{Arc, OnceLock};

use hypercall_patch::{CpuidError, PioPort, Stub};
use kvm_bindings::CpuId;
use log::info;

use crate::config::{HypercallAbi, HypercallRoute, VmSpec};

/// Why the requested route is not available.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The CPU vendor's instruction is unknown.
    #[error("--hypercall {route} needs the CPU vendor's instruction: {reason}")]
    Vendor {
        /// The route.
        route: HypercallRoute,
        /// Why it is unknown.
        reason: CpuidError,
    },
}

/// Tests whether KVM completes the first instruction of a stub: a test guest executes it and continues with KVM's
/// answer. The error says why that is in doubt, as a clause.
pub type Probe = Arc<dyn Fn(Stub) -> Result<(), String> + Send + Sync>;

/// The stub for the guests of one machine, chosen once: by the description, or for [`HypercallRoute::Auto`] when the
/// first vCPU registers.
pub struct RouteChoice {
    /// The stub that auto chooses if the probe succeeds, or why auto can't choose it.
    native: Result<Stub, &'static str>,
    pio: Stub,
    probe: Probe,
    chosen: OnceLock<Stub>,
}

impl fmt::Debug for RouteChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteChoice")
            .field("native", &self.native)
            .field("pio", &self.pio)
            .field("chosen", &self.chosen)
            .finish_non_exhaustive()
    }
}

impl RouteChoice {
    /// The choice for the machine that `spec` describes. `cpuid` is the guest's; its vendor decides the instruction.
    /// `probe` is called only for [`HypercallRoute::Auto`].
    ///
    /// # Errors
    /// The route needs the vendor's instruction, but the vendor is unknown.
    pub fn new(spec: &VmSpec, cpuid: &CpuId, probe: Probe) -> Result<Self, RouteError> {
        let native = para_msr::kvm::vendor(cpuid).map(Stub::native);
        let pio = Stub::Pio(spec.hypercall_port());
        let chosen = OnceLock::new();
        let fixed = match spec.hypercall {
            HypercallRoute::Auto => None,
            HypercallRoute::Pio(_) => Some(pio),
            route @ (HypercallRoute::Vendor | HypercallRoute::Forward) => {
                Some(native.map_err(|reason| RouteError::Vendor { route, reason })?)
            }
        };
        if let Some(stub) = fixed {
            // Can't fail: the cell is new.
            let _ = chosen.set(stub);
        }
        let native = match spec.hypercall_abi {
            _ if spec.snapshot_dir.is_some() => Err("KVM itself knows no --snapshot-dir"),
            HypercallAbi::Kvm => native.map_err(|_| "this CPU's vendor is unknown"),
            // With the vendor's instruction KVM would answer, but with other registers than the guest uses.
            _ => Err("KVM itself knows no other --hypercall-abi than kvm"),
        };
        Ok(RouteChoice {
            native,
            pio,
            probe,
            chosen,
        })
    }

    /// A choice already made.
    pub fn fixed(stub: Stub) -> Self {
        RouteChoice {
            native: Err("it was chosen"),
            pio: stub,
            probe: Arc::new(|_| Ok(())),
            chosen: OnceLock::from(stub),
        }
    }

    /// The stub for a restored guest that has the stub `saved` in its memory. If no stub is chosen yet and that guest
    /// calls through port I/O, this is port I/O, since a native stub can't replace it. Only
    /// [`choose_for_saved`](Self::choose_for_saved) makes the choice final.
    pub fn stub_for_saved(&self, saved: Stub) -> Stub {
        match (self.chosen.get(), saved.port()) {
            (None, Some(_)) => self.pio,
            _ => self.stub(),
        }
    }

    /// Makes the choice for a restored guest with the stub `saved`, if none is made yet.
    pub fn choose_for_saved(&self, saved: Stub) {
        let stub = self.stub_for_saved(saved);
        self.chosen.get_or_init(|| {
            info!("hypercalls go by {stub}, like those of the saved guest");
            stub
        });
    }

    /// Runs the probe now, if a later choice could need it. The probe remembers its answer, so it does nothing late.
    pub fn ask_early(&self) {
        if let (None, Ok(native)) = (self.chosen.get(), self.native) {
            // The choice calls the probe again and gets the remembered answer.
            let _ = (self.probe)(native);
        }
    }

    /// The stub. The first call may take up to the probe's time limit. Meanwhile other vCPUs' calls wait.
    pub fn stub(&self) -> Stub {
        *self.chosen.get_or_init(|| self.choose())
    }

    fn choose(&self) -> Stub {
        let native = self.native.map_err(str::to_owned);
        match native.and_then(|native| (self.probe)(native).map(|()| native)) {
            Ok(native) => {
                info!(
                    "hypercalls go by {native}: this KVM completes it and answers; VMM_HC_* do not exist"
                );
                native
            }
            Err(why) => {
                info!("hypercalls go by {}: {why}", self.pio);
                self.pio
            }
        }
    }

    /// The port, if calls may use port I/O.
    pub fn port(&self) -> Option<PioPort> {
        match self.chosen.get() {
            Some(stub) => stub.port(),
            None => self.pio.port(),
        }
    }
}
