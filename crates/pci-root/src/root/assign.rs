// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Assigns the BARs' addresses at the guest's start.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::RootError;
use crate::address::Address;
use crate::function::Function;
use crate::window::{Span, Window, Windows};

/// Assigns each BAR an address, the largest first, which leaves no gaps.
pub(super) fn assign(
    functions: &mut BTreeMap<Address, Function>,
    windows: &Windows,
) -> Result<(), RootError> {
    let mut bars = Vec::new();
    for (address, function) in functions.iter_mut() {
        let own = function.config_mut().bars();
        bars.extend(own.map(|(number, bar)| (*address, number, bar)));
    }
    bars.sort_by_key(|(.., bar)| Reverse(bar.size()));
    let (mut low, mut high) = (windows.low, windows.high);
    for (address, number, bar) in bars {
        let (window, free) = match bar.is_wide() && windows.high.size > 0 {
            true => (Window::High, &mut high),
            false => (Window::Low, &mut low),
        };
        let size = bar.size();
        let place = take(free, size).ok_or(RootError::WindowFull {
            address,
            bar: number,
            size,
            window,
        })?;
        if let Some(function) = functions.get_mut(&address) {
            function.config_mut().set_bar_address(number, place);
        }
    }
    Ok(())
}

/// Takes `size` bytes, aligned to `size`, from the start of `free`.
fn take(free: &mut Span, size: u64) -> Option<u64> {
    let place = free.base.checked_next_multiple_of(size)?;
    let taken = (place - free.base).checked_add(size)?;
    let left = free.size.checked_sub(taken)?;
    // At the end of the address space nothing is left, and there is no next address.
    *free = Span::new(free.base.checked_add(taken).unwrap_or(0), left);
    Some(place)
}
