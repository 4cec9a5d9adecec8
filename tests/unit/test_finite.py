"""Values that are not finite, put into every part: told where they are, and never shown."""

import math
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import anyv2v
from anyv2v import EditRequest, Injection, InputError, NotFiniteError
from anyv2v.backbones.i2vgen.schedule import schedule
from anyv2v.cli.main import main
from anyv2v.diffusion.inversion import InversionState, ddim, fixed_point
from anyv2v.diffusion.samplers import sample
from anyv2v.pipeline import planning
from anyv2v.pipeline.request import Edit
from anyv2v.pipeline.source import Unfinished
from anyv2v.runtime.finite import FLAGS_PER_BUFFER, FiniteCheck, finite_flags, remedy
from anyv2v.vae.autoencoder import Autoencoder
from tests.draw import normal

SCHEDULE = schedule()
BAD = [math.nan, math.inf, -math.inf]


def spoiled(step, value=math.nan):
    """A network that gives such a value in one step, at one place."""

    def predict(level, x):
        v = torch.tanh(x.roll(1, -1))
        if level.index == step:
            v.view(-1)[-3] = value
        return v

    return predict


class Device:
    """Marks places in its work, and comes to each when `lag` more are marked; counts waiting."""

    def __init__(self, lag):
        self.lag, self.marked, self.reached, self.waits = lag, 0, 0, 0

    def __call__(self, device):
        self.marked += 1
        self.reached = max(self.reached, self.marked - self.lag)
        return Place(self, self.marked)


class Place:
    def __init__(self, device, number):
        self._device, self._number = device, number

    def query(self):
        return self._number <= self._device.reached

    def synchronize(self):
        self._device.waits += 1
        self._device.reached = max(self._device.reached, self._number)


@pytest.mark.parametrize("value", BAD)
def test_rows_that_are_not_finite_are_found(value):
    x = normal(3, 4, 2, 5, 5)
    assert finite_flags(x).tolist() == [True] * 3
    x[1, 3, 1, 4, 4] = value
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert finite_flags(x.to(dtype)).tolist() == [True, False, True]


def inverted(method, predict, check=None, steps=20):
    *_, last = method(
        predict, InversionState.start(normal(1, 4, 3, 5, 6)), SCHEDULE, steps, check=check
    )
    return last


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("step", [0, 7, 19])
def test_the_step_is_told_in_which_it_appears(step, value):
    told = rf"in step {step} \(timestep {{}}\)"
    downwards = SCHEDULE.timesteps(20)
    steps = []
    with pytest.raises(NotFiniteError, match=told.format(downwards[step])):
        sample(
            spoiled(step, value), normal(2, 4, 3, 5, 6), SCHEDULE, 20, 0, lambda *a: steps.append(a)
        )
    assert len(steps) == step
    for method in (ddim, fixed_point):
        with pytest.raises(NotFiniteError, match=told.format(downwards[::-1][step])):
            inverted(method, spoiled(19 - step, value))


def test_a_clip_of_zeros_is_finite():
    """A residual relative to nothing is no fault of the network."""
    zeros = InversionState.start(torch.zeros(1, 4, 3, 5, 6))
    *_, last = fixed_point(lambda level, x: 0 * x + 1e-3, zeros, SCHEDULE, 3)
    assert all(x.isfinite().all() for x in last.trajectory.values())


@pytest.mark.parametrize("lag, done", [(0, 7), (3, 10), (1000, 20)])
def test_flags_that_come_late_still_name_the_step(lag, done):
    for run in (
        lambda check, steps: sample(
            spoiled(7), normal(2, 4, 3, 5, 6), SCHEDULE, 20, 0, lambda *a: steps.append(a), check
        ),
        lambda check, steps: (inverted(ddim, spoiled(12), check), check.finish()),
    ):
        check, steps = FiniteCheck(record=Device(lag)), []
        with pytest.raises(NotFiniteError, match=r"in step 7 \(") as error:
            run(check, steps)
        assert error.value.batch_indices == ((1,) if steps else (0,))
        assert len(steps) in (0, done)


def test_more_flags_than_a_piece_of_memory_has_room_for():
    check = FiniteCheck(lambda place, rows: f"{place} {rows}", Device(10**9))
    rows = FLAGS_PER_BUFFER // 2 - 1
    for place in range(7):
        x = torch.zeros(rows, 1)
        x[place] = math.nan if place >= 5 else 0.0
        check.look(x, place)
    with pytest.raises(NotFiniteError, match=r"^5 \[5\]$"):
        check.finish()


class Syncs(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket._qualified_op_name
        waits = name in ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal")
        waits |= name in ("aten::_to_copy", "aten::copy_") and not (
            kwargs.get("non_blocking") or (name == "aten::copy_" and args[2:] == (True,))
        )
        self.count += waits
        return function(*args, **kwargs)


def test_no_step_waits_for_the_device(monkeypatch):
    def count():
        found = []
        for run in (
            lambda check: sample(spoiled(None), latents, SCHEDULE, 3, check=check),
            lambda check: (inverted(ddim, spoiled(None), check, 3), check.finish()),
            lambda check: (inverted(fixed_point, spoiled(None), check, 3), check.finish()),
        ):
            device = Device(2)
            with Syncs() as syncs:
                run(FiniteCheck(record=device))
            found.append((syncs.count, device.waits))
        return found

    latents = normal(1, 4, 3, 5, 6)
    found = count()
    monkeypatch.setattr(FiniteCheck, "look", lambda *args: None)
    bare = count()
    # once, at the end
    assert [count for count, _ in found] == [count for count, _ in bare]
    assert [waits for _, waits in found] == [1, 1, 0]
    # only the fixed point asks the device for something, its residuals
    assert [count > 0 for count, _ in bare] == [False, False, True]


def test_what_to_do_depends_on_the_dtype_and_on_the_guidance():
    assert "--dtype bfloat16" in remedy(torch.float16) and "float32" in remedy(torch.float16)
    for dtype in (torch.float32, torch.bfloat16):
        assert "weights are broken" in remedy(dtype)
    assert "bfloat16" in remedy(torch.float32)
    assert remedy(torch.float16, 9.0) == remedy(torch.float16)
    for dtype in (torch.float16, torch.float32):
        assert "guidance of 1e+38" in remedy(dtype, 1e38) and "float" not in remedy(dtype, 1e38)


# an editor


@pytest.fixture(scope="module")
def source(editor, video):
    return editor.invert(anyv2v.Video(video.frames[:3, :16, :16], 8), "ddim", steps=8)


@pytest.fixture
def spoil(editor, monkeypatch):
    """Puts NaN into what the network says, at one timestep and in one row from the end."""

    def spoil(t_bad, row=-1):
        predict = editor.predict

        def wrong(latents, t, conditions, taps=anyv2v.NO_TAPS):
            v = predict(latents, t, conditions, taps)
            if t == t_bad:
                v[row].view(-1)[0] = math.nan
            return v

        monkeypatch.setattr(editor, "predict", wrong)

    return spoil


def run(editor, source, frame, **changed):
    options = dict(steps=8, guidance=1.0, injection=Injection(0.2, 0.2, 0.2)) | changed
    return editor.edit(source, frame, "a robot", **options)


def test_a_network_in_sampling(editor, source, edited_frame, spoil):
    t, steps = editor.schedule.timesteps(8)[7], []
    spoil(t)
    told = rf"sampling: the network .* in step 7 \(number 8 of 8, timestep {t}\): .*bfloat16"
    for call in (
        lambda: run(editor, source, edited_frame, start=5, on_step=lambda *a: steps.append(a)),
        lambda: editor.reconstruct(source, steps=8, start=6),
        lambda: editor.generate(edited_frame, "", frames=2, size=(16, 16), steps=8, guidance=1),
    ):
        with pytest.raises(NotFiniteError, match=told):
            call()
    assert len(steps) == 2


def test_a_network_in_inversion(editor, source, spoil, tmp_path, monkeypatch):
    small = source.video
    t = editor.schedule.timesteps(8)[::-1][5]
    spoil(t)
    told = rf"inversion: the network .* in step 5 \(number 6 of 8, timestep {t}\): .*bfloat16"
    for method in ("ddim", "fixed-point"):
        with pytest.raises(NotFiniteError, match=told):
            editor.invert(small, method, 8)
    # flags of a GPU come late; what is written now and then waits for them
    make, path = editor._step_check, tmp_path / "half.unfinished"

    def late(*args):
        check = make(*args)
        check._record = Device(10**9)
        return check

    monkeypatch.setattr(editor, "_step_check", late)
    monkeypatch.setattr("anyv2v.pipeline.source.SAVE_EVERY", 0.0)
    with pytest.raises(NotFiniteError, match=told):
        editor.invert(small, "ddim", 8, unfinished=Unfinished(path))
    monkeypatch.undo()
    steps = []
    editor.invert(small, "ddim", 8, unfinished=Unfinished(path), on_step=lambda *a: steps.append(a))
    assert [i for i, *_ in steps] == [5, 6, 7]


def test_one_edit_of_several_is_named(editor, source, edited_frame, spoil, monkeypatch):
    t = editor.schedule.timesteps(4)[3]
    requests = [EditRequest(edited_frame, prompt, guidance=1.0) for prompt in ("a", "b", "c")]
    spoil(t)  # of a batch the last row
    for at_once, told in ((3, r"2 \(number 3 of 3\) 'c'"), (2, r"1 \(number 2 of 3\) 'b'")):
        monkeypatch.setattr(editor, "_batch", lambda s, f, edits, each, n=at_once: min(n, edits))
        with pytest.raises(NotFiniteError, match=rf"in step 3 .*, of edit {told}: ") as error:
            editor.edit_many(source, requests, steps=4)
        assert error.value.batch_indices == (at_once - 1,)


def test_an_edit_of_a_later_batch_is_named_by_its_place_among_all(
    editor, source, edited_frame, monkeypatch
):
    vae, told = editor.backbone.codec.vae, r"in {}, of edit 1 \(number 2 of 2\) 'b': "
    decode, decoded = vae.decode, []

    def second(guidance=1.0):
        scales = {"a": 1.0, "b": guidance}
        requests = [EditRequest(edited_frame, x, guidance=scales[x]) for x in scales]
        first, second = editor.edit_each(source, requests, steps=2)
        assert isinstance(first, Edit)
        raise second

    def spoil(x):
        decoded.append(x)
        # frame 1 of the second edit's three
        return decode(x) * math.nan if len(decoded) == 5 else decode(x)

    with pytest.raises(NotFiniteError, match=told.format(r"step . \(.*\)")):
        second(guidance=3e38)
    monkeypatch.setattr(vae, "decode", spoil)
    with pytest.raises(NotFiniteError, match=told.format(r"frame 1 \(number 2 of 3\)")):
        second()


@pytest.mark.slow
def test_a_recording(editor, source, monkeypatch):
    recording = editor.recording(source.video, Injection(0.2, 0.2, 0.2), 8)
    ((i, sites),) = recording.sites.items()
    t = recording.levels[i].t
    recorded = planning.record_features

    def wrong(*args):
        kept = recorded(*args)
        kept[min(sites)][0].view(-1)[0] = math.inf
        return kept

    monkeypatch.setattr("anyv2v.pipeline.planning.record_features", wrong)
    with pytest.raises(NotFiniteError, match=f"features: .* at {min(sites)}, timestep {t}: "):
        editor.record(source, recording)


def test_an_autoencoder(editor, source, edited_frame, monkeypatch):
    vae, calls = editor.backbone.codec.vae, []

    def spoil(name):
        plain, calls[:] = getattr(vae, name), []

        def wrong(x, *args):
            calls.append(1)
            found = plain(x, *args)
            return found * math.nan if len(calls) == 3 else found

        monkeypatch.setattr(vae, name, wrong)

    spoil("decode")
    told = r"autoencoder's {} gave .* in frame 2 \(number 3 of 3\)"
    with pytest.raises(NotFiniteError, match=told.format("decoder")):
        run(editor, source, edited_frame, steps=4)
    calls.clear()
    with pytest.raises(NotFiniteError, match=told.format("decoder")):
        editor.decode(source.trajectory[0])
    spoil("encode")
    with pytest.raises(NotFiniteError, match=told.format("encoder")):
        editor.invert(source.video, steps=5)


def test_a_text_tower_and_an_image_tower(editor, source, edited_frame, monkeypatch):
    for name, told in (("text", "text tower, of 'a robot' gave"), ("vision", "image tower gave")):
        tower = getattr(editor.backbone, name)
        plain = tower.forward
        with monkeypatch.context() as patch:
            patch.setattr(tower, "forward", lambda *a, plain=plain: plain(*a) + math.inf)
            with pytest.raises(NotFiniteError, match=f"the {told} values"):
                editor.edit(source, edited_frame, "a robot", steps=4) if name == "vision" else (
                    editor.encode_text("a robot")
                )


@pytest.mark.slow
def test_a_guidance_that_is_too_large_is_what_is_blamed(editor, source, edited_frame):
    with pytest.raises(NotFiniteError, match=r"a guidance of 1e\+38 is too large") as error:
        run(editor, source, edited_frame, guidance=1e38)
    assert "float32" not in str(error.value)


def test_noise_that_is_not_finite_is_the_callers(editor, source, edited_frame):
    noise = torch.full_like(source.trajectory[0], math.nan)
    with pytest.raises(InputError, match="noise"):
        run(editor, source, edited_frame, random_ratio=0.5, noise=noise)


def test_nothing_is_written(weights, source, tmp_path, monkeypatch, capsys):
    """The command exits with 1 and one line, and leaves no file."""
    path, frame, output = (tmp_path / n for n in ("s.safetensors", "f.png", "out.mp4"))
    source.save(path)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(frame)
    decode = Autoencoder.decode
    monkeypatch.setattr(Autoencoder, "decode", lambda self, x: decode(self, x) * math.nan)
    args = ["edit", path, "--frame", frame, "--prompt", "x", "-o", output, "--steps", "1"]
    args += ["--weights", weights, "--device", "cpu", "--quiet"]
    assert main([str(arg) for arg in args]) == 1
    # what is said before is that nothing is injected in so few steps
    line = capsys.readouterr().err.splitlines()[-1]
    assert "autoencoder's decoder" in line and "frame 0" in line
    assert not output.exists()


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for():
    check, x = FiniteCheck(), torch.zeros(2, 4, 3, 5, 6, device="cuda")
    check.look(x, (0, 0))  # asks for pinned memory
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(2 * 10**9)  # about a second
        began = time.monotonic()
        for i in range(1, 50):
            x[1, 0, 0, 0, 0] = math.nan if i == 30 else 0.0
            check.look(x, (i, i))
        assert time.monotonic() - began < 0.5
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(NotFiniteError, match=r"in step 30 \(") as error:
        check.finish()
    assert error.value.batch_indices == (1,)


@pytest.mark.gpu
def test_a_run_on_a_gpu_tells_the_step_soon(video, monkeypatch):
    editor = anyv2v.load("demo", device="cuda", dtype=torch.float16, graphs=False)
    clip = anyv2v.Video(video.frames[:4, :32, :32], 8)
    source = editor.invert(clip, "ddim", steps=25)
    predict, steps = editor.predict, []
    bad = editor.schedule.timesteps(25)[7]

    def wrong(latents, t, conditions, taps=anyv2v.NO_TAPS):
        v = predict(latents, t, conditions, taps)
        return v * torch.where(torch.as_tensor(t, device=v.device) == bad, math.nan, 1.0)

    monkeypatch.setattr(editor, "predict", wrong)
    told = r"the network .* in step {} \(number {} of 25, timestep {}\): --dtype bfloat16"
    with pytest.raises(NotFiniteError, match="sampling: " + told.format(7, 8, bad)):
        editor.reconstruct(source, steps=25, on_step=lambda *a: steps.append(a))
    for method in ("ddim", "fixed-point"):
        with pytest.raises(NotFiniteError, match="inversion: " + told.format(17, 18, bad)):
            editor.invert(clip, method, steps=25)
