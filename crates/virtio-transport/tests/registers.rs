// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver's side of the messages: the effects of register writes, and of answers.
#![allow(clippy::unwrap_used)]

use virtio_transport::Broken;
use virtio_transport::layout::{Layout, LayoutError, MAX_CONFIG, RING_FEATURES, VERSION_1};
use virtio_transport::message::{Answer, Command};
use virtio_transport::registers::{Effect, NEEDS_RESET, Notice, Registers};
use virtio_transport::testing::{Driver, Echo, MEMORY, Machine, MmioPort, PciPort, Port, memory};

const READY: u8 = 15;

fn layout() -> Layout {
    Layout {
        id: 1,
        features: RING_FEATURES,
        requires: &[],
        queues: vec![4, 4],
        config_len: 4,
    }
}

/// Registers with this status, and the effect of the last step.
fn registers(status: u8) -> (Registers, Effect) {
    let mut registers = Registers::new(layout(), vec![1, 2]).unwrap();
    let mut effect = Effect::None;
    registers.select_driver_features(1);
    for step in [1, 3, 11, 15].into_iter().filter(|step| *step <= status) {
        assert_eq!(effect, Effect::None);
        effect = registers.set_status(step);
        registers.set_driver_features((VERSION_1 >> 32) as u32);
    }
    assert_eq!(registers.status(), status);
    (registers, effect)
}

fn broken(epoch: u64) -> Answer {
    let why = Broken::Device("in a test").into();
    Answer::NeedsReset { epoch, why }
}

fn reset(epoch: u64) -> Answer {
    let config = vec![9; 4];
    Answer::Reset { epoch, config }
}

#[test]
fn a_device_that_heard_of_nothing_is_reset_at_once() {
    for status in [0, 1, 3, 11] {
        let (mut registers, _) = registers(status);
        assert_eq!(
            (registers.set_status(0), registers.status()),
            (Effect::None, 0)
        );
        assert_eq!(registers.epoch(), 1);
    }
}

#[test]
fn a_device_that_runs_is_reset_by_a_message() {
    let (mut registers, effect) = registers(READY);
    let Effect::Post(Command::Start(activation)) = effect else {
        panic!("{effect:?}");
    };
    assert_eq!((activation.epoch, activation.queues), (0, vec![None, None]));
    assert_eq!(
        registers.set_status(0),
        Effect::Post(Command::Reset { epoch: 0 })
    );
    assert_eq!(
        (registers.set_status(0), registers.is_settled()),
        (Effect::Wait, false)
    );
    assert_eq!(registers.save(), None);
    // Answers of another epoch, or late ones, have no effect.
    for answer in [reset(1), broken(0), broken(1)] {
        assert_eq!(registers.answer(&answer), Notice::None);
        assert_eq!(registers.status(), READY);
    }
    assert_eq!(registers.answer(&reset(0)), Notice::None);
    assert_eq!((registers.status(), registers.is_settled()), (0, true));
    let mut config = [0; 4];
    registers.read_config(0, &mut config);
    assert_eq!((config, registers.generation()), ([9; 4], 1));
    // It is done only once.
    for answer in [reset(0), reset(1), broken(0)] {
        assert_eq!(registers.answer(&answer), Notice::None);
        assert_eq!((registers.status(), registers.epoch()), (0, 1));
    }
}

#[test]
fn a_device_that_was_written_to_is_reset_by_a_message() {
    let (mut registers, _) = registers(11);
    let effect = registers.write_config(1, &[7, 8]);
    let wanted = Command::SetConfig {
        epoch: 0,
        at: 1,
        data: [7, 8, 0, 0, 0, 0, 0, 0],
        len: 2,
    };
    assert_eq!(effect, Effect::PostAndWait(wanted));
    assert!(!registers.is_settled());
    let config = vec![1, 7, 8, 0];
    assert_eq!(
        registers.answer(&Answer::ConfigSet { config }),
        Notice::None
    );
    assert!(registers.is_settled());
    let mut read = [0; 4];
    registers.read_config(0, &mut read);
    assert_eq!(read, [1, 7, 8, 0]);
    assert_eq!(
        registers.set_status(0),
        Effect::Post(Command::Reset { epoch: 0 })
    );
}

#[test]
fn writes_outside_of_the_configuration_are_nothing() {
    let (mut registers, _) = registers(11);
    for (at, len) in [
        (0, 0),
        (0, 5),
        (3, 2),
        (4, 1),
        (u64::MAX, 1),
        (0, 9),
        (1 << 32, 1),
    ] {
        assert_eq!(registers.write_config(at, &vec![1; len]), Effect::None);
    }
    assert!(registers.is_settled());
}

#[test]
fn a_driver_that_is_ready_hears_of_changes() {
    for (status, wanted) in [
        (0, Notice::None),
        (11, Notice::None),
        (READY, Notice::Config),
    ] {
        let (mut registers, _) = registers(status);
        let config = vec![1, 2, 0, 0];
        let same = Answer::Config { config };
        assert_eq!(
            (registers.answer(&same), registers.generation()),
            (Notice::None, 0)
        );
        let config = vec![1, 2, 3];
        let other = Answer::Config { config };
        assert_eq!(registers.answer(&other), wanted);
        assert_eq!(registers.answer(&broken(0)), wanted);
        assert_eq!(registers.status(), status | NEEDS_RESET);
        assert_eq!(registers.kick(0), Effect::None);
    }
}

#[test]
fn the_generation_changes_with_what_is_read() {
    let (mut registers, _) = registers(READY);
    let read = |registers: &mut Registers| {
        let before = registers.generation();
        let mut data = [0; 4];
        registers.read_config(0, &mut data);
        (data[0], registers.generation() as u8 == before as u8)
    };
    assert_eq!(read(&mut registers), (1, true));
    // So many copies that eight bits would be the same again, between a driver's looks at the generation.
    for n in 0..=255 {
        let config = vec![n, 1, 1, 1];
        let _ = registers.answer(&Answer::Config { config });
    }
    assert_eq!(read(&mut registers), (255, false));
    assert_eq!(read(&mut registers), (255, true));
    // A copy that was not read before a save is another one afterwards.
    let before = registers.generation();
    let config = vec![7; 4];
    let _ = registers.answer(&Answer::Config { config });
    assert_eq!(registers.generation(), before);
    assert_eq!(
        registers.save().map(|state| state.generation),
        Some(before + 1)
    );
}

#[test]
fn only_the_mmio_driver_is_made_to_wait_for_its_reset() {
    fn effects<P: Port>() -> [Effect; 2] {
        let mut machine = Machine::<P>::new(Box::new(Echo::new()), &memory(MEMORY));
        Driver::start(&mut machine, u64::MAX);
        [machine.port.set_status(0), machine.port.set_status(0)]
    }
    let command = Command::Reset { epoch: 1 };
    let wait = Effect::PostAndWait(command.clone());
    assert_eq!(effects::<MmioPort>(), [wait, Effect::Wait]);
    assert_eq!(effects::<PciPort>(), [Effect::Post(command), Effect::None]);
}

#[test]
fn a_device_that_no_transport_carries_is_refused() {
    let with = |change: &dyn Fn(&mut Layout)| {
        let mut layout = layout();
        change(&mut layout);
        Registers::new(layout, Vec::new()).err()
    };
    assert_eq!(with(&|_| {}), None);
    for id in [0, 64] {
        assert_eq!(with(&|layout| layout.id = id), Some(LayoutError::Id(id)));
    }
    for bit in [24, 27, 30, 32, 33, 34, 35, 40, 43, 49] {
        let unknown = Some(LayoutError::Features(1 << bit));
        assert_eq!(with(&|layout| layout.features |= 1 << bit), unknown);
    }
    for bit in [0, 23, 28, 29, 41, 42, 50, 63] {
        assert_eq!(with(&|layout| layout.features |= 1 << bit), None);
    }
    assert_eq!(
        with(&|layout| layout.requires = &[(1, 64)]),
        Some(LayoutError::Requires)
    );
    for size in [0, 3, 0x8001] {
        assert_eq!(
            with(&|layout| layout.queues[1] = size),
            Some(LayoutError::QueueSize(size))
        );
    }
    let many = with(&|layout| layout.queues = vec![1; 1025]);
    assert_eq!(many, Some(LayoutError::Queues(1025)));
    let long = with(&|layout| layout.config_len = MAX_CONFIG + 1);
    assert_eq!(long, Some(LayoutError::Config(MAX_CONFIG + 1)));
}
