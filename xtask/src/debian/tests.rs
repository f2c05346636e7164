// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests of what Debian is made of, without Debian.

use super::*;
use crate::process::{has_program, write};

#[test]
fn a_cached_debian_of_another_recipe_is_refused() {
    let scratch = Scratch::new().unwrap();
    let place = scratch.path("");
    for name in FILES {
        write(&place.join(name), "").unwrap();
    }
    write(&place.join(".whole"), PLAIN.recipe()).unwrap();
    assert_eq!(
        Debian::open(&PLAIN, &place).unwrap().disk,
        place.join("disk.img")
    );
    write(&place.join(".whole"), CLOUD.recipe()).unwrap();
    let text = Debian::open(&PLAIN, &place).unwrap_err().to_string();
    assert!(text.contains("another way"), "{text}");
    write(&place.join(".whole"), PLAIN.recipe()).unwrap();
    fs::remove_file(place.join("initrd.img")).unwrap();
    let text = Debian::open(&PLAIN, &place).unwrap_err().to_string();
    assert!(text.contains("initrd.img"), "{text}");
}

#[test]
fn the_kernel_is_the_only_one_of_its_boot_directory() {
    let scratch = Scratch::new().unwrap();
    let boot = scratch.path("boot");
    make_directory(&boot).unwrap();
    for name in ["vmlinuz", "config-1", "vmlinuz-1"] {
        write(&boot.join(name), "").unwrap();
    }
    let root = scratch.path("");
    assert_eq!(in_boot(&root, "vmlinuz").unwrap(), boot.join("vmlinuz-1"));
    write(&boot.join("vmlinuz-2"), "").unwrap();
    assert!(in_boot(&root, "vmlinuz").is_err());
    assert!(in_boot(&root, "initrd.img").is_err());
}

#[test]
fn the_setup_is_valid_shell() {
    for kind in [PLAIN, CLOUD, BENCH] {
        capture_ok(Command::new("sh").args(["-n", "-c", &kind.setup()])).unwrap();
    }
}

#[test]
fn owners_survive_on_the_disk() {
    let mut needs = vec!["mke2fs", "debugfs"];
    if !is_root() {
        needs.push("fakeroot");
    }
    if let Some(missing) = needs.iter().find(|need| !has_program(need)) {
        println!("SKIP: owners_survive_on_the_disk: {missing} is not installed");
        return;
    }
    let scratch = Scratch::new().unwrap();
    let [tar, root, disk] = ["tar", "root", "disk"].map(|name| scratch.path(name));
    let mut pack = Command::new("tar");
    write(&scratch.path("file"), "content").unwrap();
    pack.args([
        "--create",
        "--owner=12",
        "--group=34",
        "--mode=640",
        "--file",
    ]);
    pack.arg(&tar)
        .arg("--directory")
        .arg(scratch.path(""))
        .arg("file");
    capture_ok(&mut pack).unwrap();
    make_disk(&tar, &root, &disk).unwrap();
    let mut look = Command::new("/usr/sbin/debugfs");
    let stat = capture_ok(look.args(["-R", "stat file"]).arg(&disk)).unwrap();
    let stat = String::from_utf8(stat).unwrap();
    assert!(stat.contains("Mode:  0640"), "{stat}");
    let words: Vec<&str> = stat.split_whitespace().collect();
    let after = |key| words[words.iter().position(|word| *word == key).unwrap() + 1];
    assert_eq!((after("User:"), after("Group:")), ("12", "34"));
}
