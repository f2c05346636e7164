// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The actions of `mini-vmm ctl`, as the command line lists them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, PossibleValue, TypedValueParser};
use clap::{ValueEnum, ValueHint};

use super::Command;
use crate::ctl::{Action, ExecOrder, Order, PAGES};
use crate::exec::PORT;
use crate::exec::frame::{self, Start};

/// A word for what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Ask something of the machine's process.
    Action(Action),
    /// Run a command in the guest.
    Exec,
}

impl ValueEnum for Word {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [Word; Action::WORDS.len() + 1] = {
            let mut all = [Word::Exec; Action::WORDS.len() + 1];
            let mut at = 0;
            while at < Action::WORDS.len() {
                all[at] = Word::Action(Action::WORDS[at].1);
                at += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let Word::Action(action) = self else {
            let help =
                "Run a command in the guest, by the agent there; its exit code is the command's";
            return Some(PossibleValue::new("exec").help(help));
        };
        let mut words = Action::WORDS.iter();
        let (word, _, help) = words.find(|(_, known, _)| known == action)?;
        Some(PossibleValue::new(*word).help(*help))
    }
}

/// The words behind `ctl`.
#[derive(clap::Args, Debug)]
pub(super) struct CtlWords {
    /// The path of its socket
    #[arg(value_hint = ValueHint::FilePath)]
    socket: PathBuf,
    /// What to do
    action: Word,
    /// The directory of a snapshot, which is replaced if it is one; which memory: dirty, resident; or a device's name
    #[arg(value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// The disk to add, in the words of a machine's --disk; paths are those of the machine's process
    #[arg(long, value_name = "WORDS", conflicts_with = "net")]
    disk: Option<String>,
    /// The network to add, in the words of a machine's --net
    #[arg(long, value_name = "WORDS")]
    net: Option<String>,
    /// Take the device from a guest that does not answer, at once
    #[arg(long)]
    force: bool,
    /// Only write what changed since the last snapshot, or since --restore; see `mini-vmm snapshot merge`
    #[arg(long)]
    diff: bool,
    /// Let a machine that runs go on after its snapshot
    #[arg(long)]
    keep_running: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    exec: ExecWords,
}

/// The words of `exec` only.
#[derive(clap::Args, Debug)]
struct ExecWords {
    /// Add a variable to the command's environment; can be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = variables())]
    env: Vec<(OsString, OsString)>,
    /// The guest's directory where the command runs
    #[arg(long, value_name = "DIR", value_hint = ValueHint::Other)]
    cwd: Option<PathBuf>,
    /// The vsock port of the agent [default: 1024]
    #[arg(long, value_name = "N")]
    port: Option<u32>,
    /// The command of exec
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn variables() -> impl TypedValueParser<Value = (OsString, OsString)> {
    let parse = |word: OsString| frame::variable(&word).ok_or("say NAME=VALUE");
    OsStringValueParser::new().try_map(parse)
}

impl CtlWords {
    /// The command that they ask for.
    ///
    /// # Errors
    /// What is wrong, and the next step.
    pub(super) fn command(self, verbosity: u8) -> Result<Command, &'static str> {
        let exec = self.exec;
        let Word::Action(action) = self.action else {
            let has_others = self.disk.is_some() || self.net.is_some() || self.force;
            if has_others || self.diff || self.keep_running || self.json {
                return Err("exec has --env, --cwd and --port only; leave other options out");
            }
            if self.dir.is_some() || exec.command.is_empty() {
                return Err("exec needs a command behind --, as in: exec -- uname -a");
            }
            let start = Start {
                words: exec.command,
                env: exec.env,
                directory: exec.cwd.unwrap_or_default(),
            };
            if start.payload().is_none() {
                return Err("this command is empty or too long; shorten it to 128 KiB");
            }
            let order = ExecOrder {
                socket: self.socket,
                port: exec.port.unwrap_or(PORT),
                start,
            };
            return Ok(Command::Exec { order, verbosity });
        };
        if !(exec.env.is_empty() && exec.command.is_empty())
            || exec.cwd.is_some()
            || exec.port.is_some()
        {
            return Err(
                "--env, --cwd, --port and a command behind -- belong to exec; leave them out",
            );
        }
        let order = Order {
            socket: self.socket,
            action,
            dir: self.dir,
            device: device(self.disk, self.net),
            force: self.force,
            diff: self.diff,
            keep_running: self.keep_running,
            json: self.json,
        };
        check(&order)?;
        Ok(Command::Ctl { order, verbosity })
    }
}

/// Checks that actions have their words, and no others.
///
/// # Errors
/// What is wrong, and the next step.
fn check(order: &Order) -> Result<(), &'static str> {
    let is_snapshot = order.action == Action::Snapshot;
    let dir = order.dir.as_deref();
    let is_pages = dir.is_some_and(|dir| PAGES.iter().any(|which| dir == Path::new(which)));
    let has_name = matches!(order.action, Action::Add | Action::Remove | Action::Resize);
    let said = match (order.action, dir) {
        (Action::Snapshot, None) => Err("a snapshot needs a directory; name one after the action"),
        (Action::Memory, _) if !is_pages => Err("say which memory: dirty or resident"),
        (_, None) if has_name => Err("name the device after the action"),
        (Action::Balloon, None) => Err("say how large the balloon shall be, stats or hint"),
        (Action::Snapshot | Action::Memory | Action::Balloon, _) | (_, None) => Ok(()),
        (_, Some(_)) if has_name => Ok(()),
        (_, Some(_)) => Err("this action takes no directory; leave it out"),
    };
    said?;
    let is_add = order.action == Action::Add;
    match (order.diff, order.keep_running) {
        (true, _) if !is_snapshot => Err("--diff belongs to snapshot; leave it out"),
        (_, true) if !is_snapshot => Err("--keep-running belongs to snapshot; leave it out"),
        _ if is_add != order.device.is_some() => {
            Err("add needs one of --disk and --net, and other actions need neither")
        }
        _ if order.force && order.action != Action::Remove => {
            Err("--force belongs to remove; leave it out")
        }
        _ => Ok(()),
    }
}

/// The device to add. Only one of the two is given.
fn device(disk: Option<String>, net: Option<String>) -> Option<(&'static str, String)> {
    disk.map(|words| ("disk", words))
        .or(net.map(|words| ("net", words)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::parse_from;
    use crate::outcome::EXIT_USAGE;

    #[test]
    fn a_command_stands_behind_two_hyphens() {
        let line =
            "mini-vmm ctl s exec --env A=b=c --env D= --cwd /d --port 7 -v -- ls -l --json --";
        let Ok(Command::Exec { order, verbosity }) = parse_from(line.split(' ')) else {
            panic!("no command");
        };
        let start = Start {
            words: ["ls", "-l", "--json", "--"].map(OsString::from).into(),
            env: [("A", "b=c"), ("D", "")]
                .map(|(name, value)| (name.into(), value.into()))
                .into(),
            directory: "/d".into(),
        };
        let expected = ExecOrder {
            socket: "s".into(),
            port: 7,
            start,
        };
        assert_eq!((order, verbosity), (expected, 1));
        let Ok(Command::Exec { order, .. }) = parse_from("mini-vmm ctl s exec -- ls".split(' '))
        else {
            panic!("no command");
        };
        assert_eq!(order.port, PORT);
    }

    #[test]
    fn words_of_exec_and_of_others_are_told_apart() {
        for line in [
            "ctl s exec",
            "ctl s exec ls",
            "ctl s exec --",
            "ctl s exec dir -- ls",
            "ctl s exec --json -- ls",
            "ctl s exec --diff -- ls",
            "ctl s exec --force -- ls",
            "ctl s exec --disk path=d -- ls",
            "ctl s exec --env A -- ls",
            "ctl s exec --env =b -- ls",
            "ctl s exec --port x -- ls",
            "ctl s info -- ls",
            "ctl s info --env A=b",
            "ctl s pause --cwd /",
            "ctl s pause --port 1",
            "agent more",
            "agent --port x",
            "--cpus 2 agent",
        ] {
            let words = ["mini-vmm"].into_iter().chain(line.split(' '));
            let error = parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), EXIT_USAGE, "{line}");
        }
    }
}
