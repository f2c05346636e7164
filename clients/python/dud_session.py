# Copyright 2026 The mini-vmm developers.
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

"""dud's session for Firecracker, without the image that it would pull."""

import http.client
from pathlib import Path

from dud.backends.firecracker import FirecrackerSession, _UnixHTTPConnection


class Session(FirecrackerSession):
    """A session that pulls nothing, and whose guest doesn't answer by its vsock."""

    def __init__(self, spec, patience=5.0):
        """`patience` is the limit for each request, in seconds; dud's own default is 5."""
        self.patience = patience
        self._preflight()
        self._rundir = spec.rundir
        self._vsock_uds = str(Path(spec.rundir, "vsock"))
        self._vmm_log = open(self._vmm_log_path(spec), "wb")
        self._proc = self._spawn_vmm(spec)
        self._configure_vmm(spec)

    def _api(self, method, resource, body=None):
        super()._api(method, resource, body, self.patience)

    def state(self):
        """dud never asks, so this is only its connection."""
        connection = _UnixHTTPConnection(self._api_sock, self.patience)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.status == http.client.OK
        text = answer.read().decode()
        connection.close()
        return text

    def pause_and_resume(self):
        assert Path(self._vsock_uds).is_socket()
        assert '"Running"' in self.state()
        self._api("PATCH", "/vm", {"state": "Paused"})
        assert '"Paused"' in self.state()
        self._api("PATCH", "/vm", {"state": "Resumed"})
        assert '"Running"' in self.state()
