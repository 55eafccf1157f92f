"""Requests that Schemathesis makes up for an operation of the description, and checks of the answers.

Only the test that asks imports this, when it runs: else each of pytest's processes would load Schemathesis and make
up all requests when it collects tests, before the first of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import AuthContext, BaseSchema, Case
from schemathesis.generation.feedback import FeedbackSources
from schemathesis.pytest._test_builder import build_operation_test
from schemathesis.python._constants.orchestrator import make_constants_value_source
from schemathesis.specs.openapi import checks

from sse_app.handlers.site.pages import STATIC


def description() -> BaseSchema:
    """Return the description anew: one notes for which paths requests of other methods have been made up."""
    schema = schemathesis.openapi.from_dict(json.loads((STATIC / "openapi.json").read_bytes()))
    rejection = schema.config.checks.negative_data_rejection
    # What is made up may be larger than a body may be, and is refused for that.
    rejection.expected_statuses = [*rejection.expected_statuses, "413"]
    return schema


SCHEMA = description()
_FOR_ADMINISTRATORS = description()
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.ignored_auth,
    checks.missing_required_header,
    checks.negative_data_rejection,
    checks.positive_data_acceptance,
    checks.unsupported_method,
]


class Administrator:
    """Marks the requests that are to have a token: they are made up before it is known which one."""

    mark = "Bearer of-an-administrator"

    def get(self, case: Case[Any], context: AuthContext) -> str:
        return self.mark

    def set(self, case: Case[Any], data: str, context: AuthContext) -> None:
        case.headers["Authorization"] = data


def ask_all(url: str, method: str, path: str, count: int, token: Callable[[], str] | None) -> None:
    """Ask for an operation at the borders of its description, and in other ways.

    Args:
        url: of the server.
        method: of the operation.
        path: of the operation, as it stands in the description.
        count: of the other ways.
        token: returns the token for one request; None for requests of strangers.
    """

    def ask(case: Case[Any]) -> None:
        if token is not None and case.headers.get("Authorization") == Administrator.mark:
            case.headers["Authorization"] = f"Bearer {token()}"
        case.call_and_validate(base_url=url, checks=CHECKS, timeout=30)

    made_up = settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))(ask)
    schema = SCHEMA if token is None else _FOR_ADMINISTRATORS
    build_operation_test(
        config=schema.config,
        operation=schema[path][method],
        test_func=made_up if token is None else schema.auth(Administrator, refresh_interval=None)(made_up),
        given_kwargs={},
        feedback=FeedbackSources(constants_value_source=make_constants_value_source(schema)),
    )()
