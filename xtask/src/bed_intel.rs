// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The Intel bed: Bochs emulates a CPU with VMX; a Debian kernel with kvm-intel runs on it.

use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::bed::{Bed, End, Machine, Sink};
use crate::bed_amd::{length, wait};
use crate::packages::{self, Need};
use crate::process::{capture, capture_ok, read, tied, write};
use crate::workspace::Scratch;

const ISOLINUX: &str = "/usr/lib/ISOLINUX/isolinux.bin";
const LDLINUX: &str = "/usr/lib/syslinux/modules/bios/ldlinux.c32";
const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const VGA_BIOS: &str = "/usr/share/bochs/VGABIOS-lgpl-latest";

const NEEDS: &[Need] = &[
    ("bochs-bin", "bochs"),
    // Has the "rfb" display, which needs neither a terminal nor a window system.
    ("/usr/share/doc/bochs-term", "bochs-term"),
    (BIOS, "bochsbios"),
    (VGA_BIOS, "vgabios"),
    (ISOLINUX, "isolinux"),
    (LDLINUX, "syslinux-common"),
    ("xorriso", "xorriso"),
    ("strip", "binutils"),
];

/// Turns off what is slow on the emulated CPU and not needed: self tests, SMP, timer calibration, certificates. Saves
/// about 15 s.
const CMDLINE: &str = "console=ttyS1,115200 nokaslr nosmp mitigations=off nopti tsc=reliable \
    no_timer_check panic=-1 random.trust_cpu=on audit=0 ipv6.disable=1 quiet loglevel=4 rodata=off \
    cryptomgr.notests=1 initcall_blacklist=load_system_certificate_list,cubictcp_register,\
    trace_eval_init,init_kprobe_trace,slab_sysfs_init,crypto_kdf108_init";

/// Installs what the bed needs; refuses a machine that Bochs can't emulate.
pub fn require(bed: &Bed) -> Result<()> {
    if bed.cpus != 1 {
        bail!("the Intel bed has one CPU: leave --cpus out");
    }
    if !bed.disks.is_empty() {
        bail!("the Intel bed has no disks");
    }
    packages::require(NEEDS)
}

/// Strips the debug sections of modules, because loading them would take seconds.
pub fn strip_modules(modules: &mut [(String, Vec<u8>)], scratch: &Scratch) -> Result<()> {
    for (name, data) in modules {
        let file = scratch.path(&format!("{name}.ko"));
        write(&file, &data)?;
        capture_ok(Command::new("strip").arg("--strip-debug").arg(&file))?;
        *data = read(&file)?;
    }
    Ok(())
}

/// Runs the machine to its end.
pub fn run(machine: &Machine, sink: Sink) -> Result<End> {
    let scratch = machine.scratch;
    let serial = scratch.path("serial");
    write(&serial, "")?;
    make_iso(machine)?;
    write(&scratch.path("bochsrc"), configuration(machine))?;
    // Debian's Bochs includes the debugger, which waits for commands: continue, then quit.
    write(&scratch.path("debugger"), "c\nq\n")?;
    let mut command = tied(&emulator());
    command.arg("-q").arg("-f").arg(scratch.path("bochsrc"));
    command.arg("-rc").arg(scratch.path("debugger"));
    let stdout = File::create(scratch.path("stdout"))?;
    command.stdin(Stdio::null());
    command.stdout(stdout.try_clone()?).stderr(stdout);
    let mut child = command.spawn().context("can't start bochs-bin")?;
    let ended = AtomicBool::new(false);
    let forced = thread::scope(|scope| {
        scope.spawn(|| follow(&serial, &ended, sink));
        let output = || length(&serial) + length(&machine.log);
        let forced = wait(&mut child, machine.bed, &output);
        ended.store(true, Ordering::Release);
        forced
    })?;
    if let Some(end) = forced {
        return Ok(end);
    }
    // Bochs ends with status 1 after a guest's power-off, so the status line decides. If there is none, its log tells
    // why.
    let mut said = read(&scratch.path("stdout"))?;
    said.extend(read(&scratch.path("bochs.log")).unwrap_or_default());
    Ok(End::Exited(String::from_utf8_lossy(&said).into_owned()))
}

/// Bochs. Its "rfb" display always listens on all of the host's addresses, without a password. So it runs in an empty
/// network namespace, if this user may create one (root).
fn emulator() -> Command {
    let probe = capture(Command::new("unshare").args(["--net", "true"]));
    if !probe.is_ok_and(|output| output.status.success()) {
        return Command::new("bochs-bin");
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "bochs-bin"]);
    command
}

/// Passes what is appended to `path` to `sink`, until `ended` and everything was read.
fn follow(path: &std::path::Path, ended: &AtomicBool, sink: Sink) {
    let Ok(mut file) = File::open(path) else {
        return;
    };
    let mut buffer = [0; 8192];
    loop {
        // Checked before reading, so that the last bytes are not missed.
        let last = ended.load(Ordering::Acquire);
        while let Ok(count @ 1..) = file.read(&mut buffer) {
            sink(&buffer[..count]);
        }
        if last {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Bochs boots from a CD: isolinux, kernel, initrd.
fn make_iso(machine: &Machine) -> Result<()> {
    let tree = machine.scratch.path("iso");
    let loader = tree.join("isolinux");
    fs::create_dir_all(&loader)?;
    fs::copy(ISOLINUX, loader.join("isolinux.bin"))?;
    fs::copy(LDLINUX, loader.join("ldlinux.c32"))?;
    fs::copy(&machine.kernel, tree.join("vmlinuz"))?;
    fs::rename(&machine.initrd, tree.join("initrd"))?;
    let entry = format!(
        "DEFAULT l\nPROMPT 0\nLABEL l\n KERNEL /vmlinuz\n APPEND initrd=/initrd {CMDLINE}\n"
    );
    write(&loader.join("isolinux.cfg"), entry)?;
    let mut command = Command::new("xorriso");
    command.args(["-as", "mkisofs", "-quiet", "-o"]);
    command.arg(machine.scratch.path("l1.iso"));
    command.args(["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"]);
    command.args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]);
    capture_ok(command.arg(&tree)).map(drop)
}

fn configuration(machine: &Machine) -> String {
    let path = |name: &str| machine.scratch.path(name).display().to_string();
    let memory = machine.bed.memory;
    // With CPU models that have CPUID leaf 0x15, a guest's second takes minutes. This one has EPT and unrestricted
    // guest. `sync=none` makes runs repeatable.
    format!(
        "plugin_ctrl: unmapped=1, biosdev=1, speaker=0, e1000=0, es1370=0, voodoo=0, gameport=0, parallel=0, extfpuirq=1
config_interface: textconfig
display_library: rfb, options=\"timeout=0\"
cpu: model=corei7_haswell_4770, count=1, ips=20000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest={memory}, host={memory}
romimage: file={BIOS}, options=fastboot
vgaromimage: file={VGA_BIOS}
pci: enabled=1, chipset=i440fx
vga: extension=vbe, update_freq=1
clock: sync=none, time0=946684800
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path={iso}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={serial}
com2: enabled=1, mode=file, dev={log}
log: {bochs_log}
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
debugger_log: /dev/null
",
        iso = path("l1.iso"),
        serial = path("serial"),
        log = machine.log.display(),
        bochs_log = path("bochs.log"),
    )
}
