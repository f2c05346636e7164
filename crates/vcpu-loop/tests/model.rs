// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kick protocol under every interleaving: `src/doorbell.rs` itself, on loom's locks and atomics, with a model
//! of `KVM_RUN` and signals. After a lost kick, a controller waits for ever, which loom reports as a deadlock.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "the model needs a part of it")]
#[path = "../src/doorbell.rs"]
mod doorbell;

use std::sync::Arc;

use loom::sync::atomic::{AtomicU8, Ordering};
use loom::sync::mpsc::{Receiver, Sender, channel};
use loom::sync::{Condvar, Mutex};
use loom::thread;

use doorbell::{Doorbell, Listener};

/// Stands for the crate's modules that `src/doorbell.rs` uses.
mod sync {
    pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};
}

mod kick {
    pub trait Kick: Send + Sync + std::fmt::Debug {
        fn request_exit(&self);
    }

    #[derive(Clone, Copy, Debug)]
    pub struct KickSignal;

    impl KickSignal {
        pub fn number(self) -> i32 {
            0
        }
    }
}

mod sys {
    pub mod signal {
        use super::super::{Arc, Thread};

        loom::thread_local! {
            static THREAD: std::cell::RefCell<Option<Arc<Thread>>> = std::cell::RefCell::new(None);
        }

        /// A thread that gets signals.
        #[derive(Clone, Debug)]
        pub struct Tid(pub Arc<Thread>);

        impl Tid {
            pub fn current() -> Self {
                THREAD.with(|thread| Tid(Arc::clone(thread.borrow().as_ref().unwrap())))
            }

            pub fn become_current(thread: &Arc<Thread>) {
                THREAD.with(|current| *current.borrow_mut() = Some(Arc::clone(thread)));
            }

            pub fn kill(&self, _: i32) {
                self.0.signal();
            }
        }
    }
}

/// A thread as the kernel sees it: in user space, a signal's handler runs and does nothing; in `KVM_RUN`, the signal is
/// pending and interrupts the guest.
#[derive(Debug, Default)]
pub struct Thread {
    kernel: Mutex<Kernel>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Kernel {
    in_kvm: bool,
    pending: bool,
}

impl Thread {
    fn signal(&self) {
        let mut kernel = self.kernel.lock().unwrap();
        kernel.pending |= kernel.in_kvm;
        self.arrived.notify_one();
    }
}

/// A vCPU's run page.
#[derive(Debug, Default)]
struct Page {
    immediate_exit: AtomicU8,
}

impl kick::Kick for Page {
    /// A swap, where the real flag uses a store: loom doesn't know that no store can come between a swap and the store
    /// that it reads, so an earlier *clear* could overwrite a store.
    fn request_exit(&self) {
        self.immediate_exit.swap(1, Ordering::AcqRel);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Exit {
    Pio,
    Interrupted,
}

/// A vCPU whose guest makes some exits, then spins.
struct Vcpu {
    page: Arc<Page>,
    thread: Arc<Thread>,
    exits: u32,
}

impl Vcpu {
    fn new(thread: &Arc<Thread>, exits: u32) -> Self {
        Vcpu {
            page: Arc::default(),
            thread: Arc::clone(thread),
            exits,
        }
    }

    /// `KVM_RUN`, and *clear*.
    fn run(&mut self) -> Exit {
        self.thread.kernel.lock().unwrap().in_kvm = true;
        let exit = match self.page.immediate_exit.load(Ordering::Acquire) {
            0 if self.exits > 0 => {
                self.exits -= 1;
                Exit::Pio
            }
            0 => {
                let mut kernel = self.thread.kernel.lock().unwrap();
                while !kernel.pending {
                    kernel = self.thread.arrived.wait(kernel).unwrap();
                }
                Exit::Interrupted
            }
            _ => Exit::Interrupted,
        };
        *self.thread.kernel.lock().unwrap() = Kernel::default();
        if exit == Exit::Interrupted {
            self.page.immediate_exit.swap(0, Ordering::AcqRel);
        }
        exit
    }

    fn complete(&mut self) -> Exit {
        self.page.immediate_exit.store(1, Ordering::Release);
        self.run()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Order {
    Resume,
    Pause,
    /// The caller's code replaces the vCPU.
    Replace,
    Stop,
}

/// An order, and the channel for its answer.
type Envelope = (Order, Sender<()>);

/// The vCPU's thread, as in `src/thread.rs` and `src/guest.rs`.
struct Worker {
    vcpu: Vcpu,
    listener: Listener,
    mailbox: Receiver<Envelope>,
    running: bool,
    stopped: bool,
}

impl Worker {
    fn serve(&mut self) {
        sys::signal::Tid::become_current(&self.vcpu.thread);
        self.listener.0.arrive();
        while !self.stopped {
            if self.running {
                while self.vcpu.run() == Exit::Pio {
                    if self.listener.0.is_rung() {
                        assert!(self.vcpu.complete() == Exit::Interrupted);
                        break;
                    }
                }
            } else {
                let envelope = self.mailbox.recv().unwrap();
                self.obey(envelope);
            }
            self.listener.0.silence();
            while let Ok(envelope) = self.mailbox.try_recv() {
                self.obey(envelope);
            }
        }
    }

    fn obey(&mut self, (order, reply): Envelope) {
        match order {
            Order::Resume => self.running = true,
            Order::Pause => self.running = false,
            Order::Replace => {
                self.vcpu = Vcpu::new(&Arc::clone(&self.vcpu.thread), 0);
                self.listener.0.redirect(Arc::clone(&self.vcpu.page) as _);
            }
            Order::Stop => self.stopped = true,
        }
        let _ = reply.send(());
    }
}

/// Whether long variants are wanted; if not, prints that there is one.
fn is_long() -> bool {
    let long = std::env::var_os("MINI_VMM_TEST_LONG").is_some_and(|value| value == "1");
    if !long {
        eprintln!("LONG: {}", std::thread::current().name().unwrap_or("model"));
    }
    long
}

/// Runs a vCPU whose guest makes `exits` exits, and one controller per element of `controllers`, which waits for the
/// answer to each of its orders. The last controller stops the vCPU.
fn model(exits: u32, controllers: &'static [&'static [Order]]) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(if is_long() { 3 } else { 2 });
    builder.check(move || {
        let vcpu = Vcpu::new(&Arc::default(), exits);
        let bell = Arc::new(Doorbell::new(Arc::clone(&vcpu.page) as _));
        let (sender, mailbox) = channel();
        let mut worker = Worker {
            vcpu,
            listener: Listener(Arc::clone(&bell)),
            mailbox,
            running: false,
            stopped: false,
        };
        let thread = thread::spawn(move || worker.serve());
        let control = move |orders: &[Order], bell: &Doorbell, sender: &Sender<Envelope>| {
            for order in orders {
                let (reply, answer) = channel();
                sender.send((*order, reply)).unwrap();
                bell.ring(kick::KickSignal);
                answer.recv().unwrap();
            }
        };
        let (last, others) = controllers.split_last().unwrap();
        let others: Vec<_> = others
            .iter()
            .map(|orders| {
                let (bell, sender) = (Arc::clone(&bell), sender.clone());
                thread::spawn(move || control(orders, &bell, &sender))
            })
            .collect();
        control(last, &bell, &sender);
        for other in others {
            other.join().unwrap();
        }
        control(&[Order::Stop], &bell, &sender);
        thread.join().unwrap();
    });
}

#[test]
fn a_guest_that_spins_obeys_every_request() {
    model(0, &[&[Order::Resume, Order::Pause, Order::Resume]]);
}

#[test]
fn a_guest_that_exits_obeys_every_request() {
    model(2, &[&[Order::Resume, Order::Pause]]);
}

#[test]
fn two_controllers_lose_no_request() {
    model(0, &[&[Order::Pause], &[Order::Resume]]);
}

#[test]
fn a_replaced_vcpu_is_kicked() {
    model(0, &[&[Order::Resume], &[Order::Replace]]);
}
