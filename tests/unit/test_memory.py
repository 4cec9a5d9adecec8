"""What counts as enough memory, what would fit where it is not, and where features wait."""

import os
import weakref
from io import StringIO
from types import SimpleNamespace

import pytest
import torch

from anyv2v import InputError
from anyv2v.injection import feature_cache as features
from anyv2v.injection.feature_cache import FeatureCache, Playback
from anyv2v.runtime import memory

CPU, META = torch.device("cpu"), torch.device("meta")
PAGE = os.sysconf("SC_PAGE_SIZE")


def test_no_size_is_told_as_zero_but_zero():
    sizes = {0: "0 bytes", 999: "999 bytes", 5000: "0.01 MB", 4_990_000: "4.99 MB"}
    sizes |= {5_000_000: "0.01 GB", 4_980_000_000: "4.98 GB", -3: "-3 bytes"}
    assert {count: memory.size_text(count) for count in sizes} == sizes


@pytest.mark.parametrize("short_by", [1, 2, 4, 100])
def test_a_size_that_would_fit_is_named_and_fits(monkeypatch, short_by):
    """Memory grows with the area; a twentieth of each side is left free."""

    def needed(width, height):
        return 7 * width * height

    need = needed(640, 480)
    monkeypatch.setattr(memory, "free_bytes", lambda device: need // short_by - 1)
    with pytest.raises(InputError, match="640x480 with 5 frames") as refused:
        memory.require_memory(needed, (640, 480), 5, 16, CPU)
    told = str(refused.value).split("; ")[1].removesuffix(" would fit")
    fits = tuple(map(int, told.split("x")))
    wanted = [0.95 * side / short_by**0.5 for side in (640, 480)]
    for side, most in zip(fits, wanted, strict=True):
        assert side % 16 == 0 and most - 17 < side <= most
    memory.require_memory(needed, fits, 5, 16, CPU)
    # a byte more is enough, and so is what may be freed
    monkeypatch.setattr(memory, "free_bytes", lambda device: need)
    memory.require_memory(needed, (640, 480), 5, 16, CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda device: need - 9)
    memory.require_memory(needed, (640, 480), 5, 16, CPU, freeable=9)
    with pytest.raises(InputError):
        memory.require_memory(needed, (640, 480), 5, 16, CPU, freeable=8)


def test_no_size_is_smaller_than_what_divides_every_size(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1)
    with pytest.raises(InputError, match="16x16 would fit"):
        memory.require_memory(lambda w, h: w * h, (640, 480), 5, 16, CPU)


def test_what_is_comfortable_is_twice_the_least_and_with_graphs_as_much_again():
    assert memory.comfortable_bytes(10, captured=False) == 20
    assert memory.comfortable_bytes(10, captured=True) == 40


def test_free_memory_of_a_gpu_counts_what_its_allocator_keeps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (500, 10_000))
    assert memory.free_bytes(torch.device("cuda")) == 540


MEMINFO = "MemTotal:  900 kB\nMemFree:  100 kB\nMemAvailable:  500 kB\nBuffers:  7 kB\n"
LIMITS = "Limit  Soft Limit  Hard Limit  Units\nMax address space  {}  unlimited  bytes\n"


@pytest.mark.parametrize(
    "meminfo, limit, pages, free",
    [
        (MEMINFO, "unlimited", 3, 500 * 1024),
        (MEMINFO, 10**9, 3, 500 * 1024),
        (MEMINFO, 10 * PAGE, 3, 7 * PAGE),
        (MEMINFO, 10 * PAGE, 11, 0),
        ("MemTotal:  900 kB\n", "unlimited", 3, os.sysconf("SC_PHYS_PAGES") * PAGE),
        (None, "unlimited", 3, os.sysconf("SC_PHYS_PAGES") * PAGE),
    ],
)
def test_free_memory_of_the_host_is_what_a_process_may_still_get(
    monkeypatch, meminfo, limit, pages, free
):
    """What the system would give, caches included, and a limit leaves; else all there is."""
    files = {"meminfo": meminfo, "limits": LIMITS.format(limit), "statm": f"{pages} 2 1 1 0 1 0"}

    def opened(path, **_):
        text = files[path.rpartition("/")[2]]
        if text is None:
            raise FileNotFoundError(path)
        return StringIO(text)

    monkeypatch.setattr(memory, "open", opened, raising=False)
    assert memory.free_bytes(CPU) == free


def kept(value):
    return {"a": (torch.full((2,), float(value)), torch.full((3,), float(value)))}


def test_the_next_steps_features_are_on_their_way_and_no_others_are_held(monkeypatch):
    """On a device that is not the host's; moving there is noted."""
    moved, refs, on = [], {}, features._to_device

    def look(given, device):
        moved.append(int(given["a"][0][0]))
        there = on(given, device)
        refs[moved[-1]] = weakref.ref(there["a"][0])
        return there

    monkeypatch.setattr(features, "_to_device", look)
    order = [1, 4, 7]
    cache = FeatureCache(dict.fromkeys(order, "host"), {i: kept(i) for i in order})
    played = Playback(cache, order, META, None)
    for index, ahead in ((1, [1, 4]), (4, [1, 4, 7]), (7, [1, 4, 7])):
        found = played.fetch(index)
        assert found["a"][0].device == META and moved == ahead
        del found
        held = {i for i, ref in refs.items() if ref() is not None}
        assert held == set(ahead) - set(range(index + 1))
    # nothing of the cache has changed
    assert all(x.device == CPU for at in cache.by_step.values() for x in at["a"])


def test_a_cache_takes_what_has_a_place_and_serves_what_it_has():
    cache = FeatureCache({0: "device", 2: "host"})
    for index in (0, 1, 2):
        cache.add(index, {"a": (torch.ones(2),), "b": (torch.ones(1),)})
    assert set(cache.by_step) == {0, 2} and cache.sites == {"a", "b"}
    for index, sites, covers in (
        (0, "a", True),
        (2, "ab", True),
        (1, "a", False),
        (0, "ac", False),
        (0, "", True),
        (-1, "", False),
    ):
        assert cache.covers(index, frozenset(sites)) == covers


def test_features_go_from_a_gpu_to_pinned_memory_and_nobody_waits(monkeypatch):
    asked = []

    class There:
        def copy_(self, x, non_blocking=False):
            asked.append((x, non_blocking))
            return self

    def empty(shape, dtype, pin_memory=False):
        asked.append((shape, dtype, pin_memory))
        return There()

    monkeypatch.setattr(torch, "empty", empty)
    on_gpu = SimpleNamespace(device=torch.device("cuda"), shape=(2, 3), dtype=torch.float16)
    assert isinstance(features._to_host(on_gpu), There)
    assert asked == [((2, 3), torch.float16, True), (on_gpu, True)]
