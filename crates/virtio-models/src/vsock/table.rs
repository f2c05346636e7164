// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All connections of a device, and those that begin or end.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use super::flow::{Flow, Key};
use super::greeting::Greeting;
use super::link::Link;

/// The most processes of the host at a time, connected or not.
pub const MAX_CONNECTIONS: usize = 1023;

/// A process of the host.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) role: Role,
    /// Its socket. `None` once it is closed.
    pub(super) link: Option<Link>,
    deadline: Option<Instant>,
    /// It is in the queue of those that have something for the guest.
    is_ready: bool,
}

#[derive(Debug)]
pub(super) enum Role {
    /// It has not yet said what it wants.
    Client(Greeting),
    /// It has a connection.
    Peer(Flow),
    /// Its connection is gone, and it has still to take what the guest sent before.
    Leaver,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Vec<Option<Slot>>,
    /// The free ones of `slots`.
    free: Vec<usize>,
    keys: HashMap<Key, usize>,
    ready: VecDeque<usize>,
    deadlines: BTreeSet<(Instant, usize)>,
}

impl Table {
    /// Adds a process. Makes room for it, if necessary, at the expense of one whose connection is gone. Returns its
    /// number; `None` if there are too many. Then nothing was added.
    pub(super) fn add(&mut self, role: Role, link: Link) -> Option<usize> {
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.slots.len() < MAX_CONNECTIONS => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => return None,
        };
        if let Role::Peer(flow) = &role {
            self.keys.insert(flow.key(), number);
        }
        self.slots[number] = Some(Slot {
            role,
            link: Some(link),
            deadline: None,
            is_ready: false,
        });
        Some(number)
    }

    /// Whether there are as many as possible.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() == MAX_CONNECTIONS
    }

    /// One whose connection is gone.
    pub(super) fn leaver(&self) -> Option<usize> {
        let is_leaver = |slot: &Option<Slot>| {
            let slot = slot.as_ref();
            slot.is_some_and(|slot| matches!(slot.role, Role::Leaver))
        };
        self.slots.iter().position(is_leaver)
    }

    pub(super) fn get(&mut self, number: usize) -> Option<&mut Slot> {
        self.slots.get_mut(number)?.as_mut()
    }

    /// The flow and the link of a connection.
    pub(super) fn peer(&mut self, number: usize) -> Option<(&mut Flow, Option<&mut Link>)> {
        match self.get(number)? {
            Slot {
                role: Role::Peer(flow),
                link,
                ..
            } => Some((flow, link.as_mut())),
            _ => None,
        }
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = usize> + use<> {
        0..self.slots.len()
    }

    /// All connections.
    pub(super) fn flows(&self) -> impl Iterator<Item = &Flow> {
        let slots = self.slots.iter().flatten();
        slots.filter_map(|slot| match &slot.role {
            Role::Peer(flow) => Some(flow),
            _ => None,
        })
    }

    pub(super) fn find(&self, key: Key) -> Option<usize> {
        self.keys.get(&key).copied()
    }

    /// Gives a process another role.
    pub(super) fn change(&mut self, number: usize, role: Role) {
        let Some(slot) = self.slots.get_mut(number).and_then(Option::as_mut) else {
            return;
        };
        if let Role::Peer(flow) = &slot.role {
            self.keys.remove(&flow.key());
        }
        if let Role::Peer(flow) = &role {
            self.keys.insert(flow.key(), number);
        }
        slot.role = role;
    }

    /// Removes a process, whose socket must not be watched.
    pub(super) fn remove(&mut self, number: usize) {
        self.rest(number);
        self.limit(number, None);
        if let Some(slot) = self.slots.get_mut(number).and_then(Option::take) {
            if let Role::Peer(flow) = &slot.role {
                self.keys.remove(&flow.key());
            }
            self.free.push(number);
        }
    }

    /// It may have something for the guest.
    pub(super) fn wake(&mut self, number: usize) {
        if let Some(Some(slot)) = self.slots.get_mut(number)
            && !std::mem::replace(&mut slot.is_ready, true)
        {
            self.ready.push_back(number);
        }
    }

    /// It has nothing for the guest.
    pub(super) fn rest(&mut self, number: usize) {
        if let Some(Some(slot)) = self.slots.get_mut(number)
            && std::mem::take(&mut slot.is_ready)
        {
            self.ready.retain(|ready| *ready != number);
        }
    }

    /// The first that may have something for the guest.
    pub(super) fn first_ready(&self) -> Option<usize> {
        self.ready.front().copied()
    }

    /// Lets the others have their turn before the first one's next.
    pub(super) fn rotate(&mut self) {
        if let Some(first) = self.ready.pop_front() {
            self.ready.push_back(first);
        }
    }

    /// Sets or removes a time limit.
    pub(super) fn limit(&mut self, number: usize, deadline: Option<Instant>) {
        let Some(Some(slot)) = self.slots.get_mut(number) else {
            return;
        };
        if let Some(old) = std::mem::replace(&mut slot.deadline, deadline) {
            self.deadlines.remove(&(old, number));
        }
        if let Some(new) = deadline {
            self.deadlines.insert((new, number));
        }
    }

    pub(super) fn has_limit(&mut self, number: usize) -> bool {
        self.get(number).is_some_and(|slot| slot.deadline.is_some())
    }

    /// The first time limit.
    pub(super) fn first_limit(&self) -> Option<(Instant, usize)> {
        self.deadlines.first().copied()
    }

    #[cfg(test)]
    pub(super) fn ready_len(&self) -> usize {
        self.ready.len()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    fn link() -> Link {
        Link::new(UnixStream::pair().unwrap().0.into())
    }

    fn peer(peer: u32) -> Role {
        Role::Peer(Flow::to_guest(Key { local: 1, peer }))
    }

    #[test]
    fn what_is_removed_leaves_nothing() {
        let mut table = Table::default();
        let now = Instant::now();
        for round in 0..100 {
            let number = table.add(peer(round), link()).unwrap();
            assert_eq!(number, 0);
            table.wake(number);
            table.wake(number);
            for second in 0..3 {
                table.limit(number, Some(now + Duration::from_secs(second)));
            }
            assert_eq!(table.ready_len(), 1);
            assert_eq!(table.deadlines.len(), 1);
            table.remove(number);
            assert_eq!(
                table.find(Key {
                    local: 1,
                    peer: round
                }),
                None
            );
            assert!(table.ready.is_empty() && table.deadlines.is_empty());
        }
    }

    #[test]
    fn a_key_follows_its_role() {
        let mut table = Table::default();
        let number = table
            .add(Role::Client(Greeting::default()), link())
            .unwrap();
        let key = Key { local: 1, peer: 2 };
        assert_eq!(table.find(key), None);
        table.change(number, peer(2));
        assert_eq!(table.find(key), Some(number));
        table.change(number, Role::Leaver);
        assert_eq!(table.find(key), None);
        assert_eq!(table.leaver(), Some(number));
    }

    #[test]
    fn the_turn_goes_round() {
        let mut table = Table::default();
        for number in 0..3 {
            table.add(peer(number), link()).unwrap();
            table.wake(number as usize);
        }
        let mut turns = Vec::new();
        for _ in 0..5 {
            turns.push(table.first_ready().unwrap());
            table.rotate();
        }
        table.rest(turns[4]);
        assert_eq!(turns, [0, 1, 2, 0, 1]);
        assert_eq!(table.first_ready(), Some(2));
    }
}
