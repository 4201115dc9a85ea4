"""From a command line to a checked config.

The flags are absl's and `ml_collections.config_flags`'; this module looks at the command line first,
because config_flags answers an unknown key, a missing file or an override before ``--config`` with a
traceback. Every refusal here is a ValueError of one sentence.
"""

import ast
import difflib
import hashlib
import importlib.util
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

USAGE = "python main.py --config configs/digits_merge.py [--workdir DIR] [--config.key=value ...]"

# The keys that take one of a few words.
CHOICES = {
    "precision": ("highest", "high", "default"),
    "likelihood.dequantization": ("truncated_normal", "uniform", "variational"),
    "likelihood.trace": ("hutchinson", "exact"),
    "likelihood.control": ("fixed", "multistep", "per_image", "batch"),
    "sampling.sampler": ("heun", "ode", "ancestral"),
    "expert.kind": ("vdm", "edm"),
    "shards.model": ("merged", "low", "high"),
    "training.schedule": ("cosine", "constant"),
    "classifier.fill": ("background", "mirror"),
    "metric.kind": ("classifier", "inception", "none"),
    "moe.base": ("checkpoint", "fresh"),
    "moe.experts": ("full", "adapters"),
    "moe.parts": ("gate", "all"),
    "report.published": (1, 2, 4, 5, 6),
    "report.published_data": ("cifar10", "imagenet32_old"),
    "sampling.decoder": ("argmax", "sample"),
}
# Whole numbers that may be zero; every other whole number in a config is a count of at least one.
MAY_BE_ZERO = (
    *("seed", "alignment_images", "n_samples_other", "ancestral_samples"),
    "ancestral_samples_other",
    *("warmup_steps", "sample_every", "fourier", "n_validation", "report.merges", "groups"),
    *("shift", "collapse_steps"),
    *("likelihood.n_images", "bound.n_images", "n_samples"),
    *("reconstruction.n_images", "cost.repeats"),
)
# Whole numbers that must be larger: a mixture has at least two experts.
AT_LEAST = {"moe.count": 2, "moe.counts": 2}
# Real numbers that must lie strictly inside a range, and how to say so.
POSITIVE = (0.0, math.inf, "above 0")
FRACTION = (0.0, 1.0, "between 0 and 1")
RANGES = {
    "merge.candidate_step": FRACTION,
    "shards.eta": FRACTION,
    "likelihood.tolerance": FRACTION,
    "likelihood.image_tolerance": FRACTION,
    "likelihood.rtol": FRACTION,
    "likelihood.atol": FRACTION,
    "sampling.ode_steps_per_gamma": POSITIVE,
    "training.learning_rate": POSITIVE,
    "classifier.learning_rate": POSITIVE,
    "training.clip": POSITIVE,
    "moe.learning_rate": POSITIVE,
    "moe.experts_learning_rate": POSITIVE,
    "moe.capacity_factor": POSITIVE,
    "moe.device_memory": POSITIVE,
    "training.p_std": POSITIVE,
    "training.b2": FRACTION,
}
# The same with the lower end allowed: "at least 0 and below 1".
FROM_ZERO = {
    "likelihood.steps_per_gamma": math.inf,
    **{"expert.dropout": 1.0, "training.ema_decay": 1.0, "training.weight_decay": math.inf},
    **{"moe.dropout": 1.0, "moe.ema_decay": 1.0, "moe.load": math.inf, "moe.entropy": math.inf},
    **{"moe.align": math.inf, "moe.bias_rate": math.inf},
}
# Real numbers of any sign, which may be written without a point.
REAL = ("merge.etas", "reconstruction.gammas", "moe.reconstruction_gamma", "training.p_mean")
# Lists that must name at least one thing.
NOT_EMPTY = (
    *("merge.etas", "sampling.sampler", "expert.channel_mult", "reconstruction.gammas"),
    *("moe.widths", "moe.counts", "moe.slices"),
)
# What the items of a list must be, and how to say so.
WHOLE, NAMES = (int, "whole numbers, as in 2,4"), (str, "names")
ITEMS = {
    **{"moe.widths": WHOLE, "moe.counts": WHOLE, "moe.slices": NAMES, "moe.pool": NAMES},
    **{"expert.fourier": WHOLE, "expert.channel_mult": WHOLE, "expert.attn_resolutions": WHOLE},
}


class Settings(NamedTuple):
    """A checked command line.

    Attributes:
        config: the locked config.
        name: the config's name, for example "digits_merge" or "digits_merge-full".
        workdir: where the run writes.
        command: the command that starts or continues this run.
        traceback: whether an error is to be shown with its Python traceback.
    """

    config: ConfigDict
    name: str
    workdir: Path
    command: str
    traceback: bool


class HelpAsked(Exception):
    """The command line asks for help; carries the text."""


def parse(argv: list[str]) -> Settings:
    """Reads the command line.

    Args:
        argv: program name and arguments.

    Raises:
        ValueError: an unknown flag or key, a value of the wrong type or outside its choices, a config
            file that is missing or broken.
        HelpAsked: ``--help``.
    """
    path, overrides, rest = split_arguments(argv[1:])
    if path is None:
        raise ValueError(f"no config given; give one as in: {USAGE}")
    base = load_config(path)
    known = flatten(base.to_dict())
    tokens = [token for key, value in overrides for token in override_tokens(key, value, known)]
    values = flags.FlagValues()
    config_argv = [argv[0], *tokens]
    config_flags.DEFINE_config_dict(
        "config", base.copy_and_resolve_references(), flag_values=values, sys_argv=config_argv
    )
    flags.DEFINE_string("workdir", None, "Where the run writes.", flag_values=values)
    flags.DEFINE_boolean("traceback", False, "Show the Python traceback of an error.", flag_values=values)
    try:
        left_over = values(config_argv + rest)
    except flags.Error as error:
        raise ValueError(flag_sentence(error, known)) from error
    if len(left_over) > 1:
        raise ValueError(f"unexpected argument {left_over[1]!r}; overrides are written --config.key=value.")
    # Libraries that ask absl's global flags (array_record's readers do) find them parsed.
    flags.FLAGS.mark_as_parsed()
    config = values.config
    final = flatten(config.to_dict())
    check(final)
    name = config_name(path)
    changed = {key: value for key, value in final.items() if value != known[key]}
    workdir = Path(values.workdir) if values.workdir else Path("runs") / (name + suffix(changed, known))
    command = " ".join(["python", *argv])
    return Settings(config, name, workdir, command, values.traceback)


def split_arguments(arguments: list[str]) -> tuple[str | None, list[tuple[str, str | None]], list[str]]:
    """(config path, [(key, raw value or None)], other arguments) in any order of the command line."""
    path, overrides, rest = None, [], []
    queue = list(arguments)
    while queue:
        token = queue.pop(0)
        name, equals, value = token.partition("=")
        bare = name.lstrip("-")
        if bare in ("help", "helpshort", "helpfull") and name.startswith("-"):
            raise HelpAsked(
                f"usage: {USAGE}\nThe keys and their meaning are in configs/default.py. With --traceback an error is "
                "shown with its Python traceback."
            )
        if name.startswith("-") and bare == "config":
            if not equals and not queue:
                raise ValueError(f"--config needs the path of a config; give one as in: {USAGE}")
            path = value if equals else queue.pop(0)
        elif name.startswith("-") and re.match(r"(no)?config\.", bare):
            key = bare.split(".", 1)[1]
            if bare.startswith("no"):
                value, equals = "False", "="
            elif not equals and queue and not queue[0].startswith("--"):
                value, equals = queue.pop(0), "="
            overrides.append((key, value if equals else None))
        else:
            rest.append(token)
    return path, overrides, rest


def load_config(path: str) -> ConfigDict:
    """The config that ``path`` or ``path:variant`` describes, before overrides.

    Raises:
        ValueError: no such file, a file that does not run, or an unknown variant.
    """
    file, *variant = path.split(":", 1)
    if not Path(file).is_file():
        near = difflib.get_close_matches(file, [str(p) for p in Path("configs").glob("*.py")], 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else "the experiments are the files in configs/."
        raise ValueError(f"there is no config file {file!r}; {hint}")
    spec = importlib.util.spec_from_file_location("jaxmerge_config", file)
    if spec is None:
        raise ValueError(f"a config is a Python file that ends in .py, got {file!r}.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*variant)
    except ValueError:
        raise
    except Exception as error:
        # Whatever a config file raises is the user's to mend: name the file and the reason.
        raise ValueError(f"the config {path!r} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config of {file!r} must return a ConfigDict, got {type(config).__name__}.")
    return config


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one dictionary with dotted keys."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def nearest(key: str, known: list[str]) -> str:
    """The known key most like `key`, compared whole and by its last part."""

    def likeness(other):
        whole = difflib.SequenceMatcher(None, key, other).ratio()
        last = difflib.SequenceMatcher(None, key.rsplit(".", 1)[-1], other.rsplit(".", 1)[-1]).ratio()
        return max(whole, last), whole

    return max(known, key=likeness)


def override_tokens(key: str, value: str | None, known: dict[str, Any]) -> list[str]:
    """One override in the spelling that config_flags reads.

    Raises:
        ValueError: an unknown key or a section instead of a key.
    """
    if key not in known:
        inside = sorted(k for k in known if k.startswith(key + "."))
        if inside:
            raise ValueError(f"{key!r} is a section of the config; set a key in it, such as {inside[0]!r}.")
        raise ValueError(f"unknown config key {key!r}; did you mean {nearest(key, list(known))!r}?")
    if value is None:
        return [f"--config.{key}"]
    if isinstance(known[key], tuple):
        value = repr(read_tuple(value))
    return [f"--config.{key}={value}"]


def read_tuple(text: str) -> tuple:
    """ "heun,ode", "0.2,0.3" or "(0.2, 0.3)" as a tuple."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = tuple(part.strip() for part in text.strip("()").split(",") if part.strip())
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def flag_sentence(error: flags.Error, known: dict[str, Any]) -> str:
    """absl's message, with the expected type in the place of Python's own words."""
    text = " ".join(str(error).split())
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
    if found and known.get(found[1]) is not None:
        return f"{found[1]} must be of type {type(known[found[1]]).__name__}, got {found[2]!r}."
    return text.rstrip(".") + "."


def check(config: dict[str, Any]) -> None:
    """Refuses values outside their choices or range.

    Args:
        config: the flattened config.

    Raises:
        ValueError: names the key, what it may be and what arrived.
    """
    for key, choices in CHOICES.items():
        value = config.get(key)
        for word in value if isinstance(value, tuple) else (value,):
            if word is not None and word not in choices:
                raise ValueError(f"{key} must be one of {', '.join(map(str, choices))}, got {word!r}.")
    for eta in config.get("merge.etas", ()):
        number = isinstance(eta, (int, float)) and not isinstance(eta, bool)
        if eta != "auto" and not (number and 0 <= eta <= 1):
            raise ValueError(f"merge.etas must be 'auto' or numbers from 0 to 1, got {eta!r}.")
    for gamma in config.get("reconstruction.gammas", ()):
        if isinstance(gamma, bool) or not isinstance(gamma, (int, float)):
            raise ValueError(f"reconstruction.gammas must be numbers, got {gamma!r}.")
    for key, (kind, words) in ITEMS.items():
        items = config.get(key, ())
        if any(isinstance(item, bool) or not isinstance(item, kind) for item in items):
            raise ValueError(f"{key} must be {words}, got {','.join(map(str, items))}.")
    for key in NOT_EMPTY:
        if config.get(key) == ():
            raise ValueError(f"{key} must name at least one value, got none; leave it out for the default.")
    for key, value in config.items():
        check_number(key, value)


def check_number(key: str, value: Any) -> None:
    """Refuses a number outside its range; lists of numbers item by item.

    Raises:
        ValueError: names the key, its range and what arrived.
    """
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, bool) or not isinstance(item, (int, float)):
            continue
        if not math.isfinite(item):
            raise ValueError(f"{key} must be a finite number, got {item}.")
        least = 0 if key in MAY_BE_ZERO or key.rsplit(".", 1)[-1] in MAY_BE_ZERO else AT_LEAST.get(key, 1)
        if isinstance(item, int) and key not in (*RANGES, *FROM_ZERO, *REAL) and item < least:
            raise ValueError(f"{key} must be at least {least}, got {item}.")
        low, high, words = RANGES.get(key, (-math.inf, math.inf, ""))
        if not low < item < high:
            raise ValueError(f"{key} must lie {words}, got {item}.")
        top = FROM_ZERO.get(key)
        if top is not None and not 0 <= item < top:
            words = "at least 0" if math.isinf(top) else f"at least 0 and below {top:g}"
            raise ValueError(f"{key} must be {words}, got {item}.")


def config_name(path: str) -> str:
    """ "configs/digits_merge.py:full" is called "digits_merge-full"."""
    file, *variant = path.split(":", 1)
    return "-".join([Path(file).stem, *variant])


def suffix(changed: dict[str, Any], known: dict[str, Any]) -> str:
    """A short ending of the workdir's name that tells overridden keys; empty without any."""
    if not changed:
        return ""
    last = [key.rsplit(".", 1)[-1] for key in known]
    parts = []
    for key, value in sorted(changed.items()):
        name = key.rsplit(".", 1)[-1] if last.count(key.rsplit(".", 1)[-1]) == 1 else key
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        parts.append(f"{name}={text}")
    whole = "-" + re.sub(r"[^\w.,=+-]+", "_", "-".join(parts))
    if len(whole) <= 60:
        return whole
    return f"{whole[:50]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
