// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rules for both transports: status, features, set-up.

use virtio_transport::layout::VERSION_1;
use virtio_transport::registers::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, Effect, FAILED, FEATURES_OK, NEEDS_RESET,
};
use virtio_transport::testing::{
    Driver, Echo, Flags, MEMORY, Machine, MmioPort, PciPort, Port, memory,
};

use crate::support::{READY, breaks, is_live, machine, prepared, serve, started, works};

/// Runs a test on both transports.
macro_rules! on_both {
    ($test:ident) => {{
        $test::<MmioPort>();
        $test::<PciPort>();
    }};
}

fn features<P: Port>(machine: &mut Machine<P>, features: u64) -> bool {
    machine.set_status(0);
    machine.set_status(ACKNOWLEDGE);
    machine.set_status(ACKNOWLEDGE | DRIVER);
    machine.port.set_driver_features(0, features as u32);
    machine.port.set_driver_features(1, (features >> 32) as u32);
    machine.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    machine.port.status() & FEATURES_OK != 0
}

pub fn a_status_bit_is_cleared() {
    fn test<P: Port>() {
        let (mut machine, mut driver) = started::<P>(u64::MAX);
        for bit in [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK] {
            machine.set_status(READY & !bit);
            assert_eq!(machine.port.status(), READY);
        }
        serve(&mut machine, &mut driver);
    }
    on_both!(test);
}

pub fn a_failed_driver_goes_on() {
    fn test<P: Port>() {
        let (mut machine, driver) = prepared::<P>();
        let failed = ACKNOWLEDGE | DRIVER | FEATURES_OK | FAILED;
        machine.set_status(failed);
        for status in [READY, READY | FAILED, failed & !FAILED] {
            machine.set_status(status);
            assert_eq!(machine.port.status(), failed);
        }
        driver.finish(&mut machine);
        assert!(!is_live(&mut machine));
        works(&mut machine);
    }
    on_both!(test);
}

pub fn a_driver_goes_on_with_a_broken_device() {
    fn test<P: Port>() {
        let (mut machine, mut driver) = started::<P>(u64::MAX);
        driver.rings[0].offer(0x7fff);
        machine.kick(0);
        machine.pump();
        let broken = READY | NEEDS_RESET;
        assert_eq!(machine.port.status(), broken);
        // Repairing the ring is not enough, and the other queue stays stopped, too.
        driver.rings[0].set_available(0);
        for status in [READY, broken, READY & !DRIVER_OK] {
            machine.set_status(status);
            assert_eq!(machine.port.status(), broken);
        }
        assert_eq!(
            (machine.port.kick(0), machine.port.kick(1)),
            (Effect::None, Effect::None)
        );
        assert_eq!(machine.port.write(P::CONFIG + 4, &[1]), Effect::None);
        assert!(!is_live(&mut machine));
        works(&mut machine);
    }
    on_both!(test);
}

pub fn a_feature_is_accepted_that_is_not_offered() {
    fn test<P: Port>() {
        let mut machine = machine::<P>();
        let offered = machine.worker.device().layout().offered();
        for bit in (0..64).filter(|bit| offered >> bit & 1 == 0) {
            assert!(
                !features(&mut machine, VERSION_1 | 1 << bit),
                "feature {bit}"
            );
        }
        // Bits above 63 are never offered.
        machine.port.set_driver_features(2, u32::MAX);
        works(&mut machine);
    }
    on_both!(test);
}

pub fn a_feature_is_accepted_without_its_requirement() {
    fn test<P: Port>() {
        let mut machine = machine::<P>();
        assert!(
            !features(&mut machine, VERSION_1 | 2),
            "the second needs the first"
        );
        assert!(features(&mut machine, VERSION_1 | 3));
    }
    on_both!(test);
}

pub fn a_driver_does_not_wait_for_its_reset() {
    fn test<P: Port>() {
        let (mut machine, mut driver) = started::<P>(u64::MAX);
        let before = machine.port.registers().parameters();
        // Only the access; the message is not delivered yet.
        let effect = machine.port.set_status(0);
        assert_eq!(machine.port.status(), READY);
        for status in [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, READY] {
            assert_eq!(machine.port.set_status(status), Effect::None);
            assert_eq!(machine.port.status(), READY);
        }
        machine.port.set_driver_features(0, 0);
        machine.port.set_up_queue(0, &driver.rings[1].state());
        assert_eq!(machine.port.kick(0), Effect::None);
        assert_eq!(machine.port.write(P::CONFIG + 4, &[1]), Effect::None);
        assert_eq!(machine.port.registers().parameters(), before);
        assert!(machine.port.save().is_none(), "it can't be saved now");
        machine.effect(effect);
        machine.pump_until(|machine| machine.port.status() == 0);
        assert!(!machine.worker.is_running());
        driver.rings.clear();
        works(&mut machine);
    }
    on_both!(test);
}

pub fn a_field_is_read_that_does_not_exist() {
    fn test<P: Port>() {
        let (mut machine, _) = started::<P>(u64::MAX);
        let len = machine.worker.device().config().len() as u64;
        for at in [len, len + 1, 0x7f, 0xff] {
            let mut data = [0xcc; 4];
            machine.port.read(P::CONFIG + at, &mut data);
            assert_eq!(data, [0; 4]);
            assert_eq!(machine.port.write(P::CONFIG + at, &data), Effect::None);
        }
    }
    on_both!(test);
}

/// Of another width or alignment than the configuration's fields: reads return its bytes, and 0 beyond its end; a write
/// reaches the device as it is, or not at all if it goes beyond the end.
pub fn the_configuration_is_accessed_by_another_width<P: Port>() {
    let (mut machine, mut driver) = started::<P>(u64::MAX);
    let whole = machine.worker.device().config();
    for at in 0..whole.len() + 2 {
        for width in 1..=16 {
            let mut data = vec![0xcc; width];
            machine.port.read(P::CONFIG + at as u64, &mut data);
            let mut wanted = whole[at.min(whole.len())..].to_vec();
            wanted.resize(width.max(wanted.len()), 0);
            assert_eq!(data, wanted[..width], "{width} bytes at {at}");
            machine.write(P::CONFIG + at as u64, &vec![0; width]);
            machine.pump();
            assert_eq!(machine.worker.device().config(), whole);
        }
    }
    serve(&mut machine, &mut driver);
}

pub fn a_queue_is_reset_by_itself() {
    fn test<P: Port>() {
        let (mut machine, mut driver) = started::<P>(u64::MAX);
        let before = machine.port.registers().parameters();
        machine.write(0xc0, &[1, 0, 0, 0]);
        machine.write(0x203a, &[1, 0]);
        assert_eq!(machine.port.registers().parameters(), before);
        serve(&mut machine, &mut driver);
    }
    on_both!(test);
}

pub fn a_running_queue_is_set_up_anew() {
    fn test<P: Port>() {
        let (mut machine, mut driver) = started::<P>(u64::MAX);
        let before = machine.port.registers().parameters();
        let mut state = driver.rings[0].state();
        state.size = 2;
        state.used += 0x1_0000;
        machine.port.set_up_queue(0, &state);
        assert_eq!(machine.port.registers().parameters(), before);
        serve(&mut machine, &mut driver);
    }
    on_both!(test);
}

pub fn a_ring_is_not_aligned() {
    fn test<P: Port>() {
        for part in 0..3 {
            let (mut machine, driver) = prepared::<P>();
            machine.set_status(0);
            machine.set_status(ACKNOWLEDGE);
            assert!(features(&mut machine, VERSION_1));
            let mut state = driver.rings[0].state();
            let (address, by) = match part {
                0 => (&mut state.descriptors, 8),
                1 => (&mut state.available, 1),
                _ => (&mut state.used, 2),
            };
            *address += by;
            machine.port.set_up_queue(0, &state);
            assert!(!machine.port.is_queue_ready(0));
            driver.finish(&mut machine);
            assert!(is_live(&mut machine), "a device without queues");
            assert_eq!(machine.port.kick(0), Effect::None);
            works(&mut machine);
        }
    }
    on_both!(test);
    // A ring need not be in memory either. The device finds that out at its start.
    fn hole<P: Port>() {
        let mut machine = Machine::<P>::new(Box::new(Echo::new()), &memory(MEMORY));
        let driver = Driver::prepare(&mut machine, u64::MAX);
        assert!(features(&mut machine, VERSION_1));
        let mut state = driver.rings[0].state();
        state.used = MEMORY as u64;
        machine.port.set_up_queue(0, &state);
        driver.finish(&mut machine);
        breaks(&mut machine);
    }
    on_both!(hole);
}

pub fn a_step_is_left_out() {
    fn test<P: Port>() {
        let steps = [
            DRIVER,
            FEATURES_OK,
            DRIVER_OK,
            ACKNOWLEDGE | FEATURES_OK,
            ACKNOWLEDGE | DRIVER | DRIVER_OK,
            DRIVER | FEATURES_OK | DRIVER_OK,
            16,
            NEEDS_RESET,
        ];
        for status in steps {
            let mut machine = machine::<P>();
            machine.set_status(status);
            assert_eq!(machine.port.status(), 0, "status {status:#x}");
            assert!(!is_live(&mut machine));
            works(&mut machine);
        }
        // Features and queues set too early.
        let mut machine = machine::<P>();
        machine.port.set_driver_features(1, 1);
        let ring = virtio_transport::testing::DriverRing::new(&machine.memory, 0, 8);
        machine.port.set_up_queue(0, &ring.state());
        assert!(!machine.port.is_queue_ready(0));
        machine.set_status(ACKNOWLEDGE);
        machine.set_status(ACKNOWLEDGE | DRIVER);
        machine.port.set_up_queue(0, &ring.state());
        assert!(!machine.port.is_queue_ready(0));
        machine.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(
            machine.port.status(),
            ACKNOWLEDGE | DRIVER,
            "it has no features"
        );
        works(&mut machine);
    }
    on_both!(test);
}

pub fn the_configuration_is_written_too_early() {
    fn test<P: Port>() {
        let mut machine = machine::<P>();
        for status in [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
            if status != 0 {
                machine.set_status(status);
            }
            assert_eq!(machine.port.write(P::CONFIG + 4, &[1]), Effect::None);
        }
        let (mut machine, driver) = prepared::<P>();
        machine.write(P::CONFIG + 4, &[5]);
        let mut key = [0];
        machine.port.read(P::CONFIG + 4, &mut key);
        assert_eq!(key, [5], "it is written in time");
        driver.finish(&mut machine);
        assert!(is_live(&mut machine));
    }
    on_both!(test);
}

pub fn a_feature_is_accepted_after_features_ok() {
    fn test<P: Port>() {
        let (mut machine, mut driver) = prepared::<P>();
        let before = machine.port.registers().parameters();
        machine.port.set_driver_features(0, 0);
        assert_eq!(machine.port.registers().parameters(), before);
        driver.finish(&mut machine);
        machine.port.set_driver_features(0, 0);
        machine.port.set_driver_features(1, 0);
        assert_eq!(machine.port.registers().parameters(), before);
        serve(&mut machine, &mut driver);
    }
    on_both!(test);
}

pub fn a_refused_driver_goes_on() {
    fn test<P: Port>() {
        let mut machine = machine::<P>();
        assert!(!features(&mut machine, 0));
        for status in [READY, ACKNOWLEDGE | DRIVER | DRIVER_OK] {
            machine.set_status(status);
            assert_eq!(machine.port.status(), ACKNOWLEDGE | DRIVER);
            assert!(!is_live(&mut machine));
        }
        works(&mut machine);
    }
    on_both!(test);
}

pub fn a_notification_comes_before_driver_ok() {
    fn test<P: Port>() {
        let (mut machine, mut driver) = prepared::<P>();
        driver.rings[0].descriptor(0, (0x8_0000, 8), Flags::WRITE, 0);
        driver.rings[0].offer(0);
        assert_eq!(machine.port.kick(0), Effect::None);
        machine.pump();
        assert!(driver.rings[0].take().is_none(), "nothing is served");
        driver.finish(&mut machine);
        machine.pump();
        // The chain is found without a notification.
        assert!(driver.rings[0].take().is_some());
    }
    on_both!(test);
}

pub fn a_device_is_suspended() {
    fn test<P: Port>() {
        const SUSPEND: u8 = 16;
        let (mut machine, mut driver) = started::<P>(u64::MAX);
        machine.set_status(READY | SUSPEND);
        machine.set_status(SUSPEND);
        assert_eq!(machine.port.status(), READY);
        serve(&mut machine, &mut driver);
    }
    on_both!(test);
}
