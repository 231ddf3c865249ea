"""The schema's history; every revision is a frozen file in ``versions``."""
