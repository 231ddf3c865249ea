"""Whose DATA_DIR it is: two hosts that share one would report, and kill, each other's work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config import Settings, load_settings
from orchestrator.errors import ConfigurationError
from workers import identity
from workers.identity import Machine

HERE = Machine("hash-1", "host-1", "boot-1")


class Site:
    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._data, self._patch = str(tmp_path), monkeypatch

    def host_id(self, machine: Machine, host_id: str = "") -> str:
        """Start on this machine; return the host's id."""
        self._patch.setattr(identity, "read_machine", lambda: machine)
        settings = self.settings(host_id)
        return identity.read_host_id(settings, identity.open_folders(settings))

    def settings(self, host_id: str = "") -> Settings:
        return load_settings({"DATA_DIR": self._data, "HOST_ID": host_id})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "later",
    [
        HERE,
        replace(HERE, boot_id="boot-2"),
        replace(HERE, hostname="renamed"),
        replace(HERE, machine="", hostname="a-container-made-anew"),
    ],
)
def test_the_same_machine_keeps_its_id(site: Site, later: Machine) -> None:
    made = site.host_id(HERE)
    assert site.host_id(later) == made
    assert site.host_id(replace(later, boot_id="boot-3")) == made, "what it is called now is kept for the next boot"


@pytest.mark.parametrize("other", [Machine("hash-2", "host-2", "boot-2"), Machine("hash-1", "its-clone", "boot-2")])
def test_another_machine_is_refused_with_what_to_do(site: Site, other: Machine) -> None:
    made = site.host_id(HERE)
    with pytest.raises(ConfigurationError) as refusal:
        site.host_id(other)
    for word in ("DATA_DIR", "HOST_ID", "'host-1'", repr(other.hostname), "host-machine.json"):
        assert word in str(refusal.value)
    assert site.host_id(HERE) == made


def test_hosts_with_ids_of_their_own_may_share_a_folder_and_meet_in_none(site: Site) -> None:
    assert site.host_id(HERE, "one") == "one"
    assert site.host_id(Machine("hash-2", "host-2", "boot-2"), "../two") == "../two"
    one, two = (identity.open_folders(site.settings(host_id)) for host_id in ("one", "../two"))
    assert one.root.parent == two.root.parent
    assert one.root != two.root


def test_the_identity_of_this_machine_can_be_read() -> None:
    machine = identity.read_machine()
    assert machine.hostname
    assert machine.boot_id
    assert machine.machine == "" or len(machine.machine) == 64
