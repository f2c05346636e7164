# Copyright 2026 The mini-vmm developers.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

"""dud boots Debian. It has no word for a writable root device, so the root file system is on its scratch disk."""

import os
import sys
import tempfile
import time
from pathlib import Path

from dud.backends.vm import BootSpec
from dud_session import Session

PROMPT = "root@debian:~#"
COMMAND = b"systemctl is-system-running --wait; echo $(findmnt -no SOURCE,FSTYPE /) READY\n"


def main():
    program, kernel, initrd, line, cpus, disk = sys.argv[1:]
    os.environ["DUD_FIRECRACKER"] = program
    # The machine's standard input is this process's.
    keys, keyboard = os.pipe()
    os.dup2(keys, 0)
    rundir = tempfile.mkdtemp()
    console = Path(rundir, "console.log")
    spec = BootSpec(
        kernel=Path(kernel),
        cmdline=f"{line} root=/dev/vda rw",
        rootfs=Path(initrd),
        medium="initramfs",
        disks=[],
        scratch_clone=Path(disk),
        rundir=rundir,
        console=str(console),
        listen_path="",
        cpus=int(cpus),
        memory_mib=512,
        restore_from=None,
    )
    # The bed is slow.
    session = Session(spec, patience=1000.0)

    def wait_for(text):
        while text not in console.read_text(errors="replace"):
            assert session._proc.poll() is None, console.read_text(errors="replace")
            time.sleep(0.1)

    wait_for(PROMPT)
    os.write(keyboard, COMMAND)
    wait_for("ext4 READY")
    session.pause_and_resume()
    session._api("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
    code = session._proc.wait()
    print(console.read_text(errors="replace"))
    sys.exit(code)


if __name__ == "__main__":
    main()
