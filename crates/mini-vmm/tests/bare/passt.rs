// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A script in place of passt.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What the guest sends comes back to it.
pub const ECHO: &str = "cat <&$fd >&$fd 2>/dev/null & exit 0";
/// Goes on in bash, where there is one: dash has no redirections of numbers with two digits.
const BASH: &str = "[ -z \"$BASH_VERSION\" ] && [ -x /bin/bash ] && exec /bin/bash \"$0\" \"$@\"";

/// Puts a script in `folder`, which finds the connection in `$fd`. Returns the PATH that leads there.
pub fn stand_in(folder: &Path, script: &str) -> OsString {
    let path = folder.join("passt");
    let text = format!("#!/bin/sh\n{BASH}\nfd=$3\n{script}\n");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let mut paths = vec![folder.to_owned()];
    paths.extend(env::split_paths(&env::var_os("PATH").unwrap()));
    env::join_paths(paths).unwrap()
}
