"""How ``model_training`` trains: reading tables, evaluation, and one adapter per framework."""
