// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Links that outlive devices: each machine of a run uses the same one, with the frames that are under way in it.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use virtio_models::net::{Frame, Link, LinkError, Offloads, Room};

use crate::sync::lock;

/// Where a link is when no device has it.
#[derive(Clone)]
pub(super) struct Home(Arc<Mutex<Option<Box<dyn Link>>>>);

impl Home {
    pub(super) fn new(link: impl Link + 'static) -> Self {
        Home(Arc::new(Mutex::new(Some(Box::new(link)))))
    }

    /// The link, for one device. `None` while another one has it.
    pub(super) fn lend(&self) -> Option<Lent> {
        let mut link = lock(&self.0).take();
        // Another device has another driver.
        if let Some(link) = &mut link {
            link.forget();
        }
        let home = self.clone();
        link.is_some().then_some(Lent { link, home })
    }
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_home = lock(&self.0).is_some();
        f.debug_struct("Home").field("is_home", &is_home).finish()
    }
}

/// A link that returns home when it is dropped.
pub(super) struct Lent {
    /// Taken when it is dropped.
    link: Option<Box<dyn Link>>,
    home: Home,
}

impl Lent {
    fn link(&mut self) -> &mut dyn Link {
        self.link
            .as_deref_mut()
            .expect("it is lent until it is dropped")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *lock(&self.home.0) = self.link.take();
    }
}

/// All of the trait's methods, also those that it has a default for.
impl Link for Lent {
    fn source(&self) -> BorrowedFd<'_> {
        let link = self.link.as_deref();
        link.expect("it is lent until it is dropped").source()
    }

    fn alarm(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_deref()?.alarm()
    }

    fn has_headers(&self) -> bool {
        self.link.as_deref().is_some_and(Link::has_headers)
    }

    fn configure(&mut self, offloads: Offloads) -> Result<(), LinkError> {
        self.link().configure(offloads)
    }

    fn set_active(&mut self, active: bool) -> Result<(), LinkError> {
        self.link().set_active(active)
    }

    fn forget(&mut self) {
        self.link().forget();
    }

    fn send(&mut self, frame: &mut Frame<'_>) -> Result<(), LinkError> {
        self.link().send(frame)
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        self.link().flush()
    }

    fn receive(&mut self, room: Room<'_>) -> Result<usize, LinkError> {
        self.link().receive(room)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use virtio_models::net::Stream;

    use super::*;

    #[test]
    fn a_link_is_with_one_device_and_comes_back() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let number = ours.as_raw_fd();
        let home = Home::new(Stream::new(ours.into()).unwrap());
        for _ in 0..3 {
            let lent = home.lend().unwrap();
            assert_eq!(lent.source().as_raw_fd(), number);
            assert!(!lent.has_headers());
            assert!(home.clone().lend().is_none());
        }
    }
}
