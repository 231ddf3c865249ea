"""The wire: everything that travels through Redis, which may lose all of it at any time (DESIGN §4)."""
