"""The adapters: each file holds one :class:`~operators.training.framework.Framework`; those with ``_`` are parts."""
