"""What every rule is made of: rows, rules and their pipelines, components by name."""
