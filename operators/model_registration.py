"""``model_registration``: gives a trained model a name and a version, in our registry and in the site's own.

The registry at ``registry_url`` speaks this protocol, JSON in both directions:

- ``PUT {registry_url}/models/{name}/versions/{version}`` registers a version that the task names;
  ``POST {registry_url}/models/{name}/versions`` lets the registry number it.
- The body is ``{name, version, digest, uri, stage, description, tags, metrics, lineage, model}``. Both carry the
  header ``Idempotency-Key: <name>:<version>:<digest>``.
- 201: registered. 200: the same digest is registered under this name and version already. 409: another digest is.
  200 and 201 answer ``{name, version, digest}``.
- 429 and 503 may carry ``Retry-After``; they and other 5xx are tried again, every other answer is final.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import quote

from orchestrator.errors import ForbiddenAddress, TooLarge, Unreachable
from orchestrator.inputs import (
    artifact_missing,
    describe_output,
    fingerprint,
    local_file,
    outputs_of_kind,
    require_own,
)
from orchestrator.operator import Input, Json, Operator, OperatorFailure, TaskContext
from orchestrator.outbound import Response

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_VERSION = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$"
_DIGEST = r"^sha256:[0-9a-f]{64}$"
_ANSWER_BYTES = 1 << 20
_MODEL_FIELDS = ("framework", "algorithm", "model_type", "signature", "bytes")


class ModelRegistration(Operator):
    """Registers the model of the nearest ancestor, or the one that ``model_uri`` names.

    Doing it twice is doing it once: a name and version that hold the same digest already are a success.
    """

    name = "model_registration"
    summary = "Registers a model under a name and version, with stage, tags, metrics and lineage."
    inputs = (Input("model_uri", "model"),)
    parameters_schema: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "model_name": {
                "type": "string", "pattern": _NAME,
                "description": "Default: the run's parameter model_name, else `<pipeline>.<task>`.",
            },
            "model_version": {
                "type": "string", "pattern": _VERSION,
                "description": "Default: the run's parameter model_version, else the next number.",
            },
            "description": {"type": "string", "maxLength": 10_000, "default": "", "description": "For people."},
            "tags": {
                "type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 100}, "maxItems": 100,
                "uniqueItems": True, "default": [], "description": "For finding it again.",
            },
            "stage": {
                "enum": ["none", "staging", "production", "archived"], "default": "none",
                "description": "Where this version stands.",
            },
            "model_uri": {
                "type": "string", "minLength": 1,
                "description": "Model: artifact://…, s3://bucket/key or a path in a data root. "
                "Default: the nearest ancestor's model.",
            },
            "metrics": {
                "type": "object", "additionalProperties": {"type": "number"},
                "description": "Added to those that the training task measured.",
            },
            "registry_url": {
                "type": "string", "pattern": "^https?://",
                "description": "A registry to tell as well. Default: MODEL_REGISTRY_URL of the site.",
            },
            "registry_connection": {
                "type": "string", "minLength": 1,
                "description": "Named connection whose url is the registry's and whose option token authorises us.",
            },
        },
    }  # fmt: skip
    outputs_schema: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "required": ["registration"],
        "additionalProperties": False,
        "properties": {
            "registration": {
                "type": "object",
                "description": "What was registered.",
                "additionalProperties": False,
                "required": ["name", "version", "stage", "digest", "uri", "metrics"],
                "properties": {
                    "name": {"type": "string", "description": "Name of the model."},
                    "version": {"type": "string", "description": "Empty: numbered when the outcome is committed."},
                    "stage": {"type": "string", "description": "Where this version stands."},
                    "digest": {"type": "string", "pattern": _DIGEST, "description": "sha256:<hex> of the model."},
                    "uri": {"type": "string", "description": "Where the model lies."},
                    "metrics": {"type": "object", "description": "As registered."},
                    "registry": {"type": "string", "description": "The registry that was told besides ours."},
                },
            }
        },
    }

    @classmethod
    def problems(cls, parameters: Mapping[str, Json]) -> list[tuple[str, str]]:
        """Refuse two answers to the question which registry is meant."""
        if "registry_url" in parameters and "registry_connection" in parameters:
            return [("/registry_connection", "Give registry_url or registry_connection, not both.")]
        return []

    @classmethod
    def produces(cls, parameters: Mapping[str, Json]) -> frozenset[str]:
        """Always a registration; its ``uri`` is the model's."""
        return frozenset({"registration"})

    @classmethod
    def connection_names(cls, parameters: Mapping[str, Json]) -> frozenset[str]:
        """Return the registry's connection, if one is named."""
        name = parameters.get("registry_connection")
        return frozenset({name}) if isinstance(name, str) else frozenset()

    def run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Tell the site's registry, if there is one, and leave the record that ingest writes into ours."""
        record = _record(context, parameters)
        outputs = {key: record[key] for key in ("name", "version", "stage", "digest", "uri", "metrics")}
        registry, headers = _registry(context, parameters)
        if registry:
            context.progress(0.3, "telling the registry")
            record["version"] = outputs["version"] = _tell(context, registry, headers, record)
            outputs["registry"] = registry
        context.records.append(record)
        context.log(
            "Model registered.", name=record["name"], version=record["version"] or "next", digest=record["digest"]
        )
        return {"registration": outputs}

    def dry_run(self, context: TaskContext, parameters: Mapping[str, Json]) -> Mapping[str, Json]:
        """Find the model and say what would be registered."""
        record = _record(context, parameters)
        registry, _ = _registry(context, parameters)
        return {key: record[key] for key in ("name", "version", "stage", "digest", "uri")} | {"registry": registry}


def _record(context: TaskContext, parameters: Mapping[str, Json]) -> dict[str, Json]:
    uri = parameters["model_uri"]
    require_own(context, uri)
    made = describe_output(context, "model", uri)
    metrics = made.get("metrics")
    return {
        "kind": "model",
        "name": _word(context, parameters, "model_name", _NAME, f"{context.pipeline}.{context.task}"[:128]),
        "version": _word(context, parameters, "model_version", _VERSION, ""),
        "stage": parameters.get("stage", "none"),
        "description": parameters.get("description", ""),
        "tags": list(parameters.get("tags", [])),
        "metrics": {**(metrics if isinstance(metrics, Mapping) else {}), **parameters.get("metrics", {})},
        "digest": _digest(context, uri, made),
        "uri": uri,
        "lineage": _lineage(context, made),
        "model": {name: made[name] for name in _MODEL_FIELDS if name in made},
    }


def _word(context: TaskContext, parameters: Mapping[str, Json], name: str, pattern: str, default: str) -> str:
    """Return the task's value, else the run's, else the default; the run's was not checked by our schema."""
    value = parameters.get(name, context.run_parameters.get(name, default))
    if value and not (isinstance(value, str) and re.match(pattern, value)):
        raise OperatorFailure("bad_parameters", f"{value!r} is no {name}: it must match {pattern}.")
    return str(value or default)


def _digest(context: TaskContext, uri: str, made: Mapping[str, Json]) -> str:
    """Return what the producer said, else compute it; a model that is gone can't be registered."""
    told = made.get("digest")
    if isinstance(told, str) and re.match(_DIGEST, told) and uri.startswith("artifact://"):
        if not context.artifacts.exists(uri):
            raise artifact_missing(context, uri)
        return told
    return fingerprint(local_file(context, uri))


def _lineage(context: TaskContext, made: Mapping[str, Json]) -> dict[str, Json]:
    """Return where the model comes from: run, tasks, and the data it was fitted on."""
    found: dict[str, Json] = {"run_id": context.run_id, "task": context.task, "attempt_id": context.attempt_id}
    if "task" in made:
        found["model_task"] = made["task"]
    if data := made.get("data_fingerprint"):
        found["data_fingerprint"] = data
        for task, dataset in outputs_of_kind(context, "dataset"):
            if dataset.get("fingerprint") == data:
                found["dataset"] = {"task": task, "uri": dataset.get("uri")}
                break
    return found


def _registry(context: TaskContext, parameters: Mapping[str, Json]) -> tuple[str, dict[str, str]]:
    """Return the URL to tell (empty: none) and the headers that authorise us."""
    name = parameters.get("registry_connection")
    if name is None:
        return (parameters.get("registry_url") or context.registry_url or "").rstrip("/"), {}
    connection = context.connections.get(name)
    if connection is None:
        raise OperatorFailure("unknown_connection", f"This site has no connection {name!r}; add it to CONNECTIONS.")
    token = connection.options.get("token")
    return connection.url.rstrip("/"), {"Authorization": f"Bearer {token}"} if token else {}


def _tell(context: TaskContext, registry: str, headers: Mapping[str, str], record: Mapping[str, Json]) -> str:
    """Register with the site's registry and return the version it holds.

    :raises OperatorFailure: ``registry_conflict``, ``registry_refused``, or the retryable ``registry_unavailable``.
    """
    url = f"{registry}/models/{quote(record['name'], safe='')}/versions"
    if record["version"]:
        url += f"/{quote(record['version'], safe='')}"
    key = f"{record['name']}:{record['version']}:{record['digest']}"
    body = {name: value for name, value in record.items() if name != "kind"}
    try:
        response = context.http.request(
            "PUT" if record["version"] else "POST",
            url,
            headers={**headers, "Idempotency-Key": key, "Accept": "application/json"},
            json=body,
            max_bytes=_ANSWER_BYTES,
            idempotent=True,
        )
    except ForbiddenAddress as error:
        raise OperatorFailure("forbidden_address", str(error)) from error
    except TooLarge as error:
        raise OperatorFailure("registry_refused", str(error)) from error
    except Unreachable as error:
        raise OperatorFailure("registry_unavailable", str(error), retryable=True) from error
    return _agreed_version(response, url, record)


def _agreed_version(response: Response, url: str, record: Mapping[str, Json]) -> str:
    what = f"{record['name']} {record['version'] or '(next version)'}"
    if response.status == 409:
        raise OperatorFailure(
            "registry_conflict",
            f"{url} holds another model as {what}; register this one ({record['digest']}) under another version.",
        )
    if response.status in {408, 429} or response.status >= 500:
        raise OperatorFailure(
            "registry_unavailable", f"{url} answered {response.status}.", retryable=True,
            retry_after=response.retry_after,
        )  # fmt: skip
    if response.status not in {200, 201}:
        said = response.body[:200].decode(errors="replace")
        raise OperatorFailure("registry_refused", f"{url} answered {response.status} to {what}: {said}")
    answer = _json_object(response)
    if answer.get("digest", record["digest"]) != record["digest"]:
        raise OperatorFailure(
            "registry_conflict", f"{url} holds the digest {answer['digest']}, not {record['digest']}."
        )
    version = str(answer.get("version") or record["version"])
    if not re.match(_VERSION, version):
        raise OperatorFailure("registry_refused", f"{url} did not say which version it gave to {what}.")
    return version


def _json_object(response: Response) -> Mapping[str, Json]:
    """Return the answer, or nothing: a registry that answers 201 without a body has registered."""
    try:
        answer = response.json()
    except Unreachable:
        return {}
    return answer if isinstance(answer, dict) else {}
