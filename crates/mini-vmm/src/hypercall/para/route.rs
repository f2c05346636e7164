// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which instructions a guest is given to call with.

use std::fmt;
use std::sync::{Arc, OnceLock};

use hypercall_patch::{CpuidError, PioPort, Stub};
use kvm_bindings::CpuId;
use log::info;

use crate::config::{HypercallAbi, HypercallRoute, VmSpec};

/// Why the route that was asked for can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Nobody knows the instruction.
    #[error("--hypercall {route} needs the CPU vendor's instruction: {reason}")]
    Vendor {
        /// The route.
        route: HypercallRoute,
        /// Why there is none.
        reason: CpuidError,
    },
}

/// Proves that KVM completes the first instruction of a stub: a guest of ours executed it and went on with KVM's answer.
/// The error says, as a clause, why it is in doubt.
pub type Probe = Arc<dyn Fn(Stub) -> Result<(), String> + Send + Sync>;

/// The stub that the guests of one machine get, chosen once: by the description, or for
/// [`HypercallRoute::Auto`] when the first vCPU registers.
pub struct RouteChoice {
    /// What auto means where the probe proved it, or why it can't mean that.
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
    /// The choice of the machine that `spec` describes. `cpuid` is the guest's: the vendor that it sees is the one
    /// whose instruction it gets. `probe` is asked at most once, and only for [`HypercallRoute::Auto`].
    ///
    /// # Errors
    /// The route needs the vendor's instruction, and the vendor is unknown.
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
            // A new cell is empty.
            let _ = chosen.set(stub);
        }
        let native = match spec.hypercall_abi {
            HypercallAbi::Kvm => native.map_err(|_| "this CPU's vendor is unknown"),
            // By the vendor's instruction KVM would answer, from other registers than the guest's.
            _ => Err("KVM itself knows no other --hypercall-abi than kvm"),
        };
        Ok(RouteChoice {
            native,
            pio,
            probe,
            chosen,
        })
    }

    /// A choice that was made.
    pub fn fixed(stub: Stub) -> Self {
        RouteChoice {
            native: Err("it was chosen"),
            pio: stub,
            probe: Arc::new(|_| Ok(())),
            chosen: OnceLock::from(stub),
        }
    }

    /// The stub for a restored guest whose memory has the stub `saved`. If no stub is chosen yet and the guest calls by
    /// port I/O, this is port I/O: a native stub can't replace it. Only [`choose_for_saved`](Self::choose_for_saved)
    /// makes the choice final.
    pub fn stub_for_saved(&self, saved: Stub) -> Stub {
        match (self.chosen.get(), saved.port()) {
            (None, Some(_)) => self.pio,
            _ => self.stub(),
        }
    }

    /// Chooses for a guest that was restored with the stub `saved`, if no stub is chosen yet.
    pub fn choose_for_saved(&self, saved: Stub) {
        let stub = self.stub_for_saved(saved);
        self.chosen.get_or_init(|| {
            info!("hypercalls go by {stub}, as those of the saved guest");
            stub
        });
    }

    /// Asks the probe now whatever a later choice could ask it. A probe that remembers its answer then does nothing late.
    pub fn ask_early(&self) {
        if let (None, Ok(native)) = (self.chosen.get(), self.native) {
            // The choice asks again, and finds the answer there.
            let _ = (self.probe)(native);
        }
    }

    /// The stub. The first call may take as long as the probe's deadline; calls of other vCPUs wait for it.
    pub fn stub(&self) -> Stub {
        *self.chosen.get_or_init(|| self.choose())
    }

    fn choose(&self) -> Stub {
        let native = self.native.map_err(str::to_owned);
        match native.and_then(|native| (self.probe)(native).map(|()| native)) {
            Ok(native) => {
                info!(
                    "hypercalls go by {native}: this KVM completes it, and answers; VMM_HC_* do not exist"
                );
                native
            }
            Err(why) => {
                info!("hypercalls go by {}: {why}", self.pio);
                self.pio
            }
        }
    }

    /// The port, if calls may go by port I/O.
    pub fn port(&self) -> Option<PioPort> {
        match self.chosen.get() {
            Some(stub) => stub.port(),
            None => self.pio.port(),
        }
    }
}
