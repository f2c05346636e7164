// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The settings of the device for random numbers.

use std::ffi::OsStr;
use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize, Serializer};
use virtio_models::rate::{Limit, Limits};

use super::device;
use super::shared::{self, BytesWord, RequestsWord};
use super::words::{Word, WordError};

/// The device for random numbers. As a word it is `on`, or its limits, such as `bandwidth=1M,iops=100`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RngSpec {
    /// The limit of random bytes.
    #[serde(default, deserialize_with = "shared::bandwidth")]
    pub bandwidth: Option<Limit>,
    /// The limit of requests.
    #[serde(default, deserialize_with = "shared::iops")]
    pub iops: Option<Limit>,
}

impl RngSpec {
    /// Its limits.
    pub const fn limits(&self) -> Limits {
        Limits {
            bandwidth: self.bandwidth,
            iops: self.iops,
        }
    }
}

impl Display for RngSpec {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match (self.bandwidth.map(BytesWord), self.iops.map(RequestsWord)) {
            (None, None) => f.write_str("on"),
            (Some(bandwidth), None) => write!(f, "bandwidth={bandwidth}"),
            (None, Some(iops)) => write!(f, "iops={iops}"),
            (Some(bandwidth), Some(iops)) => write!(f, "bandwidth={bandwidth},iops={iops}"),
        }
    }
}

/// The device, or none.
impl Word for Option<RngSpec> {
    const EXPECTED: &'static str =
        "\"on\" or \"off\", true or false, or limits such as \"bandwidth=1M\"";
    const BOOLS: bool = true;

    fn from_word(word: &str) -> Result<Self, WordError> {
        match bool::from_word(word) {
            Ok(on) => Ok(on.then(RngSpec::default)),
            Err(_) => match device::from_word(OsStr::new(word)) {
                Ok(rng) => Ok(Some(rng)),
                Err(why) => Err(WordError::Rng(why.to_string())),
            },
        }
    }
}

/// Serializes the device, or none, as its word.
pub(super) fn write_rng<S: Serializer>(rng: &Option<RngSpec>, to: S) -> Result<S::Ok, S::Error> {
    match rng {
        Some(rng) => to.collect_str(rng),
        None => "off".serialize(to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_on_or_off_or_has_limits() {
        let read = |word: &str| Option::<RngSpec>::from_word(word);
        assert_eq!(read("off"), Ok(None));
        assert_eq!(read("on"), Ok(Some(RngSpec::default())));
        let both = RngSpec {
            bandwidth: Limit::per_second(1 << 20),
            iops: Limit::per_second(100),
        };
        assert_eq!(read("bandwidth=1M,iops=100"), Ok(Some(both)));
        for word in [
            "on",
            "bandwidth=1M",
            "iops=100",
            "bandwidth=1M/10+0,iops=1/2+3",
        ] {
            assert_eq!(read(word).unwrap().unwrap().to_string(), word);
        }
        for (word, why) in [
            ("yes", "no device for random numbers: unknown field `yes`"),
            ("iops=0", "it would never answer"),
            ("bandwidth=1M/x", "not a limit"),
        ] {
            let error = read(word).expect_err(word).to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
