"""Fuzzers that are led by coverage; they need atheris: pip install 'flwr-robust[fuzz]'."""
