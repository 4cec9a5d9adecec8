"""IP-Adapter and T2I-Adapter: their conversion, and the editors that paint with them."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from anyv2v.cli.main import main
from anyv2v.convert.formats import adapters
from anyv2v.convert.published import convert
from anyv2v.convert.rename import rename, unused_rules
from anyv2v.errors import InputError
from anyv2v.frame_editors import conditions
from anyv2v.frame_editors.base import FrameRequest
from anyv2v.frame_editors.conditions import condition_picture, patches
from anyv2v.frame_editors.ip_adapter import IPAdapter
from anyv2v.frame_editors.registry import describe
from anyv2v.frame_editors.t2i_adapter import T2IAdapter
from anyv2v.stable_diffusion.adapters import load_ip_adapter, load_t2i_adapter
from anyv2v.stable_diffusion.ip_adapter import SITES, scales
from anyv2v.stable_diffusion.painting import Painting
from anyv2v.weights_folders import expected_shapes, inspect
from tests.oracles import adapter_snapshot, sd_snapshot

CPU = torch.device("cpu")


def picture(h=64, w=64, seed=0):
    """A smooth one, with an edge."""
    small = np.random.RandomState(seed).randint(0, 256, (4, 4, 3), dtype=np.uint8)
    frame = np.array(Image.fromarray(small).resize((w, h), Image.Resampling.BICUBIC))
    frame[h // 4 : h // 2, w // 4 : w // 2] = 255 - 30 * seed
    return frame


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Stable Diffusion and adapters, tiny, converted."""
    at = tmp_path_factory.mktemp("adapters")
    sources = {
        "sd": sd_snapshot.write(at / "hf" / "sd", channels_in=4),
        "ip": adapter_snapshot.write_ip_adapter(at / "hf" / "ip"),
        "canny": adapter_snapshot.write_t2i_adapter(at / "hf" / "canny"),
        "colour": adapter_snapshot.write_t2i_adapter(at / "hf" / "colour", "tiny light"),
        "odd": adapter_snapshot.write_t2i_adapter(at / "hf" / "odd", "odd"),
        "odd ip": adapter_snapshot.write_ip_adapter(at / "hf" / "odd ip", "odd"),
    }
    for name, source in sources.items():
        convert(source, at / name, expected_shapes)
    return SimpleNamespace(at=at, of=lambda name: str(at / name), source=sources.get)


@pytest.fixture
def ip_source(tmp_path):
    """An IP-Adapter that a test may spoil."""
    return adapter_snapshot.write_ip_adapter(tmp_path / "src")


@pytest.fixture
def t2i_source(tmp_path):
    return adapter_snapshot.write_t2i_adapter(tmp_path / "src")


def check_refused(src, *messages):
    target = src.parent.parent / "refused"
    with pytest.raises(InputError) as refusal:
        convert(src, target, expected_shapes)
    text = str(refusal.value)
    assert "\n" not in text and str(src) in text
    for message in messages:
        assert message in text
    assert not target.exists()


def change(path, drop=(), **tensors):
    state = {k: v for k, v in load_file(path).items() if k not in drop}
    save_file({**state, **{k.replace("__", "."): v for k, v in tensors.items()}}, path)


# conversion


@pytest.mark.parametrize("preset", ["tiny", "odd", "full"])
def test_every_name_of_an_ip_adapter_goes_there_and_back(preset):
    names = adapter_snapshot.ip_adapter_shapes(preset)
    check_names(names, adapters.IP_NAMES)
    # of Stable Diffusion's 16 cross-attentions, a key and a value each
    assert len(names) == 36


@pytest.mark.parametrize("preset", adapter_snapshot.T2I_PRESETS)
def test_every_name_of_a_t2i_adapter_goes_there_and_back(preset):
    kind = "light" if adapter_snapshot.T2I_PRESETS[preset][0] == "light_adapter" else "full"
    check_names(adapter_snapshot.t2i_adapter_shapes(preset), adapters.T2I_NAMES[kind])


def check_names(names, table):
    ours = {name: new.name for name, new in rename(names, table).items()}
    assert list(ours) == list(names) and len(set(ours.values())) == len(names)
    back = {name: new.name for name, new in rename(ours.values(), table, "theirs").items()}
    assert back == {new: name for name, new in ours.items()}
    assert unused_rules(names, table) == []


def test_a_converted_ip_adapter_is_the_original_under_other_names(folders):
    theirs = load_file(folders.source("ip"))
    ours = load_file(folders.at / "ip" / "adapter.safetensors")
    assert len(ours) == len(theirs)
    for number, site in (
        (1, "down.0.spatial.0"),
        (3, "down.0.spatial.1"),
        (11, "down.2.spatial.1"),
        (13, "up.1.spatial.0"),
        (29, "up.3.spatial.2"),
        (31, "mid.spatial.0"),
    ):
        for x in "kv":
            a, b = ours[f"{site}.block.cross.{x}.weight"], f"ip_adapter.{number}.to_{x}_ip.weight"
            assert torch.equal(a, theirs[b])
    assert torch.equal(ours["proj.bias"], theirs["image_proj.proj.bias"])
    assert torch.equal(ours["norm.weight"], theirs["image_proj.norm.weight"])
    tower = load_file(folders.at / "ip" / "vision.safetensors")
    original = load_file(folders.source("ip").parent / "image_encoder" / "model.safetensors")
    assert torch.equal(tower["projection.weight"], original["visual_projection.weight"])
    assert sorted(path.name for path in (folders.at / "ip").iterdir()) == [
        "adapter.safetensors",
        "config.json",
        "manifest.json",
        "vision.safetensors",
    ]
    config = json.loads((folders.at / "ip" / "config.json").read_text())
    assert config["model"] == "ip-adapter"
    assert config["adapter"] == {
        "tokens": 4,
        "context_width": 32,
        "image_width": 20,
        "widths": [16, 32, 48, 48],
    }


def test_a_bin_file_gives_the_same_bytes(folders, ip_source, tmp_path):
    torch.save(adapter_snapshot.nested(load_file(ip_source)), ip_source.with_suffix(".bin"))
    convert(ip_source.with_suffix(".bin"), tmp_path / "ours", expected_shapes)
    for name in ("adapter.safetensors", "vision.safetensors", "config.json", "manifest.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (folders.at / "ip" / name).read_bytes()


def test_converting_and_verifying_by_command(ip_source, tmp_path, capsys):
    for src, name, tensors in (
        (ip_source, "ip-adapter", 36),
        (adapter_snapshot.write_t2i_adapter(tmp_path / "t2i"), "t2i-adapter", 38),
    ):
        assert main(["convert", str(src), str(tmp_path / name), "--dtype", "float16"]) == 0
        assert main(["weights", "verify", str(tmp_path / name)]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{tmp_path / name}: ready for --editor-option adapter={tmp_path}")
        assert f"{tmp_path / name}: {name}" in out
        assert f"adapter.safetensors: {tensors} tensors" in out and "F16" in out
    path = tmp_path / "t2i-adapter" / "adapter.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert main(["weights", "verify", str(tmp_path / "t2i-adapter")]) == 2
    assert "adapter.safetensors: sha256" in capsys.readouterr().err


def test_converting_again_takes_force(t2i_source, tmp_path):
    convert(t2i_source, tmp_path / "ours", expected_shapes)
    with pytest.raises(InputError, match="exists already"):
        convert(t2i_source, tmp_path / "ours", expected_shapes)
    convert(t2i_source, tmp_path / "ours", expected_shapes, force=True)
    assert inspect(tmp_path / "ours").components[0].tensors == 38


@pytest.mark.parametrize(
    "tensors, what",
    [
        ({"image_proj__latents": torch.zeros(1, 16, 8)}, "is IP-Adapter Plus"),
        ({"image_proj__proj__3__weight": torch.zeros(8, 8)}, "is IP-Adapter Full Face"),
        ({"ip_adapter__1__to_k_lora__down__weight": torch.zeros(8, 8)}, "is IP-Adapter FaceID"),
        ({"image_proj__norm__weight": torch.zeros(2048)}, "is an IP-Adapter for SDXL"),
    ],
)
def test_another_kind_of_ip_adapter_is_named(ip_source, tensors, what):
    change(ip_source, **tensors)
    check_refused(ip_source, what, "ip-adapter_sd15")


def test_an_ip_adapter_is_used_up_and_whole(ip_source):
    change(ip_source, ip_adapter__33__to_k_ip__weight=torch.zeros(2, 2))
    check_refused(ip_source, "extra: ip_adapter.33.to_k_ip.weight (2, 2)")
    change(ip_source, drop=["ip_adapter.33.to_k_ip.weight", "ip_adapter.17.to_v_ip.weight"])
    check_refused(ip_source, "missing: ip_adapter.17.to_v_ip.weight (48, 32)")
    change(ip_source, drop=["image_proj.proj.weight"])
    check_refused(ip_source, "has no image_proj.proj.weight")


def test_a_file_that_is_no_ip_adapter(tmp_path, ip_source):
    other = ip_source.parent / "model.safetensors"
    save_file({"conv_in.weight": torch.zeros(2)}, other)
    check_refused(other, "is no IP-Adapter for Stable Diffusion 1.5")
    torch.save({"image_proj": torch.zeros(2), "ip_adapter": {}}, ip_source.with_suffix(".bin"))
    check_refused(ip_source.with_suffix(".bin"), "is not a dict of names and tensors")


def test_the_vision_tower_has_to_be_there_and_to_fit(ip_source):
    tower = ip_source.parent / "image_encoder"
    config = json.loads((tower / "config.json").read_text())
    (tower / "config.json").write_text(json.dumps({**config, "projection_dim": 21}))
    check_refused(ip_source, "projection_dim is 21", "takes embeddings of 20")
    tower.rename(ip_source.parent / "elsewhere")
    check_refused(ip_source, "image_encoder", "there is no such folder")


@pytest.mark.parametrize(
    "changes, messages",
    [
        (
            {"adapter_type": "full_adapter_xl"},
            ["adapter_type", "'full_adapter' or 'light_adapter'"],
        ),
        ({"in_channels": 4}, ["in_channels is 4; only 1 or 3"]),
        ({"num_res_blocks": 3}, ["missing: adapter.body.0.resnets.2.block1.weight"]),
        ({"channels": [16, 32, 48, 64]}, ["missing: adapter.body.3.in_conv.weight (64, 48, 1, 1)"]),
        ({"adapter_type": "light_adapter"}, ["missing: adapter.body.0.in_conv.weight"]),
        ({"_class_name": "ControlNetModel"}, ["has no model_index.json"]),
    ],
)
def test_a_t2i_adapter_that_is_none(t2i_source, changes, messages):
    path = t2i_source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    check_refused(t2i_source, *messages)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["canny", "depth", "color"])
def test_a_full_size_t2i_adapter(tmp_path, preset):
    """Of the names, shapes and sizes of TencentARC's: 77 and 19 million parameters."""
    adapter_snapshot.write_t2i_adapter(tmp_path / "hf", preset)
    convert(tmp_path / "hf", tmp_path / "ours", expected_shapes)
    parameters = inspect(tmp_path / "ours").components[0].parameters
    assert round(parameters / 1e6) == (19 if preset == "color" else 77)
    network = load_t2i_adapter(tmp_path / "ours", CPU, torch.float32)
    channels = network.config.channels
    with torch.no_grad():
        features = network(torch.rand(1, channels, 64, 64))
    assert [tuple(x.shape[1:]) for x in features] == [
        (8, 8, 320),
        (4, 4, 640),
        (2, 2, 1280),
        (1, 1, 1280),
    ]
    assert all(x.isfinite().all() for x in features)


@pytest.mark.slow
def test_a_full_size_ip_adapter(tmp_path):
    """Of the names, shapes and sizes of h94's: 22 million parameters, ViT-H/14's 632 million."""
    file = adapter_snapshot.write_ip_adapter(tmp_path / "hf", "full", dtype=torch.float16)
    convert(file, tmp_path / "ours", expected_shapes)
    sizes = {c.file: round(c.parameters / 1e6) for c in inspect(tmp_path / "ours").components}
    assert sizes == {"adapter.safetensors": 22, "vision.safetensors": 632}
    network, tokens = load_ip_adapter(tmp_path / "ours", picture(300, 200), CPU, torch.float32)
    assert tokens.shape == (2, 4, 768) and tokens.isfinite().all()
    with torch.no_grad():
        read = network.read(tokens, 8)
    assert read["up.1.spatial.0.block.cross"][0].shape == (2, 4, 8, 160)


# where the reference is seen


def test_presets_are_the_blocks_that_they_are_called_after():
    assert scales("all", 0.5) == dict.fromkeys(SITES, 0.5) and len(SITES) == 16
    style = {f"up.1.spatial.{i}.block.cross" for i in range(3)}
    layout = {"down.2.spatial.0.block.cross", "down.2.spatial.1.block.cross"}
    assert scales("style", 1.0) == dict.fromkeys(style, 1.0)
    both = style | layout | {"mid.spatial.0.block.cross"}
    assert scales("style+layout", 2) == dict.fromkeys(both, 2.0)
    assert scales("all", 0) == {}
    for blocks, scale in (("content", 1.0), ("all", -0.1), ("all", float("nan"))):
        with pytest.raises(InputError):
            scales(blocks, scale)


def test_how_much_of_a_frame_goes():
    assert [Painting(10, s).first for s in (0.1, 0.5, 0.59, 1.0)] == [9, 5, 5, 0]
    for wrong in (0, -1, 1.1, 0.09, float("nan"), "far"):
        with pytest.raises(InputError, match="strength"):
            Painting(10, wrong)


# the editors, end to end

QUICK = dict(steps=2, size=64, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def ip(folders):
    def run(frame=None, reference=None, seeds=(1,), instruction="a robot", **options):
        frame = picture() if frame is None else frame
        reference = picture(seed=3) if reference is None else reference
        options = {"weights": folders.of("sd"), "adapter": folders.of("ip"), **QUICK, **options}
        return IPAdapter(**options)(FrameRequest(frame, instruction, reference), seeds)

    return run


@pytest.fixture(scope="module")
def t2i(folders):
    def run(frame=None, seeds=(1,), instruction="a robot", name="colour", **options):
        frame = picture() if frame is None else frame
        known = {"weights": folders.of("sd"), "adapter": folders.of(name), "kind": "colour"}
        return T2IAdapter(**{**known, **QUICK, **options})(FrameRequest(frame, instruction), seeds)

    return run


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_ip_adapter_gives_a_candidate_for_each_seed(ip):
    frame = picture(50, 70)
    first, second = found = ip(frame, seeds=[1, 2])
    assert all(x.dtype == np.uint8 and x.shape == (50, 70, 3) for x in found)
    assert not same([first], [second])
    assert same([second], ip(frame, seeds=[2]))
    assert not same([first], ip(frame, reference=picture(90, 60, seed=5)))
    assert not same([first], ip(frame, instruction="a dog"))


def test_a_scale_of_nothing_is_no_adapter(ip):
    plain = ip(scale=0.0)
    assert same(plain, ip(scale=0.0, blocks="style", reference=picture(seed=5)))
    for blocks in ("all", "style", "style+layout"):
        assert not same(plain, ip(blocks=blocks))


def test_style_touches_only_its_sites(folders, ip, tmp_path):
    # an adapter with values nowhere but in the style block, and one with values but there
    for name, kept in (("there", True), ("elsewhere", False)):
        src = adapter_snapshot.write_ip_adapter(tmp_path / name / "src")
        values = [n for n in load_file(src) if "to_v_ip" in n]
        style = {f"ip_adapter.{number}.to_v_ip.weight" for number in (13, 15, 17)}
        gone = {n: torch.zeros_like(load_file(src)[n]) for n in values if (n in style) != kept}
        change(src, **gone)
        convert(src, tmp_path / name / "ours", expected_shapes)
    there, elsewhere = (str(tmp_path / name / "ours") for name in ("there", "elsewhere"))
    plain = ip(scale=0.0)
    assert same(plain, ip(adapter=elsewhere, blocks="style"))
    assert not same(plain, ip(adapter=elsewhere, blocks="style+layout"))
    assert not same(plain, ip(adapter=elsewhere))
    assert same(ip(blocks="style"), ip(adapter=there, blocks="all"))


def test_ip_adapter_together_with_a_t2i_adapter(folders, ip):
    plain = ip()
    both = dict(t2i=folders.of("colour"), kind="colour")
    assert not same(plain, ip(**both))
    assert same(plain, ip(**both, condition_scale=0.0))
    assert not same(ip(scale=0.0), ip(scale=0.0, **both))


def test_t2i_adapter_gives_a_candidate_for_each_seed(t2i):
    frame = picture(50, 70)
    first, second = found = t2i(frame, seeds=[1, 2])
    assert all(x.dtype == np.uint8 and x.shape == (50, 70, 3) for x in found)
    assert not same([first], [second])
    assert same([second], t2i(frame, seeds=[2]))
    assert not same([first], t2i(frame, scale=0.5))
    assert not same([first], t2i(frame, negative="a dog"))


def test_from_noise_only_the_condition_is_seen(t2i, tmp_path):
    Image.fromarray(picture(32, 32, seed=7)).save(tmp_path / "condition.png")
    given = dict(condition=str(tmp_path / "condition.png"))
    other = picture(seed=2)
    assert same(t2i(**given), t2i(other, **given))
    assert not same(t2i(**given), t2i())
    assert not same(t2i(strength=0.5, **given), t2i(other, strength=0.5, **given))


@pytest.mark.parametrize("kind", ["canny", "sketch"])
def test_a_condition_of_one_channel(t2i, tmp_path, kind):
    Image.fromarray(picture(32, 32, seed=7)).save(tmp_path / "condition.png")
    options = dict(name="canny", kind=kind, condition=str(tmp_path / "condition.png"))
    assert not same(t2i(**options), t2i(**options, scale=0.0))


def test_in_half_precision_it_is_nearly_the_same(ip, t2i, folders):
    both = dict(t2i=folders.of("colour"), kind="colour")
    for run, options in ((ip, both), (t2i, {})):
        whole, half = (run(**options, dtype=d)[0] for d in (torch.float32, torch.bfloat16))
        differs = np.abs(whole.astype(int) - half)
        assert 0 < differs.mean() < 4


# conditions


def test_a_condition_is_as_large_as_the_frame_and_from_0_to_1(tmp_path):
    frame = picture(24, 40)
    Image.fromarray(picture(100, 30, seed=1)).save(tmp_path / "c.png")
    for channels in (1, 3):
        shown = condition_picture("depth", str(tmp_path / "c.png"), frame, channels)
        assert shown.shape == (1, channels, 24, 40) and shown.dtype == torch.float32
        assert 0.8 < shown.max() <= 1 and 0 <= shown.min()
    white = np.full((24, 40, 3), 255, np.uint8)
    assert torch.equal(condition_picture("color", "", white, 3), torch.ones(1, 3, 24, 40))
    assert torch.equal(condition_picture("colour", "", white, 3), torch.ones(1, 3, 24, 40))


@pytest.mark.parametrize("sides", [(24, 80), (80, 24)])
def test_a_condition_of_other_proportions_is_seen_whole(tmp_path, sides):
    """Stretched: its first tenth is white, whichever sides it has."""
    h, w = sides
    shown = np.zeros((h, w, 3), np.uint8)
    shown[: h // 8, : w // 8] = 255
    Image.fromarray(shown).save(tmp_path / "c.png")
    found = condition_picture("depth", str(tmp_path / "c.png"), picture(40, 40), 1)[0, 0]
    assert found[:4, :4].mean() > 0.9 and found[7:].max() < 0.1 and found[:, 7:].max() < 0.1


def test_canny_is_asked_with_its_thresholds(monkeypatch):
    asked = []

    def find(frame, *thresholds):
        asked.append((frame, thresholds))
        return frame[..., 0] // 2

    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(Canny=find))
    frame = picture(24, 40)
    edges = conditions.canny(frame[:, ::-1])
    ((given, thresholds),) = asked
    assert thresholds == (100, 200) and given.flags.c_contiguous
    assert np.array_equal(given, frame[:, ::-1])
    assert np.array_equal(edges, np.repeat((frame[:, ::-1, :1] // 2), 3, axis=2))


def test_patches_are_of_the_mean_colour():
    frame = np.zeros((128, 192, 3), np.uint8)
    frame[:64, 64:96, 0] = 200
    found = patches(frame)
    assert found.shape == frame.shape
    assert (found[:64, 64:128] == [100, 0, 0]).all()
    found[:64, 64:128] = 0
    assert not found.any()
    assert (patches(frame[:20, :20]) == 0).all()


def test_canny_without_the_library(monkeypatch, t2i):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"pip install '\.\[canny\]'") as refusal:
        t2i(name="canny", kind="canny")
    assert "\n" not in str(refusal.value)


def test_canny_of_the_frame(t2i):
    pytest.importorskip("cv2", reason="pip install '.[canny]'")
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[10:30, 20:40] = 255
    edges = condition_picture("canny", "", frame, 1)
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    rows, columns = np.nonzero(edges[0, 0].numpy())
    assert rows.min() in (9, 10) and rows.max() in (29, 30)
    assert columns.min() in (19, 20) and columns.max() in (39, 40)
    # the inside of the square is no edge
    assert edges[0, 0, 14:26, 24:36].sum() == 0
    assert not same(t2i(name="canny", kind="canny"), t2i(name="canny", kind="canny", scale=0.0))


# what cannot be


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "pose"}, "kind: 'pose' is not one of canny, sketch, depth, color, colour"),
        ({"kind": "depth"}, "kind depth: needs the option condition"),
        ({"steps": 0}, "steps"),
        ({"strength": 0.1}, "strength"),
        ({"scale": float("inf")}, "scale"),
        ({"size": 0}, "size"),
        ({"name": "ip"}, "holds ip-adapter; weights of t2i-adapter are needed"),
        ({"name": "sd"}, "holds stable-diffusion; weights of t2i-adapter are needed"),
        ({"name": "nowhere"}, "no such folder"),
        ({"name": "odd"}, r"is for widths \(12, 20, 20\) and 4 pixels"),
        ({"weights": "canny"}, "holds t2i-adapter; weights of Stable Diffusion are needed"),
        ({"condition": "nowhere.png"}, "nowhere.png: no such file"),
        ({"instruction": " "}, "needs an instruction"),
    ],
)
def test_a_t2i_adapter_cannot_work_so(t2i, folders, options, message):
    if "weights" in options:
        options = {"weights": folders.of(options["weights"])}
    with pytest.raises(InputError, match=message) as refusal:
        t2i(**options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"blocks": "content"}, "blocks: 'content' is not one of all, style, style"),
        ({"scale": -1.0}, "scale: -1.0 is below 0"),
        ({"adapter": "colour"}, "holds t2i-adapter; weights of ip-adapter are needed"),
        ({"adapter": "odd ip"}, r"is for widths \(24, 36, 60, 72\) and a context of 40"),
        ({"weights": "ip"}, "holds ip-adapter; weights of Stable Diffusion are needed"),
        ({"t2i": "ip"}, "holds ip-adapter; weights of t2i-adapter are needed"),
        ({"t2i": "canny", "kind": "sketch"}, "needs the option condition"),
    ],
)
def test_an_ip_adapter_cannot_work_so(ip, folders, options, message):
    for name in {"adapter", "weights", "t2i"} & set(options):
        options = {**options, name: folders.of(options[name])}
    with pytest.raises(InputError, match=message) as refusal:
        ip(**{"kind": "colour", **options})
    assert "\n" not in str(refusal.value)


def test_an_ip_adapter_needs_a_reference(folders):
    editor = IPAdapter(folders.of("sd"), folders.of("ip"), **QUICK)
    with pytest.raises(InputError, match="needs a reference"):
        editor(FrameRequest(picture(), "a robot"), [0])


def test_both_by_name_on_the_command_line(folders, tmp_path, capsys):
    Image.fromarray(picture()).save(tmp_path / "frame.png")
    Image.fromarray(picture(seed=3)).save(tmp_path / "style.png")
    for name, options in (
        ("ip-adapter", ["--reference", str(tmp_path / "style.png")]),
        ("t2i-adapter", ["--editor-option", "kind=colour"]),
    ):
        adapter = folders.of("ip" if name == "ip-adapter" else "colour")
        given = {"adapter": adapter, "steps": 2, "size": 64}
        for option, value in given.items():
            options += ["--editor-option", f"{option}={value}"]
        out = tmp_path / f"{name}.png"
        command = ["edit-frame", str(tmp_path / "frame.png"), "--editor", name]
        command += ["--editor-weights", folders.of("sd"), "--instruction", "a robot", *options]
        assert main([*command, "-o", str(out)]) == 0, capsys.readouterr().err
        assert np.array(Image.open(out)).shape == (64, 64, 3)
    assert describe().count("ip-adapter") and "blocks (all or style or style+layout" in describe()


def test_a_reference_that_is_a_line(ip):
    with pytest.raises(InputError, match="a 200x10 picture is too narrow"):
        ip(reference=picture(10, 200))


def test_a_config_that_does_not_fit_itself(folders, tmp_path):
    for name, component, field, value in (
        ("ip", "adapter", "image_width", 21),
        ("ip", "preprocess", "size", 16),
        ("ip", "adapter", "widths", [16, 32, 48]),
        ("canny", "adapter", "kind", "wide"),
        ("canny", "adapter", "channels", 4),
        ("canny", "adapter", "factor", 2**24),
        ("colour", "adapter", "widths", [16, 32, 48, 50]),
    ):
        config = json.loads((folders.at / name / "config.json").read_text())
        config[component][field] = value
        with pytest.raises(InputError):
            expected_shapes(config)
    assert conditions.PATCH == 64
