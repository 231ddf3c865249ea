"""Internals of ``data_ingestion``: one file per kind of source, one for loading into a destination."""
