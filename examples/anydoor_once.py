r"""Puts a subject into a picture with AnyDoor (arXiv 2307.09481), once.

AnyDoor (github.com/ali-vilab/AnyDoor) has no command line: its run_inference.py loads the model
when it is imported, and holds the paths of its pictures as constants. This program gives its
function `inference_single_image` the pictures that flags name. It is run by the Python of AnyDoor's
environment, which needs nothing of anyv2v:

    anyv2v edit clip.mp4 --prompt "a dog with a hat" -o out.mp4 --mask where.png \
        --editor-command "/envs/anydoor/bin/python examples/anydoor_once.py --anydoor /tools/AnyDoor
            --reference hat.png --input {input} --mask {mask} --seed {seed} --output {output}"

hat.png shows the subject on a transparent ground; of another picture --reference-mask says where
the subject is. where.png is white where the subject shall be in the first frame.
"""

import argparse
import os
import random
import sys

import numpy as np
from PIL import Image


def main():
    """Reads the pictures, has AnyDoor edit one, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--anydoor", required=True, metavar="DIR", help="checkout of AnyDoor")
    parser.add_argument("--input", required=True, help="picture that gets the subject")
    parser.add_argument("--mask", required=True, help="white where the subject shall be")
    parser.add_argument("--reference", required=True, help="picture of the subject")
    parser.add_argument("--reference-mask", help="white where the subject is in its picture")
    parser.add_argument("--output", required=True, help="picture to write")
    parser.add_argument("--guidance", type=float, default=5.0, help="guidance scale of AnyDoor")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    reference = Image.open(args.reference)
    if args.reference_mask:
        subject = Image.open(args.reference_mask).convert("L")
    elif reference.mode in ("RGBA", "LA", "PA"):
        subject = reference.getchannel("A")
    else:
        parser.error("--reference has no transparent ground, so give a --reference-mask")
    picture = np.array(Image.open(args.input).convert("RGB"))
    # AnyDoor wants 0 and 1
    where = white(Image.open(args.mask).convert("L"), picture.shape[:2])
    reference = np.array(reference.convert("RGB"))
    what = white(subject, reference.shape[:2])
    if not where.any() or not what.any():
        parser.error("a mask is black everywhere")
    output = os.path.abspath(args.output)

    # its settings name files from there on
    os.chdir(args.anydoor)
    sys.path.insert(0, os.getcwd())
    import run_inference
    import torch

    # AnyDoor draws from all three
    random.seed(args.seed)
    np.random.seed(args.seed % 2**32)
    torch.manual_seed(args.seed)
    edited = run_inference.inference_single_image(
        reference, what, picture.copy(), where, guidance_scale=args.guidance
    )
    Image.fromarray(np.asarray(edited).clip(0, 255).astype(np.uint8)).save(output)


def white(mask, shape):
    """Returns 1 where a mask, a gray picture, is white and else 0, as uint8 of a shape (h, w)."""
    resized = mask.resize(shape[::-1], Image.Resampling.NEAREST)
    return (np.array(resized) > 127).astype(np.uint8)


if __name__ == "__main__":
    main()
