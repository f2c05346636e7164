// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::config::file::{parse as parse_json, resolve, to_json};
use crate::config::tests::any_spec;
use crate::config::{self, KEYS, SerialSpec, VmSpec};
use crate::ctl::{Action, Order};
use crate::layout;
use crate::outcome::{EXIT_ERROR, Outcome};

fn parse(line: &str) -> Result<Command, Error> {
    parse_from(std::iter::once("mini-vmm").chain(line.split_whitespace()))
}

fn run(line: &str) -> Run {
    match parse(line) {
        Ok(Command::Run(run)) => *run,
        other => panic!("{line}: {other:?}"),
    }
}

/// The word that the command line gives for `key`.
fn word<'a>(run: &'a Run, key: &str) -> Option<&'a str> {
    let (_, word) = run.flags.iter().find(|(flag, _)| *flag == key)?;
    word.to_str()
}

fn spec(run: &Run) -> Result<VmSpec, config::file::Error> {
    resolve(&run.flags, None)
}

/// The arguments that describe `spec` completely. They are the words of its JSON.
fn to_args(spec: &VmSpec) -> Vec<OsString> {
    let serde_json::Value::Object(json) = serde_json::to_value(spec).unwrap() else {
        panic!("{spec:?} is no object");
    };
    assert_eq!(json.len(), KEYS.len());
    let flags = json.iter().flat_map(|(key, value)| match value {
        serde_json::Value::String(word) => vec![format!("--{key}={word}")],
        serde_json::Value::Array(list) => {
            let devices = list.iter().filter_map(serde_json::Value::as_object);
            let flags = devices.map(|device| format!("--{key}={}", to_word(device)));
            let plain = list.iter().filter(|value| !value.is_object());
            let words: Vec<_> = plain
                .map(|value| value.as_str().map_or(value.to_string(), str::to_owned))
                .collect();
            let words = (!words.is_empty()).then(|| format!("--{key}={}", words.join(",")));
            flags.chain(words).collect()
        }
        serde_json::Value::Object(device) => vec![format!("--{key}={}", to_word(device))],
        serde_json::Value::Null => Vec::new(),
        value => vec![format!("--{key}={value}")],
    });
    let flags = flags.map(OsString::from);
    std::iter::once("mini-vmm".into()).chain(flags).collect()
}

/// The word that describes a device.
fn to_word(device: &serde_json::Map<String, serde_json::Value>) -> String {
    let entry = |key, value: &serde_json::Value| match value {
        serde_json::Value::String(text) => format!("{key}={}", text.replace(',', ",,")),
        value => format!("{key}={value}"),
    };
    let entries = device.iter().flat_map(|(key, value)| match value {
        serde_json::Value::Array(list) => list.iter().map(|value| entry(key, value)).collect(),
        value => vec![entry(key, value)],
    });
    entries.collect::<Vec<_>>().join(",")
}

proptest! {
    #[test]
    fn flags_say_all_that_a_spec_holds(spec in any_spec()) {
        let Command::Run(run) = parse_from(to_args(&spec)).unwrap() else { unreachable!() };
        prop_assert_eq!(resolve(&run.flags, None).unwrap(), spec);
    }

    #[test]
    fn printed_config_means_the_same_machine(spec in any_spec()) {
        let Command::Run(run) = parse_from(to_args(&spec)).unwrap() else { unreachable!() };
        let json = to_json(&resolve(&run.flags, None).unwrap()).unwrap();
        let read = parse_json(json.as_bytes(), Path::new("vm.json")).unwrap();
        prop_assert_eq!(read.finish().unwrap(), spec);
    }

    #[test]
    fn any_arguments_are_read_or_refused(args in proptest::collection::vec(any_arg(), 0..6)) {
        match parse_from(args) {
            Ok(command) => prop_assert!(command.verbosity() < 255),
            Err(error) => prop_assert!([0, EXIT_USAGE].contains(&error.exit_code())),
        }
    }
}

fn any_arg() -> impl Strategy<Value = OsString> {
    use std::os::unix::ffi::OsStringExt;
    prop_oneof![
        any::<Vec<u8>>().prop_map(OsString::from_vec),
        "(--[a-z]{1,8}|-[a-zA-Z]{1,4}|--(memory|cpus|kernel|serial|timeout|debug-exit)=?.{0,8})"
            .prop_map(OsString::from),
        prop_oneof![
            Just("check"),
            Just("completions"),
            Just("--kernel"),
            Just("k"),
            Just("")
        ]
        .prop_map(OsString::from),
    ]
}

#[test]
fn the_definition_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn flags_mean_their_fields() {
    let read = run(
        "--kernel k --initrd i --cpus 2 --memory 1G --serial socket=s --timeout 5m \
                    --cpu-features -avx2,+x --debug-exit --legacy-timer -vv",
    );
    assert_eq!(read.verbosity, 2);
    let spec = spec(&read).unwrap();
    assert_eq!(
        (spec.cpus, spec.memory, spec.legacy_timer),
        (2, 1 << 30, true)
    );
    assert_eq!(spec.serial, SerialSpec::Socket("s".into()));
    assert_eq!(spec.timeout.unwrap().as_secs(), 300);
    assert_eq!(spec.debug_exit, Some(layout::DEBUG_EXIT));
    let features: Vec<String> = spec.cpu_features.iter().map(ToString::to_string).collect();
    assert_eq!(features, ["-avx2", "+x"]);
}

#[test]
fn a_kernel_command_line_may_begin_with_anything() {
    for cmdline in ["--- quiet", "-- -c x", "-v", "--kernel", "-", "--", "=", ""] {
        for args in [
            vec!["--kernel", "k", "--cmdline", cmdline, "--cpus", "2"],
            vec![
                "--kernel",
                "k",
                &format!("--cmdline={cmdline}"),
                "--cpus",
                "2",
            ],
        ] {
            let args = ["mini-vmm"].into_iter().chain(args);
            let Ok(Command::Run(run)) = parse_from(args) else {
                panic!("{cmdline}");
            };
            assert_eq!(word(&run, "cmdline"), Some(cmdline));
            assert_eq!(word(&run, "cpus"), Some("2"), "{cmdline}");
        }
    }
}

#[test]
fn of_a_flag_that_is_given_twice_the_last_counts() {
    let once = run(
        "--kernel k --initrd i --cmdline y --cpus 2 --memory 1G --serial off --timeout 2 \
                    --debug-exit=off --legacy-timer=off --hypercall pio --para on --config d --cloud-init f",
    );
    let twice = run(
        "--kernel j --kernel k --initrd h --initrd i --cmdline x --cmdline y --cpus 1 --cpus 2 \
                     --memory 2G --memory 1G --serial pty --serial off --timeout 1 --timeout 2 \
                     --debug-exit --debug-exit=off --legacy-timer --legacy-timer=off --hypercall vendor \
                     --hypercall pio --para off --para on --config c --config d --cloud-init e --cloud-init f",
    );
    assert_eq!(twice, once);
    assert!(run("--kernel k --print-config --print-config").print_config);
    let check = Command::Check {
        json: true,
        verbosity: 0,
    };
    assert_eq!(parse("check --json --json").unwrap(), check);
    let Ok(Command::Demo { route, .. }) = parse("demo --hypercall vendor --hypercall pio") else {
        panic!("no demo");
    };
    assert_eq!(route, HypercallRoute::Pio(None));
    // Lists accumulate: the last entry for a feature counts.
    let features = spec(&run("--kernel k --cpu-features +a,-b --cpu-features +b"));
    let features = features.unwrap().cpu_features;
    let features: Vec<_> = features.iter().map(ToString::to_string).collect();
    assert_eq!(features, ["+a", "-b", "+b"]);
    let disks = spec(&run("--kernel k --disk path=a,readonly --disk path=b"));
    let disks = disks.unwrap().disk;
    let disks: Vec<_> = disks
        .iter()
        .map(|disk| (disk.path.to_str(), disk.readonly))
        .collect();
    assert_eq!(disks, [(Some("a"), true), (Some("b"), false)]);
}

#[test]
fn nothing_but_the_kernel_means_the_defaults() {
    assert_eq!(spec(&run("--kernel k")).unwrap(), VmSpec::new("k"));
    // The kernel may be in the config file.
    assert_eq!(run("--config c").config.as_deref(), Some(Path::new("c")));
}

#[test]
fn the_demo_takes_a_route() {
    let demo = |route, verbosity| Command::Demo { route, verbosity };
    let auto = HypercallRoute::Auto;
    assert_eq!(parse("demo").unwrap(), demo(auto, 0));
    assert_eq!(parse("demo -v").unwrap(), demo(auto, 1));
    let pio = HypercallRoute::Pio(None);
    assert_eq!(parse("demo --hypercall pio").unwrap(), demo(pio, 0));
    for line in [
        "demo --hypercall cpu",
        "demo --kernel k",
        "--kernel k demo",
        "--hypercall pio demo",
    ] {
        assert_eq!(parse(line).unwrap_err().exit_code(), EXIT_USAGE, "{line}");
    }
}

#[test]
fn subcommands_are_read() {
    let check = |json, verbosity| Command::Check { json, verbosity };
    assert_eq!(parse("check").unwrap(), check(false, 0));
    assert_eq!(parse("-v check --json -v").unwrap().verbosity(), 1);
    assert_eq!(parse("check --json").unwrap(), check(true, 0));
    assert_eq!(
        parse("completions zsh").unwrap(),
        Command::Completions(Shell::Zsh)
    );
    let error = parse("--cpus 2 check").unwrap_err();
    assert!(
        error.to_string().contains("leave out the options"),
        "{error}"
    );
}

#[test]
fn mistakes_get_a_hint() {
    let cases = [
        ("--mem 1G", "'--memory 512M'"),
        ("-m 512", "'--memory 512M'"),
        ("--memroy 1G", "'--memory'"),
        ("-smp 2", "'--cpus 2'"),
        ("--smp=2", "'--cpus 2'"),
        ("-kernel k", "'--kernel FILE'"),
        ("--kernel k -append x", "'--cmdline TEXT'"),
        ("vmlinux", "'--kernel vmlinux'"),
        ("help", "'mini-vmm --help'"),
        ("-rtc base=utc", "'--rtc on'"),
        (
            "--kernel k --cpus 99999999999999999999",
            "a whole number from 1 to 64",
        ),
        (
            "--kernel k --cmdline console=ttyS0 quiet",
            "quote a kernel command line",
        ),
        ("--memory size=1G", "'--memory 1G'"),
        ("--kernel k --cpus boot=2", "'--cpus 2'"),
        ("--kernel k --serial tty", "'--serial stdio'"),
        ("--kernel k --debug-exit 0x10", "'--debug-exit=0x10'"),
        ("--kernel k --memory lots", "not a size; write"),
        ("--kernel k --cpus -1", "not a number of vCPUs"),
        (
            "--kernel k --cpu-features --cpus",
            "not a CPU feature; write",
        ),
        ("--kernel k --disk d.img", "write '--disk path=d.img'"),
        ("--kernel k --disk readonly", "missing field `path`"),
        ("--kernel k --user-data u", "'--cloud-init DIR'"),
        ("--kernel k -drive file=d", "'--disk path=FILE'"),
        ("--kernel k -hda d", "'--disk path=FILE'"),
        ("--kernel k --block path=d", "'--disk path=FILE'"),
        ("--kernel k --net tap0", "write '--net tap=tap0'"),
        (
            "--kernel k --net queues=2",
            "needs one of tap=NAME, fd=N and user",
        ),
        ("--kernel k --net none", "leave out '--net'"),
        ("--kernel k --net tap=t,vhost=on", "unknown field `vhost`"),
        (
            "--kernel k -netdev user,id=n",
            "'--net user' or '--net tap=NAME'",
        ),
        ("--kernel k -nic tap", "'--net user' or '--net tap=NAME'"),
        ("--kernel k --tap tap0", "'--net user' or '--net tap=NAME'"),
        ("--kernel k --fs x", "--share path=DIR,tag=NAME"),
        (
            "--kernel k --vhost-user-blk x",
            "--vhost-user socket=PATH,device=TYPE",
        ),
        ("--kernel k --vsock-cid 3", "--vsock cid=N,socket=PATH"),
        ("--kernel -k", "write '--kernel=-k'"),
        ("--kernel k --initrd -foo.img", "write '--initrd=-foo.img'"),
        ("--kernel k --serial -x", "write '--serial=-x'"),
        ("--config --x.json", "write '--config=--x.json'"),
        ("--kernel k --cpu-features avx2", "write + before the name"),
        ("", "--kernel <FILE>"),
    ];
    for (line, part) in cases {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), EXIT_USAGE, "{line}");
        let text = error.to_string();
        assert!(text.contains(part), "{line}: {text:?} lacks {part:?}");
        assert!(text.matches("tip:").count() <= 1, "{line}: {text}");
    }
}

#[test]
fn subcommands_take_no_kernel() {
    for line in ["check vmlinux", "demo vmlinux", "completions bash vmlinux"] {
        let text = parse(line).expect_err(line).to_string();
        assert!(!text.contains("--kernel"), "{line}: {text}");
    }
}

#[test]
fn what_was_typed_is_shown_in_part() {
    let long = "\u{1b}é".repeat(1 << 16);
    for args in [
        vec![format!("--{long}")],
        vec![long.clone()],
        vec!["--kernel".into(), format!("-{long}")],
        vec!["--debug-exit".into(), long.clone()],
        vec!["--memory".into(), long.clone()],
        vec!["--memory".into(), format!("size={long}")],
        vec!["--on-reboot".into(), long.clone()],
        vec!["completions".into(), long.clone()],
    ] {
        let args = ["mini-vmm".to_owned()].into_iter().chain(args);
        let text = parse_from(args.clone()).unwrap_err().to_string();
        assert!(text.len() < 2000, "{} bytes: {args:.100?}", text.len());
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}

#[test]
fn help_shows_the_exit_codes_that_outcomes_have() {
    let help = parse("--help").unwrap_err();
    assert_eq!(help.exit_code(), 0);
    let help = help.to_string();
    let codes = [
        (Outcome::PowerOff.exit_code(), "the guest powered off"),
        (EXIT_ERROR, "start-up or configuration error"),
        (EXIT_USAGE, "usage error"),
        (Outcome::Reset.exit_code(), "the guest asked for a reset"),
        (Outcome::VcpuFailure.exit_code(), "vCPU failure"),
        (
            Outcome::GuestPanic.exit_code(),
            "the guest reported a panic",
        ),
        (Outcome::Timeout.exit_code(), "--timeout ran out"),
        (Outcome::ConsoleQuit.exit_code(), "Ctrl-A x"),
        (Outcome::Signal(libc::SIGTERM).exit_code(), "SIGTERM"),
    ];
    for (code, what) in codes {
        let line = format!("\n{code:>5}  {what}");
        assert!(help.contains(&line), "{help}\nlacks {line:?}");
    }
    let max_cpus = format!("1 to {}", layout::MAX_CPUS);
    assert_eq!(VmSpec::DEFAULT_MEMORY, 512 << 20);
    for limit in [
        max_cpus.as_str(),
        "[default: 512M]",
        "At least 32M, at most 1T",
    ] {
        assert!(help.contains(limit), "{help}\nlacks {limit:?}");
    }
    assert_eq!((layout::MIN_RAM, layout::MAX_RAM), (32 << 20, 1 << 40));
}

#[test]
fn restored_memory_is_of_a_file_or_a_handler() {
    let handler = |from: &str| {
        let words = [
            "mini-vmm",
            "--restore=d",
            "--resume",
            "--restore-memory",
            from,
        ];
        match parse_from(words.map(OsString::from)) {
            Ok(Command::Run(run)) => Ok(run.handler),
            other => Err(format!("{other:?}")),
        }
    };
    assert_eq!(handler("file"), Ok(None));
    assert_eq!(handler("uffd=/s"), Ok(Some("/s".into())));
    for wrong in ["uffd=", "uffd", "socket=/s", ""] {
        assert!(
            handler(wrong).unwrap_err().contains("uffd=SOCKET"),
            "{wrong}"
        );
    }
    let words = ["mini-vmm", "--kernel=k", "--restore-memory=file"];
    assert!(parse_from(words.map(OsString::from)).is_err());
}

#[test]
fn a_saved_machines_clock_stands_unless_the_command_line_says_otherwise() {
    let goes_on = |more: &[&str]| {
        let args = ["mini-vmm"].iter().chain(more).map(OsString::from);
        let command = parse_from(args).ok()?;
        match command {
            Command::Run(run) => Some(run.clock_goes_on),
            _ => None,
        }
    };
    let restore = ["--restore", "snap", "--resume"];
    assert_eq!(goes_on(&restore), Some(false));
    for (word, expected) in [
        ("stands", Some(false)),
        ("goes-on", Some(true)),
        ("late", None),
    ] {
        let args = [&restore[..], &["--clock", word]].concat();
        assert_eq!(goes_on(&args), expected, "{word}");
    }
    assert_eq!(goes_on(&["--kernel", "k", "--clock", "goes-on"]), None);
}

#[test]
fn each_key_has_a_flag() {
    let command = Arguments::command();
    let flags = command.get_arguments().filter_map(clap::Arg::get_long);
    let others = [
        "api-sock",
        "restore",
        "restore-memory",
        "record-working-set",
        "resume",
        "clone-id",
        "clock",
        "http-api-max-payload-size",
        "config",
        "print-config",
        "verbose",
        "help",
        "version",
    ];
    let mut flags: Vec<_> = flags.filter(|flag| !others.contains(flag)).collect();
    let mut keys = KEYS.to_vec();
    flags.sort_unstable();
    keys.sort_unstable();
    assert_eq!(flags, keys);
}

#[test]
fn paths_may_have_any_bytes_and_text_may_not() {
    use std::os::unix::ffi::OsStrExt;
    let with = |flag: &str| {
        let odd = [flag.as_bytes(), b"a\xff,b"].concat();
        let args = ["mini-vmm", "--kernel=k"].map(OsString::from);
        parse_from(
            args.into_iter()
                .chain([std::ffi::OsStr::from_bytes(&odd).into()]),
        )
    };
    let path = std::path::PathBuf::from(std::ffi::OsStr::from_bytes(b"a\xff,b"));
    let read = |flag: &str| match with(flag) {
        Ok(Command::Run(run)) => spec(&run).unwrap(),
        other => panic!("{flag}: {other:?}"),
    };
    assert_eq!(read("--kernel=").kernel, path);
    assert_eq!(read("--initrd=").initrd.as_ref(), Some(&path));
    assert_eq!(read("--cloud-init=").cloud_init.as_ref(), Some(&path));
    assert_eq!(read("--metrics=").metrics.as_ref(), Some(&path));
    let file = SerialSpec::File(path.clone());
    assert_eq!(read("--serial=file=").serial, file);
    assert_eq!(read("--event-log=").event_log.as_ref(), Some(&path));
    assert_eq!(read("--snapshot-dir=").snapshot_dir.as_ref(), Some(&path));
    let paths = [
        "kernel",
        "initrd",
        "cloud-init",
        "metrics",
        "event-log",
        "snapshot-dir",
    ];
    for key in KEYS.iter().filter(|key| !paths.contains(key)) {
        let error = with(&format!("--{key}=")).unwrap_err();
        assert_eq!(error.exit_code(), EXIT_USAGE, "{key}: {error}");
    }
}

#[test]
fn an_api_needs_no_kernel() {
    let Ok(Command::Run(run)) = parse_from(["mini-vmm", "--api-sock", "s"]) else {
        panic!("no run");
    };
    assert_eq!((run.api_sock, run.flags), (Some("s".into()), Vec::new()));
    assert!(parse_from(["mini-vmm", "--http-api-max-payload-size", "9"]).is_err());
    assert!(parse_from(["mini-vmm", "check", "--api-sock", "s"]).is_err());
}

#[test]
fn an_order_names_a_socket_and_an_action() {
    for (word, action, _) in Action::WORDS {
        let name = match action {
            Action::Snapshot => " snap",
            Action::Memory => " dirty",
            Action::Add | Action::Remove | Action::Resize => " data",
            Action::Balloon => " 64M",
            _ => "",
        };
        let device = if action == Action::Add {
            " --disk path=d"
        } else {
            ""
        };
        let dir = (!name.is_empty()).then(|| PathBuf::from(name.trim()));
        let Ok(Command::Ctl { order, verbosity }) =
            parse(&format!("ctl s {word}{name}{device} --json -v"))
        else {
            panic!("{word}");
        };
        let expected = Order {
            socket: "s".into(),
            action,
            dir,
            device: (action == Action::Add).then(|| ("disk", "path=d".to_owned())),
            force: false,
            diff: false,
            keep_running: false,
            json: true,
        };
        assert_eq!((order, verbosity), (expected, 1));
    }
    let Ok(Command::Ctl { order, .. }) = parse("ctl s snapshot d --diff --keep-running") else {
        panic!("no order");
    };
    assert!(order.diff && order.keep_running);
    let Ok(Command::Ctl { order, .. }) = parse("ctl s remove d --force") else {
        panic!("no order");
    };
    assert!(order.force);
    for line in [
        "ctl",
        "ctl s",
        "ctl s fly",
        "ctl s info more",
        "ctl s snapshot",
        "ctl s snapshot a b",
        "ctl s pause --keep-running",
        "ctl s pause --diff",
        "ctl s memory",
        "ctl s memory warm",
        "ctl s memory dirty --diff",
        "ctl s info --kernel k",
        "ctl s add",
        "ctl s add d",
        "ctl s add d --disk path=a --net user",
        "ctl s add --net user",
        "ctl s add d --net user --force",
        "ctl s remove",
        "ctl s remove d --disk path=a",
        "ctl s info --force",
        "ctl s resize",
        "--cpus 2 ctl s info",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), EXIT_USAGE, "{line}");
    }
}

#[test]
fn a_merge_names_three_snapshots() {
    let Ok(Command::Merge {
        base, diff, out, ..
    }) = parse("snapshot merge a b c")
    else {
        panic!("no merge");
    };
    let names = ["a", "b", "c"].map(PathBuf::from);
    assert_eq!([base, diff, out], names);
    for line in [
        "snapshot",
        "snapshot merge a b",
        "snapshot merge a b c d",
        "--cpus 2 snapshot merge a b c",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), EXIT_USAGE, "{line}");
    }
}
