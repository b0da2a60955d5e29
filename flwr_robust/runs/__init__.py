"""Runs: their configuration, the engines that run them, and their results."""
