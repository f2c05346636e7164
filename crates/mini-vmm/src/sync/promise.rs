// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An answer that another thread gives once.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::Wake;

/// The end that answers. If it is dropped without an answer, the other end is disconnected.
#[derive(Debug)]
pub(crate) struct Reply<T> {
    answer: Option<Sender<T>>,
    wake: Option<Arc<Wake>>,
}

impl<T> Reply<T> {
    /// Answers. If nobody waits any more, the answer is dropped.
    pub(crate) fn send(self, answer: T) {
        if let Some(sender) = &self.answer {
            let _ = sender.send(answer);
        }
    }
}

impl<T> Drop for Reply<T> {
    /// Wakes the waiting thread after the answer is there, or can't come any more.
    fn drop(&mut self) {
        self.answer = None;
        if let Some(wake) = &self.wake {
            wake.signal();
        }
    }
}

/// Both ends. `wake` is signalled once there is an answer, or will be none.
pub(crate) fn promise<T>(wake: Option<Arc<Wake>>) -> (Reply<T>, Receiver<T>) {
    let (sender, receiver) = channel();
    let answer = Some(sender);
    (Reply { answer, wake }, receiver)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::TryRecvError;

    use super::*;

    #[test]
    fn an_answer_and_its_absence_both_wake() {
        let wake = Arc::new(Wake::new().unwrap());
        let (reply, answer) = promise(Some(Arc::clone(&wake)));
        assert!(!wake.clear());
        reply.send(5);
        assert!(wake.clear() && answer.try_recv() == Ok(5));
        let (reply, answer) = promise::<u8>(Some(Arc::clone(&wake)));
        drop(reply);
        assert!(wake.clear());
        assert_eq!(answer.try_recv(), Err(TryRecvError::Disconnected));
    }
}
