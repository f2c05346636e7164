// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Checks the documentation against the program: command lines, flags, exit codes, config files. Nothing here needs
//! KVM.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;
#[path = "docs/shell.rs"]
mod shell;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bare::Vm;
use bare::http::Client;
use mini_vmm::cli;
use mini_vmm::late::{LATE_ACTS, LateAct};
use rustix::process::Signal;
use shell::{Call, Line, calls, lines};

/// The workspace. `None`, with a note, if the tests run from a published package, which has one README and no `docs/`.
fn workspace(test: &str) -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let is_one = workspace.join("xtask").exists();
    if !is_one {
        eprintln!("SKIP: {test}: this is a package, without the pages of docs/");
    }
    is_one.then_some(workspace)
}

fn page(workspace: &Path, name: &str) -> String {
    fs::read_to_string(workspace.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every page for users: name and text.
fn pages(workspace: &Path) -> Vec<(String, String)> {
    let mut names = vec!["README.md".to_owned(), "DESIGN.md".to_owned()];
    for (folder, file) in [
        ("docs", ""),
        ("crates", "/README.md"),
        ("guest", "/README.md"),
    ] {
        for entry in fs::read_dir(workspace.join(folder)).unwrap() {
            let entry = entry.unwrap().file_name();
            names.push(format!("{folder}/{}{file}", entry.to_str().unwrap()));
        }
    }
    names.sort();
    let text = |name: String| {
        let text = page(workspace, &name);
        (name, text)
    };
    names.into_iter().map(text).collect()
}

fn mini_vmm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mini-vmm"));
    command.env_remove("MINI_VMM_LOG");
    command
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

fn stdout(args: &[&str]) -> String {
    let output = mini_vmm().args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    text(output.stdout)
}

/// Whether `call` runs the program.
fn is_ours(call: &Call) -> bool {
    matches!(
        call.words[0].as_str(),
        "mini-vmm" | "target/release/mini-vmm"
    )
}

/// Prints the machine of a command line. Its config files are in `folder`.
fn describe(args: &[String], folder: &Path) -> Output {
    let mut command = mini_vmm();
    command.args(args).current_dir(folder);
    if !args.iter().any(|arg| arg == "--print-config") {
        command.arg("--print-config");
    }
    command.output().unwrap()
}

/// Checks one call: it parses, describes a valid machine, and prints `shown`, if the page shows output.
fn check(call: &Call, shown: &[String], folder: &Path) -> Result<(), String> {
    let run = match cli::parse_from(&call.words) {
        // Its snapshot is on the reader's disk.
        Ok(cli::Command::Run(run)) if run.restore.is_some() => return Ok(()),
        Ok(cli::Command::Run(run)) => run,
        Ok(_) => return Ok(()),
        Err(error) if error.exit_code() == 0 => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    let output = describe(&call.words[1..], folder);
    if !output.status.success() {
        return Err(text(output.stderr));
    }
    if !run.print_config {
        return Ok(());
    }
    let mut printed = text(output.stdout);
    if let Some(grep) = &call.grep {
        printed = printed
            .lines()
            .filter(|line| line.contains(grep.as_str()))
            .map(|line| format!("{line}\n"))
            .collect();
    }
    if let Some(file) = &call.file {
        return fs::write(folder.join(file), printed).map_err(|error| error.to_string());
    }
    let shown: String = shown.iter().map(|line| format!("{line}\n")).collect();
    match shown == printed {
        true => Ok(()),
        false => Err(format!("it prints\n{printed}and not\n{shown}")),
    }
}

/// Checks the calls in a page's lines. Returns their number, and what is wrong. Files that they write are the page's
/// own.
fn check_page(name: &str, lines: &[Line]) -> (usize, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let (mut count, mut wrong) = (0, Vec::new());
    for line in lines {
        for call in calls(&line.text).iter().filter(|call| is_ours(call)) {
            count += 1;
            if let Err(why) = check(call, &line.output, folder.path()) {
                wrong.push(format!("{name}: {}: {why}", line.text));
            }
        }
    }
    (count, wrong)
}

#[test]
fn command_lines_mean_what_the_pages_say() {
    let Some(workspace) = workspace("command_lines_mean_what_the_pages_say") else {
        return;
    };
    let (mut with_some, mut all_wrong) = (Vec::new(), Vec::new());
    for (name, text) in pages(&workspace) {
        let (count, wrong) = check_page(&name, &lines(&text));
        all_wrong.extend(wrong);
        if count > 0 {
            with_some.push(name);
        }
    }
    assert!(all_wrong.is_empty(), "{}", all_wrong.join("\n"));
    for name in [
        "README.md",
        "crates/mini-vmm/README.md",
        "docs/api.md",
        "docs/boot.md",
        "docs/console.md",
        "docs/exit-codes.md",
        "docs/hypercalls.md",
        "docs/sandbox.md",
        "docs/start.md",
        "guest/bare/README.md",
    ] {
        assert!(
            with_some.iter().any(|some| some == name),
            "no line in {name}"
        );
    }
}

#[test]
fn requests_of_the_pages_are_accepted() {
    let Some(workspace) = workspace("requests_of_the_pages_are_accepted") else {
        return;
    };
    let mut with_some = Vec::new();
    for (name, text) in pages(&workspace) {
        let calls = lines(&text).into_iter().flat_map(|line| calls(&line.text));
        let puts: Vec<Call> = calls.filter(|call| call.words[0] == "put").collect();
        if puts.is_empty() {
            continue;
        }
        let mut vm = Vm::of_kernel("none".as_ref());
        let socket = vm.path("api");
        vm.command = mini_vmm();
        vm.command.arg("--api-sock").arg(&socket);
        vm.command.current_dir(vm.path(""));
        for file in ["vmlinuz", "initrd.img"] {
            fs::write(vm.path(file), "").unwrap();
        }
        let mut running = vm.start();
        let mut client = Client::connect(&mut running, &socket);
        for put in puts {
            let [_, path, body] = &put.words[..] else {
                panic!("{name}: {put:?}");
            };
            // Nothing can start here, so this only compares it with what clients send.
            if path == "actions" {
                assert_eq!(body, r#"{"action_type": "InstanceStart"}"#, "{name}");
                continue;
            }
            let answer = client.ask("PUT", &format!("/{path}"), body).unwrap();
            assert_eq!(answer.status, 204, "{name}: {path} {body}: {answer:?}");
        }
        running.signal(Signal::TERM);
        running.end();
        with_some.push(name);
    }
    assert_eq!(with_some, ["README.md", "docs/api.md"]);
}

#[test]
fn examples_of_the_help_are_read() {
    let help = stdout(&["--help"]);
    let (_, examples) = help.split_once("\nExamples:\n").unwrap();
    let examples: Vec<Line> = examples
        .lines()
        .filter_map(|line| line.strip_prefix("  mini-vmm"))
        .map(|rest| Line {
            text: format!("mini-vmm{rest}"),
            output: Vec::new(),
        })
        .collect();
    let (count, wrong) = check_page("--help", &examples);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 7, "{examples:?}");
}

#[test]
fn a_wrong_line_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let check = |line: &str, shown: &[&str]| {
        let shown: Vec<String> = shown.iter().map(|line| (*line).to_owned()).collect();
        check(&calls(line)[0], &shown, folder.path())
    };
    for line in [
        "mini-vmm --no-such-flag",
        "mini-vmm --kernel k --cpus 65",
        "mini-vmm check --kernel k",
        "mini-vmm --config nowhere.json",
    ] {
        assert!(check(line, &[]).is_err(), "{line}");
    }
    let line = "mini-vmm --kernel k --cpus 3 --print-config | grep cpus";
    assert_eq!(check(line, &["  \"cpus\": 3,"]), Ok(()));
    assert!(check(line, &["  \"cpus\": 4,"]).is_err());
    assert!(check(line, &[]).is_err());
}

#[test]
fn the_config_file_of_the_page_is_one() {
    let Some(workspace) = workspace("the_config_file_of_the_page_is_one") else {
        return;
    };
    let start = page(&workspace, "docs/start.md");
    let (_, json) = start.split_once("```json\n").unwrap();
    let (json, _) = json.split_once("```").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.json");
    fs::write(&file, json).unwrap();
    let printed = stdout(&["--config", file.to_str().unwrap(), "--print-config"]);
    assert!(printed.contains("\"timeout\": \"5m\""), "{printed}");
}

/// The flags that `--help` explains.
fn flags(help: &str) -> Vec<&str> {
    let flags = help.lines().filter_map(|line| {
        let line = line.trim_start();
        let at = line.starts_with('-').then(|| line.find("--"))??;
        let name = &line[at..];
        let end = name.find(|c: char| !c.is_ascii_lowercase() && c != '-');
        Some(&name[..end.unwrap_or(name.len())])
    });
    flags.collect()
}

#[test]
fn readme_names_every_flag() {
    let readme = include_str!("../README.md");
    let help = stdout(&["--help"]);
    let flags = flags(&help);
    assert!(flags.len() >= 18, "{flags:?}");
    for flag in flags {
        assert!(readme.contains(flag), "README.md lacks {flag}");
    }
}

/// The row for `VMM_HC_EXIT` in a table of exit codes. Without a route that supports the call, it is absent.
fn check_exit_call(table: &str) {
    let is_row = |line: &&str| {
        line.contains("VMM_HC_EXIT") && line.trim_matches(['|', ' ']).starts_with("n ")
    };
    let rows: Vec<_> = table.lines().filter(is_row).collect();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert!(
        rows[0].contains("pio") && rows[0].contains("forward"),
        "{rows:?}"
    );
}

#[test]
fn exit_code_tables_name_the_routes_of_the_exit_call() {
    check_exit_call(&stdout(&["--help"]));
    if let Some(workspace) = workspace("exit_code_tables_name_the_routes_of_the_exit_call") {
        check_exit_call(&page(&workspace, "docs/exit-codes.md"));
    }
}

#[test]
fn the_page_of_the_sandbox_has_the_table_of_late_acts() {
    let Some(workspace) = workspace("the_page_of_the_sandbox_has_the_table_of_late_acts") else {
        return;
    };
    let sandbox = page(&workspace, "docs/sandbox.md");
    let rows = sandbox.lines().filter(|line| line.starts_with('|'));
    let table: Vec<String> = LATE_ACTS.iter().map(LateAct::to_string).collect();
    assert!(
        rows.skip(2).eq(&table),
        "docs/sandbox.md must have these rows:\n{}",
        table.join("\n")
    );
}

#[test]
fn the_page_of_exit_codes_has_all() {
    let Some(workspace) = workspace("the_page_of_exit_codes_has_all") else {
        return;
    };
    let codes = page(&workspace, "docs/exit-codes.md");
    for code in [0, 1, 2, 32, 33, 34, 36] {
        assert!(codes.contains(&format!("| {code} |")), "no row for {code}");
    }
}
