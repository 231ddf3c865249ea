"""``python -m scheduler``."""

from scheduler.daemon import main

raise SystemExit(main())
