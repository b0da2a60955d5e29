"""Benchmarks: contestants interleaved in one run, medians and ratios, written as JSON with the machine they ran on."""
