"""``custom_script``: what a script is given, what it can't see, and how its end is read."""

from __future__ import annotations

import errno
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from operators.custom_script import CustomScript
from orchestrator.operator import OperatorFailure, SkipTask, TaskContext
from orchestrator.testing import check_parameters, make_context, run_operator

READ_INPUT = "import json, os\ngiven = json.load(open(os.environ['ORCHESTRATOR_INPUT_FILE']))\n"
WRITE_OUTPUT = "\njson.dump(outputs, open(os.environ['ORCHESTRATOR_OUTPUT_FILE'], 'w'))\n"


def run_script(context: TaskContext, script: str, **parameters: Any) -> Mapping[str, Any]:
    return run_operator(CustomScript, context, {"script_content": script, **parameters})


def make_run(tmp_path: Path, **overrides: Any) -> TaskContext:
    """A context whose ancestors left a dataset and a model."""
    context = make_context(tmp_path, run_parameters={"region": "north", "limit": 3}, **overrides)
    data = context.artifacts.put_bytes("tenant/run/ingest-data/1/d.csv", b"a,b\n1,2\n3,4\n")
    model = context.artifacts.put_bytes("tenant/run/train/1/m.skops", b"model")
    context.upstream_outputs = {
        "ingest-data": {"dataset": {"uri": data.uri, "rows": 2}},
        "train": {"model": {"uri": model.uri, "digest": model.fingerprint, "metrics": {"accuracy": 0.9}}},
    }
    return context


@pytest.mark.parametrize("script", ["", "# Model validation logic", "\n\n# Data transformation logic\n"])
@pytest.mark.parametrize("script_type", ["python", "bash"])
def test_a_script_of_comments_succeeds_with_no_outputs(script: str, script_type: str, tmp_path: Path) -> None:
    assert run_script(make_context(tmp_path), script, script_type=script_type) == {}


def test_python_reads_its_input_file_and_writes_its_outputs(tmp_path: Path) -> None:
    script = READ_INPUT + "outputs = {'sum': sum(given['arguments']['values']), 'given': given}" + WRITE_OUTPUT
    outputs = run_script(make_run(tmp_path), script, arguments={"values": [1, 2, 3]})
    assert outputs["sum"] == 6
    assert outputs["given"]["run_parameters"] == {"region": "north", "limit": 3}
    assert outputs["given"]["upstream"]["train"]["model"]["metrics"] == {"accuracy": 0.9}
    assert outputs["given"]["attempt_number"] == 1


def test_bash_reads_variables_and_writes_its_outputs(tmp_path: Path) -> None:
    script = (
        'printf \'{"region": "%s", "flag": "%s", "task": "%s"}\' "$ORCHESTRATOR_PARAM_REGION" '
        '"$ORCHESTRATOR_PARAM_DEEP_FLAG" "$ORCHESTRATOR_TASK" > "$ORCHESTRATOR_OUTPUT_FILE"'
    )
    outputs = run_script(
        make_run(tmp_path), script, script_type="bash", arguments={"deep-flag": True, "region": "south"}
    )
    assert outputs == {"region": "south", "flag": "true", "task": "task"}


def test_arguments_are_data_and_never_code(tmp_path: Path) -> None:
    hostile = "\"; touch pwned; echo $(touch pwned) `touch pwned` '\n"
    context = make_context(tmp_path)
    script = 'echo "$ORCHESTRATOR_PARAM_TEXT" > "$ORCHESTRATOR_OUTPUT_DIR/text"; ls > "$ORCHESTRATOR_OUTPUT_DIR/files"'
    outputs = run_script(context, script, script_type="bash", arguments={"text": hostile})
    files = {name: context.artifacts.get_bytes(one["uri"], 10_000) for name, one in outputs["artifacts"].items()}
    assert files["text"].decode() == hostile + "\n"
    assert b"pwned" not in files["files"]


def test_the_environment_holds_no_secret_of_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORKER_KEY", "MINIO_SECRET_KEY", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL", "REDIS_URL", "PYTHONPATH"):
        monkeypatch.setenv(name, "secret-value")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    script = "import json, os, sys\noutputs = {'env': dict(os.environ), 'cwd': os.getcwd(), 'exe': sys.executable}"
    outputs = run_script(make_context(tmp_path), script + WRITE_OUTPUT)
    assert "secret-value" not in json.dumps(outputs["env"])
    assert outputs["env"]["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert outputs["env"]["HOME"] == outputs["cwd"] == str(tmp_path / "work")
    import sys

    assert outputs["exe"] == sys.executable


def test_fetched_files_lie_on_this_host(tmp_path: Path) -> None:
    context = make_run(tmp_path)
    script = (
        READ_INPUT
        + "uri = given['upstream']['ingest-data']['dataset']['uri']\n"
        + "outputs = {'text': open(given['files'][uri]).read(),"
        + " 'same': given['files'][uri] == os.environ['ORCHESTRATOR_FILE_INGEST_DATA_DATASET'],"
        + " 'files': len(given['files'])}"
        + WRITE_OUTPUT
    )
    outputs = run_script(context, script, fetch=["dataset"])
    assert outputs == {"text": "a,b\n1,2\n3,4\n", "same": True, "files": 1}
    with pytest.raises(OperatorFailure, match=r"fetch names 'train\.dataset'") as caught:
        run_script(make_run(tmp_path / "second"), script, fetch=["train.dataset"])
    assert caught.value.reason == "not_found"


def test_a_dataset_file_becomes_a_dataset_that_looks_like_the_others(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    script = (
        "printf 'a,b\\n1,x\\n2,y\\n' > \"$ORCHESTRATOR_OUTPUT_DIR/clean.csv\"\n"
        'echo \'{"dataset": {"file": "clean.csv"}}\' > "$ORCHESTRATOR_OUTPUT_FILE"'
    )
    outputs = run_script(context, script, script_type="bash", produces=["dataset"])
    dataset = outputs["dataset"]
    assert dataset == {
        "uri": outputs["artifacts"]["clean.csv"]["uri"], "bytes": 12, "format": "csv", "rows": 2,
        "fingerprint": outputs["artifacts"]["clean.csv"]["fingerprint"],
        "columns": [{"name": "a", "type": "integer"}, {"name": "b", "type": "string"}],
    }  # fmt: skip
    assert context.artifacts.get_bytes(dataset["uri"], 100) == b"a,b\n1,x\n2,y\n"


def test_a_model_of_an_ancestor_may_be_handed_on(tmp_path: Path) -> None:
    context = make_run(tmp_path)
    script = READ_INPUT + "outputs = {'model': given['upstream']['train']['model']}" + WRITE_OUTPUT
    outputs = run_script(context, script, produces=["model"])
    assert outputs["model"] == context.upstream_outputs["train"]["model"]
    assert CustomScript.produces({"produces": ["model"]}) == {"model"}


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ('{"accuracy": NaN}', "NaN is no JSON value"),
        ('{"accuracy": -Infinity}', "-Infinity is no JSON value"),
        ("[1, 2]", "must hold a JSON object"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('{"deep": ' + "[" * 40 + "]" * 40 + "}", "nested more than 32 deep"),
        ('"' + "x" * 300_000 + '"', "more than 256 KiB"),
        ('{"artifacts": {}}', "'artifacts' is ours"),
        ('{"dataset": {"file": "absent.csv"}}', "names the file 'absent.csv'; the script left no file"),
        ('{"model": {"uri": "artifact://other/run/t/1/m"}}', "no artifact of this tenant"),
        ('{"score": 1}', "promises a model"),
        ('{"model": "here"}', "promises a model"),
    ],
)
def test_outputs_that_break_the_contract_are_refused(written: str, sentence: str, tmp_path: Path) -> None:
    context = make_context(tmp_path)
    script = "import json, os\ngiven = json.load(open(os.environ['ORCHESTRATOR_INPUT_FILE']))\n"
    script += "open(os.environ['ORCHESTRATOR_OUTPUT_FILE'], 'w').write(given['arguments']['text'])"
    with pytest.raises(OperatorFailure, match=sentence) as caught:
        run_script(context, script, arguments={"text": written}, produces=["model"])
    assert not caught.value.retryable
    other = {"more than 256 KiB": "outputs_too_large", "no artifact of this tenant": "forbidden_path"}
    assert caught.value.reason == other.get(sentence, "bad_outputs"), "the same words as of any other operator"


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("trick", "sentence"),
    [
        ('mkfifo "$ORCHESTRATOR_OUTPUT_FILE"', "no file"),
        ('ln -s /etc/hostname "$ORCHESTRATOR_OUTPUT_FILE"', "can't be read"),
        ('echo x > "$ORCHESTRATOR_OUTPUT_DIR/a b"', "'a b' can't be stored"),
        ('mkdir "$ORCHESTRATOR_OUTPUT_DIR/.git"; echo x > "$ORCHESTRATOR_OUTPUT_DIR/.git/x"', "can't be stored"),
    ],
)
def test_tricks_with_files_neither_block_nor_leak(trick: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(OperatorFailure, match=sentence):
        run_script(make_context(tmp_path), trick, script_type="bash")


def test_a_link_in_the_output_folder_is_not_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = 'ln -s /etc/hostname "$ORCHESTRATOR_OUTPUT_DIR/stolen"'
    assert run_script(make_context(tmp_path), script, script_type="bash") == {}
    assert "stolen was not stored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "reason", "retryable"),
    [(1, "exit_code", True), (2, "exit_code", True), (64, "exit_code", False), (75, "exit_code", True),
     (137, "exit_code", True)],
)  # fmt: skip
def test_the_exit_code_decides_about_a_retry(code: int, reason: str, retryable: bool, tmp_path: Path) -> None:
    with pytest.raises(OperatorFailure, match=f"exit code {code}") as caught:
        run_script(make_context(tmp_path), f"exit {code}", script_type="bash")
    assert (caught.value.reason, caught.value.retryable) == (reason, retryable)


def test_a_script_may_say_why_it_is_not_to_be_retried(tmp_path: Path) -> None:
    told = json.dumps({"reason": "quality_gate", "message": "Accuracy 0.71 is below 0.9."})
    script = f"echo '{told}' > \"$ORCHESTRATOR_OUTPUT_FILE\"; exit 64"
    with pytest.raises(OperatorFailure, match=r"Accuracy 0\.71 is below 0\.9") as caught:
        run_script(make_context(tmp_path), script, script_type="bash")
    assert caught.value.reason == "quality_gate"


def test_exit_code_99_skips_the_task(tmp_path: Path) -> None:
    with pytest.raises(SkipTask) as caught:
        run_script(make_context(tmp_path), "raise SystemExit(99)")
    assert caught.value.reason == "script"


def test_death_by_a_signal_is_told(tmp_path: Path) -> None:
    with pytest.raises(OperatorFailure, match=r"killed by SIGKILL \(9\)\. It may have used more memory") as caught:
        run_script(make_context(tmp_path), "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert (caught.value.reason, caught.value.retryable) == ("killed", True)


@pytest.mark.parametrize(
    ("script_type", "script"),
    [("python", "import os; os.kill(os.getpid(), 9)"), ("bash", "kill -9 $$"), ("bash", "bash -c 'kill -9 $$'")],
)
def test_a_script_that_the_kernel_killed_for_memory_was_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script_type: str, script: str
) -> None:
    kills = iter((4, 5))
    monkeypatch.setattr("operators.custom_script.memory_kills", lambda: next(kills))
    with pytest.raises(OperatorFailure, match=r"for want of memory; raise memory_gb") as caught:
        run_script(make_context(tmp_path), script, script_type=script_type)
    assert (caught.value.reason, caught.value.retryable) == ("oom", True)


def test_a_script_of_the_scripts_root_imports_the_modules_beside_it(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    folder = tmp_path / "scripts" / "team"
    folder.mkdir()
    (folder / "rules.py").write_text("LIMIT = 5\n")
    (folder / "check.py").write_text("import json, os, rules\noutputs = {'limit': rules.LIMIT}" + WRITE_OUTPUT)
    assert run_operator(CustomScript, context, {"script_path": "team/check.py"}) == {"limit": 5}
    assert sorted(path.name for path in folder.iterdir()) == ["check.py", "rules.py"]


@pytest.mark.parametrize(("path", "reason"), [("../x.py", "forbidden_path"), ("absent.py", "not_found")])
def test_a_script_outside_the_scripts_root_is_refused(path: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(OperatorFailure) as caught:
        run_operator(CustomScript, make_context(tmp_path), {"script_path": path})
    assert caught.value.reason == reason


def test_an_inline_script_imports_nothing_from_the_work_folder(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    (context.workdir / "json.py").write_text("raise RuntimeError('shadowed')\n")
    assert run_script(context, READ_INPUT + "outputs = {}" + WRITE_OUTPUT) == {}


@pytest.mark.parametrize(
    ("parameters", "pointer"),
    [
        ({}, "/script_content"),
        ({"script_content": "", "script_path": "x.py"}, "/script_path"),
        ({"script_content": "", "script_type": "perl"}, "/script_type"),
        ({"script_content": "", "produces": ["profit"]}, "/produces/0"),
        ({"script_content": "", "fetch": ["train.weights"]}, "/fetch/0"),
        ({"script_content": "", "arguments": []}, "/arguments"),
    ],
)
def test_a_wrong_definition_is_refused_when_it_is_saved(parameters: Mapping[str, Any], pointer: str) -> None:
    assert [place for place, _ in check_parameters(CustomScript, parameters)] == [pointer]


@pytest.mark.parametrize(("script_type", "wrong"), [("python", "def ("), ("bash", "if then")])
def test_a_dry_run_parses_the_script_and_runs_nothing(script_type: str, wrong: str, tmp_path: Path) -> None:
    context = make_context(tmp_path)
    with pytest.raises(OperatorFailure, match="is no valid"):
        CustomScript().dry_run(context, {"script_type": script_type, "script_content": wrong})
    fine = {"script_type": script_type, "script_content": "exit(1)" if script_type == "python" else "exit 1"}
    assert CustomScript().dry_run(context, fine) == {"script_type": script_type}


def test_a_checkpoint_is_there_again_in_the_next_attempt(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    script = (
        'file="$ORCHESTRATOR_CHECKPOINT_DIR/deep/step"\n'
        'if [ -f "$file" ]; then printf \'{"step": "%s"}\' "$(cat "$file")" > "$ORCHESTRATOR_OUTPUT_FILE"; exit 0; fi\n'
        'mkdir -p "$(dirname "$file")"; printf 40 > "$file"; exit 75'
    )
    with pytest.raises(OperatorFailure):
        run_script(context, script, script_type="bash")
    shutil.rmtree(context.workdir)
    context.workdir.mkdir()
    assert run_script(context, script, script_type="bash") == {"step": "40"}


def test_a_script_that_is_told_to_stop_has_its_checkpoint_saved(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    script = (
        "trap 'printf 7 > \"$ORCHESTRATOR_CHECKPOINT_DIR/step\"; exit 75' TERM\n"
        "kill -TERM $PPID $$; while true; do sleep 0.1; done"
    )
    with pytest.raises(OperatorFailure, match="75"):
        run_script(context, script, script_type="bash")
    saved = context.checkpoint_load()
    assert saved is not None
    with tarfile.open(saved) as archive:
        assert archive.getnames() == ["step"]


def test_a_checkpoint_is_gone_when_the_task_is_done(tmp_path: Path) -> None:
    save = 'echo 1 > "$ORCHESTRATOR_CHECKPOINT_DIR/step"; exit '
    context = make_context(tmp_path)
    with pytest.raises(OperatorFailure):
        run_script(context, save + "75", script_type="bash")
    assert list(context.artifacts.list("checkpoints")) == ["checkpoints/tenant/run/task/1.000001"]
    second = make_context(tmp_path)
    run_script(second, save + "0", script_type="bash")
    assert list(second.artifacts.list("checkpoints")) == []


def test_a_rerun_does_not_go_on_from_what_the_former_generation_left(tmp_path: Path) -> None:
    former = make_context(tmp_path, generation=1)
    former.checkpoint_save(b"of old inputs")
    again = make_context(tmp_path, generation=2)
    assert again.checkpoint_load() is None
    again.checkpoint_save(b"of new inputs")
    found = former.checkpoint_load()
    assert found is not None
    assert found.read_bytes() == b"of old inputs"
    run_script(again, "", script_type="bash")
    assert list(again.artifacts.list("checkpoints")) == []


def test_an_ill_file_server_is_no_missing_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(tmp_path)

    def fail(prefix: str) -> Iterator[str]:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(context.artifacts, "list", fail)
    with pytest.raises(OperatorFailure, match="Stale file handle") as caught:
        run_script(context, "exit 0", script_type="bash")
    assert (caught.value.reason, caught.value.retryable) == ("store_unavailable", True)


def test_a_checkpoint_of_another_task_or_run_is_not_seen(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    context.checkpoint_save(b"state")
    found = context.checkpoint_load()
    assert found is not None
    assert found.read_bytes() == b"state"
    assert make_context(tmp_path, task="another").checkpoint_load() is None
    assert make_context(tmp_path, run_id="another").checkpoint_load() is None


def test_an_unreadable_checkpoint_is_said_and_the_script_starts_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = make_context(tmp_path)
    context.checkpoint_save(b"no archive")
    script = 'test -z "$(ls "$ORCHESTRATOR_CHECKPOINT_DIR")"'
    assert run_script(context, script, script_type="bash") == {}
    assert "The checkpoint can't be read" in capsys.readouterr().out
