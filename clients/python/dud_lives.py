# Copyright 2026 The mini-vmm developers.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

"""dud: its session starts a machine, and ends it by SIGTERM."""

import sys
import time
from pathlib import Path

from dud.backends.vm import BootSpec
from dud_session import Session

place = Path(sys.argv[1])
spec = BootSpec(
    kernel=place / "kernel",
    cmdline="console=ttyS0 reboot=k panic=-1",
    rootfs=place / "disk",
    medium="erofs",
    disks=[place / "disk"],
    scratch_clone=None,
    rundir=str(place),
    console=str(place / "console.log"),
    listen_path="",
    cpus=1,
    memory_mib=128,
    restore_from=None,
)
session = Session(spec)
while "Up" not in Path(spec.console).read_text():
    assert session._proc.poll() is None
    time.sleep(0.01)
session.pause_and_resume()
# SIGTERM, which presses the power button.
session._teardown_vm()
assert session._proc.returncode == 0, session._proc.returncode
assert not Path(session._api_sock).exists()
