# Copyright 2026 The mini-vmm developers.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

"""dud: its session for Firecracker, without the image that it would pull and without the vsock that it would use."""

import http.client
import sys
import time
from pathlib import Path

from dud.backends.firecracker import FirecrackerSession, _UnixHTTPConnection
from dud.backends.vm import BootSpec


class Session(FirecrackerSession):
    """A session that leaves /vsock out, and pulls nothing."""

    def __init__(self, spec):
        self._preflight()
        self._rundir = spec.rundir
        self._vsock_uds = str(Path(spec.rundir, "vsock"))
        self._vmm_log = open(self._vmm_log_path(spec), "wb")
        self._proc = self._spawn_vmm(spec)
        self._configure_vmm(spec)

    def _api(self, method, resource, body=None, **more):
        if resource != "/vsock":
            super()._api(method, resource, body, **more)

    def state(self):
        """dud never asks, so this is only its connection."""
        connection = _UnixHTTPConnection(self._api_sock)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == http.client.OK
        text = answer.read().decode()
        connection.close()
        return text


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
assert '"Running"' in session.state()
session._api("PATCH", "/vm", {"state": "Paused"})
assert '"Paused"' in session.state()
session._api("PATCH", "/vm", {"state": "Resumed"})
assert '"Running"' in session.state()
# SIGTERM, which presses the power button.
session._teardown_vm()
assert session._proc.returncode == 0, session._proc.returncode
assert not Path(session._api_sock).exists()
