"""A site with one file of test operators, and a fork server that runs them without Redis or Celery."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.config import Settings, load_settings
from orchestrator.records import Outcome, Resources
from orchestrator.wire.messages import GrantSpec, grant_body
from workers import environment
from workers.attempt_folder import AttemptFolder
from workers.fork_client import ForkClient, Listener
from workers.identity import IncarnationLock, open_folders, read_boot_id
from workers.orders import Site
from workers.spool import Spool

OPERATORS = '''
import os, signal, subprocess, sys, time
from orchestrator.operator import NotYet, Operator, OperatorFailure, SkipTask

ANY = {"type": "object"}


class Probe(Operator):
    name = "probe"
    summary = "Does what the test asks."
    parameters_schema = ANY
    outputs_schema = ANY

    @classmethod
    def problems(cls, parameters):
        time.sleep(parameters.get("setup_seconds", 0))
        return []

    def run(self, context, parameters):
        return getattr(self, parameters["do"])(context, parameters)

    def echo(self, context, parameters):
        print("hello from", context.task)
        context.progress(0.5, "half way")
        return {
            "environment": dict(os.environ), "cwd": os.getcwd(), "session": os.getsid(0), "pid": os.getpid(),
            "descriptors": sorted(os.listdir("/proc/self/fd")), "parameters": parameters,
            "connections": sorted(context.connections), "threads": os.environ["OMP_NUM_THREADS"],
            "status": open("/proc/self/status").read(), "core": __import__("resource").getrlimit(4),
        }

    def sleep(self, context, parameters):
        print("sleeping", flush=True)
        time.sleep(parameters.get("seconds", 600))
        return {}

    def keep_ledger(self, context, parameters):
        """Note the start; end when there is a file that says so."""
        with open(parameters["ledger"], "a") as file:
            file.write(f"{context.attempt_id} {context.fence}\\n")
        number = 0
        while not os.path.exists(parameters["end"]):
            print("line", number, flush=True)
            context.progress(0.01 * number)
            number += 1
            time.sleep(0.1)
        print("the last line", flush=True)
        return {"lines": number}

    def count(self, context, parameters):
        for number in range(parameters["lines"]):
            print("line", number, flush=True)
            time.sleep(parameters["seconds"] / parameters["lines"])
        return {}

    def fail(self, context, parameters):
        raise OperatorFailure("bad_data", "The file is empty.", retryable=True, retry_after=7.0)

    def skip(self, context, parameters):
        raise SkipTask("nothing_new", "No new rows.")

    def save(self, context, parameters):
        """Keep a state for another attempt, then end as told; the outputs say what the last one kept."""
        found = context.checkpoint_load()
        text = found.read_text() if found else ""
        context.checkpoint_save(context.attempt_id.encode())
        match parameters["then"]:
            case "skip":
                raise SkipTask("nothing_new")
            case "fail":
                raise OperatorFailure("bad_data", text, retryable=True)
        return {"found": text}

    def lock_away(self, context, parameters):
        """Save, and have the store refuse to forget it."""
        context.checkpoint_save(b"state")

        def refuse(prefix):
            from orchestrator.errors import StoreUnavailable
            raise StoreUnavailable("The store does not answer.")

        context.artifacts.delete = refuse
        return {}

    def wait(self, context, parameters):
        context.state_set("looks", context.state_get("looks", 0) + 1)
        if context.state_get("looks") < 3:
            raise NotYet(12.5, "The file is not there yet.")
        return {"looks": context.state_get("looks")}

    def live(self, context, parameters):
        """Give a sign of life of one kind now and then; of none, at last, if so told."""
        for number in range(parameters.get("signs", 0)):
            match parameters["by"]:
                case "log":
                    print("line", number, flush=True)
                case "progress":
                    context.progress(0.01 * number)
                case "checkpoint":
                    context.checkpoint_save(b"x")
                case "state":
                    context.state_set("n", number)
            time.sleep(0.4)
        time.sleep(parameters.get("silence", 0))
        return {}

    def work_in_folder(self, context, parameters):
        """Go on from a folder, save it once, change it again, then end as told."""
        file = context.checkpoint_folder() / "step"
        found = file.read_text() if file.exists() else ""
        if parameters["then"] == "tell":
            return {"found": found}
        file.write_text(found + "1")
        context.checkpoint_save()
        file.write_text(found + "12")
        if parameters["then"] == "fail":
            raise OperatorFailure("bad_data", "No rows.", retryable=True, exit_code=7)
        print("ready", flush=True)
        time.sleep(600)

    def leave_artifacts(self, context, parameters):
        context.artifacts.put_bytes(context.artifact_key("report.json"), b"{}")
        saved = context.save_artifact(b"weights", name="best")
        if parameters.get("fail"):
            raise OperatorFailure("quality_gate", "It is too bad.")
        return {"saved": saved}

    def outlast(self, context, parameters):
        """Save, succeed, and have the store answer nothing when it is to forget."""
        import workers.execute
        context.checkpoint_save(b"state")
        context.artifacts.delete = lambda prefix: time.sleep(600)
        workers.execute.FORGET_SECONDS = parameters["patience"]
        return {"rows": 1}

    def find_the_disk_full(self, context, parameters):
        """Save, succeed, and have no room for the result."""
        import resource
        context.checkpoint_save(b"state")
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        return {"rows": 1}

    def split(self, context, parameters):
        """Fork a process that returns as if it were the task, which goes on."""
        context.checkpoint_save(b"state")
        if os.fork() == 0:
            return {"rows": 1}
        os.wait()
        print("alone again", flush=True)
        time.sleep(600)

    def crash(self, context, parameters):
        raise ValueError("boom")

    def die(self, context, parameters):
        os.kill(os.getpid(), signal.SIGSEGV)

    def leave(self, context, parameters):
        os._exit(3)

    def huge(self, context, parameters):
        return {"text": "x" * 300_000}

    def nan(self, context, parameters):
        return {"value": float("nan")}

    def chatter(self, context, parameters):
        line = "y" * 1023 + "\\n"
        for _ in range(20 * 1024):
            sys.stdout.write(line)
        print("the last line")
        return {}

    def escape(self, context, parameters):
        """Double-fork, leave the session, ignore TERM, and note every pid."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        notes = parameters["notes"]
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    with open(notes, "a") as file:
                        file.write(f"{os.getpid()}\\n")
                    time.sleep(600)
                os._exit(0)
            os.wait()
        with open(notes, "a") as file:
            file.write(f"{os.getpid()}\\n")
        if parameters.get("return"):
            return {}
        time.sleep(600)

    def run_away(self, context, parameters):
        """Chains of processes, each of which forks its successor and ends."""
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                while True:
                    with open(parameters["counter"], "a") as file:
                        file.write("x")
                    if os.fork() != 0:
                        os._exit(0)
        time.sleep(600)

    def finish_on_term(self, context, parameters):
        done = []
        signal.signal(signal.SIGTERM, lambda *_: done.append(1))
        print("ready", flush=True)
        while not done:
            time.sleep(0.02)
        return {"saved": True}

    def note_term(self, context, parameters):
        """Note every TERM, at once, and that is all it does."""
        signal.signal(signal.SIGTERM, lambda *_: open(parameters["notes"], "a").close())
        print("ready", flush=True)
        while True:
            time.sleep(0.01)

    def eat(self, context, parameters):
        blocks = []
        for _ in range(parameters["mebibytes"]):
            blocks.append(bytearray(os.urandom(1024)) * 1024)
            time.sleep(0.002)
        return {"eaten": len(blocks)}

    def feed_a_child(self, context, parameters):
        """Wait for a process that eats, and fail as programs do when it is killed."""
        text = """
import time
kept = []
for _ in range(%d):
    kept.append(b"1" * 2**20)
    time.sleep(0.003)
""" % parameters["mebibytes"]
        if subprocess.run([sys.executable, "-c", text], check=not parameters.get("quietly")).returncode:
            raise RuntimeError("no rows")

    def wait_and_crash(self, context, parameters):
        while not os.path.exists(parameters["end"]):
            time.sleep(0.05)
        raise ValueError("boom")

    def scatter(self, context, parameters):
        """Leave files where programs leave them, say where, and die without a chance to clear up."""
        import multiprocessing, tempfile
        with multiprocessing.Manager() as manager:
            manager.list([1])
        left = [tempfile.mkdtemp(), tempfile.mkstemp()[1]]
        with open(parameters["notes"], "w") as file:
            file.write("\\n".join([*left, os.environ["TMPDIR"]]))
        os.kill(os.getpid(), signal.SIGKILL)

    def bomb(self, context, parameters):
        """Fork as many as it can get, up to a number that harms nobody; they stay."""
        print("ready", flush=True)
        for _ in range(parameters["processes"]):
            try:
                if os.fork() == 0:
                    time.sleep(600)
                    os._exit(0)
            except BlockingIOError:
                print("no more", flush=True)
                break
        time.sleep(600)

    def kill_supervisor(self, context, parameters):
        if os.fork() == 0:
            os.setsid()
            with open(parameters["notes"], "a") as file:
                file.write(f"{os.getpid()}\\n")
            time.sleep(600)
        while not os.path.exists(parameters["notes"]) or not os.path.getsize(parameters["notes"]):
            time.sleep(0.01)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
'''


def write_operators(tmp_path: Path) -> Path:
    """Write the operator file and return its folder."""
    folder = tmp_path / "site-operators"
    folder.mkdir(exist_ok=True)
    (folder / "probe.py").write_text(OPERATORS)
    return folder


def wait_for(condition: Callable[[], Any], seconds: float = 20.0, what: str = "") -> Any:
    """Return the condition's first true value; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or condition}"
        time.sleep(0.02)
    return value


def is_alive(pid: int) -> bool:
    """Say whether the process lives (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class ForkSite:
    """A fork server on a temporary ``DATA_DIR``.

    :param fields: of the site, when they are not to be the usual ones.
    """

    def __init__(self, tmp_path: Path, use_cgroups: bool = True, **fields: Any) -> None:
        self.tmp_path = tmp_path
        variables = {
            "DATA_DIR": str(fields.pop("data_dir", tmp_path / "data")),
            "OPERATORS_PATH": str(write_operators(tmp_path)),
            "PATH": os.environ["PATH"],
            "WORKER_KEY": "not-for-tasks",
            "MINIO_SECRET_KEY": "not-for-tasks-either",
        }
        self.settings: Settings = load_settings(variables)
        self.folders = open_folders(self.settings)
        self.incarnation = str(uuid.uuid4())
        self.lock = IncarnationLock(self.folders, self.incarnation)
        self.spool = Spool(self.folders.spool)
        self.started: set[str] = set()
        self.ended: set[str] = set()
        self.refused: dict[str, str] = {}
        self.ready = threading.Event()
        self.died = threading.Event()
        site = Site(
            incarnation=self.incarnation,
            boot_id=read_boot_id(),
            attempts=str(self.folders.attempts),
            spool=str(self.folders.spool),
            local_to="host-1",
            settings=environment.settings_for_tasks(variables, self.settings, "host-1"),
            environment=environment.task_base(variables),
            use_cgroups=use_cgroups,
            **{"doors": str(self.folders.locks), **fields},
        )
        self.client = ForkClient(
            site,
            environment.fork_server_environment(variables, self.incarnation),
            self.lock.fd,
            Listener(
                ready=self.ready.set,
                started=self.started.add,
                ended=self.ended.add,
                refused=self.refused.__setitem__,
                died=self.died.set,
            ),
        )

    def start(self, do: str, fresh_until: float | None = None, **fields: Any) -> str:
        """Start one attempt of the probe operator and return its id."""
        attempt_id = uuid.uuid4().hex
        parameters = {**({"do": do} if do else {}), **fields.pop("parameters", {})}
        values: dict[str, Any] = {
            "attempt_id": attempt_id,
            "token": f"token-{attempt_id}",
            "run_id": "run-1",
            "tenant_id": "tenant-1",
            "task": "task-1",
            "number": 1,
            "operator": "probe",
            "parameters": parameters,
            "resources": Resources(cpu=2000, memory=2**30),
            **fields,
        }
        self.client.start(attempt_id, grant_body(GrantSpec(**values)), fresh_until)
        return attempt_id

    def outcome(self, attempt_id: str, seconds: float = 30.0) -> Outcome:
        """Wait for the end and return the outcome."""
        wait_for(lambda: attempt_id in self.ended, seconds, "end of the attempt")
        spooled = self.spool.read(attempt_id)
        assert spooled is not None
        assert spooled.worker_id == self.incarnation
        assert spooled.token == f"token-{attempt_id}"
        return spooled.outcome

    def folder(self, attempt_id: str) -> AttemptFolder:
        return AttemptFolder(self.folders.attempts, attempt_id)

    def log(self, attempt_id: str) -> str:
        return self.folder(attempt_id).log.read_text()

    def wait_for_log(self, attempt_id: str, text: str) -> None:
        log = self.folder(attempt_id).log
        wait_for(lambda: log.exists() and text in log.read_text(), what=f"{text!r} in the log")

    @property
    def pids(self) -> dict[str, int]:
        """Return attempt → pid of its supervisor, of all that were started and have a folder."""
        names = [path.name for path in self.folders.attempts.iterdir()]
        states = {name: self.folder(name).read("state") for name in names}
        return {attempt_id: state["pid"] for attempt_id, state in states.items() if "pid" in state}

    def die(self) -> None:
        """Leave the fork server alone, as a killed worker does."""
        self.client.hang_up()
        self.lock.release()

    def close(self) -> None:
        self.client.close()
        self.lock.release()
