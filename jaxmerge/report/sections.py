"""The page's sections that are text and tables; each is HTML, empty where the run has nothing for it."""

import html
import json
from typing import Any

from jaxmerge.report import quality, tables


def has_models(results: dict[str, Any]) -> bool:
    """Whether the rows are measurements of models, rather than a training's figures."""
    rows = results.get("rows") or [{}]
    return "model" in rows[0]


def remarks(results: dict[str, Any]) -> str:
    """What a reader must know besides the main table."""
    remarks = list(results.get("notes", []))
    if any(tables.is_proposed(row, results) for row in results.get("rows", [])):
        remarks.insert(0, "★ proposed from training and validation images; the test images judge it.")
    floor = results.get("floor") or {}
    judged = quality.names(results)
    if floor.get(judged.column) is not None:
        value = tables.with_error(floor[judged.column], floor.get(f"{judged.column}_se"))
        what = floor.get("what") or f"that of {floor.get('n_images', 'the')} test images"
        remarks.append(f"Floor of the {judged.long}: {value}, {what}.")
    return "".join(f'<p class="soft">{html.escape(text)}</p>' for text in remarks)


def paired(results: dict[str, Any]) -> str:
    """Differences between models on the same images or seeds."""

    def name(model):
        return model if isinstance(model, str) else tables.label({"model": model[0], "eta": model[1]})

    cells = [
        [
            f"{name(pair['model_a'])} minus {name(pair['model_b'])}",
            " ".join([pair.get("quantity", "bpd"), pair.get("sampler", "")]),
            tables.with_error(pair["difference"], pair["se"]),
            f"{pair['n_seeds']} seeds"
            if "n_seeds" in pair
            else f"{tables.whole(pair.get('n_images'))} images",
            *(["yes" if pair["clear"] else "no"] if "clear" in pair else []),
        ]
        for pair in results.get("paired", [])
    ]
    if not cells:
        return ""
    judged = ["clear"] if "clear" in results["paired"][0] else []
    return tables.html_table(["difference", "quantity", "value", "pairs", *judged], cells)


def seeds(results: dict[str, Any]) -> str:
    """Mean, spread and minimum of the scores over seeds."""
    judged = quality.names(results)
    names = quality.score_names(results) | {judged.column: judged.long}
    cells = [
        [
            tables.label(entry),
            f"{names.get(entry['quantity'], entry['quantity'].replace('_', ' '))}, {entry['sampler']}",
            *(tables.plain_cell(entry[key]) for key in ("mean", "std", "minimum")),
            f"{tables.plain_cell(entry['low'])} to {tables.plain_cell(entry['high'])}",
            str(entry["n_seeds"]),
        ]
        for entry in results.get("seeds", [])
    ]
    if not cells:
        return ""
    text = "The interval is Student's for the mean, 95 %; a minimum is biased downwards, never to be compared with a mean."
    header = ["model", "score", "mean", "standard deviation", "minimum", "interval of the mean", "seeds"]
    return f'<p class="soft">{text}</p>' + tables.html_table(header, cells)


def reconstructions(results: dict[str, Any]) -> str:
    """How well each model removes noise of a few levels in one call."""
    found = results.get("reconstructions")
    if not found:
        return ""

    def decibels(entry, value, error=None):
        # Exact images have infinite PSNR, which JSON does not know.
        return f"∞ ({entry['exact']} exact)" if value is None else tables.with_error(value, error)

    perceptual = any("lpips" in entry for entry in found["entries"])
    cells = [
        [
            f"γ = {entry['gamma']:g}",
            tables.label(entry),
            decibels(entry, entry["psnr"], entry["psnr_se"]),
            decibels(entry, entry["psnr_pooled"]),
            tables.with_error(entry["ssim"], entry["ssim_se"]),
            *([tables.with_error(entry["lpips"], entry["lpips_se"])] if perceptual else []),
        ]
        for entry in found["entries"]
    ]
    header = ["noise level", "model", "PSNR, dB", "PSNR of all pixels together", "SSIM"]
    header += ["LPIPS"] if perceptual else []
    return tables.html_table(header, cells) + f'<p class="soft">{html.escape(found["definition"])}</p>'


def costs(results: dict[str, Any]) -> str:
    """Time, network calls, memory and parameters of sampling."""
    found = results.get("costs")
    if not found:
        return ""

    cells = [
        [
            tables.label(entry),
            f"{1000 * entry['latency']:.3g} [{1000 * entry['latency_low']:.3g}, {1000 * entry['latency_high']:.3g}]",
            tables.whole(entry["nfe"]),
            f"{entry['parameters']:,}",
            "–" if entry["planned_bytes"] is None else f"{entry['planned_bytes'] / 2**20:,.0f}",
        ]
        for entry in found["entries"]
    ]
    header = ["model", "ms per image, median [quartiles]", "NFE", "parameters", "planned for a call, MiB"]
    return tables.html_table(header, cells) + f'<p class="soft">{html.escape(found["definition"])}</p>'


def published(results: dict[str, Any]) -> str:
    """The paper's tables beside the measured values."""
    parts = []
    for paper in results.get("published", []):
        text = (
            f"Table {paper['table']} of {paper['source']}, {paper['data']}, as published; measured values of this run "
            "where it has the same row."
        )
        parts.append(f'<p class="soft">{html.escape(text)}</p>')
        parts.append(tables.html_table(*tables.published_columns(paper)))
    notes = dict.fromkeys(paper["note"] for paper in results.get("published", []))
    return "".join(parts) + "".join(f'<p class="soft">{html.escape(note)}</p>' for note in notes if note)


def origins(results: dict[str, Any]) -> str:
    """Where images and experts come from."""
    facts = {f"{part} images": record for part, record in results.get("data", {}).items()}
    facts |= results.get("experts", {})
    listed = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(_in_words(record))}</dd>"
        for name, record in facts.items()
    )
    return f"<dl>{listed}</dl>" if listed else ""


def _in_words(record: dict[str, Any]) -> str:
    return ", ".join(
        f"{key.replace('_', ' ')} {_in_words(value) if isinstance(value, dict) else value}"
        for key, value in record.items()
        if value not in (None, "", [])
    )


def alignment(results: dict[str, Any]) -> str:
    """What pixel-scale alignment changes."""
    cells = [
        [
            tables.label(entry),
            tables.with_error(entry["aligned"]),
            tables.with_error(entry["listing"]),
            tables.with_error(entry["difference"], entry.get("se")),
        ]
        for entry in results.get("alignment", [])
    ]
    if not cells:
        return ""
    text = (
        "The EDM network knows images in ±1, the VDM in ±(1 − 1/V). Aligned asks the EDM in its own scale; the "
        "paper's listing does not. Bits per dimension of the same images."
    )
    header = ["model", "aligned", "as the listing", "listing minus aligned"]
    return f'<p class="soft">{text}</p>' + tables.html_table(header, cells)


def terms(results: dict[str, Any]) -> str:
    """Every term of likelihood and bound, folded away."""
    parts = []
    for which in ("likelihood", "bound"):
        entries = [entry for entry in results.get("terms", []) if entry.get(which)]
        names = list(dict.fromkeys(name for entry in entries for name in entry[which]))
        cells = [
            [
                tables.label(entry),
                *(tables.with_error(entry[which].get(name)) for name in names),
                tables.with_error(sum(value or 0.0 for value in entry[which].values())),
            ]
            for entry in entries
        ]
        if cells:
            parts.append(f"<p>{which.capitalize()}, bits per dimension</p>")
            parts.append(tables.html_table(["model", *names, "sum"], cells))
    return f"<details><summary>every term of every model</summary>{''.join(parts)}</details>" if parts else ""


def definitions(results: dict[str, Any]) -> str:
    """What the columns mean."""
    known = tables.DEFINITIONS if has_models(results) else {}
    entries = known | results.get("definitions", {})
    if not entries:
        return ""
    return (
        "<dl>"
        + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in entries.items())
        + "</dl>"
    )


def environment(results: dict[str, Any]) -> str:
    """Command, versions, devices and the stages' times."""
    environment = dict(results.get("environment", {}))
    versions = environment.pop("versions", {})
    stages = environment.pop("revisions", {})
    facts = {"command": results.get("command", ""), **environment}
    facts["stages by revision"] = "; ".join(f"{name}: {', '.join(made)}" for name, made in stages.items())
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    listed = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(fact))}</dd>"
        for name, fact in facts.items()
        if fact not in ("", None)
    )
    timings = results.get("timings", {})
    cells = [[name, f"{seconds:.1f}"] for name, seconds in timings.items()]
    cells.append(["all stages", f"{sum(timings.values()):.1f}"])
    return f"<dl>{listed}</dl>" + (tables.html_table(["stage", "seconds"], cells) if timings else "")


def pretty(value: Any) -> str:
    """A value as indented JSON."""
    return html.escape(json.dumps(value, indent=2))
