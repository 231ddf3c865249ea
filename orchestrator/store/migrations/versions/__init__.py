"""One file per revision, oldest first; never changed once released."""
