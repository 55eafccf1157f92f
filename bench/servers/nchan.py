"""Peer: nchan, the nginx module, with as many workers as asked for and messages kept in memory."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.load import Publish
from bench.payload import EVENT_ITEM
from bench.servers.interface import Server, missing_command

_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
_INSTALL = "Debian: apt install nginx libnginx-mod-nchan"
_CONFIG = """\
load_module {module};
daemon off;
{user}
worker_processes {workers};
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 1000000;
    nchan_shared_memory_size 512M;
    server {{
        listen 127.0.0.1:{port} backlog=4096{reuse};
        tcp_nodelay on;
        location = /healthz {{ return 200 "ok"; }}
        location ~ ^/stream/(.+)$ {{
            nchan_subscriber eventsource;
            nchan_channel_id $1;
            nchan_subscriber_first_message newest;
            nchan_eventsource_ping_interval {ping};
            nchan_eventsource_ping_event ping;
            nchan_eventsource_ping_data "{{}}";
        }}
        location ~ ^/publish/(.+)$ {{
            nchan_publisher http;
            nchan_channel_id $1;
            nchan_message_buffer_length 1000;
            nchan_message_timeout 10m;
        }}
    }}
}}
"""


class Nchan(Server):
    """nginx with nchan. It has no batches: a batch is published one by one."""

    name = "nchan"
    title = "nchan (nginx module, C)"
    health_path = "/healthz"

    @classmethod
    def missing(cls) -> str:
        absent = "" if _MODULE.exists() else f"nchan is not installed ({_INSTALL})"
        return missing_command("nginx", _INSTALL) or absent

    @classmethod
    def version(cls) -> str:
        environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin"}
        nginx = subprocess.run(["nginx", "-v"], capture_output=True, text=True, env=environment).stderr
        package = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan"], capture_output=True, text=True
        ).stdout
        number = re.search(r"\d+\.\d+\.\d+", package)
        return f"nchan {number[0] if number else '?'}, {nginx.partition(': ')[2].strip()}"

    def launch(self) -> None:
        user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""
        config = self.directory / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                module=_MODULE,
                user=user,
                directory=self.directory,
                port=self.port,
                ping=self.options.ping_interval,
                workers=self.options.workers,
                connections=19_000 if self.options.workers > 1 else 16_000,
                reuse=" reuseport" if self.options.workers > 1 else "",
            )
        )
        environment = {"PATH": os.environ.get("PATH", "") + ":/usr/sbin"}
        self.processes.start(["nginx", "-p", str(self.directory), "-c", str(config)], environment)

    def publish(self, channels: Sequence[str], batch: int = 1) -> Publish:
        del batch
        headers = ("Content-Type: application/json", "X-EventSource-Event: tick")
        paths = tuple(f"/publish/{channel}" for channel in channels)
        return Publish(self.port, paths[0], EVENT_ITEM, headers=headers, paths=paths)
