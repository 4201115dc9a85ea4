"""The run's finding in one sentence, composed from its measurements and no more favourable than they are.

A difference counts when it exceeds two of its standard errors. Likelihoods are compared by the paired
difference over images where the run has it. Distances are compared by each model's own error over seeds,
which is what a repetition of the experiment would see; the finer difference over equal seeds, where the
run has it, stands beside them.
"""

import math
from typing import Any

from jaxmerge.report.quality import Names, names
from jaxmerge.report.tables import models, with_error

# Standard errors that a difference must exceed to count.
CLEAR = 2.0


def finding(results: dict[str, Any]) -> str:
    """One sentence about the proposed threshold against both experts.

    The threshold is the cautious proposal if the run has one, else the best bound's. See
    `jaxmerge.report.page` for `results`.
    """
    rows = results.get("rows", [])
    if not rows or "model" not in rows[0]:
        return "The run is finished."
    entries = models(rows)
    experts = {
        e["model"]: e for e in reversed(entries) if e.get("eta") is None and not is_other_dequantization(e)
    }
    proposed = results.get("proposed", {})
    eta = proposed.get("cautious", proposed.get("best_bound"))
    merged = next((e for e in entries if eta is not None and key_of(e)[1] == key_of(["", eta])[1]), None)
    if merged is None or len(experts) < 2:
        return "The run is finished; it measured no proposed threshold, so it compares nothing."
    likelihood, bpd_wins = compare_bpd(merged, experts, results.get("paired", []))
    quality, quality_holds = compare_quality(merged, experts, results.get("paired", []), names(results))
    if quality_holds is None:
        verdict = (
            "beats both experts in likelihood" if bpd_wins else "does not beat both experts in likelihood"
        )
        distance = f"; {quality}" if quality else ""
        return f"The merge at the proposed η = {eta:.3f} {verdict}: {likelihood}{distance}."
    verdict = {
        (True, True): "beats both experts in likelihood and keeps the better expert's sample quality",
        (True, False): "beats both experts in likelihood but not without a loss of sample quality",
        (
            False,
            True,
        ): "keeps the better expert's sample quality but does not beat both experts in likelihood",
        (False, False): "does not beat both experts in likelihood and loses sample quality",
    }[bpd_wins, quality_holds]
    return f"The merge at the proposed η = {eta:.3f} {verdict}: {likelihood}; {quality}."


def is_other_dequantization(entry: dict[str, Any]) -> bool:
    """Whether an entry repeats an expert under another dequantisation than the run's."""
    return entry.get("dequantization") not in (None, "truncated_normal")


def compare_bpd(merged, experts, paired) -> tuple[str, bool]:
    """(the merge's bpd against every expert's in words, whether it is below all of them)."""
    words, wins = [], True
    for name, expert in experts.items():
        difference, error, how = bpd_difference(merged, expert, paired)
        if difference is None:
            wins = False
            words.append(f"not compared with the {name}")
            continue
        clear = abs(difference) > CLEAR * (error or 0.0)
        wins = wins and clear and difference < 0
        amount = with_error(abs(difference), error)
        if clear:
            words.append(f"{amount} {'below' if difference < 0 else 'above'} the {name}{how}")
        else:
            words.append(
                f"not distinguishable from the {name} (difference {with_error(difference, error)}{how})"
            )
    return f"{with_error(merged.get('bpd'))} bpd, {' and '.join(words)}", wins


def bpd_difference(merged, expert, paired) -> tuple[float | None, float | None, str]:
    """(merge minus expert, its standard error, a remark where the images were not paired)."""
    for pair in paired:
        if pair.get("quantity", "bpd") != "bpd" or pair.get("difference") is None:
            continue
        ends = [key_of(pair["model_a"]), key_of(pair["model_b"])]
        if ends == [key_of(merged), key_of(expert)]:
            return pair["difference"], pair["se"], ""
        if ends == [key_of(expert), key_of(merged)]:
            return -pair["difference"], pair["se"], ""
    if merged.get("bpd") is None or expert.get("bpd") is None:
        return None, None, ""
    error = math.hypot(merged.get("bpd_se") or 0.0, expert.get("bpd_se") or 0.0)
    return merged["bpd"] - expert["bpd"], error, " (unpaired)"


def by_seed(merged, expert, sampler: str, paired, column: str) -> str:
    """The difference of two distances seed by seed in words; empty where the run has none."""
    for pair in paired:
        if pair.get("quantity") != column or pair.get("sampler") != sampler:
            continue
        if [key_of(pair["model_a"]), key_of(pair["model_b"])] == [key_of(merged), key_of(expert)]:
            side = "above" if pair["difference"] > 0 else "below"
            return f"; seed by seed {with_error(abs(pair['difference']), pair['se'])} {side}"
    return ""


def key_of(model: Any) -> tuple[str, float | None]:
    """A model's identity from a row, a string such as "VDM", or a [name, eta] pair."""
    if isinstance(model, dict):
        name, eta = model["model"], model.get("eta")
    elif isinstance(model, str):
        name, eta = model, None
    else:
        name, eta = model
    return name, None if eta is None else round(float(eta), 9)


def compare_quality(merged, experts, paired, judged: Names) -> tuple[str | None, bool | None]:
    """(the merge's distance against both experts' in words, whether it is no worse than the better).

    The sampler is the first that all three have; no words where there is none, and no verdict where a single
    seed leaves the errors unknown.
    """
    column, column_se = judged.column, f"{judged.column}_se"
    everyone = (merged, *experts.values())
    shared = [s for s in merged["samplers"] if all(e["samplers"].get(s, {}).get(column) for e in everyone)]
    if not shared:
        return None, None
    sampler = shared[0]
    own = merged["samplers"][sampler]
    theirs = {name: expert["samplers"][sampler] for name, expert in experts.items()}
    if not all(entry.get(column_se) for entry in (own, *theirs.values())):
        others = " and ".join(f"the {name}'s {with_error(theirs[name][column])}" for name in theirs)
        return f"{judged.long} ({sampler}) {with_error(own[column])} beside {others}, without errors", None
    better = min(theirs, key=lambda name: theirs[name][column])
    words, holds = [], True
    for name in sorted(theirs, key=lambda name: theirs[name][column]):
        difference = own[column] - theirs[name][column]
        error = math.hypot(own.get(column_se) or 0.0, theirs[name].get(column_se) or 0.0)
        value = with_error(theirs[name][column], theirs[name].get(column_se))
        if abs(difference) <= CLEAR * error:
            relation = "within noise of"
        else:
            relation = "clearly below" if difference < 0 else "clearly above"
            holds = holds and (difference < 0 or name != better)
        words.append(
            f"{relation} the {name}'s ({value}{by_seed(merged, experts[name], sampler, paired, column)})"
        )
    value = with_error(own[column], own.get(column_se))
    return f"{judged.long} ({sampler}) {value}, {' and '.join(words)}", holds
