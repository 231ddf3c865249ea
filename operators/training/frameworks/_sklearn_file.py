"""The file of a scikit-learn model: skops inside, made reproducible, and read against our own list of types.

Reading runs no code from the file, but skops only compares names of types: the arrays inside a tree are taken as they
are, so a forged file could crash the process. Read only files whose digest you know (``digest`` of :func:`read_model`).
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from operators.training.frameworks._sklearn_parameters import ESTIMATORS
from orchestrator.operator import Json, OperatorFailure

CARD = "model.json"
_SCHEMA = "schema.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)

_LOADERS = frozenset(
    {
        "CachedNode", "DTypeNode", "DictNode", "JsonNode", "ListNode", "LossNode", "NdArrayNode", "ObjectNode",
        "RandomGeneratorNode", "RandomStateNode", "SetNode", "SliceNode", "TreeNode", "TupleNode", "TypeNode",
    }
)  # fmt: skip
"""Nodes that only build values; those that call functions, methods or reducers are never read."""

_PIPELINE_TYPES = frozenset(
    {
        *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "set", "slice", "str", "tuple")),
        *(f"numpy.{name}" for name in ("bool", "bool_", "dtype", "float32", "float64", "int32", "int64", "intp")),
        *(f"numpy.{name}" for name in ("ndarray", "object_", "str_", "uint8", "uint32", "uint64")),
        "sklearn.compose._column_transformer.ColumnTransformer",
        "sklearn.compose._target.TransformedTargetRegressor",
        "sklearn.impute._base.SimpleImputer",
        "sklearn.pipeline.Pipeline",
        "sklearn.preprocessing._data.StandardScaler",
        "sklearn.preprocessing._encoders.OneHotEncoder",
    }
)


def write_model(path: Path, pipeline: Any, card: Mapping[str, Json]) -> None:
    """Write the fitted pipeline and its card; the same model gives the same bytes.

    skops names parts by memory addresses and dates them; both are replaced, so that the digest of a model says whether
    two trainings ended in the same place.
    """
    from skops.io import dumps

    with zipfile.ZipFile(io.BytesIO(dumps(pipeline))) as source:
        state = json.loads(source.read(_SCHEMA))
        names = _number(state)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as sink:
            _add(sink, CARD, json.dumps(card, indent=1, sort_keys=True, allow_nan=False).encode())
            _add(sink, _SCHEMA, json.dumps(state, separators=(",", ":")).encode())
            for old, new in names.items():
                _add(sink, new, _without_padding(source.read(old)))


def read_model(path: Path, *, digest: str) -> tuple[Any, Mapping[str, Json]]:
    """Return the pipeline and the card of a model file.

    :param digest: ``sha256:<hex>`` as the training task or the registry gave it.
    :raises OperatorFailure: ``bad_model``: another digest, no model of ours, or a type that its algorithm doesn't need.
    """
    from skops.io import load

    found = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    if found != digest:
        raise OperatorFailure("bad_model", f"{path.name} has the digest {found}, not {digest}: it is another file.")
    try:
        with zipfile.ZipFile(path) as archive:
            card = json.loads(archive.read(CARD))
            state = json.loads(archive.read(_SCHEMA))
        allowed = _PIPELINE_TYPES | ESTIMATORS[card["model_type"], card["algorithm"]].types
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise OperatorFailure("bad_model", f"{path.name} is no model file of this operator: {error!r}.") from error
    if foreign := sorted(set(_types(state)) - allowed):
        raise OperatorFailure("bad_model", f"{path.name} holds {', '.join(foreign)}, which its algorithm doesn't need.")
    return load(path, trusted=sorted(allowed)), card


def _types(node: Any) -> Iterator[str]:
    """Yield every type named anywhere in the file, and every loader that could run code."""
    if isinstance(node, dict):
        if "__loader__" in node or "__class__" in node:
            yield f"{node.get('__module__')}.{node.get('__class__')}"
            if node.get("__loader__") not in _LOADERS:
                yield f"the node {node.get('__loader__')}"
        for value in node.values():
            yield from _types(value)
    elif isinstance(node, list):
        for value in node:
            yield from _types(value)


def _number(state: Any) -> dict[str, str]:
    """Replace ids and file names in ``state`` by running numbers, in place; return old file name → new."""
    ids: dict[int, int] = {}
    names: dict[str, str] = {}
    pending = [state]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if "__id__" in node:
                node["__id__"] = ids.setdefault(node["__id__"], len(ids) + 1)
            if isinstance(node.get("file"), str):
                suffix = node["file"].rpartition(".")[2]
                node["file"] = names.setdefault(node["file"], f"{len(names) + 1}.{suffix}")
            pending.extend(reversed(list(node.values())))
        elif isinstance(node, list):
            pending.extend(reversed(node))
    return names


def _without_padding(content: bytes) -> bytes:
    """Return the array with zeros between its fields: trees are records whose gaps hold whatever memory held."""
    import numpy as np

    if not content.startswith(b"\x93NUMPY"):
        return content
    array = np.load(io.BytesIO(content), allow_pickle=False)
    if array.dtype.names is None:
        return content
    clean = np.zeros(array.shape, array.dtype)
    for name in array.dtype.names:
        clean[name] = array[name]
    sink = io.BytesIO()
    np.save(sink, clean, allow_pickle=False)
    return sink.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED, 6)
