"""The market demo: a backend that computes on real daily bars and publishes what it finds over HTTP."""
