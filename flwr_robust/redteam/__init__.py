"""Red team: run a strategy under every attack, and report which attacks it withstands."""
