// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The escape sequences of an interactive terminal, as a pure state machine.

/// Ctrl-A, the first key of every sequence.
pub const ESCAPE: u8 = 0x01;

/// What the user can type, one line per sequence.
pub const HELP: &str = "Ctrl-A x  quit the virtual machine
Ctrl-A a  send Ctrl-A to the guest (so does a second Ctrl-A)
Ctrl-A h  show this help";

/// The request of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// End the virtual machine.
    Quit,
    /// Show [`HELP`].
    Help,
}

/// The state between two keys: whether the last key was Ctrl-A.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Escape {
    pending: bool,
}

impl Escape {
    /// Handles one typed byte. Appends bytes for the guest to `guest`: everything except the sequences. A Ctrl-A before
    /// any other key goes to the guest together with that key.
    pub fn feed(&mut self, byte: u8, guest: &mut Vec<u8>) -> Option<Command> {
        if !self.pending {
            self.pending = byte == ESCAPE;
            if !self.pending {
                guest.push(byte);
            }
            return None;
        }
        self.pending = false;
        match byte {
            b'x' => return Some(Command::Quit),
            b'h' => return Some(Command::Help),
            b'a' | ESCAPE => guest.push(ESCAPE),
            other => guest.extend([ESCAPE, other]),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(input: &[u8]) -> (Vec<u8>, Vec<Command>) {
        let (mut escape, mut guest) = (Escape::default(), Vec::new());
        let commands = input
            .iter()
            .filter_map(|byte| escape.feed(*byte, &mut guest))
            .collect();
        (guest, commands)
    }

    #[test]
    fn sequences() {
        assert_eq!(run(b"ab\x01x"), (b"ab".to_vec(), vec![Command::Quit]));
        assert_eq!(run(b"\x01hx"), (b"x".to_vec(), vec![Command::Help]));
        assert_eq!(run(b"\x01\x01x"), (b"\x01x".to_vec(), vec![]));
        assert_eq!(run(b"\x01ax"), (b"\x01x".to_vec(), vec![]));
        assert_eq!(run(b"\x01e"), (b"\x01e".to_vec(), vec![]));
        assert_eq!(run(b"\x01"), (vec![], vec![]));
    }

    /// A reference implementation that sees the whole input at once.
    fn model(input: &[u8]) -> (Vec<u8>, Vec<Command>) {
        match input {
            [] | [ESCAPE] => (vec![], vec![]),
            [ESCAPE, key, rest @ ..] => {
                let (guest, commands) = model(rest);
                let (bytes, command): (&[u8], _) = match key {
                    b'x' => (&[], Some(Command::Quit)),
                    b'h' => (&[], Some(Command::Help)),
                    b'a' | &ESCAPE => (&[ESCAPE], None),
                    _ => (&input[..2], None),
                };
                (
                    [bytes, &guest].concat(),
                    command.into_iter().chain(commands).collect(),
                )
            }
            [byte, rest @ ..] => {
                let (guest, commands) = model(rest);
                ([&[*byte], guest.as_slice()].concat(), commands)
            }
        }
    }

    proptest! {
        #[test]
        fn machine_is_the_model(input in prop::collection::vec(
            prop_oneof![Just(ESCAPE), Just(b'x'), Just(b'a'), Just(b'h'), any::<u8>()], 0..64)) {
            prop_assert_eq!(run(&input), model(&input));
        }

        #[test]
        fn every_byte_can_be_sent(wanted in prop::collection::vec(any::<u8>(), 0..64)) {
            let typed: Vec<u8> = wanted.iter()
                .flat_map(|b| std::iter::repeat_n(*b, if *b == ESCAPE { 2 } else { 1 }))
                .collect();
            prop_assert_eq!(run(&typed), (wanted, vec![]));
        }
    }
}
