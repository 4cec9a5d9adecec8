"""The programs in examples/, with stubs of the tools that they call."""

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anyv2v.errors import InputError
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.command import Command

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZE = (40, 24)
"""(width, height)"""

# the signature of run_inference.py in AnyDoor's repository; what it was given comes back as pixels
ANYDOOR = """
import os
import numpy as np
assert os.path.exists("configs/inference.yaml")

def inference_single_image(ref_image, ref_mask, tar_image, tar_mask, guidance_scale=5.0):
    for image, mask in ((ref_image, ref_mask), (tar_image, tar_mask)):
        assert image.dtype == mask.dtype == np.uint8 and image.shape == (*mask.shape, 3)
        assert set(np.unique(mask)) <= {0, 1}
    subject = ref_image[ref_mask == 1].mean(axis=0)
    result = tar_image.astype(np.float32)
    result[tar_mask == 1] = subject
    result[0, 0] = guidance_scale, np.random.randint(256), 300
    return result
"""

# what infer.py of InstantID's repository imports and calls, in its pipeline's own names
INSTANTID = {
    "insightface/__init__.py": "",
    "insightface/app.py": """
import numpy as np

class FaceAnalysis:
    def __init__(self, name, root, providers):
        assert (name, root) == ("antelopev2", "./")

    def prepare(self, ctx_id, det_size):
        self.ready = True

    def get(self, bgr):
        assert self.ready and bgr.dtype == np.uint8
        color = bgr[0, 0].astype(float)
        height, width = bgr.shape[:2]
        small = {"bbox": [0, 0, 9, 9], "embedding": None, "kps": None}
        large = {"bbox": [5, 5, 95, 50], "embedding": color, "kps": (width, height)}
        return [small, large, small] if bgr.max() else []
""",
    "pipeline_stable_diffusion_xl_instantid.py": """
import types
import torch
from PIL import Image

def draw_kps(image, kps):
    assert image.size == tuple(kps)
    return image

class StableDiffusionXLInstantIDPipeline:
    @classmethod
    def from_pretrained(cls, base, controlnet, torch_dtype):
        assert controlnet == "./checkpoints/ControlNetModel" and torch_dtype == torch.float16
        return cls()

    def cuda(self):
        return self

    def load_ip_adapter_instantid(self, path):
        assert path == "./checkpoints/ip-adapter.bin"

    def set_ip_adapter_scale(self, scale):
        assert scale == 0.7

    def __call__(self, prompt, negative_prompt, image_embeds, image,
                 controlnet_conditioning_scale, num_inference_steps, guidance_scale, generator):
        assert prompt == "photo of 'a man'" and generator.initial_seed() == 3
        assert all(side % 64 == 0 for side in image.size) and min(image.size) == 1024
        color = tuple(int(x) for x in image_embeds[::-1])
        return types.SimpleNamespace(images=[Image.new("RGB", image.size, color)])
""",
    "diffusers/__init__.py": "",
    "diffusers/models.py": """
class ControlNetModel:
    @classmethod
    def from_pretrained(cls, path, torch_dtype):
        return path
""",
}


@pytest.fixture
def request_of_an_edit():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    frame[0, 0] = 7, 8, 9
    mask = np.zeros(frame.shape[:2], np.float32)
    mask[4:12, 10:30] = 1
    reference = np.full((30, 20, 3), (200, 100, 50), np.uint8)
    return FrameRequest(frame, "photo of 'a man'", reference, mask)


def command(program, more):
    return Command(f"{shlex.quote(sys.executable)} {EXAMPLES / program} {more}")


@pytest.mark.slow
def test_anydoor_gets_the_pictures_that_its_function_takes(tmp_path, request_of_an_edit):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.yaml").touch()
    (tmp_path / "run_inference.py").write_text(ANYDOOR)
    # a red subject on a ground that is transparent green
    subject = np.zeros((16, 16, 4), np.uint8)
    subject[:] = 0, 255, 0, 0
    subject[4:8, 4:8] = 250, 10, 20, 255
    Image.fromarray(subject).save(tmp_path / "hat.png")
    flags = f"--anydoor {tmp_path} --input {{input}} --mask {{mask}} --output {{output}} "
    flags += "--seed {seed} --guidance 4"
    editor = command("anydoor_once.py", f"--reference {tmp_path / 'hat.png'} {flags}")
    (edited,) = editor(request_of_an_edit, [3])
    frame, mask = request_of_an_edit.frame, request_of_an_edit.mask > 0
    wanted = np.where(mask[..., None], np.uint8([250, 10, 20]), frame)
    wanted[0, 0] = 4, np.random.RandomState(3).randint(256), 255
    np.testing.assert_array_equal(edited, wanted)
    # {reference} is a picture without transparency
    editor = command("anydoor_once.py", f"--reference {{reference}} {flags}")
    with pytest.raises(InputError, match="so give a --reference-mask"):
        editor(request_of_an_edit, [3])


@pytest.mark.slow
def test_instantid_gets_the_face_of_one_picture_and_the_pose_of_the_other(
    tmp_path, request_of_an_edit
):
    for name, text in INSTANTID.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    flags = f"--instantid {tmp_path} --input {{input}} --reference {{reference}} --mask {{mask}} "
    flags += "--prompt {instruction} --seed {seed} --identity 0.7 --output {output}"
    (edited,) = command("instantid_once.py", flags)(request_of_an_edit, [3])
    frame, mask = request_of_an_edit.frame, request_of_an_edit.mask > 0
    np.testing.assert_array_equal(
        edited, np.where(mask[..., None], np.uint8([200, 100, 50]), frame)
    )
    black = FrameRequest(frame, "photo of 'a man'", np.zeros_like(frame), request_of_an_edit.mask)
    with pytest.raises(InputError, match="InsightFace finds no face"):
        command("instantid_once.py", flags)(black, [3])
