"""Runs sse_app from a checkout: ``python main.py`` serves, ``python main.py --help`` says what else it does."""

from sse_app.cli.main import run

if __name__ == "__main__":
    run()
