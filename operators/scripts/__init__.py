"""How ``custom_script`` runs: the process and its environment, and what is read back from it."""
