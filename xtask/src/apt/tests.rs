// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests of package trees, with a fake Debian.

use std::cell::RefCell;
use std::path::PathBuf;

use anyhow::bail;

use super::*;
use crate::process::write;

/// A fake Debian with old and new lists.
struct Fake {
    /// The packages on the old and on the new lists.
    lists: [&'static [&'static str]; 2],
    /// The packages that can be downloaded.
    there: &'static [&'static str],
    fresh: bool,
    /// Whether there is a network.
    online: bool,
    /// The actions so far, one word each.
    done: RefCell<Vec<String>>,
}

impl Offers for Fake {
    fn names(&self, pattern: &str) -> Result<Vec<String>> {
        assert_eq!(pattern, "^kernel");
        let names = self.lists[usize::from(self.fresh)].iter();
        Ok(names.map(|&name| name.to_owned()).collect())
    }

    fn unpack(&self, packages: &[String], tree: &Path) -> Result<()> {
        for package in packages {
            if !self.online || !self.there.contains(&package.as_str()) {
                bail!("404 {package}");
            }
            write(&tree.join("release"), package)?;
            self.done.borrow_mut().push(package.clone());
        }
        Ok(())
    }

    fn is_fresh(&self) -> bool {
        self.fresh
    }

    fn refresh(&mut self) -> Result<()> {
        if !self.online {
            bail!("no network");
        }
        self.done.borrow_mut().push("refresh".to_owned());
        self.fresh = true;
        Ok(())
    }
}

const OLD: &[&str] = &["kernel-1"];
const NEW: &[&str] = &["kernel-2"];

/// A Debian that moved from kernel 1 to kernel 2 since the lists were fetched.
fn moved_on() -> Fake {
    Fake {
        lists: [OLD, NEW],
        there: NEW,
        fresh: false,
        online: true,
        done: RefCell::default(),
    }
}

/// The initial state of the cache.
enum Cached {
    Nothing,
    Whole(&'static str),
    /// Left by an interrupted copy, or by an older version without marks.
    Unmarked(&'static str),
    /// A complete tree that lost a file later.
    Damaged,
}

fn prepare(cache: &Path, cached: &Cached) {
    let place = cache.join("linux");
    let (release, marked) = match cached {
        Cached::Nothing => return,
        Cached::Whole(release) => (Some(release), true),
        Cached::Unmarked(release) => (Some(release), false),
        Cached::Damaged => (None, true),
    };
    fs::create_dir_all(place.join("boot")).unwrap();
    if let Some(release) = release {
        write(&place.join("release"), release).unwrap();
    }
    if marked {
        write(&place.join(".whole"), "").unwrap();
    }
}

/// The release in the cache afterwards, and the actions that were needed.
fn run(cached: &Cached, mut debian: Fake) -> (Result<Option<String>>, String) {
    let scratch = Scratch::new().unwrap();
    let cache: PathBuf = scratch.path("");
    prepare(&cache, cached);
    let tree = Tree {
        name: "linux",
        pattern: "^kernel",
        choose: &|offered| Some(vec![offered.last()?.clone()]),
    };
    let open = |place: &Path| {
        Ok(String::from_utf8(crate::process::read(
            &place.join("release"),
        )?)?)
    };
    let opened = tree.cached_in(&cache, &mut debian, &open);
    if let Ok(Some(release)) = &opened {
        // It stays, even without Debian.
        debian.online = false;
        let again = tree.cached_in(&cache, &mut debian, &open);
        assert_eq!(again.unwrap().as_ref(), Some(release));
    }
    (opened, debian.done.into_inner().join(" "))
}

#[test]
fn a_verdict_never_depends_on_the_age_of_the_lists() {
    let current = || Fake {
        lists: [NEW, NEW],
        ..moved_on()
    };
    let empty = || Fake {
        lists: [&[], NEW],
        ..moved_on()
    };
    let lacking = || Fake {
        lists: [&[], &[]],
        ..moved_on()
    };
    let offline = || Fake {
        online: false,
        ..moved_on()
    };
    #[rustfmt::skip]
    let table = [
        (Cached::Nothing, current(), Some("kernel-2"), "kernel-2"),
        // The lists name what the servers no longer have.
        (Cached::Nothing, moved_on(), Some("kernel-2"), "refresh kernel-2"),
        // A new machine has no lists.
        (Cached::Nothing, empty(), Some("kernel-2"), "refresh kernel-2"),
        (Cached::Nothing, lacking(), None, "refresh"),
        // A complete tree needs no action.
        (Cached::Whole("kernel-1"), current(), Some("kernel-1"), ""),
        (Cached::Whole("kernel-1"), lacking(), Some("kernel-1"), ""),
        (Cached::Whole("kernel-1"), offline(), Some("kernel-1"), ""),
        // An incomplete tree is replaced.
        (Cached::Unmarked("kernel-1"), current(), Some("kernel-2"), "kernel-2"),
        (Cached::Unmarked("kernel-1"), moved_on(), Some("kernel-2"), "refresh kernel-2"),
        (Cached::Damaged, moved_on(), Some("kernel-2"), "refresh kernel-2"),
    ];
    for (row, (cached, debian, release, done)) in table.into_iter().enumerate() {
        let (opened, did) = run(&cached, debian);
        assert_eq!(opened.unwrap().as_deref(), release, "row {row}");
        assert_eq!(did, done, "row {row}");
    }
}

#[test]
fn without_a_network_the_error_says_so_and_nothing_is_lost() {
    let offline = Fake {
        online: false,
        ..moved_on()
    };
    let (opened, did) = run(&Cached::Unmarked("kernel-1"), offline);
    assert_eq!(opened.unwrap_err().to_string(), "no network");
    assert_eq!(did, "");
}

#[test]
fn what_can_not_be_had_with_new_lists_either_is_an_error() {
    let broken = Fake {
        there: &[],
        ..moved_on()
    };
    let (opened, did) = run(&Cached::Nothing, broken);
    assert_eq!(opened.unwrap_err().to_string(), "404 kernel-2");
    assert_eq!(did, "refresh");
}
