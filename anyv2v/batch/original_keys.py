"""The keys of the original's configuration files, and what each of them is here.

The files are those of AnyV2V's repository (TIGER-AI-Lab/AnyV2V): for I2VGen-XL template.yaml and
group_config.json of i2vgen-xl/configs/group_pnp_edit and group_ddim_inversion, for ConsistI2V
consisti2v/configs/pipeline_*/*.yaml, and for SEINE seine/configs/*.yaml. Keys of a section have its
name before them: inverse_config.prompt. What they mean is what the scripts beside them do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "value",
    "number",
    "fraction",
    "size",
    "turned size",
    "scale",
    "option",
    "group",
    "path",
    "idle",
    "off",
    "unguided",
    "fixed",
]
"""How a value is taken; see `Key`."""


@dataclass(frozen=True)
class Key:
    """What a key of the original is here."""

    to: str
    """The option of `anyv2v edit`, or words for what else it decides."""
    kind: Kind = "value"
    """value: as it is; number: a number; fraction: a number brought into 0 to 1; size: [width,
    height]; turned size: [height, width]; scale, option, group: one of the values by name of
    --guidance, --option, --inject, whose name is `to`; path: decides on paths of inputs and
    outputs, in code; idle: has no effect; off: is refused if it is true; unguided: is refused if it
    is above 1; fixed: is refused unless it is `to`."""
    of: Literal["edit", "clip", "reconstruction", "reconstructed clip"] = "edit"
    """Whose option it is; the last is the clip's, asked for by the section of the
    reconstruction."""


@dataclass(frozen=True)
class Dialect:
    """The keys of the files for one backbone."""

    name: str
    """Name of the backbone: `Editor.backbone.name`."""
    title: str
    """Its name in messages."""
    keys: dict[str, Key]
    """Key -> what it is here."""


IDLE = {
    "device": Key("the engine chooses", "idle"),
    "debug": Key("--debug of the command", "idle"),
}
PATHS = {
    "output_dir": Key("output", "path"),
    "edited_first_frame_path": Key("frame", "path"),
    "data_dir": Key("in paths", "path"),
    "model_name": Key("in paths", "path"),
    "exp_name": Key("in paths", "path"),
    "video_name": Key("video", "path"),
    "video_path": Key("video", "path"),
    "video_frames_path": Key("video", "path"),
}
INJECTION = {
    "pnp_f_t": Key("conv", "fraction"),
    "pnp_spatial_attn_t": Key("spatial", "fraction"),
    "pnp_temp_attn_t": Key("temporal", "fraction"),
}
EDIT = {
    "seed": Key("seed", "number"),
    "image_size": Key("size", "size", "clip"),
    "n_frames": Key("frames", "number", "clip"),
    "editing_prompt": Key("prompt"),
    "editing_negative_prompt": Key("negative_prompt"),
    "n_steps": Key("steps", "number"),
    "ddim_init_latents_t_idx": Key("start", "number"),
    "ddim_inv_prompt": Key("inversion_prompt", "value", "clip"),
    "ddim_latents_path": Key("a clip is inverted for its edits", "idle"),
}
INVERSION = {
    "inverse_config.image_size": Key("size", "size", "clip"),
    "inverse_config.n_frames": Key("frames", "number", "clip"),
    "inverse_config.prompt": Key("inversion_prompt", "value", "clip"),
    "inverse_config.negative_prompt": Key("an inversion has no guidance", "idle"),
    "inverse_config.n_steps": Key("inversion_steps", "number", "clip"),
    "inverse_config.output_dir": Key("a clip is inverted for its edits", "idle"),
}
RECONSTRUCTION = {
    "recon_config.enable_recon": Key("anyv2v reconstruct", "path"),
    "recon_config.image_size": Key("size", "size", "reconstructed clip"),
    "recon_config.n_frames": Key("frames", "number", "reconstructed clip"),
    "recon_config.prompt": Key("prompt", "value", "reconstruction"),
    "recon_config.negative_prompt": Key("negative_prompt", "value", "reconstruction"),
    "recon_config.n_steps": Key("steps", "number", "reconstruction"),
    "recon_config.ddim_init_latents_t_idx": Key("start", "number", "reconstruction"),
    "recon_config.ddim_latents_path": Key("a clip is inverted for its edits", "idle"),
}

I2VGEN = Dialect(
    "i2vgen",
    "I2VGen-XL",
    IDLE
    | PATHS
    | EDIT
    | INJECTION
    | INVERSION
    | RECONSTRUCTION
    | {
        "active": Key("entries with false are skipped", "path"),
        "video_dir": Key("video", "path"),
        "task_name": Key("in paths", "path"),
        "edited_video_name": Key("in paths", "path"),
        "cfg": Key("text", "scale"),
        "target_fps": Key("fps", "number", "clip"),
        "random_ratio": Key("random_ratio", "number"),
        "force_recompute_latents": Key("--force of the command", "idle"),
        "inverse_config.cfg": Key("an inversion has no guidance", "unguided"),
        "inverse_config.target_fps": Key("fps", "number", "clip"),
        "inverse_config.inverse_static_video": Key("is refused", "off"),
        "inverse_config.null_image_inversion": Key("is refused", "off"),
        "recon_config.cfg": Key("text", "scale", "reconstruction"),
        "recon_config.target_fps": Key("fps", "number", "reconstructed clip"),
    },
)
"""Keys of the files for I2VGen-XL."""

CONSISTI2V = Dialect(
    "consisti2v",
    "ConsistI2V",
    IDLE
    | PATHS
    | EDIT
    | INJECTION
    | INVERSION
    | RECONSTRUCTION
    | {
        "active": Key("entries with false are skipped", "path"),
        "cfg_txt": Key("text", "scale"),
        "cfg_img": Key("image", "scale"),
        "frame_stride": Key("frame_stride", "option", "clip"),
        "blend_ratio": Key("random_ratio", "number"),
        "save_frames": Key("no frames of the source are written", "idle"),
        "inverse_config.cfg_txt": Key("an inversion has no guidance", "unguided"),
        "inverse_config.cfg_img": Key("an inversion has no guidance", "unguided"),
        "inverse_config.frame_stride": Key("frame_stride", "option", "clip"),
        "recon_config.cfg_txt": Key("text", "scale", "reconstruction"),
        "recon_config.cfg_img": Key("image", "scale", "reconstruction"),
        "recon_config.frame_stride": Key("frame_stride", "option", "reconstructed clip"),
    },
)
"""Keys of the files for ConsistI2V."""

SEINE = Dialect(
    "seine",
    "SEINE",
    IDLE
    | INJECTION
    | {
        "active": Key("entries with false are skipped", "path"),
        "seed": Key("seed", "number"),
        "output_dir": Key("output", "path"),
        "edited_first_frame_path": Key("frame", "path"),
        "data_dir": Key("in paths", "path"),
        "model_name": Key("in paths", "path"),
        "exp_name": Key("in paths", "path"),
        "src_video_path": Key("video", "path"),
        "image_size": Key("size", "turned size", "clip"),
        "n_frames": Key("frames", "number", "clip"),
        "n_frame_inverted": Key("frames", "number", "clip"),
        "n_frame_to_invert": Key("frames", "number", "clip"),
        "n_ddim_inversion_steps": Key("inversion_steps", "number", "clip"),
        "inversion_prompt": Key("inversion_prompt", "value", "clip"),
        "sample_method": Key("sampler", "option", "clip"),
        "prompt": Key("prompt"),
        "negative_prompt": Key("negative_prompt"),
        "cfg_scale": Key("text", "scale"),
        "n_steps": Key("steps", "number"),
        "pnp_cross_attn_t": Key("cross", "group"),
        "enable_pnp": Key("false: --conv 0 --spatial 0 --temporal 0 --inject cross=0", "path"),
        "init_with_ddim_inversion": Key("false: --random-ratio 1", "path"),
        "beta_start": Key("0.0001", "fixed"),
        "beta_end": Key("0.02", "fixed"),
        "beta_schedule": Key("linear", "fixed"),
        "n_save_steps": Key("what sampling needs is kept", "idle"),
        "ddim_inversion_dir": Key("a clip is inverted for its edits", "idle"),
        "sd_path": Key("--weights of the command", "idle"),
        "ckpt_path": Key("--weights of the command", "idle"),
        "model_key": Key("--weights of the command", "idle"),
        "use_fp16": Key("--dtype of the command", "idle"),
        "enable_xformers_memory_efficient_attention": Key("kernels are chosen", "idle"),
        "save_video_frames": Key("no frames of the source are written", "idle"),
        "batch_size": Key("is 1", "idle"),
    },
)
"""Keys of the files for SEINE."""

DIALECTS = (I2VGEN, CONSISTI2V, SEINE)
"""All dialects."""
PLACEHOLDERS = r"ReplaceMe|<your_\w+>|<edited_first_frame>|<editing_prompt>|<prompt>"
"""What the original's files have where something has to be filled in."""


def dialect_of(keys: set[str]) -> Dialect:
    """Returns the dialect to which most keys belong that not all dialects have.

    keys: those of a file. Files that fit several are those for I2VGen-XL, the original's main one.
    """
    return max(DIALECTS, key=lambda dialect: len(keys & dialect.keys.keys()))
