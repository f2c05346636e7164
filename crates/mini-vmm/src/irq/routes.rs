// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The GSI routing table. KVM keeps one table per VM, and replaces it only as a whole (KVM API section 4.52).

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Mutex;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};

use super::Msi;
use crate::layout::IOAPIC_PINS;
use crate::sync::lock;

/// The number of inputs of a PIC.
const PIC_INPUTS: u32 = 8;
/// Entries of KVM's default table: see [`default_table`].
const DEFAULT_ENTRIES: usize = 40;
/// The most messages that can have a route: kvm-bindings' table holds 1,024 entries.
const MAX_MESSAGES: usize = 1024 - DEFAULT_ENTRIES;

/// All routes are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the machine's {MAX_MESSAGES} interrupt routes do not suffice; give devices of other processes fewer queues"
)]
pub struct NoRoute;

type Tell = dyn Fn(&[kvm_irq_routing_entry]) -> io::Result<()> + Send + Sync;

/// The routing table. KVM's default table is in force until a message gets a route.
pub(super) struct Routes {
    /// The messages by GSI.
    messages: Mutex<BTreeMap<u32, Msi>>,
    tell: Box<Tell>,
}

impl Routes {
    /// KVM's default table. Each new table is passed to `tell` as a whole.
    pub fn new(
        tell: impl Fn(&[kvm_irq_routing_entry]) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Routes {
            messages: Mutex::default(),
            tell: Box::new(tell),
        }
    }

    /// Adds a route for `msi`, and returns its GSI: one above the IOAPIC's pins.
    pub fn add(&self, msi: Msi) -> io::Result<u32> {
        let mut messages = lock(&self.messages);
        let all = IOAPIC_PINS..IOAPIC_PINS + MAX_MESSAGES as u32;
        let gsi = all.into_iter().find(|gsi| !messages.contains_key(gsi));
        let gsi = gsi.ok_or_else(|| io::Error::other(NoRoute))?;
        messages.insert(gsi, msi);
        self.tell(&messages).inspect_err(|_| {
            messages.remove(&gsi);
        })?;
        Ok(gsi)
    }

    /// Changes the message of a GSI that was [added](Self::add).
    pub fn replace(&self, gsi: u32, msi: Msi) -> io::Result<()> {
        let mut messages = lock(&self.messages);
        let Some(before) = messages.insert(gsi, msi) else {
            messages.remove(&gsi);
            return Err(io::Error::other("this interrupt has no route"));
        };
        if before == msi {
            return Ok(());
        }
        self.tell(&messages).inspect_err(|_| {
            messages.insert(gsi, before);
        })
    }

    /// Frees a GSI that is no longer raised. KVM is told at the next change.
    pub fn remove(&self, gsi: u32) {
        lock(&self.messages).remove(&gsi);
    }

    #[cfg(test)]
    pub fn get(&self, gsi: u32) -> Option<Msi> {
        lock(&self.messages).get(&gsi).copied()
    }

    fn tell(&self, messages: &BTreeMap<u32, Msi>) -> io::Result<()> {
        let mut table = default_table();
        table.extend(messages.iter().map(|(gsi, msi)| message(*gsi, *msi)));
        (self.tell)(&table)
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Routes").field(&self.messages).finish()
    }
}

/// The table that `KVM_CREATE_IRQCHIP` sets: GSIs 0 to 15 go to PIC and IOAPIC, 16 to 23 to the IOAPIC only (KVM API
/// section 4.24).
fn default_table() -> Vec<kvm_irq_routing_entry> {
    let mut table = Vec::with_capacity(DEFAULT_ENTRIES + 1);
    for gsi in 0..IOAPIC_PINS {
        table.push(chip(gsi, KVM_IRQCHIP_IOAPIC, gsi));
        match gsi / PIC_INPUTS {
            0 => table.push(chip(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)),
            1 => table.push(chip(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_INPUTS)),
            _ => {}
        }
    }
    table
}

fn chip(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        },
        ..Default::default()
    }
}

fn message(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: msi.address as u32,
                address_hi: (msi.address >> 32) as u32,
                data: msi.data,
                ..Default::default()
            },
        },
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// GSI and type of each entry of the recorded tables.
    type Told = Arc<Mutex<Vec<Vec<(u32, u32)>>>>;

    fn routes() -> (Routes, Told) {
        let told = Told::default();
        let tables = Arc::clone(&told);
        let routes = Routes::new(move |table| {
            let table = table.iter().map(|entry| (entry.gsi, entry.type_));
            lock(&tables).push(table.collect());
            Ok(())
        });
        (routes, told)
    }

    fn msi(data: u32) -> Msi {
        Msi {
            address: 0xfee0_0000,
            data,
        }
    }

    #[test]
    fn kvms_own_routes_stay_in_every_table() {
        let (routes, told) = routes();
        assert!(lock(&told).is_empty(), "KVM's own table is in force");
        assert_eq!(routes.add(msi(1)).unwrap(), 24);
        assert_eq!(routes.add(msi(2)).unwrap(), 25);
        let table = lock(&told).pop().unwrap();
        assert_eq!(table.len(), DEFAULT_ENTRIES + 2);
        for gsi in 0..IOAPIC_PINS {
            let entries = table.iter().filter(|(of, _)| *of == gsi).count();
            assert_eq!(entries, if gsi < 16 { 2 } else { 1 }, "{gsi}");
        }
        let messages: Vec<_> = table
            .iter()
            .filter(|(_, kind)| *kind == KVM_IRQ_ROUTING_MSI)
            .collect();
        assert_eq!(messages, [&(24, 2), &(25, 2)]);
    }

    #[test]
    fn a_gsi_that_was_given_back_is_the_next_one() {
        let (routes, told) = routes();
        let gsis = [1, 2, 3].map(|data| routes.add(msi(data)).unwrap());
        routes.remove(gsis[1]);
        assert_eq!(lock(&told).len(), 3, "that alone tells KVM nothing");
        assert_eq!(routes.add(msi(4)).unwrap(), gsis[1]);
        routes.replace(gsis[0], msi(5)).unwrap();
        routes.replace(gsis[0], msi(5)).unwrap();
        assert_eq!(lock(&told).len(), 5, "no change tells KVM nothing");
        routes.remove(gsis[2]);
        routes.replace(gsis[2], msi(6)).unwrap_err();
        assert_eq!(routes.get(gsis[2]), None);
    }

    #[test]
    fn the_table_is_bounded() {
        let (routes, told) = routes();
        for data in 0..MAX_MESSAGES as u32 {
            routes.add(msi(data)).unwrap();
        }
        assert_eq!(lock(&told).last().unwrap().len(), 1024);
        let error = routes.add(msi(0)).unwrap_err();
        assert_eq!(error.to_string(), NoRoute.to_string());
        routes.remove(700);
        assert_eq!(routes.add(msi(0)).unwrap(), 700);
    }

    #[test]
    fn what_kvm_refuses_is_not_in_the_table() {
        let routes = Routes::new(|table| match table.len() {
            41 => Ok(()),
            _ => Err(io::Error::other("no")),
        });
        let gsi = routes.add(msi(1)).unwrap();
        routes.add(msi(2)).unwrap_err();
        assert_eq!((routes.get(gsi), routes.get(25)), (Some(msi(1)), None));

        let accepts = Arc::new(Mutex::new(true));
        let accepting = Arc::clone(&accepts);
        let routes = Routes::new(move |_| match *lock(&accepting) {
            true => Ok(()),
            false => Err(io::Error::other("no")),
        });
        let gsi = routes.add(msi(1)).unwrap();
        *lock(&accepts) = false;
        routes.replace(gsi, msi(2)).unwrap_err();
        assert_eq!(routes.get(gsi), Some(msi(1)));
    }
}
