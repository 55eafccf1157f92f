"""``python -m sse_app``: the same as the ``sse-app`` command."""

from sse_app.cli.main import run

if __name__ == "__main__":
    run()
