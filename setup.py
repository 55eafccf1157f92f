"""The package: what it needs, each dependency with the reason for it. Exact versions are in requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'VERSION = "(.+)"', (HERE / "sse_app/version.py").read_text()).group(1)  # type: ignore[union-attr]

setup(
    name="sse-app",
    version=VERSION,
    description="An authenticated Server-Sent Events server on Tornado that loses nothing",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Web Environment",
        "Intended Audience :: Developers",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Internet :: WWW/HTTP :: HTTP Servers",
        "Typing :: Typed",
    ],
    keywords=["server-sent events", "sse", "eventsource", "tornado", "streaming", "pubsub", "zero downtime"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["sse_app", "sse_app.*"]), "sse_app.config", "sse_app.docs"],
    # What an operator needs beside the program: each folder once in the sources, and in the wheel below the package.
    package_dir={"sse_app.config": "config", "sse_app.docs": "docs"},
    package_data={
        "sse_app": ["static/*", "static/**/*", "cli/units/*", "storage/postgres/sql/*", "py.typed"],
        "sse_app.config": ["*", "*/*", "*/*/*"],
        "sse_app.docs": ["*.md"],
    },
    entry_points={"console_scripts": ["sse-app = sse_app.cli.main:run"]},
    install_requires=[
        "tornado>=6.6.1,<6.7",  # the server; 6.5 lacks security fixes, 6.7 may change what core/private_apis.py uses
        "httptools>=0.6.4",  # reads requests: llhttp 9, which is strict unless told otherwise
        "pyjwt[crypto]>=2.15,<3",  # tokens; earlier ones cannot enforce the length of keys
        "argon2-cffi>=25.1",  # password hashes (argon2id)
        "orjson>=3.10",  # JSON of events, several times faster than the standard library's
        "msgspec>=0.20",  # settings with types, bounds and clear errors; a twentieth of pydantic's time to import
        "prometheus-client>=0.22",  # /metrics
    ],
    extras_require={
        "uvloop": ["uvloop>=0.22"],  # a faster event loop; used where it is installed
        # PostgreSQL as the log of several machines; the binary wheels bring libpq with them
        "postgres": ["psycopg[binary]>=3.2.2,<4"],
        "client": ["httpx>=0.28"],  # sse_app.client: HTTP for asyncio
        "demo": ["numpy>=2", "httpx>=0.28"],  # examples/market computes, and publishes over HTTP
        "test": [
            "pytest>=9,<10",
            "pytest-tornado>=0.8.1",
            "pytest-xdist>=3.6",  # the tests wait a lot: several processes take a fraction of the time
            "setuptools<82",  # pytest-tornado imports pkg_resources, which later ones lack
            "hypothesis>=6",  # properties of the pure core
            "httpx>=0.28",  # a client that others wrote
            "httpx-sse>=0.4",  # a parser that others wrote
            "playwright>=1.50",  # drives a real Chromium
            "schemathesis>=4.32,<5",  # makes up requests from /openapi.json
            "import-linter>=2.17",  # test_layers.py: imports run one way between the layers
            "grimp>=3.20",  # test_layers.py: no import cycles
            "sqlalchemy>=2",  # the recipes of docs/scaling.md, with which applications publish in their transactions
            "django>=5.2,<6",
            "mypy>=1.18",
            "ruff>=0.12",
        ],
    },
)
