import pytest

from anyv2v.convert.formats import clip, i2vgen, vae
from anyv2v.convert.rename import Rule, prefixed, rename, rules, unused_rules
from anyv2v.errors import InputError
from tests.oracles import snapshot as hf

TABLES = {
    "unet": (i2vgen.UNET, 1511),
    "vae": (vae.VAE, 248),
    "text_encoder": (clip.TEXT, 388),
    "image_encoder": (clip.VISION, 520),
}


def names_of(preset: str, component: str) -> dict[str, tuple[int, ...]]:
    return hf.component_shapes(hf.PRESETS[preset], vocab_size=1000)[component]


@pytest.mark.parametrize("component", TABLES)
@pytest.mark.parametrize("preset", ["tiny", "odd", "full"])
def test_every_name_goes_there_and_back_and_every_rule_is_used(preset, component):
    table, count = TABLES[component]
    names = list(names_of(preset, component))
    ours = {name: renamed.name for name, renamed in rename(names, table).items()}
    assert list(ours) == names
    assert len(set(ours.values())) == len(names)
    back = {name: renamed.name for name, renamed in rename(ours.values(), table, "theirs").items()}
    assert back == {new: name for name, new in ours.items()}
    assert unused_rules(names, table) == []
    if preset == "full":
        assert len(names) == count


@pytest.mark.parametrize(
    "component, theirs, ours",
    [
        ("unet", "conv_norm_out.weight", "norm_out.weight"),
        ("unet", "time_embedding.linear_2.bias", "time_embedding.2.bias"),
        ("unet", "image_latents_proj_in.4.bias", "conditioning.latents.4.bias"),
        (
            "unet",
            "image_latents_context_embedding.5.weight",
            "conditioning.latent_tokens.5.weight",
        ),
        ("unet", "context_embedding.2.weight", "conditioning.image_tokens.2.weight"),
        ("unet", "fps_embedding.0.weight", "conditioning.fps.0.weight"),
        (
            "unet",
            "image_latents_temporal_encoder.attn1.to_out.0.bias",
            "conditioning.temporal.self.out.bias",
        ),
        (
            "unet",
            "image_latents_temporal_encoder.ff.net.0.proj.weight",
            "conditioning.temporal.ff.up.weight",
        ),
        ("unet", "image_latents_temporal_encoder.norm1.bias", "conditioning.temporal.norm.bias"),
        (
            "unet",
            "transformer_in.transformer_blocks.0.attn2.to_q.weight",
            "transformer_in.block.self2.q.weight",
        ),
        (
            "unet",
            "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_v.weight",
            "up.1.spatial.2.block.cross.v.weight",
        ),
        (
            "unet",
            "up_blocks.1.temp_attentions.2.transformer_blocks.0.attn2.to_v.weight",
            "up.1.temporal.2.block.self2.v.weight",
        ),
        (
            "unet",
            "mid_block.temp_attentions.0.transformer_blocks.0.attn1.to_k.weight",
            "mid.temporal.0.block.self.k.weight",
        ),
        (
            "unet",
            "down_blocks.2.attentions.1.transformer_blocks.0.ff.net.2.bias",
            "down.2.spatial.1.block.ff.down.bias",
        ),
        (
            "unet",
            "down_blocks.3.resnets.0.time_emb_proj.weight",
            "down.3.res.0.time.weight",
        ),
        ("unet", "up_blocks.1.resnets.1.conv_shortcut.weight", "up.1.res.1.shortcut.weight"),
        ("unet", "mid_block.temp_convs.1.conv1.0.weight", "mid.temporal_conv.1.norm1.weight"),
        ("unet", "mid_block.temp_convs.1.conv1.2.weight", "mid.temporal_conv.1.conv1.weight"),
        ("unet", "up_blocks.3.temp_convs.2.conv4.3.bias", "up.3.temporal_conv.2.conv4.bias"),
        ("unet", "down_blocks.0.downsamplers.0.conv.bias", "down.0.downsample.conv.bias"),
        ("unet", "up_blocks.2.upsamplers.0.conv.weight", "up.2.upsample.conv.weight"),
        ("vae", "encoder.mid_block.attentions.0.to_q.bias", "encoder.mid.attention.q.bias"),
        (
            "vae",
            "decoder.mid_block.attentions.0.group_norm.weight",
            "decoder.mid.attention.norm.weight",
        ),
        ("vae", "decoder.up_blocks.2.resnets.0.norm2.weight", "decoder.up.2.res.0.norm2.weight"),
        ("vae", "post_quant_conv.weight", "post_quant_conv.weight"),
        ("vae", "decoder.conv_norm_out.bias", "decoder.norm_out.bias"),
        (
            "text_encoder",
            "text_model.embeddings.token_embedding.weight",
            "token_embedding.weight",
        ),
        (
            "text_encoder",
            "text_model.encoder.layers.1.self_attn.out_proj.bias",
            "layers.1.self.out.bias",
        ),
        ("text_encoder", "text_model.final_layer_norm.bias", "final_norm.bias"),
        (
            "image_encoder",
            "vision_model.embeddings.class_embedding",
            "class_embedding",
        ),
        ("image_encoder", "vision_model.pre_layrnorm.weight", "pre_norm.weight"),
        ("image_encoder", "vision_model.encoder.layers.0.mlp.fc2.bias", "layers.0.mlp.down.bias"),
        ("image_encoder", "visual_projection.weight", "projection.weight"),
    ],
)
def test_names_that_others_rely_on(component, theirs, ours):
    assert theirs in names_of("full", component)
    assert rename([theirs], TABLES[component][0])[theirs].name == ours


def test_only_the_weights_of_temporal_convolutions_lose_an_axis():
    for name, renamed in rename(names_of("tiny", "unet"), i2vgen.UNET).items():
        is_volume = len(names_of("tiny", "unet")[name]) == 5
        assert renamed.squeeze == is_volume, name


def test_the_old_names_of_the_autoencoder_become_the_same():
    names = list(names_of("full", "vae"))
    spelled = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = names
    for new_name, old_name in spelled.items():
        old = [name.replace(f".{new_name}.", f".{old_name}.") for name in old]
    assert sum(a != b for a, b in zip(names, old, strict=True)) == 16
    assert vae.table(names) is vae.VAE
    assert vae.table(old) is vae.OLD_VAE
    ours = [renamed.name for renamed in rename(names, vae.VAE).values()]
    assert [renamed.name for renamed in rename(old, vae.OLD_VAE).values()] == ours


def test_a_rule_knows_whole_pieces_only():
    table = rules({"mid.{}": "m.{}"})
    assert rename(["mid.7.weight"], table)["mid.7.weight"].name == "m.7.weight"
    for name in (
        "mid.7.weights",
        "mid.x.weight",
        "amid.7.weight",
        "mid.7.0.weight",
        "midx7.weight",
    ):
        with pytest.raises(InputError, match=f"no rule knows {name}"):
            rename([name], table)


def test_every_unknown_name_is_named():
    with pytest.raises(InputError, match="no rule knows b.weight, c"):
        rename(["a.weight", "b.weight", "c"], rules({"a": "x"}))


def test_two_names_must_not_meet():
    with pytest.raises(InputError, match="a.weight and b.weight both become x.weight"):
        rename(["a.weight", "b.weight"], rules({"a": "x", "b": "x"}))


def test_a_name_belongs_to_one_rule():
    with pytest.raises(InputError, match="a.0.weight is known to several rules: a.{}, a.0"):
        rename(["a.0.weight"], (Rule("a.{}", "x.{}"), Rule("a.0", "y")))


def test_a_rule_that_nobody_needs_is_found():
    table = rules({"a": "x", "b": "y"})
    assert unused_rules(["a.bias"], table) == [Rule("b", "y")]


def test_rules_go_one_floor_deeper():
    table = prefixed("block.{}", "", prefixed("attn", "self", [Rule("to_q", "q", squeeze=1)]))
    assert table == (Rule("block.{}.attn.to_q", "self.q", squeeze=1),)
