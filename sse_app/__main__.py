"""``python -m sse_app``: the same as the ``sse-app`` command."""

from sse_app.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
