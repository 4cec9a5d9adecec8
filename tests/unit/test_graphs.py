"""Captured passes equal eager ones to the bit, without a GPU by a tape that replays operations."""

import gc
import logging
import threading
import weakref
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import anyv2v
from anyv2v import NO_TAPS, Injection, InputError, Record, Replay, ShareSource, Taps
from anyv2v.injection.feature_cache import NO_FEATURES
from anyv2v.injection.taps import Capturable, Recorded
from anyv2v.pipeline import cuda_graphs as graphs_module
from anyv2v.pipeline.cuda_graphs import Cuda, Graphs, capture, resolve_graphs
from anyv2v.runtime.accounting import fake_mode
from anyv2v.runtime.streams import side_stream
from bench.core import Bench, Contender

CPU = torch.device("cpu")
THIRDS = Injection(0.34, 0.34, 0.67)
"""Of six steps two inject everything, two along the frames, two nothing."""
WAITS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique"}
"""Operations whose result the host waits for."""


def tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


@pytest.fixture(scope="module")
def video(video):
    return anyv2v.Video(video.frames[:2, :, :64], video.fps)


@pytest.fixture(scope="module")
def edited_frame(edited_frame):
    return edited_frame[:, :64]


class Watch(TorchDispatchMode):
    """Refuses what a capture on a GPU refuses: waiting for it, and copying numbers to it."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITS:
            raise RuntimeError(f"{name} waits for the device")
        # a list of numbers that becomes a tensor, to index with or else
        if name in ("lift_fresh", "lift_fresh_copy"):
            raise RuntimeError("numbers are copied from the host")
        out = func(*args, **(kwargs or {}))
        if any(x.device != self.device for x in tensors((args, kwargs, out))):
            raise RuntimeError(f"{name} takes or gives something on another device")
        return out


class Tape(Watch):
    """The operations that ran, and the very tensors that they ran on."""

    def __init__(self):
        super().__init__(CPU)
        self.ops, self.memory = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        given = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs))}
        made = [x for x in tensors(out) if x.untyped_storage().data_ptr() not in given]
        self.memory |= {x.untyped_storage().data_ptr(): x for x in made}
        if made or func._schema.is_mutable:
            self.ops.append((func, args, kwargs or {}, out))
        return out

    def play(self):
        for func, args, kwargs, out in self.ops:
            again = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for x, y in zip(tensors(out), tensors(again), strict=True):
                    x.copy_(y)


class Taped:
    """A backend whose passes share memory, as in a pool: playing one spoils what others gave."""

    def __init__(self):
        self.tapes, self.given = [], []

    def warm_up(self, run):
        return run()

    def capture(self, run):
        tape = Tape()
        with tape:
            outputs = run()
        self.tapes.append(tape)
        self.given.append(outputs)

        def replay():
            for x in tensors(self.given):
                x.fill_(float("nan"))
            tape.play()

        # nothing has run yet
        for x in tape.memory.values():
            if x.is_floating_point():
                x.fill_(float("nan"))
        return outputs, replay


@pytest.fixture
def taped(monkeypatch):
    """Editors capture on tapes from now on; gives the backend of each run."""
    runs = []

    @contextmanager
    def captured_forward(forward, device, graphs):
        backend = Taped()
        runs.append(backend)
        yield Graphs(forward, device, backend, strict=True)

    def start():
        monkeypatch.setattr("anyv2v.pipeline.stages.captured_forward", captured_forward)
        return runs

    return start


def same(a, b):
    return torch.equal(a.latents, b.latents) and np.array_equal(a.frames, b.frames)


def captures(runs):
    counts = [len(run.tapes) for run in runs]
    runs.clear()
    return counts


def test_every_run_is_the_same_to_the_bit(editor, video, edited_frame, taped):
    """Inversion, recording, replayed, shared and plain steps; and how many captures they take."""

    def invert():
        recording = editor.recording(video, THIRDS, 6)
        return editor.invert(video, steps=6, recording=recording)

    def edit(source, **options):
        options = dict(steps=6, injection=THIRDS) | options
        return editor.edit(source, edited_frame, "a robot", **options)

    eager = invert()
    bare = replace(eager, features=NO_FEATURES)
    shared, separate, replayed = edit(bare), edit(bare, source_pass="separate"), edit(eager)

    runs = taped()
    source = invert()
    # everything, temporal layers alone, nothing
    assert captures(runs) == [3]
    assert all(torch.equal(x, eager.trajectory[t]) for t, x in source.trajectory.items())
    assert source.residuals == eager.residuals
    for t, kept in eager.features.by_step.items():
        for site, parts in kept.items():
            assert all(map(torch.equal, parts, source.features.by_step[t][site]))
    assert len(source.features.by_step) == 4

    assert same(edit(source), replayed)
    assert captures(runs) == [3]
    assert same(edit(bare), shared)
    assert captures(runs) == [3]
    # a pass of the source and one of the edit, for each of two sets of sites
    assert same(edit(bare, source_pass="separate"), separate)
    assert captures(runs) == [5]


@pytest.mark.slow
def test_other_runs_too(editor, video, edited_frame, taped):
    def all_of_them():
        source = editor.invert(video, "ddim", 6, guidance=2.0)
        late = editor.record(source, editor.recording(video, THIRDS, 6))
        requests = [
            anyv2v.EditRequest(edited_frame, p, guidance=g) for p, g in (("a", 1), ("b", 9))
        ]
        return (
            [late.trajectory[831], *late.features.by_step[0]["up.1.spatial.1.block.self"]],
            editor.reconstruct(source, steps=6, start=3),
            *editor.edit_many(source, requests, steps=6, injection=THIRDS),
        )

    recorded, *eager = all_of_them()
    runs = taped()
    again, *captured = all_of_them()
    assert all(map(torch.equal, again, recorded))
    assert all(map(same, captured, eager))
    assert captures(runs) == [1, 2, 1, 3]


@pytest.fixture
def told(editor, edited_frame):
    """A row of conditions, and how to draw latents for it."""
    one = editor.condition("a robot", edited_frame, frames=2, size=(64, 64))
    shape = one.latents.shape[1:]
    generator = torch.Generator().manual_seed(0)
    return one, lambda rows: torch.randn(rows, *shape, generator=generator)


def sites(editor):
    return frozenset().union(*editor.backbone.groups.values())


@torch.no_grad()
def test_runs_at_the_same_time_share_no_memory(editor, told):
    one, draw = told
    conditions = [type(one).stack([one, one], rows) for rows in ([0, 1], [0, 0])]
    runs = [Graphs(editor.predict, CPU, Taped(), strict=True) for _ in range(2)]
    for t in (981, 961, 941):
        drawn = [draw(2), draw(1)]
        found = [run(x, t, c) for run, x, c in zip(runs, drawn, conditions, strict=True)]
        for x, c, v in zip(drawn, conditions, found, strict=True):
            assert torch.equal(v, editor.predict(x, t, c))


def test_a_capture_for_each_kind_of_call():
    def kept(*shape):
        return {"a": (torch.zeros(shape),)}

    one, other = object(), object()
    kinds = [
        (1, one, NO_TAPS),
        (2, one, NO_TAPS),
        (1, other, NO_TAPS),
        (1, one, ShareSource(["a", "b"], 2)),
        (1, one, ShareSource(["a"], 2)),
        (1, one, ShareSource(["a"], 3)),
        (1, one, Record(["a"])),
        (1, one, Record(["a", "b"])),
        (1, one, Record(["a"], compact=True)),
        (1, one, Record(["a"], stop=True)),
        (1, one, Replay(kept(2))),
        (1, one, Replay(kept(2, 1))),
        (1, one, Replay({"a": (torch.zeros(2, dtype=torch.float16),)})),
        (1, one, Replay({"b": (torch.zeros(2),)})),
    ]
    backend = Taped()
    graphs = Graphs(lambda x, t, conditions, taps: x + t, CPU, backend, strict=True)
    for t in (3, 2, 1):
        for rows, conditions, taps in kinds:
            x = torch.rand(rows, 4)
            assert torch.equal(graphs(x, t, conditions, taps), x + t)
    assert len(backend.tapes) == len(kinds)


def test_numbers_of_another_kind_are_captured_apart():
    """Latents of another shape or dtype, and timesteps that are fractions; to the last bit."""
    one, backend = object(), Taped()
    graphs = Graphs(lambda x, t, conditions, taps: x * (t / 3), CPU, backend, strict=True)
    for whole in (3, 2, 1):
        for t in (whole, 16777217.25 * whole, (1 << 24) + whole):
            for x in (torch.ones(1, dtype=torch.float64), torch.ones(1), torch.ones(2)):
                told = torch.tensor(t, dtype=torch.float64 if isinstance(t, float) else torch.int64)
                assert torch.equal(graphs(x, t, one), x * (told / 3))
    assert len(backend.tapes) == 6


def test_a_run_gives_its_graphs_and_their_memory_back(monkeypatch):
    """When it ends, whether well or not, though somebody still holds what it was given."""

    class Noted(Taped):
        def __init__(self, stream):
            super().__init__()
            self.cleared = 0
            backends.append(self)

        def clear(self):
            self.cleared += 1

    class Told:
        pass

    @contextmanager
    def stream(device, use):
        yield None

    backends = []
    monkeypatch.setattr(graphs_module, "Cuda", Noted)
    monkeypatch.setattr(graphs_module, "side_stream", stream)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *_, **__: x.clone())
    monkeypatch.setattr(torch, "zeros", lambda shape, dtype, device: torch.ones(1, dtype=dtype)[0])

    def forward(x, t, conditions, taps):
        return x + t

    given = []
    for error in (None, KeyboardInterrupt):
        told, left = Told(), None
        with suppress(KeyboardInterrupt):
            with graphs_module.captured_forward(forward, torch.device("cuda"), None) as captured:
                given.append(captured)
                for _ in range(3):
                    captured(torch.ones(2), 3, told)
                left = weakref.ref(told)
                if error:
                    raise error
        assert len(backends[-1].tapes) == 1 and backends[-1].cleared == 1
        backends[-1].tapes.clear()
        del told
        gc.collect()
        assert left() is None
    # where nothing is captured, it is the network's own
    for device, graphs in (("cpu", None), ("cuda", False)):
        with graphs_module.captured_forward(forward, torch.device(device), graphs) as plain:
            assert plain is forward
    assert len(backends) == 2


def test_a_run_whose_capture_failed_holds_nothing(caplog):
    class Told:
        pass

    def forward(x, t, conditions, taps):
        return x + t

    graphs, told = Graphs(forward, CPU, Torn()), Told()
    left = weakref.ref(told)
    for _ in range(3):
        assert torch.equal(graphs(torch.ones(2), 3, told), torch.full((2,), 4.0))
    assert graphs.reason
    del told
    gc.collect()
    assert left() is None


def test_a_captured_pass_reads_features_of_its_own():
    """What is replayed in the first step is not written over by that of the next."""
    graphs = Graphs(
        lambda x, t, conditions, taps: x + taps.graph_inputs()["a"][0], CPU, Taped(), strict=True
    )
    one, steps = object(), [{"a": (torch.full((2,), float(i)),)} for i in range(4)]
    found = [graphs(torch.ones(2), 1, one, Replay(kept)) for kept in steps]
    # nor is what it gave
    for i, (kept, given) in enumerate(zip(steps, found, strict=True)):
        assert torch.equal(given, torch.full((2,), 1.0 + i))
        assert torch.equal(kept["a"][0], torch.full((2,), float(i)))


def test_what_a_captured_pass_recorded_is_not_written_over():
    def forward(x, t, conditions, taps):
        taps.features["a"] = (x + t,)
        return 2 * x

    graphs, one = Graphs(forward, CPU, Taped(), strict=True), object()
    records = [Record(["a"]) for _ in range(4)]
    for t, record in enumerate(records):
        graphs(torch.ones(2), t, one, record)
    for t, record in enumerate(records):
        assert torch.equal(record.features["a"][0], torch.full((2,), 1.0 + t))


def test_the_graphs_of_a_run_are_ended_with_it(monkeypatch):
    """And before the first of them what is cached is given back, since a capture cannot take it."""
    happened = []
    graph = SimpleNamespace(
        replay=lambda: happened.append("replay"), reset=lambda: happened.append("reset")
    )
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: happened.append("give back"))
    monkeypatch.setattr(graphs_module, "capture", lambda run, stream, pool: (run(), graph))
    backend = Cuda("a stream")
    for _ in range(2):
        outputs, replay = backend.capture(lambda: happened.append("capture") or 3)
        assert outputs == 3
    replay()
    backend.clear()
    backend.clear()
    assert happened == ["give back", "capture", "capture", "replay", "reset", "reset"]


@torch.no_grad()
def test_taps_of_ones_own_are_called_unless_they_promise(editor, told):
    one, draw = told
    calls = []

    class Looks(Taps):
        def hidden(self, site, h):
            calls.append(site)
            return h

    class Heir(ShareSource):
        def feature(self, site, feature):
            calls.append(site)
            return super().feature(site, feature)

    class Doubles(Capturable):
        def hidden(self, site, h):
            return 2 * h

        def cache_key(self):
            return "doubles"

    backend = Taped()
    graphs = Graphs(editor.predict, CPU, backend, strict=True)
    for taps in (Looks(), Heir(["up.1.res.1"], 1)):
        for _ in range(3):
            calls.clear()
            graphs(draw(1), 901, one, taps)
            assert calls
    assert not backend.tapes
    for _ in range(3):
        x = draw(1)
        assert torch.equal(graphs(x, 901, one, Doubles()), editor.predict(x, 901, one, Doubles()))
    assert len(backend.tapes) == 1


@torch.no_grad()
@pytest.mark.parametrize(
    "fault", [lambda t: int(t), lambda t: torch.tensor([t.shape]), lambda t: t[None][[0]]]
)
def test_what_cannot_be_captured_runs_eagerly_and_says_why(editor, told, fault):
    one, draw = told
    faults = []

    def forward(x, t, conditions, taps):
        if isinstance(t, torch.Tensor):
            faults.append(t)
            fault(t)
        return editor.predict(x, t, conditions, taps)

    graphs = Graphs(forward, CPU, Taped())
    for t in (981, 961, 941, 921):
        x, record = draw(1), Record(sites(editor), stop=True)
        with pytest.raises(Recorded):
            graphs(x, t, one, record)
        truth = Record(sites(editor))
        editor.predict(x, t, one, truth)
        assert all(map(torch.equal, record.features["up.1.res.1"], truth.features["up.1.res.1"]))
    # the first warms up, the second fails, and no further is tried
    assert len(faults) == 2
    assert "waits" in graphs.reason or "from the host" in graphs.reason
    strict = Graphs(forward, CPU, Taped(), strict=True)
    strict(draw(1), 981, one)
    with pytest.raises(RuntimeError, match="could not be captured: (.* waits|numbers)"):
        strict(draw(1), 961, one)


class Torn(Taped):
    """A backend whose captures end halfway, when nothing has run of what they recorded."""

    def capture(self, run):
        tape = Tape()
        with tape:
            run()
        for x in tape.memory.values():
            if x.is_floating_point():
                x.fill_(float("nan"))
        raise RuntimeError("CUDA error: operation not permitted\nSearch for it at nvidia.com")


def test_a_run_whose_capture_fails_leaves_the_next_one_captured(
    editor, video, edited_frame, monkeypatch, caplog
):
    monkeypatch.setattr("anyv2v.pipeline.cuda_graphs._WARNED", set())
    backends = []

    @contextmanager
    def captured_forward(forward, device, graphs):
        backends.append(Taped() if backends else Torn())
        yield Graphs(forward, device, backends[-1])

    def edit():
        return editor.edit(source, edited_frame, "a robot", steps=6, injection=THIRDS)

    source = editor.invert(video, steps=6)
    eager = edit()
    monkeypatch.setattr("anyv2v.pipeline.stages.captured_forward", captured_forward)
    with caplog.at_level(logging.WARNING):
        assert same(edit(), eager) and same(edit(), eager)
    assert [len(backend.tapes) for backend in backends] == [0, 3]
    # without what CUDA adds
    (said,) = caplog.messages
    assert said.startswith("anyv2v: no CUDA graphs") and said.endswith("operation not permitted")


class Allocator:
    """What PyTorch's keeps of captures; and the generator's mark, and the current stream."""

    def __init__(self, version):
        self.version, self.routed, self.uses = version, [], Counter()
        self.marked, self.current = False, "default"

    def end(self, index, pool):
        if pool not in self.routed:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.routed.remove(pool)

    def release(self, index, pool):
        self.uses[pool] -= 1
        assert self.uses[pool] >= 0, "released twice"


class Graph:
    """What CUDAGraph.cpp does with them.

    In 2.11 an invalid capture leaves everything; from #180395 on it is told that it is over, from
    #190348 on the destructor releases its pool too.
    """

    def __init__(self, allocator):
        self.allocator, self.begun, self.ended = allocator, False, False

    def capture_begin(self, pool=None, capture_error_mode="global"):
        assert self.allocator.current == "side" and capture_error_mode == "thread_local"
        assert not self.allocator.routed
        self.pool, self.begun = pool or (id(self), 0), True
        self.allocator.uses[self.pool] += 1
        self.allocator.routed.append(self.pool)
        self.allocator.valid = self.allocator.marked = True

    def capture_end(self):
        if not self.allocator.valid:
            if self.allocator.version != "2.11":
                self.allocator.end(0, self.pool)
            raise RuntimeError("operation failed due to a previous error during capture")
        self.allocator.end(0, self.pool)
        self.allocator.marked, self.ended = False, True

    def reset(self):
        if self.ended or (self.begun and self.allocator.version == "#190348"):
            self.allocator.release(0, self.pool)
        self.begun = self.ended = False

    __del__ = reset


@pytest.mark.parametrize("version", ["2.11", "#180395", "#190348"])
def test_a_failed_capture_leaves_nothing_behind(monkeypatch, version):
    """An allocator as PyTorch's sources have it stands in for a GPU's."""
    allocator = Allocator(version)

    class On:
        def __init__(self, stream):
            pass

        def __enter__(self):
            allocator.current = "side"

        def __exit__(self, *error):
            allocator.current = "default"

    stream = SimpleNamespace(device=CPU, device_index=0, wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(allocator))
    monkeypatch.setattr(torch.cuda, "stream", On)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", allocator.end)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", allocator.release)

    def invalid():
        allocator.valid = False

    def waits():
        invalid()
        raise ValueError("waits for the device")

    def interrupted():
        raise KeyboardInterrupt

    out, first = capture(lambda: 1, stream, (0, 1))
    assert (out, allocator.uses[0, 1]) == (1, 1)
    for run, error, words in (
        (waits, ValueError, "waits"),
        (invalid, RuntimeError, "previous error"),
        (interrupted, KeyboardInterrupt, None),
    ):
        with pytest.raises(error, match=words):
            capture(run, stream, (0, 1))
        gc.collect()
        assert (allocator.routed, allocator.current) == ([], "default")
        # one for the graph that is still there
        assert +allocator.uses == Counter({(0, 1): 1}) and not allocator.marked
        capture(lambda: 2, stream, (0, 1))
    first.reset()
    assert not +allocator.uses


def test_streams_are_used_again(monkeypatch):
    made = []
    monkeypatch.setattr("anyv2v.runtime.streams._IDLE", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "Stream", lambda index: made.append(index) or object())

    def one(device, use="capture"):
        return side_stream(torch.device(device), use)

    with one("cuda") as a, one("cuda:0") as b, one("cuda:1") as c, one("cuda", "fetch") as d:
        assert len({a, b, c, d}) == 4
    with one("cuda") as first, one("cuda") as second, pytest.raises(InputError):
        with one("cuda:1") as third, one("cuda:0", "fetch") as fourth:
            assert ({first, second}, third, fourth) == ({a, b}, c, d)
            raise InputError("a run that fails")
    with one("cuda:1") as again:
        assert again is c
    assert made == [0, 0, 1, 0]


def test_nothing_waits_for_a_gpu_or_copies_to_it(editor):
    """What is captured, on tensors that are on a device that is not the host's."""
    with fake_mode("cuda") as device, torch.no_grad():
        there = anyv2v.Editor(editor.backbone.meta_copy(device))
        one = there.backbone.meta_conditions(2, 8, 8)
        pair = type(one).stack([one, one], [0, 0])
        three = type(one).stack([one, one, one], [0, 1, 1])
        every, backend = sites(editor), Watched(device)
        record = Record(every, compact=True)
        early = frozenset({"transformer_in.block.self"})
        for rows, conditions, taps in (
            (1, one, record),
            (1, pair, Replay(record.features)),
            (2, three, ShareSource(every, 3)),
            (2, three, ShareSource(early, 3)),
        ):
            graphs = Graphs(there.predict, device, backend, strict=True)
            graphs(torch.empty(rows, 4, 2, 8, 8, device=device), 981, conditions, taps)
            assert taps is not record or record.features.keys() == every
        assert backend.passes == 4


class Watched:
    """A backend that never gets further than warming up, under the eyes of `Watch`."""

    def __init__(self, device):
        self.device, self.passes = device, 0

    def warm_up(self, run):
        with Watch(self.device):
            outputs = run()
        self.passes += 1
        return outputs


def test_the_switch(editor, monkeypatch):
    cuda = torch.device("cuda")
    assert resolve_graphs(None, CPU) is None and resolve_graphs(False, CPU) is False
    with pytest.raises(InputError, match="need a CUDA device, not cpu"):
        anyv2v.load("demo", "cpu", graphs=True)
    monkeypatch.setenv("ANYV2V_GRAPHS", "0")
    assert resolve_graphs(None, cuda) is False and resolve_graphs(True, cuda) is True
    monkeypatch.setenv("ANYV2V_GRAPHS", "1")
    assert resolve_graphs(None, cuda) is True and resolve_graphs(False, cuda) is False
    with pytest.raises(InputError, match="need a CUDA device"):
        anyv2v.Editor(editor.backbone)
    monkeypatch.setenv("ANYV2V_GRAPHS", "yes")
    with pytest.raises(InputError, match="'yes' is not 0 or 1"):
        resolve_graphs(None, cuda)


@pytest.fixture(scope="module")
def on_gpu():
    """Editors of the demo model on a GPU, eager and captured."""

    def load(graphs):
        return anyv2v.load("demo", "cuda", torch.float16, graphs=graphs)

    return load(False), load(True)


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["replayed", "shared", "always", "separate"])
def test_on_a_gpu_it_is_the_same_to_the_bit(on_gpu, video, edited_frame, way):
    def run(editor):
        recording = editor.recording(video, THIRDS, 6) if way == "replayed" else None
        source = editor.invert(video, steps=6, recording=recording)
        pass_by = "shared" if way == "replayed" else way
        edit = editor.edit(
            source, edited_frame, "a", steps=6, injection=THIRDS, source_pass=pass_by
        )
        return source, edit

    (eager_source, eager), (source, edit) = map(run, on_gpu)
    for t, x in eager_source.trajectory.items():
        assert torch.equal(source.trajectory[t], x), t
    assert same(edit, eager)


@pytest.mark.gpu
def test_on_a_gpu_two_edits_at_once(on_gpu, video, edited_frame):
    eager, captured = on_gpu
    source, results = eager.invert(video, steps=6), [None, None]

    def edit(editor, i):
        return editor.edit(source, edited_frame, "ab"[i], steps=6, injection=THIRDS)

    def work(i):
        results[i] = edit(captured, i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(results[i], edit(eager, i)) for i in range(2))


@pytest.mark.gpu
def test_on_a_gpu_runs_do_not_take_more_and_more_memory(on_gpu, video, edited_frame):
    _, captured = on_gpu
    reserved = []
    for _ in range(4):
        source = captured.invert(video, steps=6)
        captured.edit(source, edited_frame, "a", steps=6, injection=THIRDS)
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[3] <= reserved[1], reserved


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_on_a_gpu_features_in_host_memory_give_the_same(on_gpu, video, edited_frame, graphs):
    editor = on_gpu[graphs]
    here = editor.recording(video, THIRDS, 6)
    there = replace(here, placement=dict.fromkeys(here.placement, "host"))
    edits = []
    for recording, place in ((here, "device"), (there, "host")):
        assert set(recording.placement.values()) == {place} and recording.bytes(place) > 0
        source = editor.invert(video, steps=6, recording=recording)
        edits.append(editor.edit(source, edited_frame, "a", steps=6, injection=THIRDS))
    assert same(*edits)
    source.features.wait()
    kept = tensors([*map(dict, source.features.by_step.values())])
    assert len(source.features.by_step) == 4 and all(x.is_pinned() for x in kept)


@pytest.mark.gpu
def test_on_a_gpu_a_contender_that_cannot_be_captured_runs_as_it_is():
    bench = Bench("cuda", full=False, seconds=0.01, dtype=torch.float16)
    x = torch.ones(8, device="cuda")

    def waits():
        return x * x.sum().item()

    for case in "ab":
        contenders = [Contender("captured", lambda: x * x.sum()), Contender("waits", waits)]
        bench.case(
            case, contenders, lambda name, out: (out - 8).abs().max().item(), 0.0, captured=True
        )
        torch.randn(8, device="cuda")
    assert not bench.faults and [row["status"] for row in bench.rows] == ["measured"] * 4


# the last: should it leave something behind, the others have run
@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_a_failed_capture_leaves_it_working(on_gpu, video, edited_frame):
    eager, captured = on_gpu
    one = eager.condition("a", edited_frame, frames=2, size=(64, 64))
    x = torch.randn(one.latents.shape, device="cuda")

    def forward(latents, t, conditions, taps):
        return eager.predict(latents, int(t), conditions, taps)

    device, before = torch.device("cuda"), torch.cuda.current_stream()
    with side_stream(device, "capture") as stream:
        graphs = Graphs(forward, device, Cuda(stream))
        for t in (981, 961, 941):
            assert torch.equal(graphs(x, t, one), eager.predict(x, t, one))
    assert graphs.reason
    assert torch.cuda.current_stream() == before and not torch.cuda.is_current_stream_capturing()
    # an allocator that takes a capture for unfinished, and a generator likewise, would refuse
    torch.cuda.empty_cache()
    assert torch.randn(8, device="cuda").isfinite().all()
    edits = []
    for editor in (eager, captured):
        source = editor.invert(video, steps=6)
        edits.append(editor.edit(source, edited_frame, "a", steps=6, injection=THIRDS))
    assert same(*edits)
    torch.cuda.empty_cache()
