// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Hints for flags and words of other VMMs.

use std::ffi::OsString;

use clap::CommandFactory;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::Arguments;
use crate::text::shown;

/// Flags of other VMMs (QEMU, Cloud Hypervisor, Firecracker, crosvm, kvmtool), and the equivalent here.
const FOREIGN_FLAGS: [&str; 23] = [
    "-m --mem --mem-size --mem-size-mib -memory: memory is given as '--memory 512M'",
    "-smp --smp --vcpus --vcpu -c -cpus --num-cpus: vCPUs are given as '--cpus 2'",
    "-cpu --cpu: vCPUs are given as '--cpus 2', their features as '--cpu-features -avx2'",
    "-append --append -p --params --kernel-cmdline --boot-args: the kernel command line is given as '--cmdline TEXT'",
    "-k -kernel --kernel-path --kernel-image --firmware: the kernel is given as '--kernel FILE'",
    "-i -initrd --initramfs --initrd-path: the initial RAM disk is given as '--initrd FILE'",
    "-serial --console -chardev: the console is COM1, given as '--serial stdio'",
    "-nographic -display --display: there is no display; the console is COM1, on this terminal unless '--serial' says otherwise",
    "-no-reboot --no-reboot: a reset ends the VMM unless '--on-reboot reset' is given",
    "-enable-kvm --enable-kvm -accel --accel: KVM is always used",
    "-device --device: devices have options of their own: '--disk path=FILE', '--net user', '--debug-exit', '--rng on', '--rtc on'",
    "-rtc: the real-time clock is given as '--rtc on'",
    "--config-file --json -f: a machine in JSON is given as '--config FILE'",
    "-d --debug --log-level --level -D: log more with '-v', '-vv' or '-vvv'",
    "--block --rwdisk --rodisk -b -drive -blockdev -hda -hdb -cdrom --image: disks are given as '--disk path=FILE'",
    "--user-data --userdata --seed --metadata: the files of cloud-init are given as '--cloud-init DIR'",
    "-net -netdev -nic --network --tap --tap-fd --net-vq-pairs --tap-device -n: networks are given as '--net user' or '--net tap=NAME'",
    "--vsock-cid --vsock-path -vsock: sockets between host and guest are given as '--vsock cid=N,socket=PATH'",
    "--fs --shared-dir --virtiofs --9p -fsdev -virtfs: shared directories are given as '--share path=DIR,tag=NAME', or as '--vhost-user socket=PATH,device=fs,tag=NAME'",
    "--vhost-user-fs --vhost-user-blk --vhost-user-net: devices of other processes are given as '--vhost-user socket=PATH,device=TYPE'",
    "--balloon-size -balloon: a balloon is given as '--balloon size=SIZE'",
    "--api-socket -qmp -monitor: the socket of the API is given as '--api-sock PATH'",
    "--no-api: there is no API unless '--api-sock PATH' is given",
];

/// Flags that clap reads as `-h` and more.
const LIKE_HELP: [&str; 2] = ["-hda", "-hdb"];

/// Flags with an optional value after an equals sign.
const EQUALS_FLAGS: [&str; 2] = ["--debug-exit", "--legacy-timer"];

/// Flags whose value contains a path.
const PATH_FLAGS: [&str; 6] = [
    "--kernel",
    "--initrd",
    "--cloud-init",
    "--serial",
    "--config",
    "--api-sock",
];

/// Adds to `error` what the user probably meant by `args`, if known.
pub(super) fn add(mut error: clap::Error, args: &[OsString]) -> clap::Error {
    let is_typed = |flag: &&&str| args.iter().skip(1).any(|arg| arg == **flag);
    if error.kind() == ErrorKind::DisplayHelp
        && let Some(flag) = LIKE_HELP.iter().find(is_typed)
    {
        error = clap::Error::new(ErrorKind::UnknownArgument).with_cmd(&Arguments::command());
        error.insert(
            ContextKind::InvalidArg,
            ContextValue::String((*flag).into()),
        );
    }
    let hint = match error.kind() {
        ErrorKind::UnknownArgument => {
            string(&error, ContextKind::InvalidArg).and_then(|arg| flag_hint(&arg, args))
        }
        ErrorKind::InvalidSubcommand => {
            string(&error, ContextKind::InvalidSubcommand).and_then(|word| word_hint(&word, args))
        }
        ErrorKind::ValueValidation => value_hint(&error),
        _ => None,
    };
    if let Some(hint) = hint {
        // One hint is enough, and ours knows more than the nearest spelling.
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::SuggestedSubcommand);
        error.remove(ContextKind::Usage);
        let hint = ContextValue::StyledStrs(vec![StyledStr::from(hint)]);
        error.insert(ContextKind::Suggested, hint);
    }
    for kind in [
        ContextKind::InvalidArg,
        ContextKind::InvalidValue,
        ContextKind::InvalidSubcommand,
    ] {
        if let Some(word) = string(&error, kind) {
            error.insert(kind, ContextValue::String(shown(&word)));
        }
    }
    error
}

fn string(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.clone()),
        _ => None,
    }
}

fn flag_hint(invalid: &str, args: &[OsString]) -> Option<String> {
    if !invalid.starts_with('-') {
        return word_hint(invalid, args);
    }
    if let Some(hint) = path_hint(invalid, args) {
        return Some(hint);
    }
    // clap parses `-kernel` as `-k -e …`, so use the word as it was typed.
    let typed = args.iter().skip(1).filter_map(|arg| arg.to_str());
    let typed = typed
        .map(|arg| arg.split_once('=').map_or(arg, |(name, _)| name))
        .find(|arg| arg.starts_with(invalid))
        .unwrap_or(invalid);
    let known = |flag: &str| {
        let mut hints = FOREIGN_FLAGS
            .iter()
            .filter_map(|line| line.split_once(": "));
        hints.find(|(flags, _)| flags.split(' ').any(|known| known == flag))
    };
    let (_, hint) = known(typed).or_else(|| known(invalid))?;
    Some(hint.to_owned())
}

/// A hint for a path that looks like a flag.
fn path_hint(invalid: &str, args: &[OsString]) -> Option<String> {
    let words: Vec<_> = args.iter().filter_map(|arg| arg.to_str()).collect();
    let (flag, path) = words.windows(2).find_map(|pair| {
        let is_it = PATH_FLAGS.contains(&pair[0]) && pair[1].starts_with(invalid);
        is_it.then_some((pair[0], pair[1]))
    })?;
    Some(format!("write '{flag}={}'", shown(path)))
}

/// A hint for an unexpected word: the value of the flag before it, a kernel, or a part of a command line that the shell
/// split.
fn word_hint(word: &str, args: &[OsString]) -> Option<String> {
    // The first argument is the program's name.
    let at = 1 + args.iter().skip(1).position(|arg| arg == word)?;
    let before = at.checked_sub(1).and_then(|at| args[at].to_str());
    let shown = shown(word);
    if let Some(flag) = before.filter(|flag| EQUALS_FLAGS.contains(flag)) {
        return Some(format!("write '{flag}={shown}'"));
    }
    let has = |flag: &str| {
        let is_flag = |arg: &OsString| arg.as_encoded_bytes().starts_with(flag.as_bytes());
        args[..at].iter().any(is_flag)
    };
    // Subcommands take no kernel.
    let command = Arguments::command();
    let mut earlier = args[1..at].iter().filter_map(|arg| arg.to_str());
    if earlier.any(|arg| command.find_subcommand(arg).is_some()) {
        return None;
    }
    if word == "help" {
        return Some("write 'mini-vmm --help'".into());
    }
    match (has("--cmdline"), has("--kernel")) {
        (true, _) => Some("quote a kernel command line: --cmdline \"console=ttyS0 quiet\"".into()),
        (_, true) => None,
        _ => Some(format!("a kernel is given as '--kernel {shown}'")),
    }
}

/// Hints for values that other VMMs use.
fn value_hint(error: &clap::Error) -> Option<String> {
    let arg = string(error, ContextKind::InvalidArg)?;
    let value = string(error, ContextKind::InvalidValue)?;
    let flag = arg.split([' ', '=', '[']).next()?;
    let hint = match (flag, value.split_once('=')) {
        ("--memory", Some(("size", size))) => format!("write '--memory {}'", shown(size)),
        ("--cpus", Some(("boot", n))) => format!("write '--cpus {}'", shown(n)),
        ("--disk", Some(("file", path))) => format!("write '--disk path={}'", shown(path)),
        ("--disk", None) if value.contains(['.', '/']) => {
            format!("write '--disk path={}'", shown(&value))
        }
        ("--net", None) if value == "none" => "leave out '--net'".into(),
        ("--net", None) if !value.contains(',') => {
            format!("write '--net tap={}'", shown(&value))
        }
        _ => match (flag, value.as_str()) {
            ("--serial", "tty" | "mon:stdio" | "console") => "write '--serial stdio'".into(),
            ("--serial", "null" | "none") => "write '--serial off'".into(),
            _ => return None,
        },
    };
    Some(hint)
}
