"""Draws ``docs/images/demo.svg``: the tables of ``make demo``, from real runs on the system that ``make up`` started.

Run from the repository root: ``python docs/picture.py``. Nothing of the machine but its speed gets into the picture.
"""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich._export_format import CONSOLE_SVG_FORMAT  # noqa: E402 - the repository root must be importable first
from rich.console import Console, Group  # noqa: E402
from rich.text import Text  # noqa: E402

from orchestrator.cli import connect  # noqa: E402
from orchestrator.client import FINAL_STATES, Client  # noqa: E402
from orchestrator.local.demo import example_definitions  # noqa: E402
from orchestrator.local.demo_view import final_table, live_view  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "demo.svg"
WIDTH = 138


def main() -> None:
    """Run the examples, keep the liveliest moment, and draw it above the final table."""
    with connect() as client:
        moment, runs = _watch(client)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text("$ make demo", "bold"))
    console.print(Text("… while the runs go on:", "dim"))
    console.print(moment)
    console.print(Text("\n… and at the end:", "dim"))
    console.print(final_table(runs))
    # The web fonts that rich's template loads from a foreign host are left out; any monospaced font will do.
    template = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(console.export_svg(title="make demo", code_format=template, unique_id="demo"), encoding="utf-8")


def _watch(client: Client) -> tuple[Group, list[dict[str, Any]]]:
    """Return a view of the moment when most tasks ran, and the runs at their end."""
    names = [str(client.save_pipeline(definition)["name"]) for definition in example_definitions(ROOT / "examples")]
    ids = [client.start_run(name)["id"] for name in names]
    most, moment = -1, Group()
    while True:
        runs = [client.get_run(run_id) for run_id in ids]
        tasks = [task for run in runs for task in run["tasks"]]
        running = sum(1 + bool(task.get("progress")) for task in tasks if task["state"] == "running")
        ended = sum(task["state"] == "success" for task in tasks)
        if ended and running >= most:
            most, moment = running, live_view(runs)
        if all(run["state"] in FINAL_STATES for run in runs):
            return moment, runs
        time.sleep(0.1)


if __name__ == "__main__":
    main()
