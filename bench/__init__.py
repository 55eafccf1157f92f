"""Benchmarks of sse_app beside its peers: ``python -m bench`` runs them and writes BENCHMARKS.md."""
