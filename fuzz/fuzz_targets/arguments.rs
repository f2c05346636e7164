// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Any bytes as the command's arguments and as a config file.
//!
//! Arguments are separated by NULs, as in /proc/PID/cmdline. An accepted machine must be valid, and its own JSON must
//! describe it again.

#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mini_vmm::cli::{self, Command};
use mini_vmm::config::file as config;
use mini_vmm::config::{Draft, Error, VmSpec};

fn comes_back(spec: VmSpec) {
    assert_eq!(spec.validate(), Ok(()));
    // Paths need not be UTF-8, but JSON must be.
    if let Ok(json) = config::to_json(&spec) {
        let again = config::parse(json.as_bytes(), Path::new("again")).expect("our own JSON");
        assert_eq!(again.finish(), Ok(spec));
    }
}

fuzz_target!(|input: &[u8]| {
    let arguments = input.split(|byte| *byte == 0).map(OsStr::from_bytes);
    let command = cli::parse_from([OsStr::new("mini-vmm")].into_iter().chain(arguments));
    if let Ok(Command::Run(run)) = command {
        match config::resolve(&run.flags, None) {
            Ok(spec) => comes_back(spec),
            // The command line has judged its words.
            Err(why) => assert!(!matches!(
                why,
                config::Error::Spec(Error::Word { .. } | Error::UnknownKey { .. })
            )),
        }
    }
    if let Ok(Ok(spec)) = config::parse(input, Path::new("config")).map(Draft::finish) {
        comes_back(spec);
    }
});
