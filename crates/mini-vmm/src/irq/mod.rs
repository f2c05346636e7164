// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupts: which device has which line, and how devices raise them. A device makes no KVM call itself.
//!
//! - An [edge](IrqLine) of a GSI. The GSI is fixed ([`crate::layout`]), or the machine's plan takes it from [`Pins`].
//! - A [level](LevelLine) of a GSI. Its device is checked again after the guest has served the interrupt.
//! - A message with address and data, as in MSI-X: an [`MsiSender`] if this process sends it, an [`MsiLine`] if the
//!   kernel or another process does.
//!
//! Conversely, a guest's write to a [doorbell](Doorbell) becomes an event without an exit to this process.
//!
//! An unused interrupt costs a machine nothing, and raising an interrupt takes no lock.

mod doorbell;
mod level;
mod line;
mod msi;
pub(crate) mod pic;
mod pins;
mod routes;

use std::io;
use std::sync::{Arc, Weak};

use kvm_bindings::KvmIrqRouting;
use kvm_ioctls::VmFd;
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use routes::Routes;

pub use doorbell::Doorbell;
pub use level::LevelLine;
pub use line::IrqLine;
pub use msi::{Msi, MsiLine, MsiSender};
pub use pins::{NoPin, Pins};
pub use routes::NoRoute;

/// Creates the interrupts of a machine's devices. Clones belong to the same machine, and don't keep it alive.
#[derive(Clone, Debug)]
pub struct Irqs {
    controllers: Controllers,
    routes: Arc<Routes>,
}

/// KVM's interrupt controllers. Without a machine, all interrupts are lost.
#[derive(Clone, Debug)]
struct Controllers(Option<Weak<VmFd>>);

impl Controllers {
    /// Whether the machine has ended. Its interrupts are then disconnected.
    fn is_gone(&self) -> bool {
        self.0.as_ref().is_some_and(|vm| vm.strong_count() == 0)
    }

    fn call<T: Default>(&self, act: impl FnOnce(&VmFd) -> errno::Result<T>) -> io::Result<T> {
        let Some(vm) = &self.0 else {
            return Ok(T::default());
        };
        let vm = vm
            .upgrade()
            .ok_or_else(|| io::Error::other("its machine is gone"))?;
        act(&vm).map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

impl Irqs {
    /// The interrupts of `vm`, which has KVM's interrupt controllers.
    pub fn new(vm: &Arc<VmFd>) -> Self {
        Irqs::of(Controllers(Some(Arc::downgrade(vm))))
    }

    /// Interrupts of devices without a machine; all are lost.
    pub fn unconnected() -> Self {
        Irqs::of(Controllers(None))
    }

    fn of(controllers: Controllers) -> Self {
        let of_routes = controllers.clone();
        let routes = Routes::new(move |entries| {
            // Can't fail: [`Routes`] limits the number of entries.
            let table = KvmIrqRouting::from_entries(entries).map_err(io::Error::other)?;
            of_routes.call(|vm| vm.set_gsi_routing(&table))
        });
        Irqs {
            controllers,
            routes: Arc::new(routes),
        }
    }

    /// An edge-triggered line of `gsi`.
    pub fn edge(&self, gsi: u32) -> IrqLine {
        let controllers = self.controllers.clone();
        IrqLine::new(move |event| controllers.call(|vm| vm.register_irqfd(event, gsi)))
    }

    /// A level-triggered line of `gsi`.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn level(&self, gsi: u32) -> io::Result<LevelLine> {
        let controllers = self.controllers.clone();
        LevelLine::new(move |event, served| {
            controllers.call(|vm| vm.register_irqfd_with_resample(event, served, gsi))
        })
    }

    /// Makes KVM write `event` when the guest writes at `doorbell`, instead of exiting (`KVM_IOEVENTFD`, KVM API
    /// section 4.59).
    ///
    /// # Errors
    /// Another eventfd already has this doorbell, or the host has no resources left.
    pub fn connect_doorbell(&self, doorbell: Doorbell, event: &EventFd) -> io::Result<()> {
        self.controllers.call(|vm| doorbell.connect(vm, event))
    }

    /// Makes the guest's writes exit again.
    ///
    /// # Errors
    /// This eventfd is not connected to the doorbell.
    pub fn disconnect_doorbell(&self, doorbell: Doorbell, event: &EventFd) -> io::Result<()> {
        self.controllers.call(|vm| doorbell.disconnect(vm, event))
    }

    /// Sends messages (`KVM_SIGNAL_MSI`, KVM API section 4.71).
    pub fn msi(&self) -> MsiSender {
        let controllers = self.controllers.clone();
        MsiSender::new(move |msi| {
            // More than 0 means delivered, 0 blocked by the guest, an error that no local APIC has this ID.
            let taken = controllers.call(|vm| vm.signal_msi(msi.into()))?;
            Ok(taken > 0)
        })
    }

    /// An eventfd that sends a message when it is written.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn msi_line(&self) -> io::Result<MsiLine> {
        let controllers = self.controllers.clone();
        MsiLine::new(Arc::clone(&self.routes), move |event, gsi, on| {
            if !on && controllers.is_gone() {
                return Ok(());
            }
            controllers.call(|vm| match on {
                true => vm.register_irqfd(event, gsi),
                false => vm.unregister_irqfd(event, gsi),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_machine_interrupts_are_lost() {
        let irqs = Irqs::unconnected();
        irqs.edge(4).raise().unwrap();
        irqs.level(16).unwrap().raise().unwrap();
        assert!(!irqs.msi().signal(0xfee0_0000, 0x41).unwrap());
        irqs.msi_line().unwrap().connect(0xfee0_0000, 0x41).unwrap();
    }

    #[test]
    fn after_its_machine_a_device_can_interrupt_nobody() {
        let irqs = Irqs::of(Controllers(Some(Weak::new())));
        let gone = |result: io::Result<()>| {
            let error = result.unwrap_err();
            assert_eq!(error.to_string(), "its machine is gone");
        };
        gone(irqs.edge(4).raise());
        gone(irqs.level(16).unwrap().raise());
        gone(irqs.msi().signal(0xfee0_0000, 0x41).map(drop));
        let line = irqs.msi_line().unwrap();
        gone(line.connect(0xfee0_0000, 0x41));
        line.disconnect().unwrap();
    }
}
