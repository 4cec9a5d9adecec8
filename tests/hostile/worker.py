"""Reads hostile inputs, one at a time, and says how each ended: run by tests/fuzz.py.

Lines on stdin: kind and index. Lines on stdout: the outcome as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
import warnings
from pathlib import Path

import av
import torch

from anyv2v.errors import InputError
from tests.hostile import targets

MEMORY = 4 * 2**30


def outcome(examples: targets.Examples, kind: str, seed: int, index: int) -> dict:
    """result, InputError, or the defect: exception, memory, wrong."""
    target = targets.KINDS[kind]
    name, data = targets.make(target, examples, seed, index)
    path, valid = examples.folder / name, examples.valid(name)
    path.write_bytes(data)
    began = time.process_time()
    try:
        _read(target, examples, name, data != valid)
        ended, says = "result", ""
    except InputError as error:
        text = str(error)
        if _out_of_memory(error):
            ended, says = "memory", text
        elif not text.strip() or len(text) > 2000:
            ended, says = "wrong", f"an error of {len(text)} characters: {text[:200]}"
        else:
            ended, says = "InputError", text
    except targets.Wrong as error:
        ended, says = "wrong", str(error)
    except BaseException as error:  # noqa: B036 - panics of extensions are no Exceptions
        ended = "memory" if _out_of_memory(error) else "exception"
        says = f"{type(error).__name__}: {error}"
    finally:
        path.write_bytes(valid)
    return {"ended": ended, "says": says[:500], "seconds": time.process_time() - began}


def _read(target: targets.Kind, examples: targets.Examples, name: str, changed: bool) -> None:
    """Once more without the limit where FFmpeg says ENOMEM: that is also what it calls nonsense."""
    try:
        target.read(examples, name, changed)
    except InputError as error:
        if not isinstance(error.__cause__, av.FFmpegError) or not _out_of_memory(error):
            raise
        before = _peak()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        try:
            target.read(examples, name, changed)
        except InputError as again:
            if _peak() > max(before, MEMORY):
                raise
            raise InputError(str(again)) from None
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prepare", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if args.prepare:
        targets.prepare(args.folder)
        return
    # whatever the libraries print is not for the one who asks
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    examples = targets.Examples(args.folder)
    examples.editor  # noqa: B018 - made before the clock runs
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        kind, index = line.split()
        answer = outcome(examples, kind, args.seed, int(index))
        answer["peak"] = _peak()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
