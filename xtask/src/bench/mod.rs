// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask bench`: the cost of machines, compared with the minimum.

mod api;
mod bed;
mod boots;
mod client;
mod debian;
mod footprint;
#[path = "../../probe/src/guest.rs"]
mod guest;
mod host;
mod image;
mod instructions;
mod markdown;
mod order;
mod restore;
mod results;
mod save;
mod stats;
mod subject;
mod svg;
mod targets;
mod timeline;
mod virtio;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{capture, has_program, make_directory, write};
use crate::revision::Revision;
use crate::workspace::Scratch;
use crate::{build, host as this_host};
use host::{Effort, FULL, Host, QUICK};
use results::{FLOOR, OTHER, OURS, Report};
use subject::{Kind, Subject};

/// The description of the method.
const METHOD: &str = include_str!("method.md");

/// The options.
#[derive(Debug, Default)]
struct Options {
    quick: bool,
    peers: Vec<Subject>,
    against: Option<Against>,
    ours: Option<PathBuf>,
    in_bed: bool,
    wall: bool,
    only: String,
    rounds: Option<usize>,
    json: Option<PathBuf>,
    markdown: Option<PathBuf>,
    svg: Option<PathBuf>,
}

/// Another build of mini-vmm.
#[derive(Clone, Debug, PartialEq)]
enum Against {
    Program(PathBuf),
    Revision(Revision),
}

impl Against {
    fn parse(text: OsString) -> Result<Against> {
        if let Ok(path) = fs::canonicalize(&text)
            && path.is_file()
        {
            return Ok(Against::Program(path));
        }
        let name = text.to_string_lossy();
        let revision = Revision::named(&name)
            .with_context(|| format!("--against {name} is neither a file nor a revision of git"))?;
        Ok(Against::Revision(revision))
    }

    fn program(&self) -> Result<PathBuf> {
        match self {
            Against::Program(path) => Ok(path.clone()),
            Against::Revision(revision) => revision.mini_vmm(),
        }
    }
}

/// `cargo xtask bench`: parses its arguments, measures, reports. It fails only if nothing can be measured.
pub fn command(parser: &mut lexopt::Parser) -> Result<u8> {
    let Some(options) = parse(parser)? else {
        print!("{METHOD}");
        return Ok(0);
    };
    let report = options.run()?;
    let markdown = markdown::render(&report);
    print!("{markdown}");
    if let Some(path) = &options.json {
        write(path, format!("{:#}\n", report.to_json()))?;
    }
    if let Some(path) = &options.markdown {
        write(path, markdown)?;
    }
    if let Some(directory) = &options.svg {
        make_directory(directory)?;
        for measure in &report.measures {
            if let Some(plot) = svg::plot(measure)? {
                write(&directory.join(format!("{}.svg", measure.id)), plot)?;
            }
        }
    }
    Ok(0)
}

/// The report of a quick run of this build, compared with a build of yesterday's revision if git has one.
///
/// # Errors
/// Nothing could be measured.
pub fn look() -> Result<String> {
    let mut options = Options {
        quick: true,
        ..Options::default()
    };
    let mut note = None;
    match Revision::of_yesterday().and_then(|revision| revision.mini_vmm()) {
        Ok(program) => options.against = Some(Against::Program(program)),
        // This is no failure of this build.
        Err(error) => note = Some(format!("compared with no other build: {error:#}")),
    }
    let mut report = options.run()?;
    report.notes.extend(note);
    if report.find("start-wall").is_none() {
        bail!("no machine could be started:\n{}", report.notes.join("\n"));
    }
    Ok(markdown::render(&report))
}

/// None if only the method was asked for.
fn parse(parser: &mut lexopt::Parser) -> Result<Option<Options>> {
    use lexopt::prelude::*;
    let mut options = Options::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("method") => return Ok(None),
            Long("quick") => options.quick = true,
            Long("wall") => options.wall = true,
            Long("peer") => {
                let peer = Subject::peer(&parser.value()?.string()?)?;
                options.peers.push(peer);
            }
            Long("against") => options.against = Some(Against::parse(parser.value()?)?),
            Long("mini-vmm") => options.ours = Some(program(parser.value()?.into())?),
            Long("bed") => match parser.value()?.to_str() {
                Some("amd") => options.in_bed = true,
                _ => bail!("--bed: the suite runs in the amd bed"),
            },
            Long("only") => options.only = parser.value()?.string()?,
            Long("rounds") => options.rounds = Some(parser.value()?.parse()?),
            Long("json") => options.json = Some(parser.value()?.into()),
            Long("markdown") => options.markdown = Some(parser.value()?.into()),
            Long("svg") => options.svg = Some(parser.value()?.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some(options))
}

fn program(path: PathBuf) -> Result<PathBuf> {
    fs::canonicalize(&path).with_context(|| format!("there is no program {}", path.display()))
}

impl Options {
    fn run(&self) -> Result<Report> {
        if !self.in_bed
            && let Err(reason) = this_host::kvm()
        {
            bail!("{reason}; `cargo xtask bench --bed amd` needs none");
        }
        let against = self.against.as_ref().map(Against::program).transpose()?;
        let ours = match &self.ours {
            Some(path) => path.clone(),
            None => build::mini_vmm()?,
        };
        let probe = build::bench_probe()?;
        let subjects = self.subjects(&ours, &probe, against.as_deref());
        let scratch = Scratch::new()?;
        let mut report = Report {
            facts: facts(&subjects),
            counted: self.in_bed && !self.wall,
            ..Report::default()
        };
        if self.in_bed {
            let clock = match self.wall {
                true => "wall",
                false => "counted instructions",
            };
            let place = format!("the AMD bed, QEMU TCG with one CPU; its clock: {clock}");
            report.facts.push(("place".into(), place));
            let bed = bed::InBed {
                probe: &probe,
                directory: scratch.path(""),
                subjects: &subjects,
                rounds: self.rounds.unwrap_or(if self.quick { 1 } else { 6 }),
            };
            bed.measure(&self.only, &mut report)?;
        } else {
            let mut host = Host {
                probe: &probe,
                directory: scratch.path(""),
                subjects: &subjects,
                effort: self.effort(),
                report,
            };
            self.on_host(&mut host);
            report = host.report;
            report.notes.extend(missing());
        }
        if report.measures.is_empty() {
            let notes = report.notes.iter().map(|note| format!("\n{note}"));
            let notes = notes.collect::<String>();
            bail!("nothing was measured (--only '{}'){notes}", self.only);
        }
        Ok(report)
    }

    fn effort(&self) -> Effort {
        let effort = if self.quick { QUICK } else { FULL };
        Effort {
            rounds: self.rounds.unwrap_or(effort.rounds),
            ..effort
        }
    }

    fn on_host<'a>(&self, host: &mut Host<'a>) {
        type Group<'a> = fn(&mut Host<'a>);
        let groups: [(&str, Group<'a>); 17] = [
            ("start", Host::start),
            ("first-byte", Host::first_output),
            ("growth", Host::growth),
            ("exits", Host::exits),
            ("idle", Host::idle),
            ("many", Host::many),
            ("resets", Host::resets),
            ("instructions", Host::instructions),
            ("disk", Host::disk),
            ("net", Host::net),
            ("vsock", Host::vsock),
            ("api", Host::api),
            ("restore", Host::restores),
            ("clones", Host::clones),
            ("save", Host::saves),
            ("diff", Host::diffs),
            ("size", Host::sizes),
        ];
        // The quick suite has no time for all.
        let slow = [
            "instructions",
            "disk",
            "net",
            "vsock",
            "api",
            "restore",
            "save",
            "diff",
        ];
        let is_slow = |name| slow.contains(&name) && self.quick && self.only.is_empty();
        for (name, measure) in groups {
            if name.contains(&self.only) && !is_slow(name) {
                measure(host);
            }
        }
    }

    fn subjects(&self, ours: &Path, probe: &Path, against: Option<&Path>) -> Vec<Subject> {
        let mut subjects = vec![
            Subject::new(OURS, Kind::MiniVmm, ours),
            Subject::new(FLOOR, Kind::Floor, probe),
        ];
        subjects.extend(against.map(|other| Subject::new(OTHER, Kind::MiniVmm, other)));
        subjects.extend(self.peers.iter().cloned());
        subjects
    }
}

/// Facts about the machine and the programs.
fn facts(subjects: &[Subject]) -> Vec<(String, String)> {
    let first = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.map_or("?", |line| line.split(':').next_back().unwrap_or(line));
        value.trim().to_owned()
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kvm = match this_host::hardware_kvm() {
        Ok(()) => "on hardware virtualization".to_owned(),
        Err(reason) => format!("{reason}: ratios count, times do not"),
    };
    let mut facts = vec![
        ("CPU".to_owned(), first("/proc/cpuinfo", "model name")),
        ("kernel".to_owned(), kernel.trim().to_owned()),
        ("KVM".to_owned(), kvm),
        ("load at the start".to_owned(), first("/proc/loadavg", "")),
    ];
    for subject in subjects.iter().filter(|s| s.kind != Kind::Floor) {
        let output = capture(Command::new(&subject.program).arg("--version"));
        let text = output.map(|output| output.stdout).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut version = text.lines().next().unwrap_or("no version").to_owned();
        if subject.name == OTHER {
            // The version may be the same; the path of a revision's build contains its hash.
            version.push_str(&format!(", {}", subject.program.display()));
        }
        facts.push((subject.name.clone(), version));
    }
    facts
}

/// Notes about missing tools that would tell more.
fn missing() -> Vec<String> {
    let instructions = "instructions per exit in user space (cachegrind)";
    let tools = [
        ("perf", "where the time goes (perf stat, perf record)"),
        ("valgrind", instructions),
        ("strace", "system calls at start-up (strace -f -r)"),
    ];
    let missing = tools.into_iter().filter(|(tool, _)| !has_program(tool));
    let note = |(tool, what)| format!("{tool} is not installed: it would tell {what}");
    missing.map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Option<Options>> {
        parse(&mut lexopt::Parser::from_args(words))
    }

    #[test]
    fn options_are_read() {
        let own = std::env::current_exe().unwrap();
        let own = own.to_str().unwrap();
        let words = [
            "--quick",
            "--against",
            own,
            "--bed",
            "amd",
            "--rounds",
            "3",
            "--only",
            "start",
        ];
        let options = parsed(&words).unwrap().unwrap();
        assert!(options.quick && options.in_bed && !options.wall);
        let against = fs::canonicalize(own).map(Against::Program);
        assert_eq!(options.against, against.ok());
        assert_eq!((options.rounds, options.only.as_str()), (Some(3), "start"));
        let names: Vec<String> = options
            .subjects(Path::new("/a"), Path::new("/p"), Some(Path::new("/b")))
            .into_iter()
            .map(|subject| subject.name)
            .collect();
        assert_eq!(names, [OURS, FLOOR, OTHER]);
        assert_eq!(options.effort().rounds, 3);
    }

    #[test]
    fn wrong_options_are_refused() {
        assert!(parsed(&["--bed", "intel"]).is_err());
        assert!(parsed(&["--against", "/none/such"]).is_err());
        assert!(parsed(&["--speed"]).is_err());
        assert!(parsed(&["--method"]).unwrap().is_none());
    }

    #[test]
    fn the_method_names_every_measure() {
        for name in [
            "start",
            "first-byte",
            "growth",
            "exits",
            "instructions",
            "idle",
            "many",
            "resets",
            "boot",
            "debian",
            "disk",
            "net",
            "vsock",
            "api",
            "restore",
            "clones",
            "save",
            "diff",
            "size",
        ] {
            assert!(METHOD.contains(&format!("**{name}**")), "{name}");
        }
    }
}
