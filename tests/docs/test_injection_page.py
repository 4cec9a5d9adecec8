"""The injection that docs/injection.md shows: what it computes, and how much one has to know."""

import ast
import inspect

import numpy as np
import pytest
from PIL import Image

import anyv2v
from anyv2v.injection import taps
from tests.docs.blocks import blocks
from tests.oracles import golden

EXAMPLE, SITES = (block.text for block in blocks("python") if block.document == "injection.md")
USUAL, *_ = (block.text for block in blocks("python") if block.document == "edit.md")


@pytest.mark.slow
def test_the_examples_are_the_injection_of_the_paper_at_other_sites(tmp_path, monkeypatch, video):
    pytest.importorskip("av")
    anyv2v.write_video(tmp_path / "man-walking.mp4", np.concatenate([video.frames] * 3), fps=12)
    Image.fromarray(golden.tensors("inputs")["edited_raw"].numpy()).save(tmp_path / "edited.png")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(compile(EXAMPLE, "injection.md", "exec"), scope)
    mine, editor, source = scope["edit"].latents, scope["editor"], scope["source"]
    sites = [site for site in editor.sites if "up.2.spatial" in site and "cross" not in site]
    same = anyv2v.Injection(conv=0.5, spatial=0.5, temporal=0, sites={"spatial": sites})
    theirs, without = (
        editor.edit(source, "edited.png", "a man", steps=10, injection=injection).latents
        for injection in (same, anyv2v.Injection.none())
    )
    assert golden.relative_error(mine, theirs) < 1e-5
    assert golden.relative_error(mine, without) > 1e-2
    exec(compile(SITES, "injection.md", "exec"), scope)
    paper, every = (edit.latents for edit in scope["edits"])
    assert golden.relative_error(paper, every) > 1e-4


def test_an_author_of_an_injection_meets_few_names():
    """Classes and methods that the example and its base mention, but for those of any edit."""
    first, base = ast.parse(USUAL), ast.parse(inspect.getsource(anyv2v.Taps))
    others = {node.attr for node in ast.walk(first) if isinstance(node, ast.Attribute)}
    found = set()
    for node in (*ast.walk(ast.parse(EXAMPLE)), *ast.walk(base)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
    classes = {name for name in vars(taps) if name[0].isupper()} | {*anyv2v.__all__}
    methods = [anyv2v.Taps, anyv2v.Injection, taps.Feature, anyv2v.Editor]
    callables = {n for of in methods for n, x in vars(of).items() if inspect.isfunction(x)}
    callables |= {"none"}
    private = {name for name in found if name.startswith("_")}
    met = (found & (classes | callables)) - (others - {"Injection"}) - private - {"Tensor"}
    assert "qkv" in met and "Injection" in met
    assert len(met) <= 12, sorted(met)
