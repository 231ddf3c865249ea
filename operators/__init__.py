"""The built-in operators: one public module each, found by ``orchestrator.registry``.

Sub-packages hold their internals and are not searched. Libraries for data and models are imported inside ``run()`` and
``dry_run()`` only: the API imports these modules for their schemas.
"""
