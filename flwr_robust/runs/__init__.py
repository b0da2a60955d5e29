"""Runs: their configuration, the engines, and what came of them."""
