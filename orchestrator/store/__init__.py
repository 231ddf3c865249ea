"""PostgreSQL, the truth: tables, migrations, and the adapters that read and write them."""
