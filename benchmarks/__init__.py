"""Benchmarks: contestants take turns in one run; medians and ratios are written as JSON with the machine."""
