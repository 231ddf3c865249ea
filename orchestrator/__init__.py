"""The kernel: the rules, the ports, the truth in PostgreSQL and the wire over Redis."""

__version__ = "0.1.0"
