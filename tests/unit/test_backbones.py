"""What every backbone of the paper must do alike, on small models with random weights.

The goldens say that each computes what its original does; here the ways to one result are compared
with each other, and with predictions of single branches.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from anyv2v import EditRequest, Injection, Taps
from anyv2v.cli.main import main
from anyv2v.convert.published import convert
from anyv2v.injection.taps import ShareSource
from anyv2v.loading import expected_shapes
from anyv2v.pipeline.cost import predict_cost
from anyv2v.pipeline.cuda_graphs import Graphs
from anyv2v.weights_folders import inspect
from tests.oracles import consisti2v_snapshot, seine_snapshot
from tests.oracles.golden import relative_error
from tests.unit.test_graphs import Taped

WRITERS = {"consisti2v": consisti2v_snapshot.write, "seine": seine_snapshot.write}
slow = pytest.mark.slow
GROUPS = {
    "consisti2v": ("conv", "spatial", "temporal"),
    "seine": ("conv", "spatial", "temporal", "cross"),
}
# without guidance, by the text, and by the text and the image: two, three and four branches in all
GUIDANCE = {
    "consisti2v": [{"text": 1.0}, {"text": 3.0, "image": 1.0}, {"text": 3.0, "image": 1.5}],
    "seine": [{"text": 1.0}, {"text": 3.0}],
}
STEPS = 3
PROMPT = "a robot"
SAME = 1e-5
"""Relative error of one result computed in batches of other sizes, by float32."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name of a backbone -> its weights folder, written on demand."""
    written = {}

    def folder(name):
        if name not in written:
            base = tmp_path_factory.mktemp(name)
            WRITERS[name](base / "published")
            convert(base / "published", base / "weights", expected_shapes)
            written[name] = base / "weights"
        return written[name]

    return folder


@pytest.fixture(scope="module")
def loaded(folders):
    """Name of a backbone -> its editor, and a source with its latents at every level."""
    known = {}

    def load(name):
        if name not in known:
            editor = anyv2v.load(folders(name), device="cpu", graphs=False)
            known[name] = editor, editor.invert(clip(), "ddim", 10, options=plain_sampler(name))
        return known[name]

    return load


def clip(frames=4):
    """128x64: a square moves over a slope of colors, so that frames differ as a video's do.

    In half that size the deepest norms of the small ConsistI2V are over two values each, and the
    rounding of float32 grows a thousand times in them.
    """
    y, x = np.mgrid[:64, :128]
    picture = np.stack([x, y * 3, 255 - x - y], -1).clip(0, 255).astype(np.uint8)
    pictures = np.repeat(picture[None], frames, 0)
    for i in range(frames):
        pictures[i, 16:40, 8 + 4 * i : 32 + 4 * i] = (220, 40, 60)
    return anyv2v.Video(pictures, 8)


def edited():
    return clip().frames[0][:, ::-1].copy()


def plain_sampler(name):
    """Options of sampling without noise, for which features are recorded on the way."""
    return {"sampler": "ddim"} if name == "seine" else {}


def edit(editor, source, **settings):
    settings = {"steps": 5, "start": 0, "options": plain_sampler(editor.backbone.name)} | settings
    return editor.edit(source, edited(), PROMPT, **settings).latents


def fractions(name, *groups):
    return Injection(**{g: 0.4 if g in groups else 0.0 for g in GROUPS[name]})


CASES = [
    pytest.param(name, groups, guidance, id=f"{name}-{'+'.join(groups)}-{list(guidance.values())}")
    for name in GROUPS
    for groups, guidance in (
        *(((group,), GUIDANCE[name][1]) for group in GROUPS[name]),
        *((GROUPS[name], guidance) for guidance in GUIDANCE[name]),
    )
]


@slow
@pytest.mark.parametrize("name, groups, guidance", CASES)
def test_every_way_to_the_features_gives_the_same(loaded, name, groups, guidance):
    editor, source = loaded(name)
    settings = {"injection": fractions(name, *groups), "guidance": guidance}
    batched = edit(editor, source, source_pass="always", **settings)
    plain = edit(editor, source, injection=Injection.none(), guidance=guidance)
    assert relative_error(plain, batched) > 1e-3
    options = plain_sampler(name)
    for compact in (True, False):
        plan = editor.recording(
            source.video, settings["injection"], 5, 0, compact=compact, options=options
        )
        recorded = editor.record(source, plan)
        assert editor.step_plan(5, 0, settings["injection"], recorded, options=options).replayed
        assert relative_error(edit(editor, recorded, **settings), batched) < SAME
    separate = edit(editor, source, source_pass="separate", **settings)
    assert relative_error(separate, batched) < SAME


class Kept(Taps):
    """Keeps what a pass computes at some sites."""

    def __init__(self, sites):
        self.sites, self.found = frozenset(sites), {}

    def hidden(self, site, h):
        self.found[site] = (h,)
        return h

    def qk(self, site, q, k):
        self.found[site] = q, k
        return q, k


class Given(Kept):
    """Gives what another pass kept."""

    def __init__(self, kept):
        super().__init__(kept.sites)
        self.found = kept.found

    def hidden(self, site, h):
        return self.found[site][0]

    def qk(self, site, q, k):
        return self.found[site]


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("name", GROUPS)
def test_each_branch_of_a_batch_is_what_it_is_alone(loaded, name, count):
    """The original cuts every batch into thirds, and mixes branches unless there are three."""
    editor, source = loaded(name)
    groups = editor.backbone.groups
    sites = frozenset().union(*(groups[g] for g in GROUPS[name]))
    prompts = ["", "red", "a robot", "a dog"][:count]
    size = clip().frames.shape[2::-1][:2]
    conditions = [editor.condition(p, edited(), 4, size) for p in prompts]
    latents = torch.cat([source.at(i) for i in range(count)])
    stacked = type(conditions[0]).stack(conditions)
    together = editor.predict(latents, 501, stacked, ShareSource(sites, count))
    kept = Kept(sites)
    alone = [editor.predict(latents[:1], 501, conditions[0], kept)]
    for x, condition in zip(latents[1:].split(1), conditions[1:], strict=True):
        alone.append(editor.predict(x, 501, condition, Given(kept)))
        without = editor.predict(x, 501, condition)
        assert relative_error(without, alone[-1]) > 1e-3
    assert kept.found.keys() == sites
    p = editor.backbone.pinned_frames
    assert relative_error(together[:, :, p:], torch.cat(alone)[:, :, p:]) < SAME


@slow
def test_an_edit_begins_where_the_weights_say(loaded):
    """ConsistI2V's at step 4 of 50, which for 13 steps is the second."""
    editor, _ = loaded("consisti2v")
    settings = {"steps": 13, "injection": Injection(temporal=0.4)}
    plan = editor.step_plan(**settings)
    assert [step.level.index for step in plan.steps] == list(range(1, 13))
    source = editor.invert(clip(), steps=13, plan=plan)
    assert set(source.trajectory.latents) == {1, 2, 3, 4}
    # where sampling begins it aims at a tenth of the weights' tolerance
    assert source.settings.tolerance == 1e-2 and source.residuals[1] < 2e-3
    own, given = (editor.edit(source, edited(), PROMPT, **settings, start=s) for s in (None, 1))
    assert torch.equal(own.latents, given.latents)


@slow
@pytest.mark.parametrize("name", GROUPS)
def test_several_edits_are_each_alone(loaded, name):
    editor, source = loaded(name)
    requests = [
        EditRequest(edited(), PROMPT, guidance=GUIDANCE[name][-1], seed=1),
        EditRequest(clip().frames[1], "a dog", guidance=1.0, seed=2),
    ]
    both = editor.edit_many(source, requests, steps=5)
    for request, together in zip(requests, both, strict=True):
        (alone,) = editor.edit_many(source, [request], steps=5)
        assert relative_error(together.latents, alone.latents) < SAME


@slow
@pytest.mark.parametrize("name", GROUPS)
def test_features_are_recorded_while_it_inverts(loaded, name):
    editor, _ = loaded(name)
    options = plain_sampler(name)
    plan = editor.recording(clip(), steps=STEPS, start=0, options=options)
    source = editor.invert(clip(), steps=STEPS, recording=plan, options=options)
    step_plan = editor.step_plan(STEPS, 0, source=source, options=options)
    assert {step.way for step in step_plan.steps} == {"replayed", "plain"}
    replayed, batched = (
        edit(editor, source, steps=STEPS, options=options, source_pass=way)
        for way in ("shared", "always")
    )
    # recorded at the last iterate of the fixed point, whose latents are those that are stored
    assert relative_error(replayed, batched) < SAME


@slow
@pytest.mark.parametrize("name", GROUPS)
def test_captured_passes_are_the_same_to_the_bit(loaded, name, monkeypatch):
    editor, source = loaded(name)
    plan = editor.recording(clip(), steps=5)

    def runs():
        recorded = editor.record(source, plan)
        return [editor.edit(s, edited(), PROMPT, steps=5).latents for s in (source, recorded)]

    eager, backends = runs(), []

    @contextmanager
    def captured_forward(forward, device, graphs):
        backends.append(Taped())
        yield Graphs(forward, device, backends[-1], strict=True)

    monkeypatch.setattr("anyv2v.pipeline.stages.captured_forward", captured_forward)
    assert all(map(torch.equal, runs(), eager))
    assert sum(bool(b.tapes) for b in backends) == 2


@slow
@pytest.mark.parametrize("name", GROUPS)
def test_the_cost_is_predicted(loaded, folders, name):
    editor, _ = loaded(name)
    cost = predict_cost(editor, clip(), steps=5, inversion_steps=5)
    stored = sum(component.bytes for component in inspect(folders(name)).components)
    # the files' bytes are the weights and headers; halves are loaded as float32 on a CPU
    assert stored < cost.weights < 2.1 * stored
    injected = sum(step.way == "batched" for step in editor.step_plan(5).steps)
    count = editor.backbone.branch_count(editor.defaults.guidance)
    assert count == 2 and cost.sampling_branches in (count * 5, count * 5 + injected)
    assert cost.peak > cost.weights and set(cost.flops) >= {"invert", "sample", "encode", "decode"}


@slow
@pytest.mark.parametrize("name", GROUPS)
def test_the_command_line_takes_its_folder(folders, name, tmp_path, capfd):
    anyv2v.write_video(tmp_path / "clip.mp4", clip().frames, 8)
    Image.fromarray(edited()).save(tmp_path / "frame.png")
    arguments = ["edit", tmp_path / "clip.mp4", "--weights", folders(name), "--quiet"]
    arguments += ["--frame", tmp_path / "frame.png", "--prompt", PROMPT, "--steps", "5"]
    arguments += ["--frames", "4", "--size", "128x64", "-o", tmp_path / "out.mp4"]
    assert main([str(x) for x in arguments]) == 0, capfd.readouterr().err
    assert anyv2v.read_video(tmp_path / "out.mp4").frames.shape == (4, 64, 128, 3)
