"""The one-host command: real PostgreSQL and Redis from wheels, and all processes of the system under one supervisor."""
