"""Files that `--export` wrote: the header carries the description, the names are the public ones."""

import json
from typing import Any

from checkpoints_convert.kinds import edm
from checkpoints_convert.kinds.source import Asked, Source, number, whole
from checkpoints_convert.names import vdm as vdm_names
from checkpoints_convert.readers import Contents

KEY = "jaxmerge"
# What an expert keeps of its origin on the way out and back.
CARRIED = ("data_set", "licence", "weights", "training_step")
_DEPTHS = {"vdm": "depth", "edm": "num_blocks"}


def header(kind: str, description: dict[str, Any], provenance: dict[str, Any]) -> dict[str, str]:
    """The header's texts."""
    return {KEY: json.dumps({"kind": kind, "description": description, "provenance": provenance})}


def recognised(contents: Contents) -> bool:
    """Whether contents carry a description of ours."""
    return contents.container == "safetensors" and KEY in contents.metadata


def source(contents: Contents, asked: Asked) -> Source:
    """The expert that was exported.

    Raises:
        ValueError: a header that does not describe one, or that contradicts what was asked for.
    """
    try:
        record = json.loads(contents.metadata[KEY])
        kind, description = record["kind"], dict(record["description"])
        _check(kind, description, len(contents.tree))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the header's {KEY!r} must describe an expert, but it is damaged ({error}); export it again."
        ) from error
    carried = {
        k: v for k, v in record.get("provenance", {}).items() if k in CARRIED and isinstance(v, str | int)
    }
    if asked.kind not in (None, kind):
        raise ValueError(
            f"the file is an exported {kind}, and --kind or --name says {asked.kind}; leave it out."
        )
    weights = str(carried.get("weights", "unknown"))
    if asked.weights not in (None, weights.lower()):
        raise ValueError(f"the file has one set of weights only ({weights}); leave --weights out.")
    if kind == "edm":
        found = edm.from_description(kind, description, contents.tree)
    else:
        found = Source(kind, description, contents.tree, vdm_names.torch_vdm, vdm_names.is_schedule, "")
    learned = "gamma.w" in contents.tree
    return found._replace(weights="as exported", carried=carried, learned=learned)


def _check(kind: str, description: dict[str, Any], arrays: int) -> None:
    """Refuses what no exported expert has, so that a forged header costs no time and no memory."""
    family = {"edm": "edm", "vdm-torch": "vdm"}[kind]
    architecture = description["architecture"]
    if description["kind"] != family or not isinstance(architecture, dict):
        raise ValueError("its kind and its description do not agree")
    levels = len(architecture.get("channel_mult", (1,)))
    if whole(architecture, _DEPTHS[family], 0) * levels > arrays:
        raise ValueError("it asks for more blocks than the file has arrays")
    for name, value in [*architecture.items(), *description.items()]:
        for item in value if isinstance(value, list) else [value]:
            if len(value) > 16 if isinstance(value, list) else False:
                raise ValueError(f"its {name} is too long")
            if not isinstance(item, str | dict | bool | None):
                number({name: item}, name, 0.0)
