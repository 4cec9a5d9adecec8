"""One small call of each kernel, for a sanitizer: `python -m bench.rental.small [--dry]`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Call each kernel once."""
    dry = "--dry" in sys.argv
    if dry:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from anyv2v.kernels.cases import cases

    device = "cpu" if dry else "cuda"
    # 16 frames of 16x16 with the network's heads: ragged masks, several tiles, every kernel
    levels = (
        ((4, 64), (2, 64), (2, 64), (2, 64)) if dry else ((16, 320), (8, 640), (4, 640), (4, 640))
    )
    seen = set()
    with torch.no_grad():
        for case in cases(2 if dry else 16, levels):
            args, options = case.draw(device, torch.float16)
            for row in case.table:
                key = case.operation, case.name.split(" ")[-1]
                if row.name != "triton" or key in seen or row.refuses(*args, **options):
                    continue
                seen.add(key)
                row.run(*args, **options)
                print(f"ran {case.operation} {case.name}", flush=True)
    if not dry:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
