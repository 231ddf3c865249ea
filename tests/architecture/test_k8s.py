"""The Kubernetes manifests: well-formed, and true to the images, settings, API and watchdogs that they rely on."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.app import create_app
from orchestrator import __version__
from orchestrator.config import Settings, load_settings

COMPOSE = Path(__file__).resolve().parents[2] / "compose"
FOLDER = COMPOSE / "k8s"
FILES = sorted(FOLDER.rglob("*.yaml"))
FOLDERS = sorted({file.parent for file in FOLDER.rglob("kustomization.yaml")})
WORKERS = ("worker-cpu", "worker-gpu")
FLOWERS_OWN = {"FLOWER_BASIC_AUTH"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")

Manifest = dict[str, Any]


def documents() -> list[Manifest]:
    return [document for file in FILES for document in yaml.safe_load_all(file.read_text())]


def of_kind(*kinds: str) -> dict[str, Manifest]:
    return {document["metadata"]["name"]: document for document in documents() if document["kind"] in kinds}


@pytest.fixture(scope="module")
def workloads() -> dict[str, Manifest]:
    """All that makes pods, by name."""
    return of_kind("Deployment", "Job")


def pod(workload: Manifest) -> Manifest:
    return workload["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def container(workload: Manifest) -> Manifest:
    assert "initContainers" not in pod(workload)
    (only,) = pod(workload)["containers"]
    return only  # type: ignore[no-any-return]


def settings_of(workload: Manifest) -> Iterator[str]:
    """Yield the names of the variables that its container gets."""
    yield from (variable["name"] for variable in container(workload).get("env", ()))
    for source in container(workload).get("envFrom", ()):
        yield from of_kind("ConfigMap")[source["configMapRef"]["name"]]["data"]


def test_every_file_holds_documents_with_a_kind_and_every_process_is_there(workloads: dict[str, Manifest]) -> None:
    assert all({"apiVersion", "kind"} <= set(document) for document in documents())
    assert set(workloads) == {"api", "scheduler", "worker-cpu", "worker-gpu", "migrate", "flower"}


def test_each_folder_names_all_of_its_files_and_no_namespace() -> None:
    for folder in FOLDERS:
        named = set(yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"])
        there = {file.name for file in folder.glob("*.yaml")}
        assert named == there - {"kustomization.yaml", "secrets.example.yaml"}
    assert not [document for document in documents() if "namespace" in document.get("metadata", {})]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kustomize_accepts_each_folder(folder: Path) -> None:
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("no kubectl is installed")
    result = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


def test_every_image_is_a_target_of_the_dockerfile_at_this_release(workloads: dict[str, Manifest]) -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)", (COMPOSE / "Dockerfile").read_text(), re.MULTILINE))
    for workload in workloads.values():
        image, tag = container(workload)["image"].split(":")
        assert image.removeprefix("pipeline-orchestrator/") in targets
        assert tag == __version__  # a pod that is started again later must not be of another release: no `latest`


def test_every_variable_is_a_setting(workloads: dict[str, Manifest]) -> None:
    known = {spec.metadata["env"] for spec in fields(Settings)}
    for workload in workloads.values():
        assert set(settings_of(workload)) - known <= (FLOWERS_OWN if container(workload)["name"] == "flower" else set())


def test_every_secret_that_is_named_is_in_the_example_which_holds_none() -> None:
    example = {name: secret["stringData"] for name, secret in of_kind("Secret").items()}
    assert not [value for keys in example.values() for value in keys.values() if value]
    references = re.findall(r"secretKeyRef:\s+name: (\S+)\s+key: (\S+)", "".join(map(Path.read_text, FILES)))
    assert {(name, key) for name, keys in example.items() for key in keys} == set(references)


def test_no_secret_setting_stands_in_the_config_map(workloads: dict[str, Manifest]) -> None:
    secret = {spec.metadata["env"] for spec in fields(Settings) if spec.metadata["secret"]} | FLOWERS_OWN
    assert not secret & {key for kept in of_kind("ConfigMap").values() for key in kept["data"]}
    for workload in workloads.values():
        for variable in container(workload)["env"]:
            assert variable["name"] not in secret or "secretKeyRef" in variable["valueFrom"]


def test_workers_get_no_database_and_no_administrators_key_and_flower_can_not_seal_a_grant(
    workloads: dict[str, Manifest],
) -> None:
    for name in (*WORKERS, "flower"):
        assert not {"DATABASE_URL", "ADMIN_KEY", "SECRET_KEY", "CONNECTIONS"} & set(settings_of(workloads[name]))
    assert set(settings_of(workloads["flower"])) == {"REDIS_URL", "FLOWER_BASIC_AUTH"}


def test_each_process_gets_what_it_can_not_start_without(workloads: dict[str, Manifest]) -> None:
    needed = {
        "api": {"DATABASE_URL", "REDIS_URL", "SECRET_KEY", "ADMIN_KEY", "ARTIFACT_URL"},
        "scheduler": {"DATABASE_URL", "REDIS_URL", "WORKER_KEY", "ARTIFACT_URL"},
        "migrate": {"DATABASE_URL", "ADMIN_KEY"},
        **{name: {"REDIS_URL", "WORKER_KEY", "ARTIFACT_URL", "HOST_ID"} for name in WORKERS},
    }
    for name, variables in needed.items():
        assert variables <= set(settings_of(workloads[name]))


def test_no_service_can_set_a_setting(workloads: dict[str, Manifest]) -> None:
    """Kubernetes makes ``FLOWER_PORT=tcp://…`` of a Service called flower."""
    assert all(pod(workload)["enableServiceLinks"] is False for workload in workloads.values())


def test_what_ends_by_itself_is_started_again(workloads: dict[str, Manifest]) -> None:
    """Watchdogs end a process that hangs; without a policy it would stay ended."""
    policies = {name: pod(workload)["restartPolicy"] for name, workload in workloads.items()}
    assert policies.pop("migrate") == "OnFailure"
    assert set(policies.values()) == {"Always"}


def test_two_apis_and_two_schedulers_run_and_are_not_evicted_together(workloads: dict[str, Manifest]) -> None:
    for name in ("api", "scheduler"):
        assert workloads[name]["spec"]["replicas"] >= 2
        kept = of_kind("PodDisruptionBudget")[name]["spec"]
        assert kept["maxUnavailable"] < workloads[name]["spec"]["replicas"]
        assert kept["selector"] == workloads[name]["spec"]["selector"]
        (spread,) = pod(workloads[name])["topologySpreadConstraints"]
        assert spread["labelSelector"] == workloads[name]["spec"]["selector"]


def test_selectors_choose_the_pods_they_are_meant_for(workloads: dict[str, Manifest]) -> None:
    labels = {name: workload["spec"]["template"]["metadata"]["labels"] for name, workload in workloads.items()}
    assert len({tuple(each.items()) for each in labels.values()}) == len(labels)
    for name, workload in workloads.items():
        if workload["kind"] == "Deployment":
            assert workload["spec"]["selector"]["matchLabels"] == labels[name]
    for name, service in of_kind("Service").items():
        assert service["spec"]["selector"] == labels[name]
        ports = {port["name"] for port in container(workloads[name])["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_the_paths_of_all_probes_are_answered_without_a_key(workloads: dict[str, Manifest]) -> None:
    settings = Settings(
        secret_key="s" * 32,
        admin_key="a" * 32,
        database_url="postgresql+psycopg2://x@127.0.0.1/x",
        redis_url="redis://x",
    )
    client = create_app(settings).test_client()
    (port,) = container(workloads["api"])["ports"]
    assert f"0.0.0.0:{port['containerPort']}" in (COMPOSE / "Dockerfile").read_text()
    for kind in PROBES:
        asked = container(workloads["api"])[kind]["httpGet"]
        assert asked["port"] == port["name"]
        assert client.get(asked["path"]).status_code == 200


def test_only_what_answers_http_is_probed(workloads: dict[str, Manifest]) -> None:
    """The others end themselves when they are stuck; a probe of a busy worker would kill its tasks."""
    assert {name for name, workload in workloads.items() if set(PROBES) & set(container(workload))} == {"api"}


def test_workers_have_time_to_drain(workloads: dict[str, Manifest]) -> None:
    (kept,) = of_kind("ConfigMap").values()
    preempting = 3 * Settings().cancel_grace_seconds
    for name in WORKERS:
        assert pod(workloads[name])["terminationGracePeriodSeconds"] >= int(kept["data"]["DRAIN_SECONDS"]) + preempting


def test_the_settings_can_be_used() -> None:
    (kept,) = of_kind("ConfigMap").values()
    assert load_settings(kept["data"]).artifact_url.startswith("s3://")


def test_a_worker_is_a_host_of_its_own_that_offers_its_limits(workloads: dict[str, Manifest]) -> None:
    for name in WORKERS:
        worker = container(workloads[name])
        (host,) = [variable for variable in worker["env"] if variable["name"] == "HOST_ID"]
        assert host["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.uid"}}
        assert worker["resources"]["limits"] == worker["resources"]["requests"]
        assert {"cpu", "memory"} <= set(worker["resources"]["limits"])
        # The spool lies there, and must outlive the container.
        assert {"name": "data", "mountPath": "/data"} in worker["volumeMounts"]
        assert {"name": "data", "emptyDir": {}} in pod(workloads[name])["volumes"]
    assert container(workloads["worker-gpu"])["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_our_programs_keep_no_privileges_and_write_only_where_they_must(workloads: dict[str, Manifest]) -> None:
    (uid,) = re.findall(r"--uid (\d+)", (COMPOSE / "Dockerfile").read_text())
    for name, workload in workloads.items():
        whole, own = pod(workload), container(workload)["securityContext"]
        assert whole["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": int(uid),
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert whole["automountServiceAccountToken"] is False
        assert not {"shareProcessNamespace", "hostPID", "hostNetwork", "hostIPC"} & set(whole)
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert own.get("readOnlyRootFilesystem", False) is (name not in WORKERS)
        assert "/tmp" in {mount["mountPath"] for mount in container(workload)["volumeMounts"]} or name in WORKERS
        assert {mount["name"] for mount in container(workload)["volumeMounts"]} == {
            volume["name"] for volume in whole["volumes"]
        }


@pytest.mark.parametrize(("word", "starts"), [("", False), (":word", False), ("admin:", False), ("admin:word", True)])
def test_flower_refuses_to_start_without_a_password(
    workloads: dict[str, Manifest], tmp_path: Path, word: str, starts: bool
) -> None:
    stand_in = tmp_path / "celery"
    stand_in.write_text('#!/bin/sh\necho "$*"\n')
    stand_in.chmod(0o755)
    result = subprocess.run(
        container(workloads["flower"])["command"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "FLOWER_BASIC_AUTH": word},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (result.returncode == 0) is starts
    assert result.stdout.split() == (["-A", "workers", "flower", "--address=0.0.0.0", "--port=5555"] if starts else [])
    assert ("Set FLOWER_BASIC_AUTH" in result.stderr) is not starts
