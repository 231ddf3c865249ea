"""The built-in rules, one per file."""
