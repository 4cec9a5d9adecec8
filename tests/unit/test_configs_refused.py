"""Fields of published configs that, with another value, mean another network: one by one.

The values here are those of relatives that there are, or that the libraries would compute with.
"""

import pytest

from anyv2v.convert.formats import adapters, clip, i2vgen, stable_diffusion, vae
from anyv2v.errors import InputError

LEVELS = ["CrossAttn", "CrossAttn", "CrossAttn", ""]


def unet(kind, **fields):
    """A config of the released size, as diffusers writes it."""
    return {
        "_class_name": {"3D": "I2VGenXLUNet", "2D": "UNet2DConditionModel"}[kind],
        "down_block_types": [f"{x}DownBlock{kind}" for x in LEVELS],
        "up_block_types": [f"{x}UpBlock{kind}" for x in reversed(LEVELS)],
        "block_out_channels": [320, 640, 1280, 1280],
        **{"in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 32},
        **fields,
    }


GOOD = {
    "I2VGen-XL's UNet": (i2vgen.unet_config, unet("3D", cross_attention_dim=1024)),
    "I2VGen-XL's schedule": (
        i2vgen.schedule_config,
        {
            **{"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2"},
            **{"clip_sample": False, "prediction_type": "v_prediction", "steps_offset": 1},
            **{"rescale_betas_zero_snr": True, "timestep_spacing": "leading"},
        },
    ),
    "the autoencoder": (
        vae.vae_config,
        {
            **{"_class_name": "AutoencoderKL", "block_out_channels": [128, 256]},
            **{"down_block_types": ["DownEncoderBlock2D"] * 2},
            **{"up_block_types": ["UpDecoderBlock2D"] * 2},
        },
    ),
    "the text tower": (clip.text_config, {}),
    "the vision tower": (clip.vision_config, {}),
    "pictures for the vision tower": (clip.preprocess_config, {}),
    "Stable Diffusion's UNet": (
        stable_diffusion.unet_config,
        unet("2D", cross_attention_dim=768, attention_head_dim=8),
    ),
    "a schedule": (
        stable_diffusion.schedule_config,
        {
            **{"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012},
            **{"beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False},
            "set_alpha_to_one": False,
        },
    ),
    "a T2I-Adapter": (adapters.t2i_adapter_config, {"_class_name": "T2IAdapter"}),
}

UNET = {
    **{"_class_name": "UNet2DModel", "act_fn": "gelu", "norm_eps": 1e-6, "out_channels": 8},
    **{"downsample_padding": 0, "mid_block_scale_factor": 1.414, "upcast_attention": True},
    **{"resnet_time_scale_shift": "scale_shift", "norm_num_groups": 24, "in_channels": 5},
    **{"layers_per_block": [2, 2, 2, 1], "cross_attention_dim": [768] * 4},
    **{"down_block_types": ["DownBlock"] * 4, "block_out_channels": [320, 640, 1280]},
    "up_block_types": ["UpBlock"] * 4,
}
OTHER = {
    "I2VGen-XL's UNet": {**UNET, "attention_head_dim": [64] * 4, "num_attention_heads": 0},
    "I2VGen-XL's schedule": {
        **{"_class_name": "DDPMScheduler", "beta_schedule": "linear", "trained_betas": [0.1]},
        **{"clip_sample": True, "set_alpha_to_one": False, "prediction_type": "epsilon"},
        **{"thresholding": True, "timestep_spacing": "trailing", "rescale_betas_zero_snr": False},
        **{"num_train_timesteps": 999, "steps_offset": 0},
    },
    "the autoencoder": {
        **{"_class_name": "AutoencoderTiny", "act_fn": "relu", "in_channels": 4, "out_channels": 1},
        **{"shift_factor": 0.1159, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
        **{"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16},
        **{"mid_block_add_attention": False, "layers_per_block": 0, "norm_num_groups": 24},
        **{"down_block_types": ["AttnDownEncoderBlock2D"] * 2, "scaling_factor": -0.18215},
        **{"up_block_types": ["AttnUpDecoderBlock2D"] * 2, "block_out_channels": []},
    },
    "the text tower": {
        **{"architectures": ["CLIPTextModelWithProjection"], "max_position_embeddings": 248},
        **{"hidden_act": "relu", "layer_norm_eps": 0, "vocab_size": 0, "hidden_size": 510},
        **{"intermediate_size": 0, "num_hidden_layers": 0, "num_attention_heads": 7},
    },
    "the vision tower": {
        **{"architectures": ["CLIPVisionModel"], "num_channels": 4, "image_size": [224, 196]},
        **{"patch_size": [14, 16], "hidden_act": "relu", "layer_norm_eps": 0, "hidden_size": 766},
        **{"projection_dim": 0, "intermediate_size": 0, "num_hidden_layers": 0},
        "num_attention_heads": 7,
    },
    "pictures for the vision tower": {
        **{"crop_size": {"height": 224, "width": 196}, "image_mean": [0.5] * 4},
        "image_std": [0.5, 0.5, 0.0],
    },
    "Stable Diffusion's UNet": {
        **UNET,
        **{"center_input_sample": True, "flip_sin_to_cos": False, "freq_shift": 1},
        **{"mid_block_type": "UNetMidBlock2D", "only_cross_attention": True},
        **{"transformer_layers_per_block": [1, 2, 10, 10], "encoder_hid_dim": 4096},
        **{"reverse_transformer_layers_per_block": [10, 10, 2, 1], "num_class_embeds": 1000},
        **{"encoder_hid_dim_type": "text_proj", "num_attention_heads": 8},
        **{"dual_cross_attention": True, "class_embed_type": "timestep"},
        **{"addition_embed_type": "text_time", "use_linear_projection": True},
        **{"resnet_skip_time_act": True, "resnet_out_scale_factor": 1.414},
        **{"time_embedding_type": "fourier", "time_embedding_dim": 512},
        **{"time_embedding_act_fn": "silu", "timestep_post_act": "silu"},
        **{"time_cond_proj_dim": 256, "conv_in_kernel": 1, "conv_out_kernel": 1},
        **{"attention_type": "gated", "mid_block_only_cross_attention": True},
        **{"cross_attention_norm": "layer_norm", "attention_head_dim": 7},
    },
    "a schedule": {
        **{"_class_name": "DDPMScheduler", "num_train_timesteps": 999, "beta_start": 0.0001},
        **{"beta_end": 0.02, "beta_schedule": "linear", "trained_betas": [0.1]},
        **{"prediction_type": "v_prediction", "steps_offset": 0, "clip_sample": True},
        **{"set_alpha_to_one": True, "thresholding": True, "rescale_betas_zero_snr": True},
        "timestep_spacing": "trailing",
    },
    "a T2I-Adapter": {
        **{"_class_name": "MultiAdapter", "adapter_type": "full_adapter_xl", "in_channels": 2},
        **{"channels": [], "num_res_blocks": 0, "downscale_factor": 0},
    },
}


@pytest.mark.parametrize("what", GOOD)
def test_the_config_itself_is_read(what):
    read, values = GOOD[what]
    assert read("there.json", values)


@pytest.mark.parametrize("what, field", [(what, field) for what in OTHER for field in OTHER[what]])
def test_another_value_is_refused_with_its_file_and_the_field(what, field):
    read, values = GOOD[what]
    with pytest.raises(InputError, match=r"^there\.json: ") as refused:
        read("there.json", {**values, field: OTHER[what][field]})
    # of fields that belong together the other one may be named
    near = {"hidden_size": "num_attention_heads", "block_out_channels": "types"}
    near |= {"in_channels": "out_channels", "attention_head_dim": "block_out_channels"}
    named = field in str(refused.value) or near.get(field, field) in str(refused.value)
    assert named or field == "norm_num_groups", refused.value


@pytest.mark.parametrize(
    "spacing, offset, fits",
    [("leading", 1, True), ("leading", 0, False), ("linspace", 0, True), ("linspace", 1, True)],
)
@pytest.mark.parametrize("kind", stable_diffusion.SCHEDULERS)
def test_the_offset_matters_to_leading_timesteps_alone(kind, spacing, offset, fits):
    read, values = GOOD["a schedule"]
    values = {**values, "_class_name": kind, "timestep_spacing": spacing, "steps_offset": offset}
    if fits:
        assert read("there.json", values) == {"spacing": spacing}
    else:
        with pytest.raises(InputError, match="steps_offset is 0; only 1"):
            read("there.json", values)


def test_what_a_scheduler_takes_if_nothing_is_said_depends_on_which_it_is():
    read, values = GOOD["a schedule"]
    for kind, spacing in (
        ("PNDMScheduler", "leading"),
        ("DDIMScheduler", "leading"),
        ("EulerAncestralDiscreteScheduler", "linspace"),
    ):
        assert read("there.json", {**values, "_class_name": kind}) == {"spacing": spacing}
    for absent in ("clip_sample", "set_alpha_to_one"):
        less = {name: value for name, value in values.items() if name != absent}
        with pytest.raises(InputError, match=f"{absent} is True .the default"):
            read("there.json", less)
