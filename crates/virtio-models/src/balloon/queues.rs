// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which queue is for what.

use virtio_transport::queue::Virtq;

use super::{FREE_PAGE_HINT, PAGE_REPORTING, STATS_VQ};

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Inflate,
    Deflate,
    Stats,
    Hints,
    Reports,
}

/// The roles in virtio's order, each with the feature that it needs.
const ROLES: [(Role, Option<u8>); 5] = [
    (Role::Inflate, None),
    (Role::Deflate, None),
    (Role::Stats, Some(STATS_VQ)),
    (Role::Hints, Some(FREE_PAGE_HINT)),
    (Role::Reports, Some(PAGE_REPORTING)),
];

fn is_in(features: u64, feature: Option<u8>) -> bool {
    feature.is_none_or(|bit| features >> bit & 1 == 1)
}

/// How many queues a device with these features has. Those in between exist, too, since a driver may count differently.
pub(super) fn count(features: u64) -> usize {
    let last = ROLES.iter().rposition(|role| is_in(features, role.1));
    last.map_or(0, |last| last + 1)
}

/// The role of each of the driver's queues.
///
/// In virtio a role has a fixed number. Linux gives the queues that it uses numbers without gaps. If a driver has a queue
/// for each role that was negotiated, both mean the same: they come in the order of the roles.
pub(super) fn roles(features: u64, queues: &[Option<Virtq>]) -> Vec<Option<Role>> {
    let set_up: Vec<_> = queues.iter().map(Option::is_some).collect();
    assign(features, &set_up)
}

fn assign(features: u64, set_up: &[bool]) -> Vec<Option<Role>> {
    let negotiated = |&&(_, feature): &&(Role, Option<u8>)| is_in(features, feature);
    let wanted: Vec<_> = ROLES.iter().filter(negotiated).map(|role| role.0).collect();
    let used = set_up.iter().filter(|is_set_up| **is_set_up).count();
    if used == wanted.len() {
        let mut wanted = wanted.into_iter();
        let next = |used: &bool| if *used { wanted.next() } else { None };
        return set_up.iter().map(next).collect();
    }
    let fixed = ROLES.iter().zip(set_up);
    fixed
        .map(|(role, used)| (*used && is_in(features, role.1)).then_some(role.0))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::Role::*;
    use super::*;

    const STATS: u64 = 1 << STATS_VQ;
    const HINTS: u64 = 1 << FREE_PAGE_HINT;
    const REPORTS: u64 = 1 << PAGE_REPORTING;

    #[test]
    fn there_are_as_many_queues_as_the_last_role_needs() {
        let all = [
            (0, 2),
            (STATS, 3),
            (HINTS, 4),
            (REPORTS, 5),
            (STATS | HINTS, 4),
        ];
        for (features, queues) in all {
            assert_eq!(count(features), queues);
        }
    }

    #[test]
    fn drivers_that_leave_gaps_and_those_that_do_not_mean_the_same() {
        let used = |numbers: &[usize]| -> Vec<_> { (0..5).map(|n| numbers.contains(&n)).collect() };
        let roles = |features, numbers: &[usize]| -> Vec<_> {
            let assigned = assign(features, &used(numbers));
            let numbered = assigned.into_iter().enumerate();
            numbered.filter_map(|(n, role)| Some((n, role?))).collect()
        };
        let two = [(0, Inflate), (1, Deflate)];
        assert_eq!(roles(REPORTS, &[0, 1, 4]), [two[0], two[1], (4, Reports)]);
        assert_eq!(roles(REPORTS, &[0, 1, 2]), [two[0], two[1], (2, Reports)]);
        let all = STATS | HINTS | REPORTS;
        let full = [two[0], two[1], (2, Stats), (3, Hints), (4, Reports)];
        assert_eq!(roles(all, &[0, 1, 2, 3, 4]), full);
        // One that uses more or fewer queues than it needs goes by virtio's numbers.
        assert_eq!(roles(HINTS, &[0, 1, 2, 3, 4]), [two[0], two[1], (3, Hints)]);
        assert_eq!(roles(all, &[0, 2, 4]), [two[0], (2, Stats), (4, Reports)]);
        assert_eq!(roles(0, &[0, 1]), two);
    }
}
