"""What waits on the host while it is not needed; copies on the CPU stand in for those on a GPU."""

import threading
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import anyv2v
from anyv2v import InputError
from anyv2v.pipeline import cost
from anyv2v.runtime import offload
from anyv2v.runtime.accounting import fake_mode
from anyv2v.runtime.offload import Offload
from bench.counted import FRAMES, SIZE, published_size

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def networks():
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.BatchNorm1d(5)


@pytest.fixture
def places(monkeypatch):
    """Where the weights of networks are; they are moved by copying them."""
    on_host = {}

    def moved(x, device):
        copy = x.clone()
        if device == CPU:
            # kept, so that no other memory gets its address
            on_host[copy.data_ptr()] = copy
        return copy

    monkeypatch.setattr(offload, "_moved", moved)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: mock.Mock())

    def places(*networks):
        return [
            {"host" if x.data_ptr() in on_host else "gpu" for x in network.state_dict().values()}
            for network in networks
        ]

    return places


def test_they_come_when_needed_and_leave_with_the_last_user(places):
    one, two = networks()
    before = {name: x.clone() for name, x in one.state_dict().items()}
    strides, objects = one.weight.stride(), [id(p) for p in one.parameters()]
    waiting = Offload((one, two), GPU, True)
    assert places(one, two) == [{"host"}, {"host"}] and waiting.freeable == 0
    with waiting.on_device(one):
        assert places(one, two) == [{"gpu"}, {"host"}]
        assert one.weight.stride() == strides
        with waiting.on_device(one, two):
            assert places(one, two) == [{"gpu"}, {"gpu"}]
        assert places(one, two) == [{"gpu"}, {"host"}]
        assert waiting.freeable == sum(x.nbytes for x in one.state_dict().values())
    assert places(one, two) == [{"host"}, {"host"}]
    # the same weights in the same objects
    assert all(torch.equal(x, before[name]) for name, x in one.state_dict().items())
    assert [id(p) for p in one.parameters()] == objects and one.weight.stride() == strides


def test_they_leave_after_an_error_too(places):
    (one, _), waiting = (pair := networks()), Offload(pair, GPU, True)
    with pytest.raises(ZeroDivisionError), waiting.on_device(one):
        raise ZeroDivisionError
    assert places(one) == [{"host"}]


def test_where_one_does_not_fit_all_stay_at_home(places, monkeypatch):
    (one, two), moved = networks(), offload._moved
    waiting = Offload((one, two), GPU, True)

    def full(x, device):
        if x.shape == (5,):
            raise torch.OutOfMemoryError("full")
        return moved(x, device)

    monkeypatch.setattr(offload, "_moved", full)
    with pytest.raises(torch.OutOfMemoryError), waiting.on_device(one, two):
        raise AssertionError("one is missing")
    assert places(one, two) == [{"host"}, {"host"}]
    monkeypatch.setattr(offload, "_moved", moved)
    with waiting.on_device(one, two):
        assert places(one, two) == [{"gpu"}, {"gpu"}]


def test_auto_waits_for_a_job_that_is_short(places, monkeypatch):
    one, two = networks()
    monkeypatch.setattr(offload, "free_bytes", lambda device: 1000)
    waiting = Offload((one, two), GPU, "auto")
    waiting.begin(1000)
    with waiting.on_device(one):
        assert not waiting.applies_to(1000) and waiting.applies_to(1001)
    assert places(one, two) == [{"gpu"}, {"gpu"}] and waiting.freeable > 0
    with waiting.on_device(one):
        waiting.begin(1001)  # another thread's
        assert places(one, two) == [{"gpu"}, {"host"}]
    assert places(one, two) == [{"host"}, {"host"}] and waiting.applies_to(0)


@pytest.mark.parametrize("wanted", [True, "auto", False])
def test_on_a_cpu_and_where_it_is_not_wanted_they_stay(wanted, places, monkeypatch):
    monkeypatch.setattr(offload, "free_bytes", lambda device: 0)
    one, two = networks()
    stays = [Offload((one, two), CPU, wanted)]
    if wanted is False:
        stays.append(Offload((one, two), GPU, False))
    for waiting in stays:
        before = places(one, two)
        waiting.begin(10**12)
        with waiting.on_device(one):
            pass
        assert places(one, two) == before and not waiting.applies_to(10**12)
        assert waiting.freeable == 0


def test_several_threads_may_use_them(places):
    """Nobody finds a network gone while he uses it, and in the end all have left."""
    one, two = networks()
    waiting, wrong = Offload((one, two), GPU, True), []
    start = threading.Barrier(8)

    def work(seed):
        start.wait()
        for i in range(200):
            used = (one, two)[: 1 + (seed + i) % 2]
            with waiting.on_device(*used):
                wrong.extend(p for p in places(*used) if p != {"gpu"})

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and places(one, two) == [{"host"}, {"host"}]


def test_memory_is_given_back_when_all_that_ran_has_ended(places, monkeypatch):
    """First the stream is waited for, then the weights leave, then the allocator lets go."""
    one, two = networks()
    happened = []

    def note(what):
        happened.append((what, *places(one, two)))

    stream = mock.Mock(synchronize=lambda: note("waited"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: note("let go"))
    waiting = Offload((one, two), GPU, True)
    assert happened == [("let go", {"host"}, {"host"})]
    happened.clear()
    with waiting.on_device(one):
        with waiting.on_device(one):
            pass
        # nobody has left
        assert happened == [("waited", {"gpu"}, {"host"})]
        happened.clear()
    assert happened == [("waited", {"gpu"}, {"host"}), ("let go", {"host"}, {"host"})]
    # an allocator that cannot let go during another's capture keeps nobody here
    monkeypatch.setattr(torch.cuda, "empty_cache", mock.Mock(side_effect=RuntimeError("capturing")))
    with waiting.on_device(two):
        assert places(two) == [{"gpu"}]
    assert places(one, two) == [{"host"}, {"host"}]
    # where all stay, nothing is waited for
    happened.clear()
    with Offload(networks(), GPU, False).on_device():
        pass
    assert not happened


@pytest.mark.parametrize("room, where", [(1.2, "gpu"), (1.05, "host")])
@pytest.mark.parametrize("wanted", [True, "auto", False])
def test_a_network_that_is_read_stays_until_its_last_user_has_left(
    places, wanted, room, where, monkeypatch
):
    """It is read when it first runs; a user that does not run it reads nothing.

    Where it has no room it runs on the host.
    """
    monkeypatch.setattr(offload, "free_bytes", lambda device: 0)
    one, two = networks()
    read, weights = [], [x.clone() for x in (*one.parameters(), *one.buffers())]
    truth = one(torch.ones(1, 3, 4, 4))

    def reload(device):
        read.append(device)
        return [x.clone() for x in weights]

    with torch.no_grad():
        for x in one.parameters():
            x.fill_(torch.nan)
    waiting = Offload((one, two), GPU, wanted, reload={one: reload})
    assert waiting.reloads(one) and not waiting.reloads(two)
    each = sum(x.nbytes for x in two.state_dict().values())
    waiting.begin(1)
    own = sum(x.nbytes for x in weights)
    monkeypatch.setattr(offload, "free_bytes", lambda device: room * own)
    assert one(torch.ones(1, 3, 4, 4)).isnan().all()
    for times in (1, 2):
        with waiting.on_device(one):
            assert len(read) == times - 1
            with waiting.on_device(one, two):
                assert torch.equal(one(torch.ones(1, 3, 4, 4)), truth)
                # those that go anyway are nobody's to count on
                assert waiting.freeable == (each if wanted else 0)
            assert torch.equal(one(torch.ones(1, 3, 4, 4)), truth)
            assert len(read) == times
            assert all(map(torch.equal, weights, (x.data for x in one.parameters())))
            assert places(one) == [{where}] and read[-1] == (GPU if where == "gpu" else CPU)
        assert all(x.isnan().all() for x in one.parameters())
    assert places(two) == [{"host"} if wanted else {"gpu"}]


def test_weights_are_copied_to_the_host_once(places, monkeypatch):
    one, two = networks()
    waiting, copied, moved = Offload((one, two), GPU, True), [], offload._moved
    before = [x.data_ptr() for x in one.parameters()]

    def look(x, device):
        copied.append(device.type)
        return moved(x, device)

    monkeypatch.setattr(offload, "_moved", look)
    for _ in range(2):
        with waiting.on_device(one):
            pass
    assert set(copied) == {"cuda"} and [x.data_ptr() for x in one.parameters()] == before


def test_what_else_is_asked_for_is_refused(weights):
    with pytest.raises(InputError, match="offload: 'sometimes' is not True, False or 'auto'"):
        anyv2v.load(weights, "cpu", offload="sometimes")


@pytest.fixture
def watched(weights, monkeypatch):
    """An editor whose networks refuse to run while they are away, and the moves that were made."""
    editor, moves = anyv2v.load(weights, "cpu"), []
    backbone = editor.backbone
    named = {"text": backbone.text, "vision": backbone.vision, "encoder": backbone.codec.encoder}
    names = {id(next(network.parameters())): name for name, network in named.items()}

    def come(self, device):
        if self.away:
            moves.append("+" + names[id(self.tensors[0])])
        self.away = False

    def leave(self, host):
        moves.append("-" + names[id(self.tensors[0])])
        self.away = True

    monkeypatch.setattr(offload._Offloaded, "to_device", come)
    monkeypatch.setattr(offload._Offloaded, "to_host", leave)
    editor.offload = Offload(named.values(), CPU, True, host=GPU)
    for network in named.values():

        def check(module, args):
            # a network without data has hooks too, but waits nowhere
            waiting = editor.offload._networks.get(module)
            assert waiting is None or not waiting.away

        network.register_forward_pre_hook(check)
    return editor, moves


def test_every_stage_brings_what_it_needs_and_sends_it_home(watched, editor, video, edited_frame):
    ours, moves = watched
    towers = ["text", "vision"]

    def moved(come, leave):
        assert moves == [f"+{x}" for x in come] + [f"-{x}" for x in leave]
        moves.clear()

    assert sorted(moves) == ["-encoder", "-text", "-vision"]
    moves.clear()
    ours.encode_text("a robot")
    moved(towers, towers)
    ours.encode_image(edited_frame)
    moved(towers, towers)
    ours.encode_frames(video.frames)
    moved(["encoder"], ["encoder"])
    seen = []
    source = ours.invert(video, steps=5, on_step=lambda *_: seen.append(list(moves)))
    # while it runs, nothing moves: encoder first, then what makes conditions
    assert len(seen) == 5 and all(now == moves for now in seen)
    assert moves == ["+encoder", "-encoder", "+text", "+vision", "-text", "-vision"]
    moves.clear()
    options = {"steps": 5, "on_step": lambda *_: seen.append(list(moves))}
    seen.clear()
    edit = ours.edit(source, edited_frame, "a robot", **options)
    assert len(seen) == 5 and all(now == moves for now in seen)
    assert sorted(moves[-2:]) == ["-text", "-vision"] and "+encoder" in moves
    ours.reconstruct(source, steps=5)
    ours.generate(edited_frame, "a robot", 4, (128, 64), steps=5)
    ours.condition("a robot", edited_frame, 4, (128, 64))
    ours.record(source, ours.recording(video, steps=5))
    assert all(waiting.away for waiting in ours.offload._networks.values())
    plain = editor.edit(editor.invert(video, steps=5), edited_frame, "a robot", steps=5)
    assert torch.equal(plain.latents, edit.latents)


@pytest.mark.slow
def test_the_published_model_edits_in_less_than_6_5_gb(monkeypatch):
    """512x512, 16 frames, float16, the source riding along: as `anyv2v plan` counts it."""
    editor = published_size()
    video = anyv2v.Video(np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8), 8)
    # networks without data lie on no GPU; it is to be planned for one
    monkeypatch.setattr(cost, "fake_mode", lambda _: fake_mode("cuda"))
    networks = *editor.backbone.conditioners, editor.backbone.codec.vae.encoder
    apart = {}
    for wanted in (False, True):
        here = mock.Mock(applies_to=lambda _, wanted=wanted: wanted, reloads=lambda network: False)
        here.reloaded = 0
        monkeypatch.setattr(editor, "offload", here)
        apart[wanted] = cost.predict_cost(editor, video, feature_memory=0)
    leaves = sum(x.nbytes for network in networks for x in network.parameters())
    assert apart[True].offloaded == leaves and apart[False].offloaded == 0
    assert apart[True].peak == apart[False].peak - leaves <= 6.5e9
    assert f"{leaves / 1e9:.3g} GB wait on the host" in str(apart[True])
    assert "wait on the host" not in str(apart[False])
