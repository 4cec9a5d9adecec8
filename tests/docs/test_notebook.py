"""The notebook of examples/notebook: it was saved as it runs, and what it shows is true."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook" / "anyv2v.ipynb"
OWN = "fading", "motion alone", "where it moves", "where it is still"
# what the notebook has found, in its own names
TOLD = """
import json
print(json.dumps({
    "scores": scores,
    "own": difference,
    "changed": {name: float((results[name].latents - default.latents).norm()) for name in ours},
    "size": float(default.latents.norm()),
    "residuals": [max(each.residuals.values()) for each in (source, rough)],
    "tolerance": source.settings.tolerance,
    "finite": all(np.isfinite(values).all() for values in sizes.size.values()),
}))
"""


def cells():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell):
    return "".join("".join(x["text"]) for x in cell["outputs"] if x["output_type"] == "stream")


def table(text):
    return {name: float(db) for db, name in re.findall(r"^ *([\d.]+) dB  (.+)$", text, re.M)}


def test_it_was_saved_after_one_run_from_top_to_bottom():
    assert [cell["execution_count"] for cell in cells()] == [*range(1, len(cells()) + 1)]
    outputs = [output for cell in cells() for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert sum("image/png" in output.get("data", ()) for output in outputs) >= 7
    # nothing of the machine on which it ran
    assert not re.search(r"(/|\\\\)(home|root|tmp|usr|work|Users)\b|0x[0-9a-f]{6}", str(outputs))
    assert NOTEBOOK.stat().st_size < 1.5e6


@pytest.mark.slow
def test_what_it_shows_is_true(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra `notebook`")
    for package in ("ipykernel", "matplotlib"):
        pytest.importorskip(package, reason="needs the extra `notebook`")
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell["source"] for cell in notebook.cells]
    notebook.cells.append(nbformat.v4.new_code_cell(TOLD))
    place = {"metadata": {"path": str(tmp_path)}}
    # any error in a cell is raised here
    nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()
    assert [cell["source"] for cell in notebook.cells[:-1]] == code
    told = json.loads(printed(notebook.cells[-1]))

    scores = told["scores"]
    assert scores["default injection"] > scores["no injection"] + 8
    assert scores["default injection"] > scores["edited frame, held still"] + 8
    assert scores["default injection"] > scores["source, unedited"] + 8
    # AnyV2V's own injection, written as taps
    assert told["own"] < 1e-5 * told["size"]
    # those of one's own do something else, and better than nothing
    assert {*told["changed"]} == {*OWN}
    for name in OWN:
        assert told["changed"][name] > 0.01 * told["size"]
        assert scores[name] > scores["no injection"] + 5
    exact, rough = told["residuals"]
    assert exact < told["tolerance"] < rough
    assert told["finite"]
    # the outputs that were saved are those of this code
    saved, now = table(printed(cells()[-1])), table(printed(notebook.cells[-2]))
    assert len(saved) == len(scores) == 17 and saved == pytest.approx(now, abs=0.3)
