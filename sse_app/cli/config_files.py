"""``config``: prints the settings with their comments, or what a proxy, systemd, Prometheus or Grafana takes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sse_app.cli.systemd_units import unit_texts
from sse_app.cli.whole_files import write_new
from sse_app.core.errors import StateError

FILES = {
    "print": "sse_app.toml",
    "nginx": "nginx/sse_app.conf",
    "caddy": "Caddyfile",
    "haproxy": "haproxy.cfg",
    "prometheus": "prometheus/sse_app.rules.yml",
    "grafana": "grafana/sse_app.json",
}
"""What each word prints, below the folder of configurations; ``systemd`` prints the units of this installation."""


def config(options: argparse.Namespace) -> None:
    """Print a configuration, or write it to ``--output``; for systemd, which takes several files, a folder.

    Raises:
        SettingsError: the units are asked for, and a setting has a bad value.
        StateError: the output is there already, or cannot be written.
    """
    if options.what == "systemd":
        texts = unit_texts(options, options.run_as)
        if options.output is None:
            print("\n".join(f"# {name}\n{text}" for name, text in texts.items()), end="")
            return
        try:
            options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"cannot make the folder {options.output}: {error.strerror}") from None
        _write({options.output / name: text for name, text in texts.items()})
        return
    text = (_folder() / FILES[options.what]).read_text(encoding="utf-8")
    if options.output is None:
        sys.stdout.write(text)
    else:
        _write({options.output: text})


def _folder() -> Path:
    """Return where the configurations are: in the package where it is installed, beside it in a checkout."""
    package = Path(__file__).parent.parent
    return next(folder for folder in (package / "config", package.parent / "config") if folder.is_dir())


def _write(texts: dict[Path, str]) -> None:
    write_new(texts)
    for path in texts:
        print(f"wrote {path}")
