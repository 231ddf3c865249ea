"""The REST API: Flask and flask-smorest, one resource per file with its schemas and its blueprint."""
