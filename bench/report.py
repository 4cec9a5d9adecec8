"""Write the tables and figures of README.md, docs/ and bench/README.md from bench/results.

    python bench/report.py [--check]

A table stands between `<!-- bench:NAME -->` and `<!-- /bench -->`. --check writes nothing: it
fails, in one line, if a document or a figure is not what the results give. Needs no packages.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from html import escape
from math import log10
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "docs/benchmarks.md", "docs/flow-injection.md", "bench/README.md")
FIGURES = "bench/results"
NO_GPU = "not measured on a GPU"
ORIGINAL, FIRST, NEXT = (
    "as the original",
    "anyv2v, first edit",
    "anyv2v, next edit of the source",
)
SUBJECTS = (
    "edit",
    "unet",
    "inversion",
    "epsilon",
    "flow_inversion",
    "scaling",
    "convert",
    "kernels",
)
RENTAL = {"edit": ("S4", "S5"), "unet": ("S2",), "kernels": ("S6",)}
"""Subject -> the steps of `python -m bench rental` that measure it on a GPU."""

Row = dict
Result = dict  # about: circumstances; rows: measurements


class Results:
    """The contents of bench/results.

    For each subject the full set is used where it was run, else the small one, else, on a GPU, the
    measurements of a rental.
    """

    def __init__(self, folder: Path):
        lines = folder / "rental.jsonl"
        self.rental: list[Row] = []
        """The facts of a rental, all steps, in order."""
        if lines.exists():
            text = lines.read_text(encoding="utf-8")
            self.rental = [json.loads(line) for line in text.splitlines()]
        self._files = {
            path.stem: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(folder.glob("*.json"))
        }

    def of(self, subject: str, device: str = "cpu") -> Result | None:
        """Return the results of a subject on a device, None where there are none."""
        for chosen in ("full", "small"):
            if found := self._files.get(f"{device}-{chosen}", {}).get(subject):
                return found
        return self._rented(subject) if device == "cuda" else None

    def flow_edits(self, study: str) -> Result | None:
        """Return what a study of bench/flow_edits found, None if it was not made."""
        return self._files.get("flow-edits", {}).get(study)

    def _rented(self, subject: str) -> Result | None:
        steps = RENTAL.get(subject, ())
        found = [x for x in self.rental if x["step"] in steps and x["case"] != "step"]
        if not found:
            return None
        rates = next((x for x in self.rental if x["case"] == "rates"), {})
        about = {k: found[0][k] for k in ("torch", "triton", "commit", "date")}
        about |= {k: rates[k] for k in ("matrix_tflops", "copy_gbs") if k in rates}
        parts = sorted({x["part"] for x in found})
        about["device"] = found[0]["card"]
        about["command"] = f"python -m bench rental --part {parts[0]}"
        return {"about": about, "rows": [rented(x) for x in found]}


KNOWN = {
    *("part", "step", "since_start_s", "headline", "case", "implementation", "status", "reason"),
    *("median_s", "p20_s", "p80_s", "rounds", "ratio", "evaluations", "tflop", "error", "peer"),
    *("of_matrix_rate", "of_copy_rate", "peak_mb", "peak_gb", "facts"),
}
"""Columns of a rental's facts that a row has too."""


def rented(fact: Row) -> Row:
    """Turn a fact of a rental into a row; columns that rows do not have go to its `facts`."""
    more = {k: v for k, v in fact.items() if k not in KNOWN and isinstance(v, int | float)}
    row = {k: v for k, v in fact.items() if k in KNOWN and v is not None}
    row["status"] = {"ok": "measured"}.get(fact["status"], fact["status"])
    row["facts"] = {**fact.get("facts", {}), **more}
    if "extrapolated" in fact:
        row["extrapolated"] = fact["extrapolated"]
    if "peak_gb" in fact:
        row["peak_mb"] = 1e3 * fact["peak_gb"]
    return row


def cases(result: Result, begins: str = "") -> dict[str, list[Row]]:
    """Group rows by case, in order; begins: only cases whose names begin so."""
    found: dict[str, list[Row]] = {}
    for row in result["rows"]:
        if row["case"].startswith(begins):
            found.setdefault(row["case"], []).append(row)
    return found


def named(rows: Sequence[Row], implementation: str) -> Row:
    """Return the row of an implementation, {} where there is none."""
    return next((r for r in rows if r["implementation"] == implementation), {})


# words and numbers


def digits(x: float | None, n: int = 3) -> str:
    """Format a number with n significant digits, without an exponent where that is possible."""
    if x is None:
        return ""
    if x == 0 or not 1e-4 <= abs(x) < 1e7:
        return f"{x:.{n - 1}g}"
    places = max(0, n - 1 - int(f"{x:e}".split("e")[1]))
    return f"{round(x, places):,.{places}f}"


def whole(x: float | None) -> str:
    """Format a number without decimals."""
    return "" if x is None else f"{x:,.0f}"


def duration(seconds: float | None) -> str:
    """Format a duration with three digits in s, ms or µs."""
    if seconds is None:
        return ""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{digits(seconds / scale)} {unit}"
    return f"{digits(seconds / 1e-6)} µs"


def spread(row: Row) -> str:
    """Format the median, with the 20th and 80th percentiles in brackets."""
    if "median_s" not in row:
        return ""
    if row.get("rounds") == 1:
        return duration(row["median_s"])
    low, high = duration(row["p20_s"]), duration(row["p80_s"])
    if low[-2:] == high[-2:]:
        low = low.split()[0]
    return f"{duration(row['median_s'])} ({low} to {high})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def circumstances(about: dict) -> str:
    """Format the line under each table: command, device, versions, commit and date."""
    device = about["device"].replace(", x86_64", "")
    threads = about.get("threads")
    threads = f", {threads} thread{'s' * (threads != 1)}" if threads else ""
    versions = ", ".join(f"{k} {about[k]}" for k in ("torch", "triton", "diffusers") if k in about)
    commit = f", commit {about['commit']}" if about.get("commit") else ""
    return f"`{about['command']}` · {device}{threads} · {versions}{commit} · {about['date']}"


# tables


COLUMNS_OF_EDITS = ["", "the original's way", "first edit", "each further edit of the clip"]


def headline(results: Results) -> str:
    """Make README's table: the time, evaluations and memory of whole edits, in four lines."""
    found = results.of("edit")
    if found is None:
        return "No results yet."
    ways = (ORIGINAL, FIRST, NEXT)
    near, far = ([named(r, w) for w in ways] for r in cases(found, "edit, ").values())
    gpu = results.of("edit", "cuda")
    on_gpu, _, peaks, _ = glance_on_a_gpu(gpu, ways)
    lines = [
        ["time on a CPU, demo weights", *(duration(r.get("median_s")) for r in near)],
        ["time on a GPU, published size", *(re.sub(r" \(.*\)", "", cell) for cell in on_gpu)],
        ["evaluations of the network, published size", *(most(r) for r in far)],
    ]
    if any(peaks):
        lines.append(["memory on that GPU", "", *peaks])
    where = found["about"]["device"].split(",")[0]
    where += f"; {gpu['about']['device']}, float16, random weights" if gpu else ""
    return (
        f"{table(COLUMNS_OF_EDITS, lines)}\n\n{where}; published size: 512x512, 16 frames. "
        "[How this was measured](docs/benchmarks.md)."
    )


def glance(results: Results) -> str:
    """Make the table of time, operations and memory of whole edits."""
    found = results.of("edit")
    if found is None:
        return "No results yet."
    (real_case, real), (_, far) = cases(found, "edit, ").items()
    ways = (ORIGINAL, FIRST, NEXT)
    a, b = [named(real, w) for w in ways], [named(far, w) for w in ways]
    base = a[0].get("median_s")

    def line(words: str, cells: Sequence[str]) -> list[str]:
        return [words, *(cell or "" for cell in cells)]

    on_gpu, of_original, peaks, card = glance_on_a_gpu(results.of("edit", "cuda"), ways)
    weights = b[1]["facts"]["weights_gb"]
    lines = [
        line("**demo weights, measured on a CPU**", ["", "", ""]),
        line("time", [spread(r) for r in a]),
        line("of the original's", [digits(r["median_s"] / base) if base else "" for r in a]),
        line("evaluations of one branch", [whole(r.get("evaluations")) for r in a]),
        line("memory at the peak, over the weights", [megabytes(r.get("peak_mb")) for r in a]),
        line("**published size, 512x512, 16 frames**", ["", "", ""]),
        line("evaluations of one branch", [most(r) for r in b]),
        line("operations, TFLOP", [digits(r.get("tflop"), 4) + marked(r) for r in b]),
        line(
            "of the original's",
            [digits(r["tflop"] / b[0]["tflop"]) + marked(r) if b[0] else "" for r in b],
        ),
        line(
            "memory on a GPU, float16, weights included",
            ["", *(f"{digits(weights + r['peak_mb'] / 1e3)} GB{marked(r)}" for r in b[1:])],
        ),
        line("time on a GPU", on_gpu),
        *([line("of the original's", of_original)] if of_original else []),
        *([line("memory there, measured", ["", *peaks])] if any(peaks) else []),
    ]
    frames = real_case.removeprefix("edit, demo weights, ")
    device = found["about"]["device"].split(",")[0]
    text = (
        f"{table(COLUMNS_OF_EDITS, lines)}\n\n{circumstances(found['about'])}\n\n{card}"
        f"The upper half was measured with the weights that come with the package, {frames}, on "
        f"{device}. The original's way, 500 DDIM steps of inversion and the source in the batch of "
        "every step, was timed on our network too, so what our network gains over diffusers' comes "
        "on top. Its operations are counted on diffusers' network; operations and memory of ours "
        "are what `anyv2v plan` predicts. [What each column means](bench/README.md)."
    )
    return text + "\n\n![time and operations of an edit](bench/results/glance.svg)"


def glance_on_a_gpu(
    gpu: dict | None, ways: Sequence[str]
) -> tuple[list[str], list[str], list[str], str]:
    """Format an edit on a GPU: times, their ratios to the original's, memory, and notes."""
    if not gpu:
        return [NO_GPU] * 3, [], [], ""
    rows = [named([r for r in gpu["rows"] if "median_s" in r], w) for w in ways]
    times, of_original = [spread(r) + " extrapolated" * ("extrapolated" in r) for r in rows], []
    if rows[0]:
        of_original = [digits(r["median_s"] / rows[0]["median_s"]) if r else "" for r in rows]
    how = "".join(f"; extrapolated {r['extrapolated']}" for r in rows if "extrapolated" in r)
    # both edits have one peak, because the features that the first one records stay for the next
    rounds = cases(gpu).get("edit, default", [{}])
    peaks = [megabytes(rounds[-1].get("peak_mb"))] * 2
    evaluations = [r.get("evaluations") for r in rows[1:]]
    if all(evaluations):
        how += "; random weights, with which an inversion spends every evaluation that it may: "
        how += " and ".join(f"{n:.0f}" for n in evaluations) + " evaluations of one branch"
    return times, of_original, peaks, f"On a GPU: {circumstances(gpu['about'])}{how}.\n\n"


def marked(row: Row) -> str:
    """The word "predicted" for a row that was not measured."""
    return " predicted" if row.get("status") == "predicted" else ""


def most(row: Row) -> str:
    """Format evaluations, as a maximum where a fixed point may stop before its last one."""
    number = whole(row.get("evaluations"))
    return f"at most {number}" if row.get("implementation") == FIRST else number


def megabytes(x: float | None) -> str:
    """Format megabytes as MB or GB."""
    return "" if x is None else f"{digits(x / 1e3)} GB" if x >= 1e3 else f"{digits(x)} MB"


def unet(results: Results) -> str:
    """Make the table of forwards of the UNet."""
    found = results.of("unet")
    if found is None:
        return "No results yet."
    lines = []
    for case, rows in cases(found, "forward").items():
        for i, row in enumerate(sorted(rows, key=lambda row: row["status"] == "skipped")):
            cell = spread(row) or row.get("reason", "")
            part = row.get("of_matrix_rate")
            ratio = digits(row.get("ratio"))
            name = "" if i else short(case)
            lines.append([name, row["implementation"], cell, ratio, digits(part and 100 * part)])
    lines += gpu_lines(results, "unet", 5)
    header = ["", "implementation", "time", "of diffusers' time", "% of the matrix rate"]
    return f"{table(header, lines)}\n\n{circumstances(found['about'])}"


def short(case: str) -> str:
    """The name of a case of the UNet, without its first word."""
    return case.removeprefix("forward, ")


def gpu_lines(results: Results, subject: str, width: int) -> list[list[str]]:
    """Make the lines of one branch on a GPU; width: the number of columns."""
    gpu = results.of(subject, "cuda")
    if not gpu:
        return [["GPU", NO_GPU, *[""] * (width - 2)]]
    where = f"one branch, published size, 512x512, 16 frames, {gpu['about']['device']}"
    rows = cases(gpu, "forward, one branch")["forward, one branch"]
    return [
        ["" if i else where, r["implementation"], spread(r), "", percent(r.get("of_matrix_rate"))]
        for i, r in enumerate(r for r in rows if "median_s" in r)
    ]


def inversion(results: Results) -> str:
    """Make the table of inversion methods."""
    found = results.of("inversion")
    if found is None:
        return "No results yet."
    lines = []
    for row in found["rows"]:
        f = row.get("facts", {})
        if "latent_error" not in f:
            continue
        lines.append(
            [
                row["implementation"],
                whole(row["evaluations"]),
                digits(f["latent_error"], 2),
                f"{f['reconstruction_db']:.2f} dB",
                f"{f['edit_db']:.2f} dB",
            ]
        )
        clips = f["clips"]
    header = [
        "inversion",
        "evaluations",
        "latent error, there and back",
        "reconstruction, PSNR",
        "edit, PSNR to the truth",
    ]
    plural = "clip" if clips == 1 else "clips"
    return (
        f"{table(header, lines)}\n\n{clips:.0f} held-out {plural}, demo weights. "
        + circumstances(found["about"])
    )


def tolerance(results: Results) -> str:
    """Make the table of tolerances of the fixed point."""
    found = results.of("tolerance")
    if found is None:
        return "No results yet."
    lines = []
    for row in found["rows"]:
        f = row["facts"]
        cells = [row["implementation"], whole(f["scenes"])]
        cells.append(f"{row['evaluations']:.1f} ({whole(f['most_evaluations'])})")
        cells += [digits(f["latent_error"], 2), digits(f.get("of_ddim_error"), 2)]
        cells.append(f"{f['edit_db']:.2f} dB" if "edit_db" in f else "")
        cells.append(bounded(f, "difference_db", " dB"))
        cells.append(f"{f['edit_trajectory_px']:.3f} px" if "edit_trajectory_px" in f else "")
        lines.append([*cells, bounded(f, "difference_px", " px")])
    header = ["tolerance, budget", "scenes", "evaluations (most)", "round trip", "of ddim 500's"]
    header += ["edit, PSNR", "its difference", "trajectory", "its difference"]
    return f"{table(header, lines)}\n\n{circumstances(found['about'])}"


def comparison(results: Results) -> str:
    """Make the table of methods and editors of the first frame."""
    found = results.of("compare")
    if found is None:
        return "No results yet."
    lines = []
    for case, rows in cases(found).items():
        for i, row in enumerate(rows):
            f = row["facts"]
            cells = [case.removeprefix("first frame: ") if i == 0 else "", row["implementation"]]
            cells += [whole(f["edits"]), ranged(f, "psnr_first_frame"), ranged(f, "psnr_truth")]
            cells += [ranged(f, "ssim_truth", 3), ranged(f, "flicker_truth", 1)]
            cells += [ranged(f, f"psnr_truth_over_{base}", 2, "+") for base in ("method", "editor")]
            lines.append(cells)
    first = found["rows"][0]
    editor, method = first["case"].removeprefix("first frame: "), first["implementation"]
    header = ["first frame", "method", "edits", "first frame, dB", "PSNR to the truth, dB", "SSIM"]
    header += ["flicker", f"dB over `{method}`", f"dB over `{editor}`"]
    return f"{table(header, lines)}\n\n{circumstances(found['about'])}"


def ranged(facts: dict, name: str, places: int = 1, sign: str = "") -> str:
    """Format a mean and its interval, if it has one."""
    ends = [facts[name + end] for end in ("", "_low", "_high") if name + end in facts]
    if not ends:
        return ""
    mean, *bounds = (f"{x:{sign}.{places}f}" for x in ends)
    return f"{mean} [{', '.join(bounds)}]" if bounds else mean


def bounded(facts: dict, name: str, unit: str) -> str:
    """Format a mean and its interval."""
    if name not in facts:
        return ""
    mean, low, high = (f"{facts[name + end]:+.3f}" for end in ("", "_low", "_high"))
    return f"{mean} [{low}, {high}]{unit}"


KINDS = ("colour", "texture", "shape", "background", "style", "add")
"""The kinds of edits of the rendered scenes."""


def flow_levels(results: Results) -> str:
    """Make the table of inversions of the flow model, by the level from which they solve."""
    lines = [
        [row["name"], mean(row, "drawn", 0), whole(row["evaluations"][0])]
        + [mean(row, "norm", 2), mean(row, "residual", 4)]
        + [mean(row, name, 1) for name in ("autoencoder", "reconstruction", "without offsets")]
        + [mean(row, "inverted", 1), mean(row, "psnr", 1), mean(row, "gain", 2, "+")]
        for row in rows_of_all(results, "levels")
    ]
    header = ["solved from sigma", "steps not solved", "evaluations", "norm", "residual"]
    header += ["autoencoder, dB", "reconstruction, dB", "without offsets, dB", "inverted, dB"]
    header += ["edit, dB", "over that from 0.17"]
    return flow_table(results, "levels", header, lines)


def flow_blocks(results: Results) -> str:
    """Make the table of what each block alone gains when it is injected."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for row in rows_of_all(results, "sites"):
        group, blocks, until, tokens = (row["name"].split() + [""] * 3)[:4]
        if until == "0.6" and "-" not in blocks:
            found.setdefault((group, tokens), {})[int(blocks)] = halved(row["gain"])
    count = max((len(cells) for cells in found.values()), default=0)
    lines = [[*key, *(cells[i] for i in range(count))] for key, cells in found.items()]
    header = ["group", "tokens", *(f"block {i}" for i in range(count))]
    return flow_table(results, "sites", header, lines)


def flow_ranges(results: Results) -> str:
    """Make the table of what ranges of blocks gain, by the fraction of steps of the injection."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows_of_all(results, "sites"):
        group, blocks, until, tokens = (row["name"].split() + [""] * 3)[:4]
        if "-" in blocks:
            found.setdefault((group, tokens, blocks), {})[until] = halved(row["gain"])
    untils = [*dict.fromkeys(until for cells in found.values() for until in cells)]
    lines = [[*key, *(cells[u] for u in untils)] for key, cells in found.items()]
    header = ["group", "tokens", "blocks", *(f"{u} of the steps" for u in untils)]
    return flow_table(results, "sites", header, lines)


def flow_settings(study: str) -> Callable[[Results], str]:
    """Return a function that makes the table of the gains of a study's rows by kinds of edits."""

    def make(results: Results) -> str:
        rows = (results.flow_edits(study) or {"rows": []})["rows"]
        # of few scenes each; their intervals are in the results
        gains = {(row["kind"], row["name"]): f"{row['gain'][0]:+.1f}" for row in rows}
        lines = [
            [row["name"], mean(row, "psnr", 1), mean(row, "gain", 2, "+")]
            + [gains.get((kind, row["name"]), "") for kind in KINDS]
            + [mean(row, "trajectory", 2), mean(row, "colour", 3)]
            for row in rows_of_all(results, study)
        ]
        first = lines[0][0] if lines else ""
        header = ["", "edit, dB", f"over `{first}`, dB", *KINDS, "trajectory, px", "color error"]
        return flow_table(results, study, header, lines)

    return make


def flow_held_out(results: Results) -> str:
    """Make the table of the scores of held-out scenes, by kinds of edits."""
    rows = (results.flow_edits("held-out") or {"rows": []})["rows"]
    lines, last = [], ""
    # of each kind alone only what edits are compared with
    few, whole_kinds = ("edit", "inverted", "random", "static"), ("all", "colour+background")
    for row in rows:
        if row["kind"] not in whole_kinds and row["name"] not in few:
            continue
        kind = "" if row["kind"] == last else row["kind"].replace("+", " and ")
        last = row["kind"]
        lines.append([kind, row["name"], whole(row["scenes"])])
        cells = ["psnr", 1, ""], ["gain", 2, "+"], ["trajectory", 2, ""]
        lines[-1] += [mean(row, *cell) for cell in (*cells, ["iou", 2, ""], ["colour", 3, ""])]
    header = ["edits", "", "scenes", "PSNR, dB", "over `edit`, dB"]
    header += ["trajectory, px", "mask IoU", "color error"]
    return flow_table(results, "held-out", header, lines)


def rows_of_all(results: Results, study: str) -> list[Row]:
    """Return the rows of a study of bench/flow_edits that are of all kinds of edits."""
    found = results.flow_edits(study)
    return [row for row in found["rows"] if row["kind"] == "all"] if found else []


def flow_table(results: Results, study: str, header: list[str], lines: list[list[str]]) -> str:
    """Format a table with its circumstances, and how many scenes it is of."""
    found = results.flow_edits(study)
    if found is None:
        return "No results yet."
    scenes = rows_of_all(results, study)[0]["scenes"]
    return f"{table(header, lines)}\n\n{scenes} scenes · {circumstances(found['about'])}"


def mean(row: Row, name: str, places: int, sign: str = "") -> str:
    """Format a mean and its interval, "" if the row has none."""
    if name not in row:
        return ""
    middle, low, high = (f"{x:{sign}.{places}f}" for x in row[name])
    return middle if low == high else f"{middle} [{low}, {high}]"


def halved(values: Sequence[float]) -> str:
    """Format a mean with half of its interval, in two decimals."""
    middle, low, high = values
    return f"{middle:+.2f} ±{(high - low) / 2:.2f}"


def everything(subject: str) -> Callable[[Results], str]:
    """Return a function that makes a table of all rows of a subject, on every device."""

    def make(results: Results) -> str:
        parts = []
        for device in ("cpu", "cuda"):
            if found := results.of(subject, device):
                parts.append(f"{rows_of(found)}\n\n{rates(found)}{circumstances(found['about'])}")
        if not results.of(subject, "cuda"):
            parts.append(f"On a GPU: {NO_GPU}.")
        return "\n\n".join(parts)

    return make


def rental(results: Results) -> str:
    """Make the tables of a rental's other facts: profiles, tests, experiments."""
    placed = {step for steps in RENTAL.values() for step in steps} | {"S1"}
    left = [x for x in results.rental if x["step"] not in placed and x["case"] != "step"]
    if not left:
        return f"{NO_GPU[0].upper()}{NO_GPU[1:]}: `python -m bench rental --part 1`."
    parts = []
    # the steps of one part may have been run on several commits
    for part, commit in sorted({(x["part"], x["commit"]) for x in left}):
        found = [x for x in left if (x["part"], x["commit"]) == (part, commit)]
        about = {k: found[0][k] for k in ("torch", "triton", "commit", "date")}
        about |= {"device": found[0]["card"], "command": f"python -m bench rental --part {part}"}
        result = {"about": about, "rows": [rented(x) for x in found]}
        parts.append(f"{rows_of(result)}\n\n{circumstances(about)}")
    calls = [x for x in results.rental if x["step"] == "S1" and "error" in x]
    wrong = sum(x["status"] != "ok" for x in calls)
    parts.append(
        f"Before that {len(calls)} calls of kernels on the network's shapes, float16 and bfloat16, "
        f"were compared with their definitions in float64: {wrong} were off by more than allowed."
    )
    return "\n\n".join(parts)


def rates(result: Result) -> str:
    """Format the rates of the device that were measured."""
    about = result["about"]
    if not any("median_s" in row for row in result["rows"]):
        return ""
    return (
        f"Matrix rate {digits(about['matrix_tflops'])} TFLOP/s, copying {digits(about['copy_gbs'])}"
        " GB/s. "
    )


COLUMNS: dict[str, Callable[[Row], str]] = {
    "median (p20 to p80)": lambda r: spread(r) or r["status"] * (r["status"] != "measured"),
    "ratio": lambda r: digits(r.get("ratio")),
    "evaluations": lambda r: whole(r.get("evaluations")),
    "TFLOP": lambda r: digits(r.get("tflop")),
    "% matrix": lambda r: percent(r.get("of_matrix_rate")),
    "% copy": lambda r: percent(r.get("of_copy_rate")),
    "peak": lambda r: megabytes(r.get("peak_mb")),
    "error": lambda r: f"{r['error']:.1g}" if "error" in r else "",
    "more": lambda r: r.get("reason") or facts(r),
}


def percent(x: float | None) -> str:
    """Format a fraction in percent."""
    return "" if x is None else digits(100 * x, 2)


def facts(row: Row) -> str:
    """Format the further facts of a row."""
    more = {k: v for k, v in row.get("facts", {}).items() if k not in ("size", "frames", "edits")}
    return ", ".join(f"{k} {v:.4g}" for k, v in more.items() if isinstance(v, int | float))


def rows_of(result: Result) -> str:
    """Make a table of all rows of a result, without columns that are empty."""
    cells = [
        [case if i == 0 else "", row["implementation"], *(make(row) for make in COLUMNS.values())]
        for case, rows in cases(result).items()
        for i, row in enumerate(rows)
    ]
    header = ["case", "implementation", *COLUMNS]
    # leave out empty columns
    used = [i for i in range(len(header)) if i < 2 or any(line[i] for line in cells)]
    return table([header[i] for i in used], [[line[i] for i in used] for line in cells])


TABLES: dict[str, Callable[[Results], str]] = {
    "headline": headline,
    "glance": glance,
    "unet": unet,
    "inversion": inversion,
    "tolerance": tolerance,
    "compare": comparison,
    "flow-levels": flow_levels,
    "flow-blocks": flow_blocks,
    "flow-ranges": flow_ranges,
    "flow-settings": flow_settings("settings"),
    "flow-guides": flow_settings("guides"),
    "flow-held-out": flow_held_out,
    **{f"all-{subject}": everything(subject) for subject in SUBJECTS},
    "rental": rental,
}


# figures


class Drawing:
    """An SVG of lines, marks and words."""

    def __init__(self, width: int, height: int):
        self.size, self.parts = (width, height), []

    def line(self, x: float, y: float, x2: float, y2: float, style: str = "#888") -> None:
        """Add a line; style: its color and, after a space, its dashes."""
        stroke, _, rest = style.partition(" ")
        dash = f' stroke-dasharray="{rest}"' if rest else ""
        self.parts.append(
            f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}"{dash}/>'
        )

    def box(self, x: float, y: float, w: float, h: float, color: str, hollow: bool) -> None:
        """Add a rectangle."""
        look = f'fill="none" stroke="{color}" stroke-width="2"' if hollow else f'fill="{color}"'
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" {look}/>'
        )

    def dot(self, x: float, y: float, r: float, color: str, hollow: bool) -> None:
        """Add a circle."""
        look = f'fill="none" stroke="{color}" stroke-width="1.5"'
        look = look if hollow else f'fill="{color}"'
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" {look}/>')

    def word(self, x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> None:
        """Add a text."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
            f"{escape(text)}</text>"
        )

    def __str__(self) -> str:
        w, h = self.size
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" '
                f'viewBox="0 0 {w} {h}" font-family="sans-serif" fill="#222">',
                f'<rect width="{w}" height="{h}" fill="white"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


MEASURED, PREDICTED = "#1b6ca8", "#c2571a"
NAMES = {ORIGINAL: "the original's way", FIRST: "first edit", NEXT: "each further edit"}


def glance_figure(results: Results) -> str:
    """Draw bars: seconds measured with the demo weights, operations at the published size."""
    drawing, found = Drawing(760, 190), results.of("edit")
    if found is None:
        return str(drawing)
    (case, real), (_, far) = cases(found, "edit, ").items()
    about = found["about"]
    panels = (
        ("seconds, measured", real, "median_s", 130),
        ("TFLOP, 512x512, 16 frames, published size", far, "tflop", 470),
    )
    for title, rows, key, left in panels:
        drawing.word(left, 22, title, size=13)
        longest = max((r.get(key) or 0) for r in rows) or 1
        for i, (way, words) in enumerate(NAMES.items()):
            row, y = named(rows, way), 38 + 34 * i
            if left < 200:
                drawing.word(left - 8, y + 16, words, "end")
            if key not in row:
                continue
            hollow = row["status"] == "predicted"
            width = end = 200 * row[key] / longest
            drawing.box(left, y, width, 22, PREDICTED if hollow else MEASURED, hollow)
            if key == "median_s":
                low, high = (left + 200 * row[k] / longest for k in ("p20_s", "p80_s"))
                drawing.line(low, y + 11, high, y + 11, "black")
                end = max(end, high - left)
            drawing.word(left + end + 6, y + 16, digits(row[key]))
    drawing.word(10, 156, f"left: {case.removeprefix('edit, ')}; {about['device']}", size=11)
    drawing.word(
        10,
        174,
        f"filled: measured or counted; hollow: predicted by anyv2v plan. {about['date']}"
        f"{'; ' + NO_GPU if results.of('edit', 'cuda') is None else ''}",
        size=11,
    )
    return str(drawing)


AXES = {"frames": "frames", "size": "pixels on a side", "edits": "edits of one clip together"}


def scaling_figure(results: Results) -> str:
    """Draw operations and memory along each axis, on logarithmic scales; hollow is predicted."""
    drawing = Drawing(900, 560)
    series = scaling_series(results)
    for column, axis in enumerate(AXES):
        for line, (quantity, unit) in enumerate((("tflop", "TFLOP"), ("gb", "GB over weights"))):
            panel(drawing, series, axis, quantity, unit, 70 + 285 * column, 30 + 235 * line)
    y = 522
    drawing.dot(80, y - 4, 4, MEASURED, False)
    drawing.word(92, y, "measured (operations counted in the run)", size=11)
    drawing.dot(340, y - 4, 6, MEASURED, True)
    drawing.word(352, y, "the same, predicted by anyv2v plan", size=11)
    drawing.dot(580, y - 4, 4, PREDICTED, True)
    drawing.word(592, y, "published size, predicted by anyv2v plan only", size=11)
    if found := results.of("scaling"):
        about = found["about"]
        text = f"measured: demo weights, 10 steps, {about['device']}; {about['date']}; "
        text += "published size: 50 steps, float16 on a GPU of 80 GB, "
        drawing.word(80, y + 22, text + NO_GPU, size=11)
    return str(drawing)


def scaling_series(results: Results) -> dict[str, list[dict]]:
    """Return kind of mark -> points with the values of all axes, operations and memory."""
    found: dict[str, list[dict]] = {"measured": [], "same": [], "predicted": []}
    for device in ("cpu", "cuda"):
        for row in (results.of("scaling", device) or {"rows": []})["rows"]:
            f = row.get("facts", {})
            if row["status"] == "predicted":
                point = f | {"tflop": row["tflop"], "gb": row["peak_mb"] / 1e3}
                if point not in found["predicted"]:
                    found["predicted"].append(point)
            elif row["status"] == "measured":
                real = {"tflop": row.get("tflop"), "gb": row.get("peak_mb", 0) / 1e3 or None}
                plan = {"tflop": f["predicted_tflop"], "gb": f["predicted_mb"] / 1e3}
                found["measured"].append(f | real | {"device": device})
                found["same"].append(f | plan | {"device": device})
    return found


def panel(
    drawing: Drawing, series: dict, axis: str, quantity: str, unit: str, left: float, top: float
) -> None:
    """Draw one quantity along one axis; the other axes have the value that most points have."""
    width, height = 220, 180
    chosen = {kind: along(points, axis) for kind, points in series.items()}
    xs = [p[axis] for points in chosen.values() for p in points]
    ys = [p[quantity] for points in series.values() for p in points if p[quantity]]
    if not xs or not ys:
        return
    x0, x1 = log10(min(xs)) - 0.1, log10(max(xs)) + 0.1
    y0, y1 = int(log10(min(ys)) // 1), int(-(-log10(max(ys)) // 1))

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (log10(x) - x0) / (x1 - x0), (log10(y) - y0) / (y1 - y0)
        return left + width * across, top + height * (1 - up)

    for power in range(y0, y1 + 1):
        _, y = at(10**x0, 10.0**power)
        drawing.line(left, y, left + width, y, "#ddd")
        drawing.word(left - 6, y + 4, digits(10.0**power), "end", 10)
    for x in sorted(set(xs)):
        px, _ = at(x, 10.0**y0)
        drawing.line(px, top + height, px, top + height + 4)
        drawing.word(px, top + height + 16, str(x), "middle", 9)
    drawing.line(left, top, left, top + height)
    drawing.line(left, top + height, left + width, top + height)
    drawing.word(left, top - 8, unit, size=12)
    drawing.word(left + width / 2, top + height + 32, AXES[axis], "middle", 11)
    looks = {"measured": (4, MEASURED, False), "same": (6, MEASURED, True)}
    looks["predicted"] = (4, PREDICTED, True)
    for kind, (radius, color, hollow) in looks.items():
        points = [at(p[axis], p[quantity]) for p in chosen[kind] if p[quantity]]
        for (x, y), (x2, y2) in zip(points, points[1:], strict=False):
            if kind != "same":
                drawing.line(x, y, x2, y2, f"{color} 4,4" if hollow else color)
        for x, y in points:
            drawing.dot(x, y, radius, color, hollow)


def along(points: list[dict], axis: str) -> list[dict]:
    """Choose the points that differ from the base along this axis alone, in order."""
    others = [name for name in AXES if name != axis]

    def usual(name: str) -> int | None:
        values = [p[name] for p in points]
        return max(set(values), key=values.count) if values else None

    base = {name: usual(name) for name in others}
    return sorted(
        (p for p in points if all(p[name] == base[name] for name in others)), key=lambda p: p[axis]
    )


DRAWN: dict[str, Callable[[Results], str]] = {
    "glance.svg": glance_figure,
    "scaling.svg": scaling_figure,
}


def filled(text: str, results: Results, root: str = "") -> str:
    """Return the text with every table between its markers replaced by the current one.

    root: the path from the document to the root of the repository, from which tables link.
    """

    def make(match: re.Match) -> str:
        if match[2] not in TABLES:
            raise SystemExit(f"bench:{match[2]}: there is no such table")
        made = re.sub(r"(?<=\]\()(?!https?:)", root, TABLES[match[2]](results))
        return f"{match[1]}\n\n{made}\n\n<!-- /bench -->"

    return re.sub(r"(<!-- bench:([\w-]+) -->).*?<!-- /bench -->", make, text, flags=re.DOTALL)


def expected_files(root: Path) -> dict[Path, str]:
    """Return each file that this script writes -> its text."""
    results = Results(root / FIGURES)
    files = {root / FIGURES / name: make(results) for name, make in DRAWN.items()}
    for name in DOCUMENTS:
        text = (root / name).read_text(encoding="utf-8")
        files[root / name] = filled(text, results, "../" * name.count("/"))
    return files


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run the command line; with --check return 1 if a file is not up to date."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments not in ([], ["--check"]):
        print("usage: python bench/report.py [--check]", file=sys.stderr)
        return 2
    files = expected_files(root)
    if arguments:
        old = [
            str(path.relative_to(root))
            for path, text in files.items()
            if not path.exists() or path.read_text(encoding="utf-8") != text
        ]
        if old:
            print(f"{', '.join(old)}: not what bench/results gives; run python bench/report.py")
        return 1 if old else 0
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
