"""Worker hosts: claim attempts, run each in a process tree of its own, report how it ended (DESIGN §4, §6).

``celery.py`` is the app; ``task.py`` its one task; ``agent.py`` what talks with the scheduler; ``fork_server.py`` and
``supervise.py`` are lean processes that own the trees; ``execute.py`` runs inside the tree. Nothing is imported here,
so that the lean ones stay lean.
"""
