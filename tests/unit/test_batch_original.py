"""The original's template and group files: what its scripts do with each key, worked out by hand.

The files are written anew, with the keys of AnyV2V's repository (i2vgen-xl/configs, consisti2v/
configs, seine/configs) and values of their own.
"""

import copy
import json
import re

import pytest
import yaml
from PIL import Image

from anyv2v.batch.omega import Config, merge
from anyv2v.batch.original import read_original
from anyv2v.batch.original_keys import DIALECTS
from anyv2v.errors import InputError

UGLY = "Blurry, ugly"

I2VGEN = """
seed: 8888
device: "cuda:4"
debug: False
data_dir: "data"
model_name: "i2vgen-xl"
task_name: "Prompt-Based-Editing"
edited_video_name: "ReplaceMe"
output_dir: "${data_dir}/Results/${task_name}/${model_name}/${video_name}/${edited_video_name}/"
image_size: [64, 48]
video_dir: "${data_dir}/demo"
video_name: "ReplaceMe"
video_path: "ReplaceMe"
video_frames_path: "ReplaceMe"
edited_first_frame_path: "ReplaceMe"
ddim_latents_path: "${data_dir}/inversions/${video_name}"
n_frames: 4
cfg: 9.0
target_fps: 8
editing_prompt: "ReplaceMe"
editing_negative_prompt: "Blurry, ugly"
n_steps: 5
ddim_init_latents_t_idx: 1
ddim_inv_prompt: ""
random_ratio: 0.0
pnp_f_t: 0.2
pnp_spatial_attn_t: 0.2
pnp_temp_attn_t: 0.5
force_recompute_latents: False
inverse_config:
    image_size: ${image_size}
    n_frames: ${n_frames}
    cfg: 1.0
    target_fps: ${.....target_fps}
    prompt: ""
    negative_prompt: ""
    n_steps: 20
    output_dir: "${output_dir}/ddim_latents"
    inverse_static_video: False
    null_image_inversion: False
recon_config:
    enable_recon: False
    image_size: ${image_size}
    n_frames: ${n_frames}
    cfg: 7.5
    target_fps: 8
    prompt: "a man"
    negative_prompt: "dark"
    n_steps: 10
    ddim_init_latents_t_idx: 3
    ddim_latents_path: "${inverse_config.output_dir}"
""".replace("${.....target_fps}", "${..target_fps}")

WALK = {
    "active": True,
    "task_name": "Style-Transfer",
    "video_name": "Man Walking",
    "edited_first_frame_path": "demo/Man Walking/vader.png",
    "editing_prompt": "man walking",
    "edited_video_name": "darth vader walking",
    "ddim_init_latents_t_idx": 0,
    "pnp_f_t": 1.0,
    "pnp_temp_attn_t": 1,
}

CONSISTI2V = """
seed: 7
device: "cuda:0"
debug: True
exp_name: "${video_name}"
model_name: ""
output_dir: "anyv2v_results/${exp_name}"
image_size: [64, 48]
data_dir: null
video_name: "Man Walking"
video_path: "data/demo/${video_name}.mp4"
video_frames_path: "data/demo/${video_name}"
save_frames: False
edited_first_frame_path: "data/vader.png"
n_frames: 4
cfg_txt: 35
cfg_img: 1.0
frame_stride: 3
editing_prompt: "a robot / android"
editing_negative_prompt: "Blurry, ugly"
n_steps: 5
ddim_init_latents_t_idx: 4
ddim_inv_prompt: ""
ddim_latents_path: "path/to/ddim_latents"
pnp_f_t: 0.2
pnp_spatial_attn_t: 0.2
pnp_temp_attn_t: 0.5
blend_ratio: 0.0
inverse_config:
    image_size: ${image_size}
    n_frames: ${n_frames}
    cfg_txt: 1.0
    cfg_img: 1.0
    frame_stride: 3
    prompt: ""
    negative_prompt: ""
    n_steps: 20
    output_dir: "outputs/${exp_name}"
recon_config:
    enable_recon: False
    image_size: ${image_size}
    n_frames: ${n_frames}
    cfg_txt: 2.0
    cfg_img: 1.5
    frame_stride: 3
    prompt: "a man"
    negative_prompt: "dark"
    n_steps: 10
    ddim_init_latents_t_idx: 3
    ddim_latents_path: null
"""

SEINE = """
seed: 1
device: "cuda:0"
debug: False
exp_name: "default"
output_dir: "anyv2v_results/${exp_name}"
data_dir: "data"
src_video_path: "${data_dir}/demo/Man Walking.mp4"
ddim_inversion_dir: 'ddim-inversion/default/'
n_ddim_inversion_steps: 20
n_frame_inverted: 4
n_frames: 4
edited_first_frame_path: 'data/vader.png'
image_size: [48, 64]
model_name: "seine"
sd_path: "./pretrained/stable-diffusion-v1-4"
ckpt_path: "./pretrained/SEINE/seine.pt"
model_key: "./pretrained/stable-diffusion-v1-4"
enable_xformers_memory_efficient_attention: True
use_fp16: True
sample_method: 'ddpm'
beta_start: 0.0001
beta_end: 0.02
beta_schedule: "linear"
cfg_scale: 4
n_steps: 5
init_with_ddim_inversion: True
prompt: "a robot"
negative_prompt: ""
batch_size: 1
enable_pnp: True
pnp_f_t: 0.2
pnp_spatial_attn_t: 0.2
pnp_temp_attn_t: 0.5
pnp_cross_attn_t: 0.0
"""

SEINE_INVERSION = """
seed: 1
device: "cuda:0"
debug: True
exp_name: "default"
output_dir: "ddim-inversion/${exp_name}"
data_dir: "data"
src_video_path: "${data_dir}/demo/Man Walking.mp4"
image_size: [48, 64]
save_video_frames: False
model_name: "seine"
sd_path: "./pretrained/stable-diffusion-v1-4"
ckpt_path: "./pretrained/SEINE/seine.pt"
model_key: "./pretrained/stable-diffusion-v1-4"
enable_xformers_memory_efficient_attention: True
use_fp16: True
beta_start: 0.0001
beta_end: 0.02
beta_schedule: "linear"
n_steps: 20
n_save_steps: 10
n_frame_to_invert: 4
inversion_prompt: "a man"
batch_size: 1
"""

READ = {"paper": True, "fit": "stretch", "sample_fps": "source", "size": "64x48", "frames": 4}
SHARES = {"conv": 0.2, "spatial": 0.2, "temporal": 0.5}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The folder that the scripts run in, with a clip and its frames."""
    (tmp_path / "data" / "demo").mkdir(parents=True)
    (tmp_path / "data" / "demo" / "Man Walking.mp4").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def set_key(values, key, value):
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[last] = value


@pytest.fixture
def read(project):
    """The tasks of a template with some keys set, and of a group."""

    def read(template, group=None, **changed):
        values = yaml.safe_load(template)
        for key, value in changed.items():
            set_key(values, key.replace("__", "."), value)
        (project / "template.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        if group is None:
            return read_original("template.yaml")
        (project / "group.json").write_text(json.dumps(group))
        return read_original("template.yaml", "group.json")

    return read


def test_i2vgen_edits_are_those_of_its_scripts(read, project):
    snow = {"active": False, "video_name": "Ballet"}
    helmet = WALK | {"edited_video_name": "a helmet", "pnp_temp_attn_t": 0.5, "seed": 3}
    (task,) = read(I2VGEN, [WALK, snow, helmet])
    assert (task.video, task.backbone) == (f"{project}/data/demo/Man Walking.mp4", "i2vgen")
    assert task.settings == READ | {"fps": 8, "inversion_steps": 20, "inversion_prompt": ""}
    first, second = task.edits
    own = {"seed": 8888, "prompt": "man walking", "negative_prompt": UGLY, "steps": 5, "start": 0}
    own |= {"guidance": {"text": 9.0}, "random_ratio": 0.0}
    own |= {"conv": 1.0, "spatial": 0.2, "temporal": 1.0}
    own |= {"frame": f"{project}/data/demo/Man Walking/vader.png"}
    assert (first.command, first.settings) == ("edit", own)
    assert second.settings == own | {"temporal": 0.5, "seed": 3}
    assert first.output == (
        "Results/Style-Transfer/i2vgen-xl/Man Walking/darth vader walking/"
        "ddim_init_latents_t_idx_0_nsteps_5_cfg_9.0_pnpf1.0_pnps0.2_pnpt1/video.mp4"
    )
    assert "a helmet/ddim_init_latents_t_idx_0_nsteps_5_" in second.output
    told = "device, ddim_latents_path, inverse_config.output_dir, recon_config.ddim_latents_path"
    assert task.notices == (f"template.yaml: of no effect here: {told}",)


def test_consisti2v_edits_are_those_of_its_scripts(read, project):
    (task,) = read(CONSISTI2V)
    assert (task.video, task.backbone) == (f"{project}/data/demo/Man Walking.mp4", "consisti2v")
    clip = {"option": ["frame_stride=3"], "inversion_steps": 20, "inversion_prompt": ""}
    assert task.settings == READ | clip
    (edit,) = task.edits
    own = {
        "seed": 7,
        "prompt": "a robot / android",
        "negative_prompt": UGLY,
        "steps": 5,
        "start": 4,
    }
    own |= {"guidance": {"text": 35, "image": 1.0}, "random_ratio": 0.0, **SHARES}
    assert edit.settings == own | {"frame": f"{project}/data/vader.png"}
    # the script would make two folders of the prompt
    assert edit.output == "anyv2v_results/Man Walking/a robot _ android/video.mp4"


def test_seine_edits_are_those_of_its_scripts(read, project):
    (task,) = read(SEINE)
    assert (task.video, task.backbone) == (f"{project}/data/demo/Man Walking.mp4", "seine")
    assert task.settings == READ | {"inversion_steps": 20, "option": ["sampler=ddpm"]}
    (edit,) = task.edits
    own = {"seed": 1, "prompt": "a robot", "negative_prompt": "", "steps": 5, **SHARES}
    own |= {"guidance": {"text": 4}, "inject": {"cross": 0.0}}
    assert edit.settings == own | {"frame": f"{project}/data/vader.png"}
    assert edit.output == (
        "anyv2v_results/default/seine/Man Walking/a_robot/"
        "cfg4_f0.2_spa0.2_cro0.0_tmp0.5_stp5/video_pnp_fps_8.mp4"
    )


def test_reconstructions_are_those_of_the_inversions(read, project):
    edit, recon = read(I2VGEN, [WALK], recon_config__enable_recon=True)[0].edits
    assert recon.command == "reconstruct" and edit.command == "edit"
    own = {"guidance": {"text": 7.5}, "prompt": "a man", "negative_prompt": "dark"}
    assert recon.settings == own | {"steps": 10, "start": 3}
    folder = "Results/Style-Transfer/i2vgen-xl/Man Walking/darth vader walking"
    assert recon.output == f"{folder}/ddim_reconstruction.mp4"

    inversion = yaml.safe_load(CONSISTI2V)
    for key in [key for key in inversion if key.startswith(("pnp", "editing", "edited", "cfg"))]:
        del inversion[key]
    del inversion["recon_config"]["enable_recon"]
    # its script always reconstructs
    ((recon,),) = (task.edits for task in read(yaml.safe_dump(inversion)))
    own |= {"guidance": {"text": 2.0, "image": 1.5}}
    assert (recon.command, recon.settings) == ("reconstruct", own | {"steps": 10, "start": 3})

    (task,) = read(SEINE_INVERSION)
    own = {"steps": "20", "guidance": 1.0, "prompt": "a man", "negative_prompt": ""}
    assert task.edits[0].settings == own and task.edits[0].command == "reconstruct"
    clip = {"inversion_steps": "20", "inversion_prompt": "a man", "option": ["sampler=ddim"]}
    assert task.settings == READ | clip
    place = "ddim-inversion/default/seine/Man Walking/steps_20/nframes_4/inverted.mp4"
    assert task.edits[0].output == place


def test_an_inversion_without_a_reconstruction_is_nothing_to_do(read):
    values = yaml.safe_load(I2VGEN)
    inversion = {k: v for k, v in values.items() if not k.startswith(("pnp", "edit"))}
    with pytest.raises(InputError, match="template.yaml: holds no edits, and no reconstructions"):
        read(yaml.safe_dump(inversion), None, video_name="Man Walking", output_dir="inv")


REFUSED = r"here an inversion and all that is made of it have them in common"
NONE, IDLE = "nothing changes", "a notice"
# key -> another value, and what then is another one: option -> its value; a message; or the output
BOTH = {
    "seed": (5, {"seed": 5}),
    "device": ("cpu", IDLE),
    "debug": (True, IDLE),
    "active": (True, NONE),
    "image_size": ([32, 16], {"size": "32x16"}),
    "n_frames": (3, {"frames": 3}),
    "editing_prompt": ("cat", {"prompt": "cat"}),
    "editing_negative_prompt": ("", {"negative_prompt": ""}),
    "n_steps": (9, {"steps": 9}),
    "ddim_init_latents_t_idx": (2, {"start": 2}),
    "ddim_latents_path": ("elsewhere", IDLE),
    "pnp_f_t": (0.7, {"conv": 0.7}),
    "pnp_spatial_attn_t": (-1, {"spatial": 0.0}),
    "pnp_temp_attn_t": (1.5, {"temporal": 1.0}),
    "inverse_config.image_size": ([32, 16], REFUSED),
    "inverse_config.n_frames": (3, REFUSED),
    "inverse_config.prompt": ("a cat", REFUSED),
    "inverse_config.negative_prompt": ("a cat", IDLE),
    "inverse_config.n_steps": (30, {"inversion_steps": 30}),
    "inverse_config.output_dir": ("elsewhere", IDLE),
    "recon_config.image_size": ([32, 16], REFUSED),
    "recon_config.n_frames": (3, REFUSED),
    "recon_config.prompt": ("a cat", {"prompt": "a cat"}),
    "recon_config.negative_prompt": ("a cat", {"negative_prompt": "a cat"}),
    "recon_config.n_steps": (12, {"steps": 12}),
    "recon_config.ddim_init_latents_t_idx": (1, {"start": 1}),
    "recon_config.ddim_latents_path": ("elsewhere", IDLE),
    "recon_config.enable_recon": (7, "7 is neither True nor False"),
}
CHANGES = {
    "i2vgen": BOTH
    | {
        "data_dir": ("data/../data", {"frame": "data/demo/Man Walking/vader.png"}),
        "video_dir": ("data/films", {"video": "data/films/Man Walking.mp4"}),
        "video_name": ("Ballet", {"video": "data/demo/Ballet.mp4"}),
        "video_path": ("data/other.mp4", IDLE),
        "video_frames_path": ("data/other", IDLE),
        "edited_first_frame_path": ("/x.png", {"frame": "/x.png"}),
        "output_dir": ("/results/x", {"output": "results/x/ddim_init_latents_t_idx_0_nsteps_5"}),
        "task_name": ("Mine", {"output": "Results/Mine/i2vgen-xl/Man Walking"}),
        "model_name": ("mine", {"output": "Results/Style-Transfer/mine/Man Walking"}),
        "edited_video_name": ("v", {"output": "Results/Style-Transfer/i2vgen-xl/Man Walking/v/"}),
        "exp_name": ("mine", NONE),
        "cfg": (3, {"guidance": {"text": 3}}),
        "target_fps": (7, {"fps": 7}),
        "random_ratio": (0.5, {"random_ratio": 0.5}),
        "ddim_inv_prompt": ("a man", REFUSED),
        "force_recompute_latents": (True, IDLE),
        "inverse_config.cfg": (3, "cfg: 3: an inversion has no guidance here"),
        "inverse_config.target_fps": (7, REFUSED),
        "inverse_config.inverse_static_video": (True, "inverse_static_video is true, and there is"),
        "inverse_config.null_image_inversion": (True, "null_image_inversion is true, and there is"),
        "recon_config.cfg": (3, {"guidance": {"text": 3}}),
        "recon_config.target_fps": (7, REFUSED),
    },
    "consisti2v": BOTH
    | {
        "data_dir": ("data", NONE),
        "video_name": ("Ballet", {"video": "data/demo/Ballet.mp4"}),
        "video_path": (None, {"video": "data/demo/Man Walking/%05d.png"}),
        "video_frames_path": ("data/other", NONE),
        "edited_first_frame_path": ("x.png", {"frame": "x.png"}),
        "output_dir": ("../x", {"output": "x/a robot _ android/video.mp4"}),
        "model_name": ("mine", NONE),
        "exp_name": ("mine", {"output": "anyv2v_results/mine/a robot _ android/video.mp4"}),
        "cfg_txt": (3, {"guidance": {"text": 3, "image": 1.0}}),
        "cfg_img": (3, {"guidance": {"text": 35, "image": 3}}),
        "frame_stride": (2, REFUSED),
        "blend_ratio": (0.5, {"random_ratio": 0.5}),
        "ddim_inv_prompt": ("a man", REFUSED),
        "save_frames": (True, IDLE),
        "inverse_config.cfg_txt": (3, "cfg_txt: 3: an inversion has no guidance here"),
        "inverse_config.cfg_img": (3, "cfg_img: 3: an inversion has no guidance here"),
        "inverse_config.frame_stride": (2, REFUSED),
        "recon_config.cfg_txt": (3, {"guidance": {"text": 3, "image": 1.5}}),
        "recon_config.cfg_img": (3, {"guidance": {"text": 2.0, "image": 3}}),
        "recon_config.frame_stride": (2, REFUSED),
    },
    "seine": {
        "seed": (5, {"seed": 5}),
        "device": ("cpu", IDLE),
        "debug": (True, IDLE),
        "active": (True, NONE),
        "output_dir": ("x", {"output": "x/seine/Man Walking/a_robot/cfg4"}),
        "edited_first_frame_path": ("x.png", {"frame": "x.png"}),
        "data_dir": ("films", {"video": "films/demo/Man Walking.mp4"}),
        "model_name": ("x", {"output": "anyv2v_results/default/x/Man Walking"}),
        "exp_name": ("x", {"output": "anyv2v_results/x/seine/Man Walking"}),
        "src_video_path": ("x.mp4", {"video": "x.mp4"}),
        "image_size": ([16, 32], {"size": "32x16"}),
        "n_frames": (3, REFUSED),
        "n_frame_inverted": (3, REFUSED),
        "n_frame_to_invert": (3, REFUSED),
        "n_ddim_inversion_steps": (30, {"inversion_steps": 30}),
        "inversion_prompt": ("a man", {"inversion_prompt": "a man"}),
        "sample_method": ("ddim", {"option": ["sampler=ddim"]}),
        "prompt": ("a cat", {"prompt": "a cat"}),
        "negative_prompt": ("ugly", {"negative_prompt": "ugly"}),
        "cfg_scale": (7, {"guidance": {"text": 7}}),
        "n_steps": (9, {"steps": 9}),
        "pnp_f_t": (0.7, {"conv": 0.7}),
        "pnp_spatial_attn_t": (-1, {"spatial": 0.0}),
        "pnp_temp_attn_t": (1.5, {"temporal": 1.0}),
        "pnp_cross_attn_t": (0.4, {"inject": {"cross": 0.4}}),
        "enable_pnp": (False, {"conv": 0, "spatial": 0, "temporal": 0, "inject": {"cross": 0}}),
        "init_with_ddim_inversion": (False, {"random_ratio": 1.0}),
        "beta_start": (0.001, "beta_start: 0.001 is not 0.0001"),
        "beta_end": (0.03, "beta_end: 0.03 is not 0.02"),
        "beta_schedule": ("cosine", "beta_schedule: 'cosine' is not linear"),
        "n_save_steps": (10, IDLE),
        "ddim_inversion_dir": ("x", IDLE),
        "sd_path": ("x", IDLE),
        "ckpt_path": ("x", IDLE),
        "model_key": ("x", IDLE),
        "use_fp16": (True, IDLE),
        "enable_xformers_memory_efficient_attention": (True, IDLE),
        "save_video_frames": (True, IDLE),
        "batch_size": (1, IDLE),
    },
}
FILES = {
    "i2vgen": (yaml.safe_load(I2VGEN), WALK),
    "consisti2v": (yaml.safe_load(CONSISTI2V), {}),
    "seine": (yaml.safe_load(SEINE), {}),
}


def test_every_key_has_a_test():
    assert {d.name: set(d.keys) for d in DIALECTS} == {n: set(c) for n, c in CHANGES.items()}


def told_by(project, backbone, key, changed):
    """(options of what the key is about, notices), with the key as in the file or changed."""
    template, entry = copy.deepcopy(FILES[backbone])
    recon = key.startswith("recon_config")
    if backbone != "seine":
        template["recon_config"]["enable_recon"] = recon
    if changed is not ...:
        set_key(template, key, changed)
        entry = {k: v for k, v in entry.items() if k != key}
    # JSON is YAML, and read faster
    (project / "t.yaml").write_text(json.dumps(template))
    (project / "g.json").write_text(json.dumps([entry]))
    (task,) = read_original("t.yaml", "g.json")
    edit = task.edits[recon]
    assert edit.command == ("reconstruct" if recon else "edit")
    options = task.options(edit) | {"output": edit.output}
    local = {k: str(v).removeprefix(f"{project}/") for k, v in options.items()}
    return options | {k: local[k] for k in ("video", "frame") if k in local}, task.notices


@pytest.mark.parametrize(
    ("backbone", "key"), [(b, key) for b, changes in CHANGES.items() for key in changes]
)
def test_what_each_key_changes(project, backbone, key):
    value, then = CHANGES[backbone][key]
    before, _ = told_by(project, backbone, key, ...)
    if isinstance(then, str) and then not in (NONE, IDLE):
        with pytest.raises(InputError, match=re.escape(then)) as caught:
            told_by(project, backbone, key, value)
        assert "g.json: entry 1: " in str(caught.value) and key in str(caught.value)
        return
    after, notices = told_by(project, backbone, key, value)
    assert (key in re.split("[:,] ", " ".join(notices))) == (then == IDLE)
    if isinstance(then, str):
        assert after == before
        return
    # settings are in the names of outputs
    assert after.pop("output").startswith(then.get("output", ""))
    del before["output"]
    assert after == before | {k: v for k, v in then.items() if k != "output"}


def test_a_folder_of_frames_is_taken_as_the_scripts_take_it(read, project):
    folder = project / "data" / "demo" / "Man Walking"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (64, 48)).save(folder / f"{i:05d}.png")
    film, frames = f"{folder}.mp4", f"{folder}/%05d.png"
    assert read(I2VGEN, [WALK])[0].video == frames
    # of another size, or too few, which is found soon
    assert read(I2VGEN, [WALK | {"n_frames": 10**400}])[0].video == film
    assert read(I2VGEN, [WALK | {"image_size": [32, 16]}])[0].video == film
    assert read(I2VGEN, [WALK | {"n_frames": 5}])[0].video == film
    assert read(CONSISTI2V)[0].video == film
    (project / "data" / "demo" / "Man Walking.mp4").unlink()
    assert read(SEINE)[0].video == frames


def test_paths_are_those_of_the_folder_that_the_scripts_run_in(project, monkeypatch):
    configs = project / "configs" / "group_pnp_edit"
    configs.mkdir(parents=True)
    (configs / "template.yaml").write_text(I2VGEN)
    (configs / "group.json").write_text(json.dumps([WALK]))

    def video():
        return read_original(configs / "template.yaml", configs / "group.json")[0].video

    assert video() == f"{project}/data/demo/Man Walking.mp4"
    monkeypatch.chdir("/")
    assert video() == f"{project}/data/demo/Man Walking.mp4"
    (project / "data" / "demo" / "Man Walking.mp4").unlink()
    assert video() == "/data/demo/Man Walking.mp4"


@pytest.mark.parametrize(
    ("template", "changed", "why"),
    [
        (I2VGEN, {"edited_video_name": "ReplaceMe"}, "output_dir: .*ReplaceMe.* filled in"),
        (I2VGEN, {"editing_prompt": "ReplaceMe"}, "editing_prompt: 'ReplaceMe' has still to be"),
        (I2VGEN, {"video_name": "ReplaceMe"}, "names no clip"),
        (I2VGEN, {"edited_first_frame_path": None}, "edited_first_frame_path: is missing"),
        (I2VGEN, {"pnp_ft": 1}, "no such key for I2VGen-XL: pnp_ft; there is pnp_f_t"),
        (
            I2VGEN,
            {"inverse_config.nsteps": 1},
            "inverse_config.nsteps; there is inverse_config.n_s",
        ),
        (I2VGEN, {"cfg_txt": 3}, "no such key for I2VGen-XL: cfg_txt"),
        (I2VGEN, {"cfg": "${nothing.there}"}, "cfg: .*there is no 'nothing.there'"),
        (I2VGEN, {"n_steps": "many"}, "n_steps: 'many' is not a number"),
        (I2VGEN, {"random_ratio": 1e999}, "random_ratio: .* is not a number"),
        (I2VGEN, {"image_size": 64}, "image_size: 64 is not a list of two sides"),
        (I2VGEN, {"editing_prompt": "???"}, "editing_prompt is [?]{3}: it has still to be given"),
        (CONSISTI2V, {"video_name": "<your_video>", "exp_name": "x"}, "names no clip"),
        (SEINE, {"prompt": "<prompt>"}, "prompt: '<prompt>' has still to be filled in"),
        (SEINE, {"sample_methd": "x"}, "no such key for SEINE: sample_methd; there is sample_meth"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(read, template, changed, why):
    group = [WALK | changed if template is I2VGEN else changed]
    if any("." in key for key in changed):
        group = [WALK | {"inverse_config": {"nsteps": 1}}]
    with pytest.raises(InputError, match=f"^group.json: entry 1: .*{why}"):
        read(template, group)


def test_groups_that_are_none(read, project):
    with pytest.raises(InputError, match="group.json: .* is not a list of entries"):
        read(I2VGEN, {"active": True})
    with pytest.raises(InputError, match="group.json: entry 1: 3 is not an entry"):
        read(I2VGEN, [3])
    with pytest.raises(InputError, match="group.json: holds no edits"):
        read(I2VGEN, [WALK | {"active": False}])
    with pytest.raises(InputError, match="entry 2: the output .* is that of .*entry 1, too"):
        read(I2VGEN, [WALK, WALK])


def test_a_key_that_others_refer_to_may_have_any_name(read, project):
    (task,) = read(I2VGEN, [WALK], root="data", data_dir="${root}")
    assert task.video == f"{project}/data/demo/Man Walking.mp4"


def test_values_refer_to_others_as_in_omegaconf(monkeypatch):
    monkeypatch.setenv("ANYV2V_TEST", "home")
    values = {
        "a": {"b": [64, 48], "c": "${.d}", "d": 7, "e": {"f": "${..d}", "g": "${...top}"}},
        "top": "t",
        "whole": "${a.b}",
        "item": "${a.b[1]} and ${a.b.0}",
        "text": "${top}/${a.d}/${a.e.f}",
        "escaped": r"\${top}",
        "env": "${oc.env:ANYV2V_TEST}",
        "default": "${oc.env:ANYV2V_NONE, ${top}}",
        "null": "${oc.env:ANYV2V_NONE,null}",
        "loop": "${loop2}",
        "loop2": "${loop}",
        "open": "${top",
        "other": "${oc.decode:x}",
        "unset": "${oc.env:ANYV2V_NONE}",
        "above": "${..top}",
        "part": {"${no}": 1},
    }
    config = Config("t.yaml", values)
    got = {key: config.get(key) for key in ("whole", "item", "text", "escaped", "env", "default")}
    assert got == {
        "whole": [64, 48],
        "item": "48 and 64",
        "text": "t/7/7",
        "escaped": "${top}",
        "env": "home",
        "default": "t",
    }
    assert [config.get(f"a.{key}") for key in ("c", "e.f", "e.g")] == [7, 7, "t"]
    assert config.get("null") is None and config.get("nowhere.at.all") is None
    wrong = {"loop": "refers to itself", "open": "is not closed", "other": "only oc.env is read"}
    wrong |= {"unset": "no such environment variable", "above": "there is nothing above"}
    for key, why in wrong.items():
        with pytest.raises(InputError, match=f"^t.yaml: .*{why}"):
            config.get(key)


def test_values_that_explode_are_refused():
    texts = {f"a{i}": f"${{a{i + 1}}}${{a{i + 1}}}" for i in range(40)} | {"a40": "x"}
    lists = {f"b{i}": [f"${{b{i + 1}}}"] * 2 for i in range(40)} | {"b40": "x"}
    for key in ("a0", "b0"):
        with pytest.raises(InputError, match="too much|is longer than 65536"):
            Config("t.yaml", texts | lists).get(key)


def test_merging_goes_into_mappings_and_replaces_the_rest():
    below = {"a": {"b": 1, "c": [1, 2]}, "d": {"e": 1}}
    above = {"a": {"c": [3]}, "d": 4, "f": None}
    assert merge(below, above) == {"a": {"b": 1, "c": [3]}, "d": 4, "f": None}
