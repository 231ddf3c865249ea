"""A site is brought to this release while it works: schema, schedulers, APIs, workers; one worker stays behind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.acceptance.system import ADMIN_KEY, ROOT
from tests.chaos.checker import Bounds
from tests.chaos.conftest import Chaos
from tests.chaos.load import assert_contract, run_load, start_run, wait_until_quiet
from tests.chaos.servers import make_template
from tests.chaos.site import ChaosSite
from tests.chaos.witness import (
    asking,
    assert_no_attempt_ran_twice,
    assert_untouched,
    dispatched_after,
    epoch,
    lines,
    moment,
    start_long,
    worker_of,
)

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

FIRST_NEW_MIGRATION = "orchestrator/store/migrations/versions/0003_drain_adopt_and_detail.py"
"""The first migration that the old release does not know: the commit before it is that release."""


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def old_release(services_folder: Path) -> Path:
    """The code of the release before this one, as git has it."""
    try:
        added = _git("log", "--diff-filter=A", "--format=%H", "--", FIRST_NEW_MIGRATION).split()
        archive = _git("archive", f"{added[-1].decode()}^")
    except (subprocess.CalledProcessError, OSError, IndexError):
        pytest.skip("The code of the release before this one needs a full clone: git fetch --unshallow")
    folder = services_folder / "old-release"
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    assert not (folder / FIRST_NEW_MIGRATION).exists()
    return folder


@pytest.fixture(scope="module")
def old_template(services_folder: Path, old_release: Path) -> Path:
    """PostgreSQL's folder with a database that the old release has made."""
    folder = services_folder / "old-template"
    folder.mkdir()
    folder.chmod(0o711)
    return make_template(folder, lambda url: _migrate(old_release, url))


def _migrate(release: Path, url: str) -> None:
    """Run the migration command of a release, as its operators do."""
    environment = {"PATH": os.environ["PATH"], "DATABASE_URL": url, "ADMIN_KEY": ADMIN_KEY}
    command = [sys.executable, "-m", "orchestrator.store.migrate"]
    subprocess.run(command, cwd=release, env=environment, check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_an_upgrade_under_load_with_a_worker_that_stays_behind_costs_nothing(
    chaos: Chaos, old_release: Path, old_template: Path
) -> None:
    with chaos(template=old_template, code=old_release) as site:
        releases = Releases(site, old_release)
        long = start_long(site, 45.0)
        behind = worker_of(site, long)
        run_load(site, runs=6)
        with asking(site, "api-1", lambda api: api.start_run("chain-0")) as writing:
            site.note("migrate")
            _migrate(ROOT, site.postgres.url())
        writing.assert_prompt()
        assert writing.statuses[201], writing.statuses
        old, new = _replace_schedulers_there_and_back(site, releases)
        for name in site.apis:
            run_load(site, runs=3, purpose=f"before {name}")
            releases.replace(name)
            site.wait_until(lambda: site.client.health(), f"{name} answers", 30.0)
        for name in site.workers:
            if name != behind:
                releases.replace(name)
        site.wait_until_online(len(site.workers))
        since = moment(site)
        run_load(site, runs=8, purpose="after")
        site.wait_until(lambda: dispatched_after(site, since), "a dispatch by the new release", 20.0)
        wait_until_quiet(site, 90.0)
        _assert_all_worked_together(site, behind, old, new)
        assert_untouched(site, long)
        assert_no_attempt_ran_twice(site)
        assert_contract(site, bounds=Bounds(terse_epochs=old))


class Releases:
    """Replaces a site's processes one at a time, and remembers which release led in which epoch."""

    def __init__(self, site: ChaosSite, old: Path) -> None:
        self._site = site
        self._old = old
        self.led: dict[int, Path] = {}

    def replace(self, name: str, release: Path = ROOT) -> None:
        """Have the process end as it does when it is told to, and start it as another release."""
        self._site.processes.stop(name, seconds=40.0)
        self._site.code[name] = release
        self._site.processes.start(name)
        self._site.note(f"{name} is of the {'old' if release == self._old else 'new'} release")

    def note_leader(self) -> str:
        """Wait until a scheduler leads and dispatches; note its release and return its name."""
        name = self._site.wait_for_leader()
        since = moment(self._site)
        start_run(self._site, "chain-0")
        self._site.wait_until(lambda: dispatched_after(self._site, since), f"{name} dispatches", 20.0)
        self.led[epoch(self._site)] = self._site.code[name]
        return name


def _replace_schedulers_there_and_back(site: ChaosSite, releases: Releases) -> tuple[frozenset[int], frozenset[int]]:
    """Let the new release lead, the old one again (as after a roll-back), then the new one for good.

    Returns the epochs of both releases.
    """
    leader = releases.note_leader()
    standby = next(name for name in site.schedulers if name != leader)
    releases.replace(standby)
    for name in (leader, standby, leader):
        site.wait_until(partial(_leads, site, name), f"{name} leads", 20.0)
        site.processes.stop(name)
        assert releases.note_leader() != name
        run_load(site, runs=3, purpose=f"after epoch {epoch(site)}")
        site.processes.start(name)
    releases.replace(leader)
    old = {number for number, release in releases.led.items() if release != ROOT}
    new = {number for number, release in releases.led.items() if release == ROOT}
    assert min(len(old), len(new)) >= 2, releases.led
    return frozenset(old), frozenset(new)


def _leads(site: ChaosSite, name: str) -> bool:
    return site.leader() == name


def _assert_all_worked_together(
    site: ChaosSite, behind: str, old_epochs: frozenset[int], new_epochs: frozenset[int]
) -> None:
    """Hold that both releases have led, and that the worker left behind ran to the end, for both."""
    revision = site.postgres.query("SELECT version_num FROM alembic_version")[0][0]
    newest = max(path.name for path in (ROOT / FIRST_NEW_MIGRATION).parent.glob("[0-9]*.py"))
    assert newest.startswith(revision), f"the schema is at {revision}; the newest is {newest}"
    assert not site.processes.restarts()[behind], site.processes.restarts()
    host = "host-" + behind.removeprefix("worker-")
    ran = _attempts_by_epoch(site)
    print(f"epochs of the old release {sorted(old_epochs)}, of the new one {sorted(new_epochs)}; attempts {ran}")
    for epochs, which in ((old_epochs, "old"), (new_epochs, "new")):
        count = sum(number for (host_id, at), number in ran.items() if host_id == host and at in epochs)
        assert count >= 3, f"{behind} ran {count} attempts for leaders of the {which} release"
    told = {number for (number,) in site.postgres.query("SELECT epoch FROM events WHERE detail IS NOT NULL")}
    assert told & new_epochs == new_epochs, f"only the epochs {told} tell details"
    assert not told & old_epochs, f"epoch {told & old_epochs} was not of the old release"
    others = {line.host for line in lines(site, "start")} - {host}
    assert len(others) == len(site.workers) - 1


def _attempts_by_epoch(site: ChaosSite) -> Mapping[tuple[str, int], int]:
    """Return how many attempts succeeded on which host under the leader of which epoch."""
    rows = site.postgres.query(
        "SELECT a.host_id, e.epoch, count(*) FROM events e JOIN attempts a ON a.id::text = e.entity_id "
        "WHERE e.entity = 'attempt' AND e.after = 'succeeded' GROUP BY 1, 2"
    )
    return {(host, number): count for host, number, count in rows}
