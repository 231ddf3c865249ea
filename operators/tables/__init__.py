"""Tables as operators see them: files of CSV, JSON or Parquet, read and written in bounded memory."""
