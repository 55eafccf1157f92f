"""Peer: Pushpin, with the small application it needs behind it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from bench.load import Publish
from bench.payload import EVENT_ITEM
from bench.processes import free_port
from bench.servers.interface import APPS, Server, missing_command

_CONFIG = """\
[global]
include={{libdir}}/internal.conf
rundir={directory}/run
ipc_prefix=bench-
port_offset=0
stats_connection_ttl=120

[runner]
services=condure,zurl,pushpin-proxy,pushpin-handler
http_port=127.0.0.1:{port}
logdir={directory}/log
log_level=1
client_buffer_size=8192
client_maxconn=15000
allow_compression=false

[proxy]
routesfile={directory}/routes
debug=false
zurl_out_specs=ipc://{directory}/run/bench-zurl-in
zurl_out_stream_specs=ipc://{directory}/run/bench-zurl-in-stream
zurl_in_specs=ipc://{directory}/run/bench-zurl-out

[handler]
push_in_spec=tcp://127.0.0.1:{push}
push_in_sub_specs=tcp://127.0.0.1:{sub}
push_in_sub_connect=false
push_in_http_addr=127.0.0.1
push_in_http_port={control}
push_in_http_max_headers_size=10000
push_in_http_max_body_size=1000000
command_spec=tcp://127.0.0.1:{command}
message_rate=1000000
message_hwm=1000000
message_wait=5000
id_cache_ttl=60
connection_subscription_max=20
subscription_linger=60
stats_connection_ttl=120
stats_report_interval=10
"""


class Pushpin(Server):
    """condure, proxy and handler; the application behind counts too, since nothing is served without it."""

    name = "pushpin"
    title = "Pushpin"

    @classmethod
    def missing(cls) -> str:
        return missing_command("pushpin", "Debian: apt install pushpin")

    @classmethod
    def version(cls) -> str:
        said = subprocess.run(["pushpin", "--version"], capture_output=True, text=True).stdout
        return "Pushpin " + said.split()[-1]

    def launch(self) -> None:
        (self.directory / "run").mkdir()
        (self.directory / "log").mkdir()
        backend, self._control = free_port(), free_port()
        (self.directory / "routes").write_text(f"* 127.0.0.1:{backend}\n")
        config = self.directory / "pushpin.conf"
        config.write_text(
            _CONFIG.format(
                directory=self.directory,
                port=self.port,
                control=self._control,
                push=free_port(),
                sub=free_port(),
                command=free_port(),
            )
        )
        self.processes.start([sys.executable, str(APPS / "grip_backend_app.py"), str(backend)])
        self.processes.wait_for_port(backend)
        self.processes.start(["pushpin", f"--config={config}"])
        self.processes.wait_for_port(self._control)

    def publish(self, channels: Sequence[str], batch: int = 1) -> Publish:
        del batch
        content = json.dumps(f"id: 1a2b3c4d-1000000\nevent: tick\ndata: {EVENT_ITEM}\n\n")
        head = '{"items":[{"channel":' + json.dumps(channels[0]) + ',"formats":{"http-stream":{"content":'
        headers = ("Content-Type: application/json",)
        return Publish(self._control, "/publish/", content, prefix=head, suffix="}}}]}", headers=headers)
