"""Attacks, one per file: ``data`` changes a client's data, ``message`` its messages; ``fault`` makes a client fail."""
