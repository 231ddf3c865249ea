"""Requests made from the OpenAPI document, fitting it and not: no answer is a fault, and each is as documented."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.sse import Pace
from tests.integration.api_site import ApiSite
from tests.integration.waiting_site import WAITING, running, wait_for_event

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 25


@pytest.fixture
def furnished(api: ApiSite, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Fill the tables and return path parameters of things that exist; streams do not wait."""
    monkeypatch.setattr(Pace, "rest", lambda self: iter(()))
    made = api.saved()
    run = api.started()
    attempt_id = api.add_attempt(run["id"], "first", state="succeeded")
    api.services.artifacts.put_bytes(f"logs/{api.tenant_id}/{run['id']}/{attempt_id}/{0:015d}", b"line\n")
    api.sql("UPDATE runs SET state = 'success', ended_at = now()")
    token = wait_for_event(api, running(api, WAITING), "any")
    api.sql(
        "INSERT INTO models (id, tenant_id, name, version, digest, uri) VALUES "
        "(gen_random_uuid(), :tenant, 'churn', '1', 'd', 'u')",
        tenant=api.tenant_id,
    )
    known = {"run_id": run["id"], "pipeline_id": made["id"], "task": "first", "name": "two-scripts", "worker_id": "w1"}
    return {**known, "token": token}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fitting", "misfitting"])
def test_no_request_made_from_the_document_is_answered_with_a_fault(
    api: ApiSite, furnished: dict[str, str], mode: GenerationMode
) -> None:
    document: Any = api.call("GET", "/openapi.json").json
    found: Iterable[Any] = schemathesis.openapi.from_dict(document).get_all_operations()
    operations = [result.ok() for result in found]
    faults: list[str] = []
    sent = 0
    for operation in operations:
        try:
            sent += fuzz(api, operation, mode, furnished)
        except Unsatisfiable:
            continue  # the document leaves nothing to be wrong here
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - all faults are to be seen
            faults.append(f"{operation.label}: {error!r} {getattr(error, 'exceptions', '')}")
    assert not faults, "\n\n".join(faults)
    assert sent > 100


def fuzz(api: ApiSite, operation: Any, mode: GenerationMode, furnished: dict[str, str]) -> int:
    """Send requests to one operation, every other one to things that exist; return how many."""
    known = {name: value for name, value in furnished.items() if f"{{{name}}}" in operation.path}
    headers = {"Authorization": f"Bearer {api.keys['admin']}"}
    sent = 0

    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def send(case: Case[Any]) -> None:
        nonlocal sent
        sent += 1
        if sent % 2 == 0:
            case.path_parameters = {**(case.path_parameters or {}), **known}
        case.call_and_validate(app=api.app, headers=headers, checks=CHECKS)

    send()
    return sent
