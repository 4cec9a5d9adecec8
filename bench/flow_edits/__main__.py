"""What to inject in a small flow model, and from where on to solve, on scenes with known edits.

    python -m bench.flow_edits sites [--weights DIR] [--scenes 24] [--first 100]
    python -m bench.flow_edits settings --rows "map 0-7 0.6 all" "hidden 4 0.2 rest"
    python -m bench.flow_edits levels
    python -m bench.flow_edits guides
    python -m bench.flow_edits sites --save
    python -m bench.flow_edits held-out --save

The scenes are validation scenes, which training has not seen; number i is edited in the i-th way in
turn: colour, texture, shape, background, style, add. sites: each block alone and ranges of blocks,
for each group of features, fraction of the steps and set of tokens. settings: chosen rows of
"sites", on other scenes. levels: inversions against the level from which on they solve. guides:
guided and protected edits.

A row such as "map 2-7 0.6 rest" injects the group "map" in blocks 2 to 7, in the first 0.6 of the
steps, but for the tokens of the first frame; " + " joins parts. Each scene is a file in OUT/STUDY
and is not made again, so that processes with other --first may share a folder; a contact sheet is
beside it, unless its rows are too many. Then a table is printed: means over scenes with 95 %
bootstrap intervals. --save writes it to bench/results/flow-edits.json instead. What was chosen is
judged on held-out scenes by `python -m bench.edit_quality -o OUT/held-out`, and "held-out" reads
its scores.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import anyv2v
from anyv2v.editor import Editor
from anyv2v.runtime.atomic_files import atomic_path
from anyv2v.weights.demo.scenes import KINDS
from bench.core import RESULTS, Bench, circumstances
from bench.edit_quality.rows import ROWS, with_defaults
from bench.edit_quality.table import contact_sheet, interval
from bench.flow_edits.cases import Case
from bench.flow_edits.studies import STUDIES, Study

PAIR = "colour+background"
"""Two kinds of edits that have means of their own, together."""
OF_SOURCE = frozenset(name for name, row in ROWS.items() if row.reconstructs)
"""Rows of `bench.edit_quality` whose PSNR is to the source."""
MOST_ON_SHEET = 30
"""Rows of a contact sheet, at most."""
HELD_OUT = "held-out"
"""The name of what `bench.edit_quality` found."""


def run(editor: Editor, study: Study, args: argparse.Namespace, folder: Path) -> None:
    """Makes the scenes that have no file yet."""
    folder.mkdir(parents=True, exist_ok=True)
    about = facts(editor, args)
    read(folder, about)
    for i in range(args.first, args.first + args.scenes):
        path = folder / f"{i:05}.json"
        if path.exists():
            continue
        since, case = time.monotonic(), Case(editor, i, args.steps)
        found, clips = study.measure(case, args.rows)
        if len(clips) <= MOST_ON_SHEET:
            with atomic_path(path.with_suffix(".png")) as temporary:
                sheet = contact_sheet({"source": case.truth.source, **clips}, case.truth)
                Image.fromarray(sheet).save(temporary)
        scene = {"kind": case.kind, "caption": case.edit.truth.caption, "scores": found}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({"about": about, **scene}) + "\n", encoding="utf-8")
        print(f"scene {i}, {case.kind}: {time.monotonic() - since:.0f} s", flush=True)


def facts(editor: Editor, args: argparse.Namespace) -> dict:
    """What the scores of a scene depend on, besides the scene."""
    own = editor.defaults
    return {
        "fingerprint": editor.fingerprint,
        "injection": own.injection.fractions,
        "solved_from": own.solved_from,
        "steps": args.steps,
        "rows": args.rows,
    }


def read(folder: Path, about: dict | None = None) -> list[dict]:
    """Reads the scenes of a study, which must all be of the same weights, settings and rows.

    about: what they must be of; None: what the first is of.
    """
    scenes = {
        path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))
    }
    for path, scene in scenes.items():
        about = scene["about"] if about is None else about
        if scene["about"] != about:
            raise SystemExit(f"{path}: is of other weights, settings or rows; take another folder")
    return [*scenes.values()]


def condense(scenes: list[dict], base: str) -> list[dict]:
    """Means with intervals of all scores, for all scenes and each kind; "gain" is that over `base`.

    The gain is the difference of PSNR in dB, scene by scene. A score that no scene has is left out.
    """
    rows = []
    names = dict.fromkeys(name for scene in scenes for name in scene["scores"])
    for kind in ("all", *KINDS, PAIR):
        chosen = [s["scores"] for s in scenes if kind == "all" or s["kind"] in kind.split("+")]
        for name in names if chosen else ():
            columns = {
                score: np.array([s.get(name, {}).get(score) for s in chosen], dtype=float)
                for score in dict.fromkeys(x for s in chosen for x in s.get(name, {}))
            }
            if name not in OF_SOURCE:
                others = np.array([s.get(base, {}).get("psnr") for s in chosen], dtype=float)
                columns["gain"] = columns["psnr"] - others
            means = {
                score: [float(f"{x:.4g}") for x in interval(values)]
                for score, values in columns.items()
                if not np.isnan(values).all()
            }
            rows.append({"name": name, "kind": kind, "scenes": len(chosen), **means})
    return rows


def table(rows: list[dict]) -> str:
    """The rows of all scenes, and the gain of each kind."""
    gains = {(row["kind"], row["name"]): row["gain"][0] for row in rows if "gain" in row}
    lines = []
    for row in rows:
        if row["kind"] != "all":
            continue
        name, means = row["name"], {k: v for k, v in row.items() if isinstance(v, list)}
        cells = [
            f"{score} {mean:.3g} [{low:.3g}, {high:.3g}]"
            for score, (mean, low, high) in means.items()
        ]
        kinds = (f"{kind} {gains[kind, name]:+.1f}" for kind in KINDS if (kind, name) in gains)
        lines.append(f"{name:32} {', '.join(cells)} | {' '.join(kinds)}")
    return "\n".join(lines)


def keep(study: str, rows: list[dict], scenes: list[dict]) -> None:
    """Writes the rows of a study to bench/results, in place of its earlier ones."""
    path = RESULTS / "flow-edits.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    command = "python -m bench.edit_quality --weights flow"
    if study in STUDIES:
        named = "--rows ... " if scenes[0]["about"]["rows"] else ""
        command = f"python -m bench.flow_edits {study} --weights flow {named}"
        command += f"--steps {scenes[0]['about']['steps']}"
    about = circumstances(Bench("cpu", True, 0.0, torch.float32), command)
    # without the rates of the machine, which were not measured
    about = {k: v for k, v in about.items() if v == v} | scenes[0]["about"]
    results[study] = {"about": about, "rows": rows}
    with atomic_path(path) as temporary:
        # a line for each row
        text = ",\n".join(
            f'"{name}": {{"about": {json.dumps(found["about"])}, "rows": [\n'
            + ",\n".join(json.dumps(row, separators=(",", ":")) for row in found["rows"])
            + "]}"
            for name, found in results.items()
        )
        temporary.write_text(f"{{{text}}}\n", encoding="utf-8")


def held_out(folder: Path) -> list[dict]:
    """Reads the scenes that `bench.edit_quality` judged, as those of a study."""
    kept = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    scenes = kept.pop("scenes")
    return [{"about": kept, **scene} for scene in scenes.values()]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.flow_edits", description=__doc__.splitlines()[0]
    )
    parser.add_argument("study", choices=(*STUDIES, HELD_OUT))
    parser.add_argument("--weights", default="flow", help="a folder of weights of wan, or flow")
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--first", type=int, help="number of the first scene")
    parser.add_argument("--steps", type=int, help="25 of sites, else 50")
    parser.add_argument("--rows", nargs="*", default=[], help="of settings", metavar="ROW")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench-out/flow_edits"))
    parser.add_argument("--save", action="store_true", help="keep what was found in bench/results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder, study = args.output / args.study, STUDIES.get(args.study)
    if study is None:
        scenes, base = held_out(folder), "edit"
    else:
        base = study.base
        args.first = study.first if args.first is None else args.first
        args.steps = args.steps or study.steps
        if not args.save:
            # the norm of the noise is part of what is measured
            editor = anyv2v.load(args.weights, device="cpu")
            run(with_defaults(editor, noise_range=()), study, args, folder)
        scenes = read(folder)
    rows = condense(scenes, base)
    if args.save:
        keep(args.study, rows, scenes)
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
