// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How often each request came. The API's thread counts.

use std::sync::atomic::{AtomicU64, Ordering};

use super::sample::{API_FAILURES, API_REQUESTS, Sample};

/// Methods and the first parts of paths, with Firecracker's names for them. Other requests are counted together.
const REQUESTS: [(&str, &str, &str); 21] = [
    ("GET", "/", "instance_info"),
    ("GET", "/machine-config", "machine_cfg"),
    ("GET", "/metrics", "metrics"),
    ("GET", "/mmds", "mmds"),
    ("GET", "/version", "vmm_version"),
    ("PUT", "/actions", "actions"),
    ("PUT", "/boot-source", "boot_source"),
    ("PUT", "/cpu-config", "cpu_cfg"),
    ("PUT", "/drives", "drive"),
    ("PUT", "/logger", "logger"),
    ("PUT", "/machine-config", "machine_cfg"),
    ("PUT", "/metrics", "metrics"),
    ("PUT", "/mmds", "mmds"),
    ("PUT", "/network-interfaces", "network"),
    ("PUT", "/pmem", "pmem"),
    ("PUT", "/serial", "serial"),
    ("PUT", "/vsock", "vsock"),
    ("PATCH", "/drives", "drive"),
    ("PATCH", "/machine-config", "machine_cfg"),
    ("PATCH", "/mmds", "mmds"),
    ("PATCH", "/network-interfaces", "network"),
];

#[derive(Debug, Default)]
struct Count {
    requests: AtomicU64,
    failures: AtomicU64,
}

/// Counters of requests. The last one is for others.
#[derive(Debug, Default)]
pub(crate) struct ApiCounts([Count; REQUESTS.len() + 1]);

impl ApiCounts {
    /// Counts a request when it arrives.
    pub fn count(&self, method: &str, path: &str) {
        self.of(method, path)
            .requests
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that failed, which was counted when it arrived.
    pub fn count_failure(&self, method: &str, path: &str) {
        self.of(method, path)
            .failures
            .fetch_add(1, Ordering::Relaxed);
    }

    fn of(&self, method: &str, path: &str) -> &Count {
        let end = path.get(1..).and_then(|rest| rest.find('/'));
        let first = end.map_or(path, |end| &path[..=end]);
        let mut known = REQUESTS.iter();
        let at =
            known.position(|(its_method, its_path, _)| (*its_method, *its_path) == (method, first));
        &self.0[at.unwrap_or(REQUESTS.len())]
    }

    pub(super) fn samples(&self, samples: &mut Vec<Sample>) {
        let other = [("other", "other", "request")];
        for ((method, path, name), count) in REQUESTS.iter().chain(&other).zip(&self.0) {
            let group = format!("{}_api_requests", method.to_lowercase());
            let both = [
                (&API_REQUESTS, "count", &count.requests),
                (&API_FAILURES, "fails", &count.failures),
            ];
            samples.extend(both.map(|(family, end, value)| Sample {
                family,
                labels: vec![
                    ("method", (*method).to_owned()),
                    ("path", (*path).to_owned()),
                ],
                group: group.clone(),
                key: format!("{name}_{end}"),
                value: value.load(Ordering::Relaxed),
            }));
        }
    }
}
