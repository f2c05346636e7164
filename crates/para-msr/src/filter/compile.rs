// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Compiles rules to ranges.

use super::{
    Access, FilterDefault, FilterError, FilterRange, LAST_MSR, MAX_RANGE_MSRS, MAX_RANGES,
    MsrFilter, Rule, Uncovered, X2APIC,
};
use crate::MsrRange;

/// Consecutive MSRs with the same wanted answers.
#[derive(Clone, Copy, Debug)]
struct Run {
    range: MsrRange,
    read: bool,
    write: bool,
}

/// Ranges of MSRs, in ascending order, with gaps between them.
type Spans = Vec<MsrRange>;

/// The answers that a filter must give for each MSR.
struct Policy {
    /// Every index, in ascending order.
    runs: Vec<Run>,
    allow: bool,
    /// Where reads need a different answer than the default, and KVM asks the filter.
    reads: Spans,
    /// The same for writes.
    writes: Spans,
    /// Where reads and writes need different answers.
    differ: Spans,
}

/// How far the ranges so far reach: reads and writes below these indices are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Done {
    reads: u64,
    writes: u64,
}

/// A range under consideration.
#[derive(Clone, Copy, Debug)]
struct Step {
    first: u32,
    last: u32,
    access: Access,
    /// What was done before this range.
    before: Done,
}

/// A partial solution: its last step, and the candidate that it extends.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    done: Done,
    step: Option<Step>,
    /// Index in the previous level.
    from: usize,
}

pub(super) fn compile(default: FilterDefault, rules: &[Rule]) -> Result<MsrFilter, FilterError> {
    let policy = Policy::new(default, rules);
    let mut steps = policy.cover()?;
    policy.trim(&mut steps);
    let mut ranges: Vec<_> = steps.iter().filter_map(|step| policy.range(step)).collect();
    if ranges.is_empty() && default == FilterDefault::Deny {
        // KVM refuses a filter that denies by default and has no range. A range that denies MSR 0 changes nothing.
        ranges.extend(FilterRange::from_fn(0, Access::Both, |_| false));
    }
    Ok(MsrFilter {
        default,
        ranges,
        uncovered: policy.uncovered(),
    })
}

impl Policy {
    fn new(default: FilterDefault, rules: &[Rule]) -> Self {
        let allow = default == FilterDefault::Allow;
        let runs = runs(allow, rules);
        let coverable = |run: &Run| !X2APIC.contains(run.range.first()) && run.range != LAST_MSR;
        let spans = |wanted: &dyn Fn(&Run) -> bool| {
            let wanted = |run: &&Run| coverable(run) && wanted(run);
            join(runs.iter().filter(wanted).map(|run| run.range))
        };
        Policy {
            allow,
            reads: spans(&|run| run.read != allow),
            writes: spans(&|run| run.write != allow),
            differ: spans(&|run| run.read != run.write),
            runs,
        }
    }

    /// Finds at most 16 ranges: the fewest, among solutions whose ranges start in ascending order.
    ///
    /// Every range starts at the first MSR that isn't done, and is as long as possible. It is for reads, for
    /// writes, or for both. A range for both ends where the two differ, unless an earlier range already covers
    /// one of them there. Of the candidates with `n` ranges, one that reaches no further than another in both
    /// directions is dropped: whatever can follow it can also follow the other.
    fn cover(&self) -> Result<Vec<Step>, FilterError> {
        let start = Candidate {
            done: Done {
                reads: 0,
                writes: 0,
            },
            step: None,
            from: 0,
        };
        let mut levels = vec![vec![start]];
        loop {
            let Some(level) = levels.last() else {
                return Ok(Vec::new());
            };
            let finished = |candidate: &Candidate| self.next(candidate.done).is_none();
            if let Some(at) = level.iter().position(finished) {
                return Ok(trace(&levels, at));
            }
            if levels.len() > MAX_RANGES {
                let reached = level
                    .iter()
                    .filter_map(|candidate| self.next(candidate.done))
                    .max();
                return Err(FilterError::TooManyRanges {
                    first_left: reached.unwrap_or(0),
                });
            }
            let mut next = Vec::new();
            for (from, candidate) in level.iter().enumerate() {
                for step in self.steps(candidate.done) {
                    add(&mut next, candidate.done.after(&step), step, from);
                }
            }
            levels.push(next);
        }
    }

    /// The first MSR that isn't done.
    fn next(&self, done: Done) -> Option<u32> {
        let read = first_from(&self.reads, done.reads);
        let write = first_from(&self.writes, done.writes);
        [read, write].into_iter().flatten().min()
    }

    fn steps(&self, done: Done) -> impl Iterator<Item = Step> {
        let step = |first: u32, access, limit: u64| {
            let end = u64::from(first) + u64::from(MAX_RANGE_MSRS);
            // 0xffffffff is in no range.
            let last = end.min(limit).min(u64::from(u32::MAX)).checked_sub(1)?;
            let last = u32::try_from(last).ok().filter(|last| *last >= first)?;
            Some(Step {
                first,
                last,
                access,
                before: done,
            })
        };
        // No range starts after `first`: everything from `first` to `done` must be in an earlier range.
        let first = self.next(done);
        let read = first_from(&self.reads, done.reads).filter(|read| Some(*read) == first);
        let write = first_from(&self.writes, done.writes).filter(|write| Some(*write) == first);
        let both = first.and_then(|first| {
            let open = done.reads.max(done.writes).max(u64::from(first));
            let limit = first_from(&self.differ, open).map_or(u64::MAX, u64::from);
            step(first, Access::Both, limit)
        });
        [
            both,
            read.and_then(|first| step(first, Access::Read, u64::MAX)),
            write.and_then(|first| step(first, Access::Write, u64::MAX)),
        ]
        .into_iter()
        .flatten()
    }

    /// Cuts MSRs off the end of a range that don't need it, unless a later range relies on this one matching
    /// there first.
    fn trim(&self, steps: &mut [Step]) {
        for at in (0..steps.len()).rev() {
            let Some((step, later)) = steps.get_mut(at..).and_then(|rest| rest.split_first_mut())
            else {
                continue;
            };
            let Ok(whole) = MsrRange::new(step.first, step.last) else {
                continue;
            };
            let reads = last_in(&self.reads, whole).filter(|_| step.access.reads());
            let writes = last_in(&self.writes, whole).filter(|_| step.access.writes());
            let relied_on = later
                .iter()
                .filter(|later| later.first <= step.last)
                .map(|later| later.last.min(step.last))
                .max();
            step.last = reads.max(writes).max(relied_on).unwrap_or(step.first);
        }
    }

    /// A step as KVM's range.
    fn range(&self, step: &Step) -> Option<FilterRange> {
        let range = MsrRange::new(step.first, step.last).ok()?;
        let mut runs = self.runs.as_slice();
        let allow = |index| {
            while let [first, rest @ ..] = runs {
                if index <= first.range.last() {
                    break;
                }
                runs = rest;
            }
            // KVM doesn't filter the x2APIC's MSRs, so the answer doesn't matter.
            let (read, write) = match runs.first() {
                Some(run) if !X2APIC.contains(index) => (run.read, run.write),
                _ => (self.allow, self.allow),
            };
            match step.access {
                Access::Read => read,
                Access::Write => write,
                // Where an earlier range covers reads, only writes get here, and vice versa.
                Access::Both if u64::from(index) < step.before.reads => write,
                Access::Both => read,
            }
        };
        FilterRange::from_fn(range, step.access, allow).ok()
    }

    /// The wanted answers where KVM doesn't use the filter.
    fn uncovered(&self) -> Vec<Uncovered> {
        let mut found: Vec<Uncovered> = Vec::new();
        for run in &self.runs {
            let kvm = match X2APIC.contains(run.range.first()) {
                true => true,
                false if run.range == LAST_MSR => self.allow,
                false => continue,
            };
            let access = u32::from(run.read != kvm) | u32::from(run.write != kvm) << 1;
            if let Some(access) = Access::from_flags(access) {
                found.push(Uncovered {
                    range: run.range,
                    access,
                    allowed: kvm,
                });
            }
        }
        found
    }
}

impl Done {
    fn after(self, step: &Step) -> Self {
        let end = u64::from(step.last) + 1;
        let reads = match step.access.reads() {
            true => self.reads.max(end),
            false => self.reads,
        };
        let writes = match step.access.writes() {
            true => self.writes.max(end),
            false => self.writes,
        };
        Done { reads, writes }
    }

    /// Whether everything that can follow `other` can also follow this.
    fn is_ahead_of(self, other: Done) -> bool {
        self.reads >= other.reads && self.writes >= other.writes
    }
}

/// Adds a candidate unless another is ahead of it, and drops those that it is ahead of.
fn add(level: &mut Vec<Candidate>, done: Done, step: Step, from: usize) {
    if level
        .iter()
        .any(|candidate| candidate.done.is_ahead_of(done))
    {
        return;
    }
    level.retain(|candidate| !done.is_ahead_of(candidate.done));
    level.push(Candidate {
        done,
        step: Some(step),
        from,
    });
}

/// The steps of a candidate of the last level.
fn trace(levels: &[Vec<Candidate>], mut at: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    for level in levels.iter().rev() {
        let Some(candidate) = level.get(at) else {
            break;
        };
        steps.extend(candidate.step);
        at = candidate.from;
    }
    steps.reverse();
    steps
}

/// The whole index space, split into runs that the rules treat the same. MSRs that KVM does not filter get their
/// own runs.
fn runs(allow: bool, rules: &[Rule]) -> Vec<Run> {
    let bounds = |range: MsrRange| [u64::from(range.first()), u64::from(range.last()) + 1];
    let mut cuts: Vec<u64> = rules.iter().flat_map(|rule| bounds(rule.range)).collect();
    cuts.extend(bounds(MsrRange::ALL).into_iter().chain(bounds(X2APIC)));
    cuts.push(u64::from(u32::MAX));
    cuts.sort_unstable();
    cuts.dedup();
    // Counts the rules in effect at an index by their starts and ends up to it: deny reads, deny writes,
    // allow reads, allow writes.
    let mut events: Vec<(u64, usize, i32)> = Vec::new();
    for rule in rules {
        let [first, end] = bounds(rule.range);
        let kind = usize::from(rule.allow) * 2;
        for (wanted, slot) in [
            (rule.access.reads(), kind),
            (rule.access.writes(), kind + 1),
        ] {
            if wanted {
                events.extend([(first, slot, 1), (end, slot, -1)]);
            }
        }
    }
    events.sort_unstable_by_key(|(at, ..)| *at);
    let (mut events, mut open) = (events.into_iter().peekable(), [0i32; 4]);
    let mut runs = Vec::with_capacity(cuts.len());
    for pair in cuts.windows(2) {
        let [first, end] = *pair else { continue };
        while let Some((_, slot, change)) = events.next_if(|(at, ..)| *at <= first) {
            if let Some(count) = open.get_mut(slot) {
                *count += change;
            }
        }
        let [deny_read, deny_write, allow_read, allow_write] = open;
        let Ok(range) = MsrRange::new(first as u32, (end - 1) as u32) else {
            continue;
        };
        runs.push(Run {
            range,
            read: deny_read == 0 && (allow || allow_read > 0),
            write: deny_write == 0 && (allow || allow_write > 0),
        });
    }
    runs
}

/// Joins adjacent ranges, which must be in ascending order.
fn join(ranges: impl Iterator<Item = MsrRange>) -> Spans {
    let mut spans: Spans = Vec::new();
    for range in ranges {
        let joined = spans
            .last()
            .filter(|last| u64::from(last.last()) + 1 == u64::from(range.first()))
            .and_then(|last| MsrRange::new(last.first(), range.last()).ok());
        match (spans.last_mut(), joined) {
            (Some(last), Some(joined)) => *last = joined,
            _ => spans.push(range),
        }
    }
    spans
}

/// The first MSR of the spans that is not below `from`.
fn first_from(spans: &Spans, from: u64) -> Option<u32> {
    let at = spans.partition_point(|span| u64::from(span.last()) < from);
    let first = spans.get(at)?.first();
    Some(first.max(u32::try_from(from).ok()?))
}

/// The last MSR of the spans that is in `range`.
fn last_in(spans: &Spans, range: MsrRange) -> Option<u32> {
    let at = spans.partition_point(|span| span.first() <= range.last());
    let last = spans.get(at.checked_sub(1)?)?.last().min(range.last());
    (last >= range.first()).then_some(last)
}
