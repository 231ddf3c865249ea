"""What may be asked of the leader about one task: to cancel it, to mark it, to approve or reject what it waits with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from flask.views import MethodView

from api.access import caller
from api.request_bodies import CancelRequestSchema, DecisionRequestSchema, MarkRequestSchema
from api.resource import Resource, needs
from api.run_tasks import one_task
from api.services import services
from api.task_view import AskedTaskRunSchema, planned_of
from api.typed_input import require_fit
from orchestrator.documents import unstorable
from orchestrator.errors import InvalidDefinition
from orchestrator.states import TaskState
from orchestrator.store import command_requests, run_queries
from orchestrator.store.api_keys import Role
from orchestrator.store.command_requests import FORCE

blueprint = Resource(
    "task-requests", __name__, url_prefix="/api/v1/runs", description="What is asked of the leader about a task."
)


@blueprint.route("/<uuid:run_id>/tasks/<string:task>/cancel")
class TaskCancel(MethodView):
    @needs(Role.OPERATOR)
    @blueprint.refuses(409)
    @blueprint.optional_body(CancelRequestSchema, example={"grace_seconds": 5, "reason": "wrong data"})
    @blueprint.answers(202, AskedTaskRunSchema, description="The leader will cancel it.")
    def post(self, body: Mapping[str, Any], run_id: UUID, task: str) -> dict[str, Any]:
        """Cancel one task of a run; 409 when it has ended."""
        tenant_id = caller().tenant_id
        command: Mapping[str, Any] = {}
        with services().engine.begin() as connection:
            row = run_queries.get_task(connection, tenant_id, str(run_id), task)
            if not is_asked_for(row["state"], body):
                command = command_requests.request_cancel(
                    connection, tenant_id, str(run_id), caller().name, task=task, **body
                )
        services().live.wake()
        return one_task(str(run_id), task, command_id=command.get("id"))


@blueprint.route("/<uuid:run_id>/tasks/<string:task>/mark")
class TaskMark(MethodView):
    @needs(Role.OPERATOR)
    @blueprint.refuses(409)
    @blueprint.body(
        MarkRequestSchema, example={"state": "success", "reason": "trained by hand", "outputs": {"rows": 1000}}
    )
    @blueprint.answers(202, AskedTaskRunSchema, description="The leader will take it for that, and decide anew below.")
    def post(self, body: Mapping[str, Any], run_id: UUID, task: str) -> dict[str, Any]:
        """Settle a task run by hand of which nothing runs; 409 while an attempt of it is alive.

        In a run that has ended, what it had settled downstream is decided anew, and the run goes on.
        """
        if problems := list(unstorable(body["outputs"], "/outputs")):
            raise InvalidDefinition(problems)
        with services().engine.begin() as connection:
            command = command_requests.request_mark(
                connection, caller().tenant_id, str(run_id), task, caller().name, **body
            )
        services().live.wake()
        return one_task(str(run_id), task, command_id=command["id"])


@blueprint.route("/<uuid:run_id>/tasks/<string:task>/approve")
class TaskApproval(MethodView):
    @needs(Role.OPERATOR)
    @blueprint.refuses(409)
    @blueprint.optional_body(DecisionRequestSchema, example={"input": {"stage": "production"}, "reason": "looks right"})
    @blueprint.answers(202, AskedTaskRunSchema, description="The leader will let it go on.")
    def post(self, body: Mapping[str, Any], run_id: UUID, task: str) -> dict[str, Any]:
        """Approve what a task waits with; 409 when it does not wait for that."""
        return _decided(body, str(run_id), task, approve=True)


@blueprint.route("/<uuid:run_id>/tasks/<string:task>/reject")
class TaskRejection(MethodView):
    @needs(Role.OPERATOR)
    @blueprint.refuses(409)
    @blueprint.optional_body(DecisionRequestSchema, example={"reason": "not on a Friday"})
    @blueprint.answers(202, AskedTaskRunSchema, description="The leader will let it fail, or be skipped.")
    def post(self, body: Mapping[str, Any], run_id: UUID, task: str) -> dict[str, Any]:
        """Reject what a task waits with; 409 when it does not wait for that."""
        return _decided(body, str(run_id), task, approve=False)


def is_asked_for(state: str, body: Mapping[str, Any]) -> bool:
    """Say whether it is being cancelled already, and nothing of this body shortens that.

    Asking again is no error: the client may not have seen the first answer.
    """
    harder = body["mode"] == FORCE or body["grace_seconds"] is not None
    return state == TaskState.CANCELLED or (state == TaskState.CANCELLING and not harder)


def _decided(body: Mapping[str, Any], run_id: str, task: str, *, approve: bool) -> dict[str, Any]:
    tenant_id = caller().tenant_id
    with services().engine.connect() as connection:
        run = run_queries.get_run(connection, tenant_id, run_id)
        row = run_queries.get_task(connection, tenant_id, run_id, task)
        # Whether it waits at all comes first: what does not has no schema either.
        command_requests.require_wait(row["state"], row["reason"], task, run_id, "approval")
        approval = planned_of(connection, tenant_id, run["version_id"], row).approval
    # Who rejects need not fill in the form.
    if approve or body["input"] is not None:
        require_fit(None if approval is None else approval.input, body["input"] or {}, "/input")
    with services().engine.begin() as connection:
        command = command_requests.request_approval(
            connection, tenant_id, run_id, task, caller().name, approve=approve, **body
        )
    services().live.wake()
    return one_task(run_id, task, command_id=command["id"])
