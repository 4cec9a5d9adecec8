"""The memories of a simulated GPU: which bytes exist, and who may touch them when."""

from __future__ import annotations

import numpy as np

NEVER, FLYING = -1, np.iinfo(np.int64).max
"""Times: before everything; not over yet."""
NOBODY = -1
"""In place of one thread or one warp: several, or a copy that is still under way."""
WARP = 32


class Fault(Exception):
    """What a GPU would do wrong, or might."""


class OutOfBounds(Fault):
    """Bytes that no tensor has, or beyond the shared memory of a block."""


class Race(Fault):
    """Two threads, or two blocks, touch one byte in an order that nothing decides."""


def _bytes(addresses: np.ndarray, count: int) -> np.ndarray:
    """(k,) -> (k, count) addresses of single bytes."""
    return addresses[:, None] + np.arange(count)


def _aligned(addresses: np.ndarray, count: int, text: str) -> None:
    if (addresses % count).any():
        raise OutOfBounds(f"not aligned to {count} bytes: {text}")


class Global:
    """Some tensors far apart in one address space; only their own bytes exist.

    One launch long, a byte that one block wrote may not be touched by another.
    """

    # beyond 32 bits, so that an address that was cut off is found
    BASE = 0x7F_0000_0000
    GAP = 4096

    def __init__(self) -> None:
        self._data = np.zeros(self.GAP, np.uint8)
        self._exists = np.zeros(self.GAP, bool)

    def allocate(self, data: np.ndarray, exists: np.ndarray, alignment: int) -> int:
        """The address of a copy of `data`, of which only the bytes in `exists` may be touched.

        It leaves as much over a multiple of 256 as `alignment` does.
        """
        start = len(self._data) + (alignment - len(self._data) - self.BASE) % 256
        size = start + len(data) + self.GAP
        self._data = np.concatenate([self._data, np.full(size - len(self._data), 0xFF, np.uint8)])
        self._exists = np.concatenate([self._exists, np.zeros(size - len(self._exists), bool)])
        self._data[start : start + len(data)] = data
        self._exists[start : start + len(data)] = exists
        return self.BASE + start

    def launch(self) -> None:
        """Forget who wrote what."""
        self._writer = np.full(len(self._data), NOBODY, np.int32)

    def copy(self, address: int, count: int) -> np.ndarray:
        return self._data[address - self.BASE :][:count].copy()

    def _at(self, addresses: np.ndarray, count: int, blocks: np.ndarray, text: str) -> np.ndarray:
        _aligned(addresses, count, text)
        at = _bytes(addresses.astype(np.int64) - self.BASE, count)
        beyond = (at < 0) | (at >= len(self._data))
        if beyond.any() or not self._exists[at].all():
            bad = beyond | ~self._exists[np.where(beyond, 0, at)]
            raise OutOfBounds(f"{bad.sum()} bytes of global memory belong to no tensor: {text}")
        writer = self._writer[at]
        if ((writer != NOBODY) & (writer != blocks[:, None])).any():
            raise Race(f"global memory that another block wrote: {text}")
        return at

    def read(self, addresses: np.ndarray, count: int, blocks: np.ndarray, text: str) -> np.ndarray:
        """(k,) addresses of `count` bytes each, by blocks (k,) -> (k, count) bytes."""
        return self._data[self._at(addresses, count, blocks, text)]

    def write(self, addresses: np.ndarray, data: np.ndarray, blocks: np.ndarray, text: str) -> None:
        at = self._at(addresses, data.shape[1], blocks, text)
        self._data[at] = data
        self._writer[at] = blocks[:, None]
        if (self._writer[at] != blocks[:, None]).any():
            raise Race(f"two blocks write one place: {text}")


class Shared:
    """The shared memory of several blocks, all of it NaN at first.

    Of every byte it knows the last write and the last read. An access is a race if another thread's
    conflicting one was after the last barrier between the two: one of their warp if they are of one
    warp, else one of their block. Lanes count through all blocks.
    """

    def __init__(self, blocks: int, threads: int, size: int) -> None:
        self.size, self.threads = size, threads
        count = blocks * size
        self._data = np.full(count, 0xFF, np.uint8)
        self._written, self._read = (np.full(count, NEVER, np.int64) for _ in range(2))
        self._writer, self._reader, self._reader_warp = (
            np.full(count, NOBODY, np.int32) for _ in range(3)
        )
        # how many products that nobody waited for yet read a byte
        self._matrices = np.zeros(count, np.int16)
        # per lane, the time of the last barrier of its block, and of its warp or block
        self._block_barrier, self._warp_barrier = (
            np.full(blocks * threads, NEVER, np.int64) for _ in range(2)
        )
        # what came by a copy: Triton 3.6 has no fence after those, and no GPU is known to want it
        self._copied = np.zeros(count, bool)
        # the last fence after which products of warp groups see what the lane wrote
        self._fence = np.full(blocks * threads, NEVER, np.int64)
        self.now = 0

    def fence(self, lanes: np.ndarray) -> None:
        self._fence[lanes] = self.now

    def barrier(self, lanes: np.ndarray, whole_block: bool) -> None:
        self._warp_barrier[lanes] = self.now
        if whole_block:
            self._block_barrier[lanes] = self.now

    def _at(self, addresses: np.ndarray, count: int, lanes: np.ndarray, text: str) -> np.ndarray:
        _aligned(addresses, count, text)
        addresses = addresses.astype(np.int64)
        bad = (addresses < 0) | (addresses + count > self.size)
        if bad.any():
            raise OutOfBounds(f"{bad.sum()} lanes beyond the shared memory of a block: {text}")
        return _bytes(addresses + lanes // self.threads * self.size, count)

    def _after_barrier(
        self, times: np.ndarray, owner: np.ndarray, owner_warp: np.ndarray, lanes: np.ndarray
    ) -> np.ndarray:
        """Whether what `owner` did at `times` is not separated from what `lanes` do now."""
        lane = lanes[:, None]
        same_warp = owner_warp == lane // WARP
        barrier = np.where(same_warp, self._warp_barrier[lane], self._block_barrier[lane])
        return (times > barrier) & (owner != lane)

    def _conflicts_with_write(self, at: np.ndarray, lanes: np.ndarray, text: str) -> None:
        writer = self._writer[at]
        bad = self._after_barrier(self._written[at], writer, writer // WARP, lanes)
        if bad.any():
            raise Race(f"{bad.sum()} bytes of shared memory were just written: {text}")

    def _conflicts_with_read(self, at: np.ndarray, lanes: np.ndarray, text: str) -> None:
        bad = self._after_barrier(self._read[at], self._reader[at], self._reader_warp[at], lanes)
        bad |= self._matrices[at] > 0
        if bad.any():
            raise Race(f"{bad.sum()} bytes of shared memory may still be read: {text}")

    def read(self, addresses: np.ndarray, count: int, lanes: np.ndarray, text: str) -> np.ndarray:
        """(k,) addresses of `count` bytes each, by lanes (k,) -> (k, count) bytes."""
        at = self._at(addresses, count, lanes, text)
        self._conflicts_with_write(at, lanes, text)
        # several readers since the barrier are remembered as nobody: all of them still read
        lane, others = lanes[:, None], self._read[at]
        self._reader_warp[at] = np.where(
            (others > self._block_barrier[lane]) & (self._reader_warp[at] != lane // WARP),
            NOBODY,
            lane // WARP,
        )
        self._reader[at] = np.where(
            (others > self._warp_barrier[lane]) & (self._reader[at] != lane), NOBODY, lane
        )
        self._read[at] = self.now
        # one instruction reads for many lanes at once; where they share a byte the last would win
        shared = self._reader[at] != lane
        if shared.any():
            self._reader[at[shared]] = NOBODY
        shared = self._reader_warp[at] != lane // WARP
        if shared.any():
            self._reader_warp[at[shared]] = NOBODY
        return self._data[at]

    def write(self, addresses: np.ndarray, data: np.ndarray, lanes: np.ndarray, text: str) -> None:
        at = self._at(addresses, data.shape[1], lanes, text)
        self._conflicts_with_write(at, lanes, text)
        self._conflicts_with_read(at, lanes, text)
        self._land(at, data, lanes)
        self._copied[at] = False
        # several threads may hold the same element, and then all of them write it
        if (self._data[at] != data).any():
            raise Race(f"two threads write different bytes to one place: {text}")

    def _land(self, at: np.ndarray, data: np.ndarray, lanes: np.ndarray) -> None:
        self._data[at] = data
        self._written[at], self._writer[at] = self.now, lanes[:, None]

    def start_copy(
        self, addresses: np.ndarray, count: int, lanes: np.ndarray, text: str
    ) -> np.ndarray:
        """Until `end_copy` of what this gives, nobody may touch the bytes."""
        at = self._at(addresses, count, lanes, text)
        self._conflicts_with_write(at, lanes, text)
        self._conflicts_with_read(at, lanes, text)
        self._written[at], self._writer[at] = FLYING, NOBODY
        return at

    def end_copy(self, at: np.ndarray, data: np.ndarray, lanes: np.ndarray) -> None:
        self._land(at, data, lanes)
        self._copied[at] = True

    def start_matrix(self, addresses: np.ndarray, lanes: np.ndarray, text: str) -> np.ndarray:
        """Read addresses (k, ...) of 2 bytes each for the four warps that begin at lanes (k,).

        -> (k, bytes), where that is: until `end_matrix` of it nobody may write there.
        """
        addresses = addresses.reshape(len(lanes), -1)
        each = np.repeat(lanes, addresses.shape[1])
        at = self._at(addresses.reshape(-1), 2, each, text).reshape(len(lanes), -1)
        written, writer = self._written[at], self._writer[at]
        # whoever wrote it, three of the four warps are others
        if (written > self._block_barrier[lanes, None]).any():
            raise Race(f"shared memory of a matrix was just written: {text}")
        stored = (written != NEVER) & ~self._copied[at]
        if (stored & (self._fence[writer] < written)).any():
            raise Race(f"no fence after writing the shared memory of a matrix: {text}")
        self._matrices[at] += 1
        return at

    def end_matrix(self, at: np.ndarray) -> None:
        self._matrices[at] -= 1
        self._read[at], self._reader[at], self._reader_warp[at] = self.now, NOBODY, NOBODY

    def values(self, at: np.ndarray) -> np.ndarray:
        return self._data[at]
