"""Cookies as browsers send them, and as they should not."""

from __future__ import annotations

import pytest

from sse_app.handlers.parsing import cookie_values


@pytest.mark.parametrize(
    ("headers", "values"),
    [
        ([], []),
        (["a=1"], ["1"]),
        (["a=narrow; a=wide"], ["narrow", "wide"]),
        (["a=narrow; b=2", "a=wide"], ["narrow", "wide"]),
        (["b=2;a=1;c=3"], ["1"]),
        (["A=1; aa=2; a =3; =4; a"], ["3"]),
        (["a=; a"], [""]),
        (["a=x=y==;"], ["x=y=="]),
        (['a="1"; a="; a=""; a=b"c'], ["1", '"', "", 'b"c']),
        ([";;;=;=;a=1;;"], ["1"]),
        (['b=1\\073 a=2; b="; a=3"'], ['3"']),
        (["a=\xff\x9b"], ["\xff\x9b"]),
        (["__Host-a=1; a=2"], ["2"]),
    ],
    ids=repr,
)
def test_all_cookies_of_a_name_are_found_in_the_order_sent(headers: list[str], values: list[str]) -> None:
    assert cookie_values(headers, "a") == values
