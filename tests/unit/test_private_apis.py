"""What libraries keep private is still there and means what `sse_app.core.private_apis` takes it for.

A failure here comes with a new version of a library: its message names the detail, and where it is used.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import socket
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any, ClassVar

import pytest
import tornado
from tornado import httputil, web
from tornado.httpclient import HTTPResponse

import sse_app
from sse_app.core import private_apis
from sse_app.core.private_apis import ACCESS_LINE, CALLER_FILE

TORNADO = f"Tornado {tornado.version}"
PACKAGE = Path(sse_app.__file__).parent
FILES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if str(path.relative_to(PACKAGE)) not in ("__main__.py", "core/private_apis.py")
)
TEXT = "a text that is worth compressing " * 100


class Compressed(web.RequestHandler):
    """Answers as the application says."""

    def get(self) -> None:
        """Write a long text."""
        self.write(TEXT)


@private_apis.without_access_line
class Plain(Compressed):
    """Answers with the text as it is, and with no access line of Tornado's."""

    def get(self) -> None:
        """Write a long text."""
        private_apis.drop_output_transforms(self)
        super().get()


class Begun(Compressed):
    """Answers with headers that are made in another way."""

    def clear(self) -> None:
        """Begin the response."""
        private_apis.begin_response(self, httputil.HTTPHeaders({"X-Begun": "yes"}))


@web.stream_request_body
class InPieces(web.RequestHandler):
    """Notes what it is called with."""

    calls: ClassVar[list[str]] = []

    def prepare(self) -> None:
        """Note the call."""
        self.calls.append("prepare")

    def data_received(self, chunk: bytes) -> None:
        """Ignore the body."""

    def post(self, name: str) -> None:
        """Note the call."""
        self.calls.append(f"post {name}")
        self.set_status(204)


class Connection(httputil.HTTPConnection):
    """Notes the status that is written."""

    status = 0

    def set_close_callback(self, callback: object) -> None:
        """Ignore it."""

    def write_headers(
        self, start_line: Any, headers: httputil.HTTPHeaders, chunk: bytes | None = None
    ) -> Any:
        """Note the status."""
        self.status = start_line.code

    def finish(self) -> None:
        """Ignore it."""


@pytest.fixture
def app() -> web.Application:
    """An application that compresses, and logs as Tornado does by default."""
    handlers = [("/compressed", Compressed), ("/plain", Plain), ("/begun", Begun)]
    return web.Application(handlers, compress_response=True)


async def fetch(http_client: Any, url: str) -> HTTPResponse:
    response: HTTPResponse = await http_client.fetch(
        url, headers={"Accept-Encoding": "gzip"}, decompress_response=False
    )
    return response


@pytest.mark.gen_test
async def test_tornado_writes_its_access_line_in_the_method_that_is_replaced(
    http_client: Any, http_server: Any, base_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tornado.access")
    assert callable(getattr(web.RequestHandler, ACCESS_LINE, None)), (
        f"{TORNADO} has lost RequestHandler.{ACCESS_LINE}, which without_access_line replaces for all handlers"
    )
    await fetch(http_client, base_url + "/compressed?token=secret")
    assert [record.name for record in caplog.records] == ["tornado.access"]
    caplog.clear()
    await fetch(http_client, base_url + "/plain?token=secret")
    assert not caplog.records, (
        f"{TORNADO} does not write its access line in RequestHandler.{ACCESS_LINE} any more: "
        "handlers that are mounted in another application are logged twice (without_access_line)"
    )


@pytest.mark.gen_test
async def test_tornado_applies_the_transforms_that_are_dropped(
    http_client: Any, http_server: Any, base_url: str
) -> None:
    compressed = await fetch(http_client, base_url + "/compressed")
    assert compressed.headers["Content-Encoding"] == "gzip"
    plain = await fetch(http_client, base_url + "/plain")
    assert "Content-Encoding" not in plain.headers, (
        f"{TORNADO} takes no notice of RequestHandler._transforms any more: streams are compressed where the "
        "application around them has compress_response (drop_output_transforms)"
    )
    assert plain.body == TEXT.encode()


@pytest.mark.gen_test
async def test_tornado_keeps_a_response_where_it_is_begun(
    http_client: Any, http_server: Any, base_url: str
) -> None:
    begun = await fetch(http_client, base_url + "/begun")
    assert (begun.code, begun.headers.get("X-Begun"), begun.headers.get("Server")) == (200, "yes", None), (
        f"{TORNADO} keeps a response in other attributes of RequestHandler than begin_response sets: "
        "the headers of all answers are wrong"
    )
    assert len(begun.body) > 0


@pytest.mark.gen_test
async def test_tornados_execution_waits_for_the_body_and_for_nothing_else() -> None:
    connection = Connection()
    request = httputil.HTTPServerRequest(
        start_line=httputil.RequestStartLine("POST", "/a", "HTTP/1.1"),
        headers=httputil.HTTPHeaders({"Host": "localhost"}),
        connection=connection,
    )
    body = asyncio.get_running_loop().create_future()
    application = web.Application(log_function=lambda handler: None)
    execution = private_apis.execution(InPieces(application, request), body, [b"a"])
    meaning = (
        f"{TORNADO} does not run a handler in RequestHandler._execute any more, or not as handlers.dispatch takes it: "
        "publishing may hang (execution)"
    )
    assert execution.send(None) is body, meaning
    assert InPieces.calls == ["prepare"], meaning
    body.set_result(None)
    with pytest.raises(StopIteration):
        execution.send(None)
    assert (InPieces.calls, connection.status) == (["prepare", "post a"], 204), meaning


@pytest.fixture
def caller_file() -> Iterator[None]:
    """Restore what `logging` needs to look up callers."""
    before = getattr(logging, CALLER_FILE, None)
    yield
    setattr(logging, CALLER_FILE, before)


def test_logging_looks_up_no_caller_without_the_variable(
    caller_file: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(getattr(logging, CALLER_FILE, None), str), f"logging has lost {CALLER_FILE}"
    caplog.set_level(logging.INFO)
    logging.getLogger("x").info("with")
    private_apis.skip_caller_lookup()
    logging.getLogger("x").info("without")
    assert [record.lineno > 0 for record in caplog.records] == [True, False], (
        f"logging looks up callers although {CALLER_FILE} is None (skip_caller_lookup, for every log line)"
    )


def test_the_type_of_bare_sockets_is_the_one_of_c() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        bare = private_apis.bare_socket(ours.detach())
        try:
            assert not isinstance(bare, socket.socket), (
                "socket.SocketType is not C's type any more: adopted streams take more memory (bare_socket)"
            )
            bare.setblocking(False)
            assert bare.send(b"x") == 1
            assert theirs.recv(1) == b"x"
        finally:
            bare.close()


def test_a_job_is_found_among_those_of_other_units() -> None:
    listing = "12 a.service start running\n7 b.service stop waiting\n\n9 ab.service restart waiting\n"
    assert private_apis.queued_job(listing, "b.service") == "stop"
    assert private_apis.queued_job(listing, "ab.service") == "restart"
    assert private_apis.queued_job(listing, "c.service") is None
    assert private_apis.queued_job("No jobs running.\n", "running.") is None


PUBLIC = {"os._exit"}
"""Public in spite of its name."""

NAMED_TUPLE = {"_replace", "_asdict", "_make", "_fields"}
"""Public too (`collections.namedtuple`)."""


@pytest.mark.slow
def test_no_other_module_touches_what_others_keep_private() -> None:
    foreign = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
        for path in FILES
        for node, own in _private_attributes(path)
        if node.attr not in own and ast.unparse(node) not in PUBLIC
    ]
    assert not foreign


def _private_attributes(path: Path) -> Iterator[tuple[ast.Attribute, set[str]]]:
    """Yield each private attribute that a file reads of something, and the private names of its own."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    own = NAMED_TUPLE | {name for node in nodes if (name := _defined(node)) is not None}
    for node in nodes:
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and not _is_self(node.value):
            yield node, own


@pytest.mark.slow
def test_no_class_uses_or_hides_what_a_base_of_others_keeps_private() -> None:
    found = []
    for path in FILES:
        module = import_module(
            ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
                ".__init__"
            )
        )
        for cls in vars(module).values():
            if isinstance(cls, type) and cls.__module__ == module.__name__:
                others = [base for base in cls.__mro__ if not base.__module__.startswith(PACKAGE.name)]
                theirs = {name for base in others for name in _in_source(base) | set(dir(base))}
                found += [f"{cls}: {name}" for name in _in_source(cls) & theirs if _is_private(name)]
    assert not found


@cache
def _in_source(cls: type) -> set[str]:
    """Return what a class defines, and what its methods use of ``self`` or ``super()``."""
    try:
        tree = ast.parse(dedent(inspect.getsource(cls)))
    except (OSError, TypeError):  # it is written in C
        return set()
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_self(node.value)}
    return used | {name for node in ast.walk(tree) if (name := _defined(node)) is not None}


def _defined(node: ast.AST) -> str | None:
    """Return the name that a statement gives to something of this package."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.AnnAssign(target=ast.Name(id=name)):
            return name
        case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
            return name
    return None


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("_")


def _is_self(node: ast.expr) -> bool:
    return ast.unparse(node) in ("self", "cls", "super()")
