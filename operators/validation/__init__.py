"""Internals of ``data_validation``: rules (one file each), their compilation to one pass, and the report."""
