"""What the command line says: a record as a table, the registry as a list, an error as a sentence."""

import errno

from checkpoints_convert import registry

# Networks of metrics, which have one architecture each.
_METRICS = {"inception": "Inception-v3", "lpips": "LPIPS with the backbone {backbone}"}


def facts(record: dict) -> dict[str, str]:
    """What a record says, in the words of the command line."""
    description = record.get("expert") or record["network"]
    source, native = record["source"], record.get("native_range")
    architecture = ", ".join(f"{k}={v}" for k, v in description.get("architecture", {}).items())
    kind = source["kind"]
    if description["kind"] == "edm":
        network, preconditioner = description.get("network", "song"), description.get("preconditioner", "edm")
        kind += f" ({network}, {preconditioner} preconditioning)"
    elif "prediction" in description:
        kind += f" (predicts {description['prediction']}, {description['schedule']} schedule)"
    if description["kind"] in _METRICS:
        architecture = _METRICS[description["kind"]].format(**description)
    found = {
        "kind": kind,
        "network": architecture,
        "parameters": f"{record['parameters']:,}".replace(",", " "),
    }
    if native:
        scale = record["pixel_scale"]
        found["native range"] = f"{native['coordinate']} {native['low']:.6g} to {native['high']:.6g}"
        found["pixel scale"] = f"{scale['levels']} levels, level i is {scale['level_i_is']}"
        found["images"] = "x".join(map(str, description["shape"]))
    step = record["training_step"]
    second = source.get("backbone")
    more = {"backbone file": f"{second['file']}, SHA-256 {second['sha256']}"} if second else {}
    return found | {
        "weights": record["weights"] + ("" if step is None else f", step {step}"),
        "data set": record["data_set"],
        "SHA-256": source["sha256"],
        **more,
        "licence": record["licence"],
    }


def table(rows: dict[str, str]) -> str:
    """Two columns."""
    return "\n".join(f"  {name:<13} {value}" for name, value in rows.items())


def show_notes(notes: list[str]) -> None:
    """What was assumed or left out."""
    for note in notes:
        print(f"note: {note}.")


def listing() -> str:
    """The registry, one file per line."""
    width = max(map(len, registry.ENTRIES))
    lines = []
    for entry in registry.ENTRIES.values():
        where = "" if entry.url else " Not fetched by the command: see docs/checkpoints.md."
        about = f"{entry.data_set}; {entry.network}; licence {entry.short_licence}. {entry.note}{where}"
        lines.append(f"{entry.name:<{width}}  {about}")
    return "\n".join(lines)


def sentence(error: BaseException) -> str:
    """What went wrong and what to do, in one line."""
    if isinstance(error, OSError) and error.errno:
        place = f" {error.filename}" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no space left to write{place}; free some and try again."
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"no permission to use{place}; choose another place or change its permissions."
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            return f"cannot write{place}, a file is where a folder is needed; choose another place."
        if error.errno == errno.ENAMETOOLONG:
            return f"the name {str(error.filename)[:80]!r} is too long; choose a shorter one."
    if isinstance(error, MemoryError):
        return "there is not enough memory to convert the file; use a machine with more."
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "?", "!")) else text + "."
