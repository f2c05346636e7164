// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One value of a counter, and where the two formats have it.

/// What Prometheus calls the values of one kind.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Family {
    /// Its name, which ends with the unit.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It only grows.
    Count,
    /// A sum of times, in nanoseconds.
    Time,
    /// The longest time so far, in nanoseconds.
    Longest,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub family: &'static Family,
    pub labels: Vec<(&'static str, String)>,
    /// The object and the key in JSON. A key may have a dot, and is then in an object of its own.
    pub group: String,
    pub key: String,
    pub value: u64,
}

impl Sample {
    /// Adds the value that it had on an earlier machine.
    pub fn add(&mut self, earlier: u64) {
        self.value = match self.family.kind {
            Kind::Longest => self.value.max(earlier),
            Kind::Count | Kind::Time => self.value.saturating_add(earlier),
        };
    }

    /// The change since an earlier sample of the same counter. The longest time stays as it is.
    pub fn since(&self, earlier: &Sample) -> u64 {
        match self.family.kind {
            Kind::Longest => self.value,
            Kind::Count | Kind::Time => self.value.saturating_sub(earlier.value),
        }
    }

    pub fn is_same(&self, other: &Sample) -> bool {
        self.family == other.family && self.labels == other.labels
    }
}

/// Defines the families.
macro_rules! families {
    ($($id:ident: $kind:ident $name:literal $help:literal,)+) => {
        $(pub(super) static $id: Family = Family { name: $name, help: $help, kind: Kind::$kind };)+

        /// All of them, in the order in which they are printed.
        pub(super) static FAMILIES: &[&Family] = &[$(&$id),+];
    };
}

families! {
    EXITS: Count "mini_vmm_vcpu_exits_total" "Exits of a vCPU, by kind.",
    HYPERCALLS: Count "mini_vmm_hypercalls_total" "Hypercalls that reached the VMM.",
    RESETS: Count "mini_vmm_resets_total" "Resets of the machine.",
    READS: Count "mini_vmm_disk_reads_total" "Reads that succeeded.",
    READ_BYTES: Count "mini_vmm_disk_read_bytes_total" "Bytes of these reads.",
    READ_TIME: Time "mini_vmm_disk_read_seconds_total" "Time that these reads took, with the kernel's tick as unit.",
    READ_LONGEST: Longest "mini_vmm_disk_read_longest_seconds" "The longest of these times.",
    WRITES: Count "mini_vmm_disk_writes_total" "Writes that succeeded.",
    WRITE_BYTES: Count "mini_vmm_disk_written_bytes_total" "Bytes of these writes.",
    WRITE_TIME: Time "mini_vmm_disk_write_seconds_total" "Time that these writes took, with the kernel's tick as unit.",
    WRITE_LONGEST: Longest "mini_vmm_disk_write_longest_seconds" "The longest of these times.",
    FLUSHES: Count "mini_vmm_disk_flushes_total" "Flushes that succeeded.",
    ERASES: Count "mini_vmm_disk_erases_total" "Discards and writes of zeros that succeeded.",
    DISK_ERRORS: Count "mini_vmm_disk_errors_total" "Requests that failed on the host.",
    DISK_INVALID: Count "mini_vmm_disk_invalid_requests_total" "Requests of the guest that broke a rule.",
    RX_FRAMES: Count "mini_vmm_net_received_frames_total" "Frames that the guest received.",
    RX_BYTES: Count "mini_vmm_net_received_bytes_total" "Bytes of these frames.",
    RX_DROPPED: Count "mini_vmm_net_received_dropped_total" "Frames for the guest that were dropped.",
    TX_FRAMES: Count "mini_vmm_net_sent_frames_total" "Frames that the guest sent.",
    TX_BYTES: Count "mini_vmm_net_sent_bytes_total" "Bytes of these frames.",
    TX_DROPPED: Count "mini_vmm_net_sent_dropped_total" "Frames of the guest that were dropped.",
    SERIAL_LIMITED: Count "mini_vmm_serial_limited_bytes_total" "Bytes of the guest's output that were more than its limit.",
    VSOCK_RX: Count "mini_vmm_vsock_received_packets_total" "Packets that the guest received.",
    VSOCK_RX_BYTES: Count "mini_vmm_vsock_received_bytes_total" "Bytes of data in these packets.",
    VSOCK_TX: Count "mini_vmm_vsock_sent_packets_total" "Packets that the guest sent.",
    VSOCK_TX_BYTES: Count "mini_vmm_vsock_sent_bytes_total" "Bytes of data in these packets.",
    VSOCK_ADDED: Count "mini_vmm_vsock_connections_total" "Connections that began.",
    VSOCK_REMOVED: Count "mini_vmm_vsock_connections_ended_total" "Connections that ended.",
    VSOCK_KILLED: Count "mini_vmm_vsock_connections_timed_out_total" "Connections and clients that a time limit ended.",
    VSOCK_REFUSED: Count "mini_vmm_vsock_refused_packets_total" "Packets of the guest that were for no connection or broke a rule.",
    VSOCK_READ_FAILS: Count "mini_vmm_vsock_read_failures_total" "Failures to read from a process of the host.",
    VSOCK_WRITE_FAILS: Count "mini_vmm_vsock_write_failures_total" "Failures to write to a process of the host.",
    BALLOON_INFLATIONS: Count "mini_vmm_balloon_inflations_total" "Requests that gave pages to the balloon.",
    BALLOON_INFLATED: Count "mini_vmm_balloon_inflated_bytes_total" "Bytes of these pages that went back to the host.",
    BALLOON_BAD_INFLATIONS: Count "mini_vmm_balloon_ignored_inflations_total" "Such requests that were partly or wholly ignored.",
    BALLOON_DEFLATIONS: Count "mini_vmm_balloon_deflations_total" "Requests that took pages from the balloon.",
    BALLOON_STATS: Count "mini_vmm_balloon_statistics_total" "Statistics that the guest sent.",
    BALLOON_BAD_STATS: Count "mini_vmm_balloon_damaged_statistics_total" "Statistics that could not be read as a whole.",
    BALLOON_REPORTS: Count "mini_vmm_balloon_reports_total" "Reports of free pages.",
    BALLOON_REPORTED: Count "mini_vmm_balloon_reported_bytes_total" "Bytes of these pages that went back to the host.",
    BALLOON_BAD_REPORTS: Count "mini_vmm_balloon_ignored_reports_total" "Reports that were partly or wholly ignored.",
    BALLOON_HINTS: Count "mini_vmm_balloon_hints_total" "Requests with hints at free pages.",
    BALLOON_HINTED: Count "mini_vmm_balloon_hinted_bytes_total" "Bytes of these pages that went back to the host.",
    BALLOON_BAD_HINTS: Count "mini_vmm_balloon_ignored_hints_total" "Hints that were partly or wholly ignored.",
    API_REQUESTS: Count "mini_vmm_api_requests_total" "Requests to the API.",
    API_FAILURES: Count "mini_vmm_api_request_failures_total" "Requests to the API that were refused or failed.",
    STARTUP: Longest "mini_vmm_process_startup_seconds" "Time from the start that --start-time-us tells until the API was ready.",
    STARTUP_CPU: Longest "mini_vmm_process_startup_cpu_seconds" "CPU time of the same, with that of --parent-cpu-time-us.",
    MISSED: Count "mini_vmm_metrics_missed_total" "Lines of metrics that had no room in their FIFO.",
}
