// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Locks that ignore poisoning, and threads that can always be stopped.
//!
//! A vCPU thread that panics is reported and ends the run. Until then the other threads continue with the state that it
//! left. A second panic would only hide the first.

mod promise;
mod wake;
mod worker;

use std::sync::{LockResult, Mutex, MutexGuard, PoisonError};

pub(crate) use promise::{Reply, promise};
pub(crate) use wake::Wake;
pub(crate) use worker::{Stop, Worker, look, readable};

/// Locks `mutex`, poisoned or not.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    unpoisoned(mutex.lock())
}

/// The result of a lock or of a wait on a condition variable, poisoned or not.
pub(crate) fn unpoisoned<G>(result: LockResult<G>) -> G {
    result.unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_under_a_lock_leaves_it_usable() {
        let mutex = Mutex::new(1);
        let panicked = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let mut value = lock(&mutex);
                *value = 2;
                panic!("under the lock");
            });
            thread.join().is_err()
        });
        assert!(panicked && mutex.is_poisoned());
        assert_eq!(*lock(&mutex), 2);
    }
}
