// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Debian's kernels, unpacked and cached: image, modules, headers, decompressed image.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::apt::Tree;
use crate::initramfs::busybox;
use crate::packages;
use crate::process::{capture_ok, make_directory, read, step, write};
use crate::workspace::{Scratch, cache_dir};

/// A kernel series that the test beds and the boot tests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Series {
    /// Debian 12's. Its bzImage is compressed with LZ4.
    V6_1,
    /// Debian 13's, also in Debian 12. Its bzImage is compressed with zstd.
    V6_12,
}

impl Series {
    /// All of them, the preferred one first.
    pub const ALL: [Series; 2] = [Series::V6_1, Series::V6_12];

    fn name(self) -> &'static str {
        match self {
            Series::V6_1 => "6.1",
            Series::V6_12 => "6.12",
        }
    }

    /// The series that `text` names.
    pub fn parse(text: &str) -> Option<Series> {
        Series::ALL.into_iter().find(|series| series.name() == text)
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An unpacked Debian kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    modules: PathBuf,
    /// The headers to build modules against, and what they share with other flavours.
    pub headers: [PathBuf; 2],
}

impl Kernel {
    /// The kernel of `series`, fetched if it is not cached.
    pub fn fetch(series: Series) -> Result<Kernel> {
        Kernel::fetch_offered(series)?.with_context(|| {
            format!("Debian offers no cloud kernel {series} for this machine; give --kernel PATH")
        })
    }

    /// Like [`Kernel::fetch`]; none if Debian does not have the series.
    pub fn fetch_offered(series: Series) -> Result<Option<Kernel>> {
        let number = series.name().replace('.', r"\.");
        let tree = Tree {
            name: &format!("linux-{series}"),
            pattern: &format!("^linux-(image|headers|kbuild)-{number}([-.+]|$)"),
            choose: &|offered| newest(series, offered),
        };
        tree.cached(&Kernel::open)
    }

    /// The preferred kernel: a cached one, otherwise the first series that Debian offers here.
    pub fn fetch_any() -> Result<Kernel> {
        let cache = cache_dir()?;
        let cached = |series: &Series| cache.join(format!("linux-{series}")).is_dir();
        if let Some(series) = Series::ALL.into_iter().find(cached) {
            return Kernel::fetch(series);
        }
        let mut errors = Vec::new();
        for series in Series::ALL {
            match Kernel::fetch(series) {
                Ok(kernel) => return Ok(kernel),
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        bail!(errors.join("\n"))
    }

    fn open(place: &Path) -> Result<Kernel> {
        let images = fs::read_dir(place.join("boot")).into_iter().flatten();
        let (release, image) = images
            .flatten()
            .find_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                Some((name.strip_prefix("vmlinuz-")?.to_owned(), entry.path()))
            })
            .context("it holds no kernel")?;
        // Debian 13 moved the modules to /usr/lib.
        let modules = ["lib", "usr/lib"]
            .map(|lib| place.join(lib).join("modules").join(&release))
            .into_iter()
            .find(|path| path.join("kernel").is_dir())
            .with_context(|| format!("it holds no modules of Linux {release}"))?;
        let common = format!("{}-common", version(&release));
        let headers = [release.as_str(), &common]
            .map(|name| place.join(format!("usr/src/linux-headers-{name}")));
        ensure!(
            headers.iter().all(|path| path.is_dir()),
            "it holds no headers of Linux {release}"
        );
        Ok(Kernel {
            release,
            image,
            modules,
            headers,
        })
    }

    /// The modules `names` and their dependencies, decompressed, in loading order. A name that is built into this
    /// kernel has no file and is omitted.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = BTreeMap::new();
        list_modules(&self.modules, &mut files)?;
        let mut chain = Vec::new();
        for name in names {
            self.add_module(name, &files, &mut chain)?;
        }
        Ok(chain)
    }

    fn add_module(
        &self,
        name: &str,
        files: &BTreeMap<String, PathBuf>,
        chain: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<()> {
        let name = name.replace('-', "_");
        let Some(path) = files.get(&name) else {
            return Ok(());
        };
        if chain.iter().any(|(other, _)| *other == name) {
            return Ok(());
        }
        let data = if path.extension().is_some_and(|extension| extension == "xz") {
            capture_ok(Command::new(busybox()?).arg("xzcat").arg(path))?
        } else {
            read(path)?
        };
        for dependency in dependencies(&data) {
            self.add_module(&dependency, files, chain)?;
        }
        chain.push((name, data));
        Ok(())
    }

    /// The decompressed kernel, an ELF `vmlinux`, cached.
    pub fn vmlinux(&self) -> Result<PathBuf> {
        let vmlinux = cache_dir()?.join(format!("vmlinux-{}", self.release));
        if !vmlinux.exists() {
            let elf = step(&format!("decompressing Linux {}", self.release), || {
                decompress(&read(&self.image)?)
            })?;
            // Moved in one step, or a partial file would count as complete.
            let scratch = Scratch::new()?;
            write(&scratch.path("vmlinux"), elf)?;
            fs::rename(scratch.path("vmlinux"), &vmlinux)
                .with_context(|| format!("can't make {}", vmlinux.display()))?;
        }
        Ok(vmlinux)
    }
}

/// A directory with links to Debian's kernel images, named as in /boot; none if Debian has none here.
pub fn image_directory() -> Result<Option<PathBuf>> {
    let place = cache_dir()?.join("test-kernels");
    make_directory(&place)?;
    let mut any = false;
    for series in Series::ALL {
        let Some(kernel) = Kernel::fetch_offered(series)? else {
            continue;
        };
        any = true;
        let link = place.join(format!("vmlinuz-{series}"));
        if fs::read_link(&link).ok().as_ref() != Some(&kernel.image) {
            // The link may be missing, or point to a removed kernel.
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&kernel.image, &link)
                .with_context(|| format!("can't make {}", link.display()))?;
        }
    }
    Ok(any.then_some(place))
}

/// The packages of the newest kernel of `series` that is completely offered: image, headers, build programs. An image
/// without headers is skipped.
fn newest(series: Series, offered: &[String]) -> Option<Vec<String>> {
    let has = |name: &String| offered.contains(name);
    let whole = |image: &String| -> Option<Vec<String>> {
        let release = image.strip_prefix("linux-image-")?;
        // The kernel is the same whether it is signed for Secure Boot or not.
        let release = release.strip_suffix("-unsigned").unwrap_or(release);
        let version = release.strip_suffix(FLAVOUR)?;
        // Otherwise it is a series with a longer number, or a package that only depends on the newest one.
        let rest = version.strip_prefix(series.name())?;
        rest.strip_prefix(['.', '+'])?;
        // 6.1's build programs are named after the series, newer ones after the version.
        let kbuild = [version, series.name()].map(|name| format!("linux-kbuild-{name}"));
        let packages = vec![
            image.clone(),
            format!("linux-headers-{release}"),
            format!("linux-headers-{version}-common"),
            kbuild.into_iter().find(has)?,
        ];
        packages.iter().all(has).then_some(packages)
    };
    offered
        .iter()
        .filter_map(whole)
        .max_by_key(|packages| (numbers(&packages[0]), !packages[0].ends_with("-unsigned")))
}

/// The flavour of the kernels that xtask uses.
const FLAVOUR: &str = "-cloud-amd64";

/// The part of a release that all flavours share.
fn version(release: &str) -> &str {
    release.strip_suffix(FLAVOUR).unwrap_or(release)
}

/// The numbers in a package's name, to compare versions.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

fn list_modules(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)
        .with_context(|| format!("can't read {}", directory.display()))?
        .flatten()
    {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list_modules(&path, files)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// A module's dependencies, by `depends=` in its `.modinfo`: unpacked packages have no modules.dep.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let value = module[at + key.len()..].split(|&byte| byte == 0).next();
    String::from_utf8_lossy(value.unwrap_or_default())
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The ELF file in a bzImage's payload.
fn decompress(image: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(image).context("the image has no payload: it is no bzImage")?;
    let (program, package) = match payload {
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", "lz4"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", "zstd"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", "xz-utils"),
        [0x1f, 0x8b, ..] => ("gzip", "gzip"),
        _ => bail!("the payload's compression is unknown"),
    };
    packages::require(&[(program, package)])?;
    let scratch = Scratch::new()?;
    write(&scratch.path("payload"), payload)?;
    capture_ok(
        Command::new(program)
            .arg("-dc")
            .arg(scratch.path("payload")),
    )
}

/// The compressed kernel within a bzImage, without the length that the kernel's build appends
/// (Linux boot protocol, `payload_offset` and `payload_length`, protocol 2.08).
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = match image.get(0x1f1)? {
        0 => 4,
        &count => usize::from(count),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let length = word(0x24c)?.checked_sub(4)?;
    image.get(start..start.checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_packages_compare_greater() {
        assert!(
            numbers("linux-image-6.12.117+deb12-cloud-amd64-unsigned")
                > numbers("linux-image-6.12.9+deb12-cloud-amd64-unsigned")
        );
        assert!(
            numbers("linux-image-6.1.0-56-cloud-amd64")
                > numbers("linux-image-6.1.0-9-cloud-amd64")
        );
    }

    #[test]
    fn kernel_and_headers_are_one_thing() {
        let packages = |release: &str, kbuild: &str| {
            let version = version(release);
            vec![
                format!("linux-image-{release}"),
                format!("linux-headers-{release}"),
                format!("linux-headers-{version}-common"),
                format!("linux-kbuild-{kbuild}"),
            ]
        };
        let older = packages("6.1.0-9-cloud-amd64", "6.1");
        let newer = packages("6.1.0-48-cloud-amd64", "6.1");
        let other = packages("6.12.9+deb12-cloud-amd64", "6.12.9+deb12");
        let mut offered = [older.clone(), newer.clone(), other.clone()].concat();
        // Not usable: a package that only depends on others, debug symbols, other flavours.
        for name in [
            "6.12-cloud-amd64",
            "6.1.0-99-cloud-amd64-dbg",
            "6.1.0-99-rt-amd64",
        ] {
            offered.push(format!("linux-image-{name}"));
            offered.push(format!("linux-headers-{name}"));
        }
        assert_eq!(newest(Series::V6_1, &offered), Some(newer.clone()));
        assert_eq!(newest(Series::V6_12, &offered), Some(other.clone()));
        // An image is skipped if one of its other packages is missing.
        for gone in &newer[1..3] {
            let left: Vec<_> = offered
                .iter()
                .filter(|name| *name != gone)
                .cloned()
                .collect();
            assert_eq!(newest(Series::V6_1, &left), Some(older.clone()));
        }
        // If the signed one is missing, the other is the same kernel.
        offered.retain(|name| *name != newer[0]);
        offered.push(format!("{}-unsigned", newer[0]));
        let unsigned = newest(Series::V6_1, &offered).unwrap();
        assert_eq!(unsigned[0], format!("{}-unsigned", newer[0]));
        assert_eq!(unsigned[1..], newer[1..]);
        offered.retain(|name| *name != other[3]);
        assert_eq!(newest(Series::V6_12, &offered), None);
    }

    #[test]
    fn modinfo_names_the_dependencies() {
        assert_eq!(
            dependencies(b"\x7fELF..\0alias=x\0depends=kvm,ccp\0retpoline=Y\0"),
            ["kvm", "ccp"]
        );
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"\0depends=a")[0] == "a");
        assert!(dependencies(b"").is_empty());
    }

    #[test]
    fn payload_is_cut_by_the_setup_header() {
        let mut image = vec![0; 0x400 + 0x100];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&0x10u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&9u32.to_le_bytes());
        image[0x410..0x415].copy_from_slice(b"hello");
        assert_eq!(payload(&image).unwrap(), b"hello");
        // Lengths beyond the image, or too short for the appended word.
        image[0x24c..0x250].copy_from_slice(&0xffff_ffffu32.to_le_bytes());
        assert!(payload(&image).is_none());
        image[0x24c..0x250].copy_from_slice(&3u32.to_le_bytes());
        assert!(payload(&image).is_none());
        assert!(payload(b"short").is_none());
    }

    #[test]
    fn series_are_told_by_their_name() {
        assert_eq!(Series::parse("6.12"), Some(Series::V6_12));
        assert_eq!(Series::parse("6.1"), Some(Series::V6_1));
        assert_eq!(Series::parse("/boot/vmlinuz"), None);
    }
}
