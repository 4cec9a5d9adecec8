r"""Gives the person in a picture another face with InstantID (arXiv 2401.07519), once.

InstantID (github.com/instantX-research/InstantID) has no command line: its infer.py holds what it
reads as constants, and takes identity and pose from one picture. This program takes the identity
from --reference and the pose, by its landmarks, from --input, as InstantID's authors advise in
issue 43 of their repository. It is run by the Python of InstantID's environment, which needs
nothing of anyv2v:

    anyv2v edit clip.mp4 --prompt "a man walking" -o out.mp4 --reference face.png \
        --instruction "photo of a man walking" --mask head.png \
        --editor-command "/envs/instantid/bin/python examples/instantid_once.py
            --instantid /tools/InstantID --reference {reference} --input {input} --mask {mask}
            --prompt {instruction} --seed {seed} --output {output}"

InstantID draws the whole picture anew; --mask is white where the new one is taken.
"""

import argparse
import os
import sys

import numpy as np
from PIL import Image

SIDE, MULTIPLE = 1024, 64
"""Shorter side of the picture that is drawn, about, and what its sides are multiples of."""


def main():
    """Reads the pictures, has InstantID draw one, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--instantid", required=True, metavar="DIR", help="checkout of InstantID")
    parser.add_argument("--input", required=True, help="picture with the pose")
    parser.add_argument("--reference", required=True, help="picture with the face")
    parser.add_argument("--mask", help="white where the input changes (default: everywhere)")
    parser.add_argument("--prompt", required=True, help="text that describes the result")
    parser.add_argument("--negative-prompt", default="lowres, deformed, blurry, text, watermark")
    parser.add_argument("--output", required=True, help="picture to write")
    parser.add_argument("--base", default="stabilityai/stable-diffusion-xl-base-1.0")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--identity", type=float, default=0.8, help="weight of the face, 0 to 1")
    parser.add_argument("--pose", type=float, default=0.8, help="weight of the landmarks, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    picture = Image.open(args.input).convert("RGB")
    reference = Image.open(args.reference).convert("RGB")
    mask = Image.open(args.mask).convert("L").resize(picture.size) if args.mask else None
    output = os.path.abspath(args.output)
    # the models' paths are relative to it
    os.chdir(args.instantid)
    sys.path.insert(0, os.getcwd())
    drawn = draw(args, picture, reference).resize(picture.size, Image.Resampling.LANCZOS)
    if mask is not None:
        drawn = Image.composite(drawn, picture, mask)
    drawn.save(output)


def draw(args, picture, reference):
    """Returns a picture of the person of `reference` in the pose of the one in `picture`."""
    import torch
    from diffusers.models import ControlNetModel
    from insightface.app import FaceAnalysis
    from pipeline_stable_diffusion_xl_instantid import StableDiffusionXLInstantIDPipeline, draw_kps

    analysis = FaceAnalysis(
        name="antelopev2", root="./", providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    analysis.prepare(ctx_id=0, det_size=(640, 640))
    canvas = picture.resize(size_of(picture))
    face, pose = largest_face(analysis, reference), largest_face(analysis, canvas)

    controlnet = ControlNetModel.from_pretrained(
        "./checkpoints/ControlNetModel", torch_dtype=torch.float16
    )
    pipe = StableDiffusionXLInstantIDPipeline.from_pretrained(
        args.base, controlnet=controlnet, torch_dtype=torch.float16
    )
    pipe.cuda()
    pipe.load_ip_adapter_instantid("./checkpoints/ip-adapter.bin")
    pipe.set_ip_adapter_scale(args.identity)
    return pipe(
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        image_embeds=face["embedding"],
        image=draw_kps(canvas, pose["kps"]),
        controlnet_conditioning_scale=args.pose,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        generator=torch.Generator().manual_seed(args.seed),
    ).images[0]


def size_of(picture):
    """Returns the (width, height) in which a picture is drawn, near its proportions."""
    scale = SIDE / min(picture.size)
    return tuple(max(1, round(side * scale / MULTIPLE)) * MULTIPLE for side in picture.size)


def largest_face(analysis, picture):
    """Returns what InsightFace finds of the largest face; it reads BGR."""
    faces = analysis.get(np.ascontiguousarray(np.array(picture)[:, :, ::-1]))
    if not faces:
        sys.exit("InsightFace finds no face in the picture")
    x, y, right, bottom = np.array([face["bbox"] for face in faces]).T[:4]
    return faces[int(np.argmax((right - x) * (bottom - y)))]


if __name__ == "__main__":
    main()
