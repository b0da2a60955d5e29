"""Attacks, one per file: ``data`` holds those that poison what a client trains on."""
