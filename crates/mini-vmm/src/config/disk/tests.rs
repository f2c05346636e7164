// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use proptest::prelude::*;

use super::*;
use crate::config::{Draft, Error, HotplugSlots, VmSpec};

/// Disks of every kind.
pub(in crate::config) fn any_disk() -> impl Strategy<Value = DiskSpec> {
    let text = || "[ -~é\n]{1,40}";
    let rate = || shared::tests::any_limit();
    let files = (
        text(),
        proptest::option::of(text()),
        proptest::option::of(text()),
    );
    (files, any::<u16>(), any::<[bool; 4]>(), rate(), rate()).prop_map(
        |((path, serial, overlay), queues, [qcow2, readonly, direct, through], bandwidth, iops)| {
            DiskSpec {
                path: path.into(),
                format: if qcow2 { Format::Qcow2 } else { Format::Raw },
                readonly,
                serial,
                direct,
                queues,
                cache: if through {
                    Cache::Writethrough
                } else {
                    Cache::Writeback
                },
                engine: if direct { Engine::Async } else { Engine::Sync },
                bandwidth,
                iops,
                overlay: overlay.map(PathBuf::from),
                iothread: through.then(|| IoThreadName::new("a-1").unwrap()),
                slot: None,
            }
        },
    )
}

/// The disks of these flags.
fn disks(words: &[&str]) -> Result<Vec<DiskSpec>, Error> {
    let mut draft = Draft::default();
    draft.say("kernel", OsStr::new("vmlinux"))?;
    draft.say("hotplug", OsStr::new("1"))?;
    for word in words {
        draft.say("disk", OsStr::new(word))?;
    }
    Ok(draft.finish()?.disk)
}

#[test]
fn all_keys_are_read() {
    let words = "path=a,,b.img,format=qcow2,readonly,serial=S 1,direct=on,queues=4,cache=writethrough,engine=sync,\
                 bandwidth=10M,iops=1000,overlay=/var/tmp,iothread=fast,slot=31";
    let all = DiskSpec {
        path: "a,b.img".into(),
        format: Format::Qcow2,
        readonly: true,
        serial: Some("S 1".into()),
        direct: true,
        queues: 4,
        cache: Cache::Writethrough,
        engine: Engine::Sync,
        bandwidth: Limit::per_second(10 << 20),
        iops: Limit::per_second(1000),
        overlay: Some("/var/tmp".into()),
        iothread: IoThreadName::new("fast"),
        slot: Some(31),
    };
    assert_eq!(disks(&[words]), Ok(vec![all.clone()]));
    assert_eq!(disks(&["path=d"]), Ok(vec![DiskSpec::new("d")]));
    for disk in [all, DiskSpec::new("d")] {
        let spec = VmSpec {
            disk: vec![disk],
            hotplug: HotplugSlots(1),
            ..VmSpec::new("vmlinux")
        };
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(
            serde_json::from_str::<VmSpec>(&json).unwrap(),
            spec,
            "{json}"
        );
    }
}

#[test]
fn disks_keep_their_order_and_come_after_those_of_the_file() {
    let file = r#"{"kernel": "k", "disk": [{"path": "a,1"}, {"path": "b", "queues": 2, "bandwidth": 4096}]}"#;
    let mut draft: Draft = serde_json::from_str(file).unwrap();
    for word in ["path=c", "path=d"] {
        draft.say("disk", OsStr::new(word)).unwrap();
    }
    let disks = draft.finish().unwrap().disk;
    let paths: Vec<_> = disks
        .iter()
        .map(|disk| disk.path.to_str().unwrap())
        .collect();
    assert_eq!(paths, ["a,1", "b", "c", "d"]);
    let rate = disks[1].bandwidth.map(|limit| limit.size.get());
    assert_eq!((disks[1].queues, rate), (2, Some(4096)));
}

#[test]
fn a_path_may_have_any_bytes() {
    let mut draft = Draft::default();
    draft.say("kernel", OsStr::new("k")).unwrap();
    draft.say("disk", OsStr::from_bytes(b"path=\xff")).unwrap();
    let disk = &draft.finish().unwrap().disk[0];
    assert_eq!(disk.path.as_os_str().as_bytes(), b"\xff");
}

#[test]
fn mistakes_are_named() {
    for (word, part) in [
        (
            "disk.img",
            "unknown field `disk.img`, expected one of `path`, `format`,",
        ),
        ("readonly", "missing field `path`"),
        (
            "path=a,format=vmdk",
            "unknown variant `vmdk`, expected `raw` or `qcow2`",
        ),
        (
            "path=a,cache=none",
            "unknown variant `none`, expected one of `writeback`, `writethrough`, `unsafe`",
        ),
        ("path=a,queues=two", "\"two\" is not a whole number"),
        ("path=a,iops=1K", "\"1K\" is not a whole number"),
        ("path=a,iops=0", "with iops=0 it would never answer"),
        (
            "path=a,bandwidth=0",
            "with bandwidth=0 it would never answer",
        ),
        ("path=a,bandwidth=fast", "\"fast\" is not a size"),
        (
            "path=a,iothread=a b",
            "\"a b\" is no name for an I/O thread",
        ),
        ("path=a,path=b", "duplicate field `path`"),
        ("path=a\0b", "has a NUL in it"),
    ] {
        let error = disks(&[word]).expect_err(word).to_string();
        assert!(error.contains(part), "{word}: {error:?} lacks {part:?}");
    }
    let mistake = disks(&["path=a,size=1G"]).unwrap_err().to_string();
    assert!(
        mistake.ends_with("; write path=FILE and options, such as path=disk.img,readonly"),
        "{mistake}"
    );
    for json in [
        r#""path=a""#,
        r#"[{"path": "a", "iops": 0}]"#,
        "1",
        r#"[{"path": ""}]"#,
    ] {
        let read = serde_json::from_str::<VmSpec>(&format!(r#"{{"kernel": "k", "disk": {json}}}"#));
        assert_eq!(read.is_ok(), json.starts_with('"'), "{json}: {read:?}");
    }
}

#[test]
fn there_are_not_more_than_a_machine_may_have() {
    let words = vec!["path=a"; VmSpec::MAX_DISKS + 1];
    assert_eq!(disks(&words[1..]).unwrap().len(), VmSpec::MAX_DISKS);
    let error = disks(&words).unwrap_err();
    assert_eq!(
        error.to_string(),
        "65 disks are too many; give the machine at most 64"
    );
}
