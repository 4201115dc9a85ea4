"""One self-contained page per run.

`results` is a plain dictionary; everything in it is JSON. A section appears where its key is there.

    title, name, command     words
    levels, gamma_range      grey levels; [gamma_min, gamma_max] of the merged range
    rows                     one per model and sampler: model ("EDM", "VDM", "merged"), eta (None for the
                             experts), bpd, bpd_se, vlb, vlb_se, frechet, frechet_se, nfe_likelihood,
                             nfe_sampling, sampler, n_images, n_samples, split; optionally
                             dequantization where it is not the run's ("uniform")
    diagram                  {"gamma_range", "gamma_eta", "gamma_low", "gamma_high"}: the merge that the diagram shows
    proposed                 {"best_bound": eta, "cautious": eta}
    paired                   [{"model_a", "model_b", "difference" (a - b), "se", "n_images"}], a model being
                             "VDM", "EDM" or ["merged", eta]; where "quantity" is not "bpd" it is given, and for
                             "frechet" the "sampler" and "n_seeds" instead of "n_images"
    curves                   gamma [G], experts {name: [G]} (None where an expert does not answer), ranges
                             {name: [low, high]}, optionally unit, split
    bound_by_eta             eta [E], bpd [E], se [E], split
    weights                  gamma [G], experts [K], affine [G][K], convex [G][K], condition [G]
    terms                    [{"model", "eta", "likelihood": {name: bits}, "bound": {name: bits}}]
    published                [{"table", "data", "source", "note", "entries"}], one per table of the paper: see
                             ``report/published.py``
    seeds                    [{"model", "eta", "sampler", "quantity", "n_seeds", "seed_numbers", "mean", "std",
                             "minimum", "maximum", "low", "high"}]: scores over seeds, with Student's 95 % interval of
                             the mean
    reconstructions          {"entries", "definition"}; an entry has gamma, model, eta, psnr, psnr_se, psnr_pooled,
                             exact, ssim, ssim_se and, if measured, lpips, lpips_se
    costs                    {"entries", "definition"}; an entry has model, eta, latency, latency_low, latency_high
                             (seconds per image), nfe, parameters, planned_bytes (None where the backend does not
                             tell)
    data, experts            records of the images by part and of the experts by name, dictionaries
    alignment                [{"model", "eta", "aligned", "listing", "difference", "se"}]: bpd with and
                             without pixel-scale alignment
    quality                  {"column", "short", "long"}: what the distance is called and its rows' key, "frechet"
                             where it is left away (see ``report/quality.py``)
    score_names              {column: name} of the other scores of samples, where a run calls them otherwise than
                             ``report/quality.py``
    floor                    {"frechet", "frechet_se", "n_images"}: the test images' own distance; optionally
                             "what", which says more exactly whose
    columns, gate_weights, gate_slices, slices, collapse, gates, tuning, narrative    of mixtures, see ``report/moe.py``
    training, training_levels    series {name: {"step", "value"}}, unit
    definitions              {column: text}, replaces `tables.DEFINITIONS` entry by entry
    notes                    [text]: what a reader must know besides
    environment, timings, config, finding    filled in by `Run.finish`

Pictures come apart: {"samples": uint8 [R, N, H, W, C], "sample_labels": [R]}, optionally "data"
[N, H, W, C], real images shown above.
"""

import base64
import html
from typing import Any

import numpy as np

from jaxmerge.report import moe, overview, plots, quality, sections, style, tables
from jaxmerge.report.finding import finding as finding

CSS = """
:root { color-scheme: light dark; --ink: #1c1d1f; --soft: #5d6066; --line: #d7d9de; --paper: #ffffff; --mark: #fdf0f7 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e8ea; --soft: #a2a6ad; --line: #3c3f45; --paper: #17181a; --mark: #3a2633 } }
body { margin: 0 auto; max-width: 1140px; padding: 1.2rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } h2 { font-size: 1.15rem; margin: 2.4rem 0 .5rem }
.finding { font-size: 1.12rem; border-left: 4px solid #009e73; padding: .4rem 0 .4rem .9rem; margin: 1rem 0 }
.soft, figcaption, small { color: var(--soft); font-size: .88rem }
figure { margin: 0 } figure .scroll svg { width: 100%; min-width: 560px; height: auto; display: block }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; width: 100% }
th, td { text-align: right; padding: .28rem .4rem; border-bottom: 1px solid var(--line); white-space: nowrap }
th { white-space: normal; vertical-align: bottom }
th:first-child, td:first-child { text-align: left } tr.marked td { background: var(--mark); font-weight: 600 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; font-size: .9rem } dd { margin: 0 }
dt { font-weight: 600 } @media (max-width: 600px) { dl { display: block } dd { margin: 0 0 .5rem } }
pre { font-size: .8rem; overflow-x: auto } summary { cursor: pointer }
"""
CAPTIONS = {
    "trade_off": "Left: likelihood and sample quality against the threshold; bands are the single experts with one "
    "standard error. Right: both at once. The likelihoods' errors are over images, which all models share: see the "
    "paired differences for what can be told apart.",
    "diagram": "The method: every noise level has its expert.",
    "all_metrics": "Everything that was measured against the threshold, on logarithmic scales; lines across are the "
    "single experts.",
    "samples": "Samples; a column starts from the same noise in every row, so that rows differ by the model alone.",
    "error_curves": "Each expert's squared error of the predicted noise, as its contribution to the bound. Below "
    "zero the first expert is better, above zero the second; dotted lines end the experts' own ranges.",
    "bound_by_eta": "The bound of every merge from one pass over both experts' errors; the proposals come from this "
    "curve, not from test images.",
    "likelihood_terms": "Where the exact likelihood's bits come from: terms stack to both sides of zero, the mark "
    "is their sum.",
    "bound_terms": "Where the bound's bits come from.",
    "weights": "Weights of the experts' predictions that minimise the bound at each noise level: free (affine) and "
    "between 0 and 1 (convex). A threshold is the special case that jumps from one to zero.",
    "training": "Losses during training.",
    "training_levels": "What each part of the noise range adds to the bound of validation images; to be compared with "
    "the other expert's: a merge pays where each is better in a part.",
    **moe.CAPTIONS,
}


def figures(results: dict[str, Any], pictures: dict[str, np.ndarray]) -> dict[str, style.Figure]:
    """Every figure for which the run has data, by name."""
    proposed = results.get("proposed") or {}
    drawn = {}
    if results.get("diagram"):
        drawn["diagram"] = overview.diagram(**results["diagram"])
    if sections.has_models(results):
        judged = quality.names(results)
        if all(any(row.get(key) is not None for row in results["rows"]) for key in ("bpd", judged.column)):
            drawn["trade_off"] = plots.trade_off(results)
        survey = overview.all_metrics(results)
        if survey is not None and any(row.get("eta") is not None for row in results["rows"]):
            drawn["all_metrics"] = survey
    if "samples" in pictures:
        images, labels = np.asarray(pictures["samples"]), [str(text) for text in pictures["sample_labels"]]
        if "data" in pictures:
            real = np.asarray(pictures["data"])[None, : images.shape[1]]
            missing = images.shape[1] - real.shape[1]  # white, where there are fewer real images than samples
            white = [(0, 0), (0, missing)] + [(0, 0)] * 3
            real = np.pad(real, white, constant_values=results["levels"] - 1)
            images, labels = np.concatenate([real, images]), ["real images", *labels]
        drawn["samples"] = plots.sample_grid(images, labels, results["levels"])
    if results.get("curves"):
        drawn["error_curves"] = plots.error_curves(results["curves"], proposed, results.get("gamma_range"))
    if results.get("bound_by_eta"):
        drawn["bound_by_eta"] = plots.bound_against_eta(
            results["bound_by_eta"], proposed, results.get("rows", [])
        )
    for which in ("likelihood", "bound"):
        if any(entry.get(which) for entry in results.get("terms", [])):
            drawn[f"{which}_terms"] = plots.stacked_terms(results["terms"], which)
    if results.get("weights"):
        drawn["weights"] = plots.weights_per_gamma(results["weights"])
    if results.get("training"):
        drawn["training"] = plots.training_curves(results["training"])
    if results.get("training_levels"):
        drawn["training_levels"] = plots.training_curves(results["training_levels"])
    return drawn | moe.figures(results)


def page(results: dict[str, Any], drawn: dict[str, style.Figure]) -> str:
    """The report as one HTML text without outside resources.

    Args:
        results: see the module.
        drawn: what `figures` returns.
    """
    title = html.escape(str(results.get("title") or results.get("name") or "run"))

    def show(name):
        if name not in drawn:
            return ""
        caption = f"<figcaption>{html.escape(CAPTIONS[name])}</figcaption>"
        return f'<figure><div class="scroll">{style.svg(drawn[name], name)}</div>{caption}</figure>'

    parts = [
        ("Two experts and a switch", show("diagram")),
        ("What changed, when a mixture helps, when not", moe.narrative(results)),
        ("Likelihood against quality", show("trade_off") + show("method_plane")),
        ("Samples from the same noise", show("samples")),
        ("Error of the experts over the noise range", show("error_curves")),
        ("The bound at every threshold", show("bound_by_eta")),
        ("Terms of the likelihood", show("likelihood_terms")),
        ("Terms of the bound", show("bound_terms")),
        ("Best weights per noise level", show("weights")),
        ("Every metric against the threshold", show("all_metrics")),
        ("Weights of the gates", show("gate_weights") + show("effective_experts") + moe.gates(results)),
        ("Usage per slice", show("gate_slices") + moe.slices(results)),
        ("Collapse", show("collapse")),
        ("Training", show("training") + show("training_levels")),
        (
            "Measured values",
            tables.main_table(results) + sections.remarks(results) if results.get("rows") else "",
        ),
        ("Remarks", "" if results.get("rows") else sections.remarks(results)),
        ("Beside the paper", sections.published(results)),
        ("Paired differences", sections.paired(results)),
        ("Scores over seeds", sections.seeds(results)),
        ("Noise removed from test images", sections.reconstructions(results)),
        ("Cost of sampling", sections.costs(results)),
        ("Pixel-scale alignment", sections.alignment(results)),
        ("Terms in numbers", sections.terms(results)),
        ("What the columns mean", sections.definitions(results)),
        ("Images and experts", sections.origins(results)),
        ("How it was run", sections.environment(results)),
        (
            "Config",
            f"<details><summary>every key</summary><pre>{sections.pretty(results.get('config', {}))}</pre></details>",
        ),
    ]
    body = "".join(f"<section><h2>{name}</h2>{content}</section>" for name, content in parts if content)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{_icon()}<style>{CSS}</style></head>'
        f'<body><h1>{title}</h1><p class="finding">{html.escape(results.get("finding") or finding(results))}</p>'
        f"{body}</body></html>\n"
    )


def _icon() -> str:
    # Two half discs, one per expert; without it browsers ask for a file.
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><path d="M1 0a1 1 0 0 0 0 2z" fill="#0072b2"/>'
        '<path d="M1 0a1 1 0 0 1 0 2z" fill="#d55e00"/></svg>'
    )
    return f'<link rel="icon" href="data:image/svg+xml;base64,{base64.b64encode(drawing.encode()).decode()}">'
