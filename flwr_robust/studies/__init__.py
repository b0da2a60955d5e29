"""Studies: a TOML file describes each, every cell (one run) gives a JSON, and reports are made from these."""
