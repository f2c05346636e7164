// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a driver must and must not do, by virtio 1.4 (sections 2.1 to 2.7, 3, 4.1, 4.2), and what happens if it doesn't
//! comply. Each rule has a test that breaks it, or a reason why a device can't see the violation.
#![allow(clippy::unwrap_used)]

mod common;
mod mmio;
mod pci;
mod rings;
mod support;

use std::collections::BTreeSet;

/// The sections with driver requirements.
const SECTIONS: &[&str] = &[
    "2.1.1",
    "2.2.1",
    "2.4.2",
    "2.5.1",
    "2.6.1.1.2",
    "2.6.1.2.2",
    "2.7.1",
    "2.7.4.2",
    "2.7.5.2",
    "2.7.5.3.1",
    "2.7.6.1",
    "2.7.7.1",
    "2.7.8.3",
    "2.7.10.1",
    "2.7.13.3.1",
    "2.7.13.4.1",
    "3.1.1",
    "3.3.1",
    "3.4.1",
    "4.1.2.2",
    "4.1.3.1",
    "4.1.4.1",
    "4.1.4.3.2",
    "4.1.4.5.2",
    "4.1.4.8.2",
    "4.1.4.9.2",
    "4.1.5.1.2.2",
    "4.1.5.2.1",
    "4.1.5.4.2",
    "4.2.2.2",
    "4.2.3.1.1",
    "4.2.3.4.1",
];

/// The rules with the tests that break them, each in its module.
macro_rules! rules {
    ($($section:literal $rule:literal $module:ident::$test:ident;)*) => {
        /// The sections of the tested rules, with a short form of the rule.
        const BROKEN: &[(&str, &str)] = &[$(($section, $rule)),*];

        $(
            #[test]
            fn $test() {
                $module::$test();
            }
        )*
    };
}

rules! {
    "2.1.1" "clears no status bit" common::a_status_bit_is_cleared;
    "2.1.1" "resets after FAILED before it begins anew" common::a_failed_driver_goes_on;
    "2.1.1" "goes on after DEVICE_NEEDS_RESET with a reset only" common::a_driver_goes_on_with_a_broken_device;
    "2.2.1" "accepts only what is offered" common::a_feature_is_accepted_that_is_not_offered;
    "2.2.1" "accepts no feature without the one that it requires" common::a_feature_is_accepted_without_its_requirement;
    "2.4.2" "takes a reset for done when the status is 0" common::a_driver_does_not_wait_for_its_reset;
    "2.5.1" "reads optional fields only if they are offered" common::a_field_is_read_that_does_not_exist;
    "2.6.1.1.2" "resets a queue only as negotiated" common::a_queue_is_reset_by_itself;
    "2.6.1.2.2" "sets a queue up anew only after its reset" common::a_running_queue_is_set_up_anew;
    "2.7.1" "aligns the parts of a queue" common::a_ring_is_not_aligned;
    "2.7.4.2" "places writable buffers behind readable ones" rings::a_readable_buffer_follows_a_writable_one;
    "2.7.5.2" "makes no chain of more than 2^32 bytes" rings::a_chain_is_longer_than_4_gib;
    "2.7.5.2" "makes no loop" rings::a_chain_is_a_loop;
    "2.7.5.3.1" "uses indirect tables only as negotiated" rings::an_indirect_table_was_not_negotiated;
    "2.7.5.3.1" "makes no indirect table in another" rings::an_indirect_table_is_in_another;
    "2.7.5.3.1" "makes no chain longer than the queue" rings::a_chain_is_longer_than_its_queue;
    "2.7.5.3.1" "sets not both INDIRECT and NEXT" rings::an_indirect_table_goes_on;
    "2.7.6.1" "never decrements the available index" rings::the_available_index_is_decremented;
    "2.7.7.1" "sets the available flags to 0 or 1" rings::the_available_flags_are_neither_0_nor_1;
    "2.7.7.1" "sets the available flags to 0 with EVENT_IDX" rings::the_available_flags_are_not_0_with_event_idx;
    "2.7.10.1" "initializes the used flags to 0" rings::the_used_flags_are_not_initialized;
    "2.7.10.1" "notifies when the device asks" rings::a_notification_is_left_out;
    "3.1.1" "follows the sequence" common::a_step_is_left_out;
    "3.1.1" "writes no configuration before FEATURES_OK" common::the_configuration_is_written_too_early;
    "3.1.1" "accepts no features after FEATURES_OK" common::a_feature_is_accepted_after_features_ok;
    "3.1.1" "goes on only if FEATURES_OK stays" common::a_refused_driver_goes_on;
    "3.1.1" "sends no notification before DRIVER_OK" common::a_notification_comes_before_driver_ok;
    "3.3.1" "doesn't alter buffers that the device has" rings::a_chain_is_made_available_twice;
    "3.3.1" "resets the device before it takes buffers back" rings::a_ring_is_taken_from_a_running_device;
    "3.4.1" "suspends only as negotiated" common::a_device_is_suspended;
    "4.1.3.1" "accesses fields by their width" pci::a_field_is_accessed_by_another_width;
    "4.1.3.1" "accesses the device's configuration by its fields' width" pci::the_pci_configuration_is_accessed_by_another_width;
    "4.1.4.1" "writes to no capability but the window" pci::a_capability_is_written;
    "4.1.4.3.2" "doesn't write what is read-only" pci::a_read_only_field_is_written;
    "4.1.4.3.2" "writes a power of two as queue size" pci::a_queue_size_is_no_power_of_two;
    "4.1.4.3.2" "configures a queue before it enables it" pci::a_queue_is_enabled_first;
    "4.1.4.3.2" "waits for status 0 after a reset" pci::a_driver_begins_before_its_reset_is_done;
    "4.1.4.3.2" "doesn't write 0 to queue_enable" pci::a_queue_is_disabled;
    "4.1.4.9.2" "writes an offset that is a multiple of the length" pci::a_window_is_not_aligned;
    "4.1.4.9.2" "aims the window at structures only" pci::a_window_is_aimed_at_nothing;
    "4.1.5.1.2.2" "maps no event to a vector that isn't there" pci::an_event_gets_a_vector_that_does_not_exist;
    "4.1.5.2.1" "notifies by 16 bits, the queue's index" pci::a_notification_has_another_form;
    "4.2.2.2" "accesses no registers that aren't there" mmio::a_register_is_accessed_that_does_not_exist;
    "4.2.2.2" "doesn't write what is read-only" mmio::a_read_only_register_is_written;
    "4.2.2.2" "doesn't read what is write-only" mmio::a_write_only_register_is_read;
    "4.2.2.2" "accesses registers by 32 bits, aligned" mmio::a_register_is_accessed_by_another_width;
    "4.2.2.2" "accesses the device's configuration by its fields' width" mmio::the_mmio_configuration_is_accessed_by_another_width;
    "4.2.2.2" "selects features before it reads or writes them" mmio::features_are_not_selected;
    "4.2.2.2" "writes a queue size that is offered" mmio::a_queue_size_is_not_offered;
    "4.2.2.2" "leaves a queue's registers alone while it is ready" mmio::a_ready_queue_is_changed;
    "4.2.2.2" "acknowledges no undefined interrupts" mmio::an_undefined_interrupt_is_acknowledged;
    "4.2.3.1.1" "doesn't use the shared memory registers" mmio::shared_memory_is_used;
    "4.2.3.4.1" "acknowledges an interrupt" mmio::an_interrupt_is_not_acknowledged;
}

const DRIVER: &str = "it happens in the driver";
const NO_SUSPEND: &str = "SUSPEND is not offered";

/// Rules that no device sees broken: section, rule, why.
const UNSEEN: &[(&str, &str, &str)] = &[
    (
        "2.1.1",
        "sets the status to the steps that it completed",
        "a driver that lies about its own steps",
    ),
    ("2.2.1", "validates the offered features", DRIVER),
    (
        "2.2.1",
        "accepts no feature that is reserved or not for the device",
        "none is offered, so it is not accepted",
    ),
    (
        "2.2.1",
        "sets FAILED and ceases if it can't do without a feature",
        "a driver that stays silent is one that is slow",
    ),
    (
        "2.2.1",
        "does not fail for a feature that it doesn't know",
        DRIVER,
    ),
    (
        "2.5.1",
        "takes no wide or several reads for one",
        "it happens in the driver; the generation changes with the copy",
    ),
    ("2.5.1", "does not limit the configuration's size", DRIVER),
    (
        "2.6.1.1.2",
        "verifies that a queue has been reset",
        "RING_RESET is not offered",
    ),
    (
        "2.7.5.2",
        "links descriptors in order with IN_ORDER",
        "IN_ORDER is not offered",
    ),
    (
        "2.7.5.3.1",
        "uses indirect descriptors in order with IN_ORDER",
        "IN_ORDER is not offered",
    ),
    ("2.7.7.1", "handles interrupts that mean nothing", DRIVER),
    (
        "2.7.8.3",
        "makes nothing of bytes behind the used length",
        DRIVER,
    ),
    (
        "2.7.10.1",
        "ignores avail_event, or the used flags, as negotiated",
        "as a notification too many or too few",
    ),
    (
        "2.7.13.3.1",
        "has a barrier before the available index",
        "as a chain of older contents, which is checked",
    ),
    (
        "2.7.13.4.1",
        "has a barrier before it reads the used flags",
        "as a notification that is left out",
    ),
    ("3.4.1", "reads the status after SUSPEND", NO_SUSPEND),
    ("3.4.1", "makes nothing available after SUSPEND", NO_SUSPEND),
    ("3.4.1", "sends no notification after SUSPEND", NO_SUSPEND),
    ("3.4.1", "writes no configuration after SUSPEND", NO_SUSPEND),
    (
        "3.4.1",
        "waits for DRIVER_OK without SUSPEND before it goes on",
        NO_SUSPEND,
    ),
    ("4.1.2.2", "matches the device by its numbers", DRIVER),
    ("4.1.2.2", "matches any revision", DRIVER),
    (
        "4.1.4.1",
        "ignores capabilities of reserved kinds and BARs",
        "there are none",
    ),
    (
        "4.1.4.1",
        "accepts longer capabilities and structures",
        DRIVER,
    ),
    (
        "4.1.4.3.2",
        "writes no queue size of 0 with RING_PACKED",
        "RING_PACKED is not offered, and 0 is no power of two",
    ),
    (
        "4.1.4.3.2",
        "takes a queue's reset for done when queue_reset is 0",
        "RING_RESET is not offered",
    ),
    (
        "4.1.4.3.2",
        "configures administration queues by their indices",
        "ADMIN_VQ is not offered",
    ),
    (
        "4.1.4.5.2",
        "doesn't read the ISR with MSI-X",
        "a read is answered",
    ),
    (
        "4.1.4.8.2",
        "qualifies the vendor before it uses vendor data",
        "there is no such capability",
    ),
    ("4.1.5.1.2.2", "supports any MSI-X table size", DRIVER),
    ("4.1.5.1.2.2", "verifies a vector by reading it", DRIVER),
    (
        "4.1.5.2.1",
        "notifies by 32 bits with NOTIFICATION_DATA",
        "NOTIFICATION_DATA is not offered",
    ),
    (
        "4.1.5.2.1",
        "notifies by the queue's data with NOTIF_CONFIG_DATA",
        "NOTIF_CONFIG_DATA is not offered",
    ),
    (
        "4.1.5.4.2",
        "handles one interrupt for queues and configuration",
        DRIVER,
    ),
    (
        "4.2.2.2",
        "ignores devices of another magic, version, or ID 0",
        "there are none",
    ),
    ("4.2.2.2", "reads QueueReady back", DRIVER),
    (
        "4.2.2.2",
        "takes a queue's reset for done when QueueReset is 0",
        "RING_RESET is not offered",
    ),
    (
        "4.2.2.2",
        "ignores undefined bits of InterruptStatus",
        "there are none",
    ),
    (
        "4.2.3.1.1",
        "reads magic, version and ID first",
        "a driver that knows them already",
    ),
    (
        "4.2.3.1.1",
        "then follows the sequence of 3.1",
        "3.1.1's tests break it on both transports",
    ),
    (
        "4.2.3.4.1",
        "reads InterruptStatus after an interrupt",
        DRIVER,
    ),
];

#[test]
fn each_section_has_its_rules() {
    let broken = BROKEN.iter().map(|(section, rule)| (*section, *rule));
    let unseen = UNSEEN.iter().map(|(section, rule, _)| (*section, *rule));
    let rules: Vec<_> = broken.chain(unseen).collect();
    let distinct: BTreeSet<_> = rules.iter().collect();
    assert_eq!(distinct.len(), rules.len(), "a rule is there twice");
    let found: BTreeSet<_> = rules.iter().map(|(section, _)| *section).collect();
    assert_eq!(found, SECTIONS.iter().copied().collect());
    assert!(UNSEEN.iter().all(|(_, _, why)| !why.is_empty()));
}
