// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The wait before a submission that the host refused is tried again. If nothing is in flight, no completion ends it.

use std::io;
use std::time::Duration;

use virtio_transport::device::Io;

use super::device::{READABLE, RETRY};
use crate::timer::Timer;

/// The delay before a retry when the host lacks resources.
pub(super) const SOON: Duration = Duration::from_millis(1);

/// A wait. Its timer exists from the first refusal after a start on.
#[derive(Debug, Default)]
pub(super) struct Retry(Option<Timer>);

impl Retry {
    /// Makes an event follow soon.
    pub(super) fn soon(&mut self, io: &mut Io<'_>) {
        // Without a timer the current event is repeated.
        if self.arm(io).is_err() {
            io.again();
        }
    }

    fn arm(&mut self, io: &mut Io<'_>) -> io::Result<()> {
        if self.0.is_none() {
            let timer = Timer::new()?;
            io.watch(timer.source(), RETRY, READABLE)?;
            self.0 = Some(timer);
        }
        self.0.as_mut().map_or(Ok(()), |timer| timer.arm(SOON))
    }

    /// Handles the end of the wait.
    pub(super) fn rest(&mut self) {
        self.0.iter_mut().for_each(Timer::rest);
    }

    pub(super) fn unwatch(&mut self, io: &mut Io<'_>) {
        if let Some(timer) = self.0.take() {
            let _ = io.unwatch(timer.source(), RETRY);
        }
    }
}
