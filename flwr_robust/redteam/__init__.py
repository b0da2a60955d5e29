"""A strategy under every attack: which of them it withstands."""
