"""Studies as data: a TOML file in, one JSON per cell out, tables and plots rendered from the JSONs."""
