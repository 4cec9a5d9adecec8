"""Job files, the original's and the examples', run: what they make is what edit makes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from anyv2v.batch.jobs import read_jobs
from anyv2v.batch.original import read_original
from anyv2v.cli.main import main
from tests.clips import encode
from tests.unit.test_batch_original import CONSISTI2V, I2VGEN, SEINE, SEINE_INVERSION, WALK, set_key

ROOT = Path(__file__).parents[2]
SMALL = {"data_dir": "data", "image_size": [32, 32]}
PAPER = "--paper --size 32x32 --fit stretch --sample-fps source"


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """run(line) -> what it prints, in a folder with the original's clips."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "demo").mkdir(parents=True)
    (tmp_path / "data" / "demo" / "Man Walking").mkdir()
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (24, 48, 64, 3), dtype=np.uint8)
    encode(tmp_path / "data" / "demo" / "Man Walking.mp4", frames, rate=24)
    edited = Image.fromarray(255 - frames[0])
    edited.save("data/vader.png")
    edited.save("data/demo/Man Walking/vader.png")

    def run(line, *more):
        status = main([*line.split(), *map(str, more)])
        out, err = capfd.readouterr()
        assert status == 0, err
        return out + err

    return run


def write(template, changed, name="template.yaml"):
    values = yaml.safe_load(template)
    for key, value in changed.items():
        set_key(values, key, value)
    Path(name).write_text(yaml.safe_dump(values, sort_keys=False))


def latents(path):
    return json.loads(Path(f"{path}.json").read_text())["latents_sha256"]


def same(run, made, line, *more):
    """Whether a line of anyv2v makes the latents that the batch has made."""
    run(f"{line} {PAPER} -o by-hand.mp4 --force", *more)
    return latents(made) == latents("by-hand.mp4")


VIDEO = Path("data", "demo", "Man Walking.mp4")


@pytest.mark.slow
def test_files_for_i2vgen_run_as_they_are(run, weights):
    few = {
        "inverse_config.n_steps": 10,
        "recon_config.n_steps": 5,
        "recon_config.enable_recon": True,
    }
    write(I2VGEN, SMALL | few)
    snow = WALK | {"edited_video_name": "snow", "editing_prompt": "snow", "random_ratio": 0.3}
    Path("group.json").write_text(json.dumps([WALK, snow | {"recon_config": {}, "active": False}]))
    told = run(f"batch --anyv2v template.yaml group.json -o out --weights {weights}")
    assert "of no effect here: device, ddim_latents_path" in told
    folder = "out/Results/Style-Transfer/i2vgen-xl/Man Walking/darth vader walking"
    name = "ddim_init_latents_t_idx_0_nsteps_5_cfg_9.0_pnpf1.0_pnps0.2_pnpt1"
    settings = "--frames 4 --fps 8 --inversion-steps 10 --steps 5 --start 0 --seed 8888 "
    settings += "--guidance 9 --conv 1 --spatial 0.2 --temporal 1 --weights"
    texts = ["--prompt", "man walking", "--negative-prompt", "Blurry, ugly"]
    frame = ["--frame", "data/demo/Man Walking/vader.png"]
    assert same(run, f"{folder}/{name}/video.mp4", "edit", VIDEO, *settings.split(), weights,
                *texts, *frame)  # fmt: skip
    settings = "--frames 4 --fps 8 --inversion-steps 10 --steps 5 --start 3 --guidance 7.5"
    texts = ["--prompt", "a man", "--negative-prompt", "dark", "--weights", weights]
    assert same(run, f"{folder}/ddim_reconstruction.mp4", "reconstruct", VIDEO, *settings.split(),
                *texts)  # fmt: skip


@pytest.mark.slow
def test_files_for_consisti2v_run_as_they_are(run, consisti2v_weights):
    few = {"inverse_config.n_steps": 10, "ddim_init_latents_t_idx": 1}
    write(CONSISTI2V, SMALL | few | {"editing_prompt": "a robot"})
    run(f"batch --anyv2v template.yaml -o out --weights {consisti2v_weights}")
    settings = "--frames 4 --inversion-steps 10 --steps 5 --start 1 --seed 7 --option "
    settings += "frame_stride=3 --guidance text=35,image=1 --conv .2 --spatial .2 --temporal .5"
    texts = ["--prompt", "a robot", "--negative-prompt", "Blurry, ugly"]
    more = ["--frame", "data/vader.png", "--weights", consisti2v_weights]
    made = "out/anyv2v_results/Man Walking/a robot/video.mp4"
    assert same(run, made, "edit", VIDEO, *settings.split(), *texts, *more)


def test_files_for_other_weights_are_refused(run, capfd):
    write(SEINE, SMALL)
    assert main(["batch", "--anyv2v", "template.yaml", "-o", "out"]) == 2
    told = capfd.readouterr().err
    assert "video_pnp_fps_8.mp4: is told for seine; --weights demo are of i2vgen" in told
    assert not Path("out").exists()
    assert main(["batch", "--anyv2v", "a", "b", "c", "-o", "out"]) == 2
    assert "--anyv2v takes TEMPLATE and GROUP, not a b c" in capfd.readouterr().err


@pytest.mark.slow
def test_files_for_seine_run_as_they_are(run, seine_weights):
    write(SEINE, SMALL | {"n_ddim_inversion_steps": 10})
    run(f"batch --anyv2v template.yaml -o out --weights {seine_weights}")
    settings = "--frames 4 --inversion-steps 10 --steps 5 --seed 1 --option sampler=ddpm "
    settings += "--guidance 4 --conv .2 --spatial .2 --temporal .5 --inject cross=0"
    more = ["--prompt", "a robot", "--frame", "data/vader.png", "--weights", seine_weights]
    made = "out/anyv2v_results/default/seine/Man Walking/a_robot/"
    made += "cfg4_f0.2_spa0.2_cro0.0_tmp0.5_stp5/video_pnp_fps_8.mp4"
    assert same(run, made, "edit", VIDEO, *settings.split(), *more)
    write(SEINE_INVERSION, SMALL | {"n_steps": 5})
    run(f"batch --anyv2v template.yaml -o out --weights {seine_weights}")
    settings = "--frames 4 --inversion-steps 5 --steps 5 --option sampler=ddim --guidance 1"
    more = ["--inversion-prompt", "a man", "--prompt", "a man", "--weights", seine_weights]
    made = "out/ddim-inversion/default/seine/Man Walking/steps_5/nframes_4/inverted.mp4"
    assert same(run, made, "reconstruct", VIDEO, *settings.split(), *more)


@pytest.fixture
def examples(tmp_path, run):
    """A copy of the examples, with the clips and frames that they name."""
    folder = tmp_path / "examples"
    shutil.copytree(ROOT / "examples", folder)
    batch = folder / "batch"
    (batch / "clips").mkdir()
    (batch / "frames").mkdir()
    for name in ("walk", "ballet"):
        shutil.copy(VIDEO, batch / "clips" / f"{name}.mp4")
    for name in ("robot", "van-gogh", "dancer"):
        shutil.copy("data/vader.png", batch / "frames" / f"{name}.png")
    return folder


def test_examples_of_job_files_say_what_their_comments_say(examples):
    def outputs(tasks):
        return {Path(task.video).stem: [edit.output for edit in task.edits] for task in tasks}

    walk, ballet = read_jobs(examples / "batch" / "jobs.yaml")
    assert outputs([walk, ballet]) == {
        "walk": ["walk/robot.mp4", "walk/van-gogh.mp4", "blue/%05d.png"],
        "ballet": ["ballet.mp4", "ballet/reconstruct.mp4"],
    }
    assert outputs(read_jobs(examples / "batch" / "jobs.jsonl")) == {
        "walk": ["walk/robot.mp4", "walk/van-gogh.mp4"],
        "ballet": ["ballet/dancer.mp4"],
    }
    folder = examples / "batch" / "anyv2v"
    (task,) = read_original(folder / "template.yaml", folder / "group.json")
    assert task.video == str(examples / "batch" / "clips" / "walk.mp4")
    assert [edit.settings["temporal"] for edit in task.edits] == [1.0, 1.0]
    assert all(Path(edit.settings["frame"]).is_file() for edit in task.edits)
    assert task.notices == ()


@pytest.mark.slow
def test_examples_of_job_files_run(examples, run):
    """And a preset makes what the fractions make that it stands for."""
    jobs = examples / "batch" / "jobs.yaml"
    jobs.write_text(jobs.read_text().replace("steps: 10", "steps: 2"))
    told = run("batch --limit 1 -o out", jobs)
    assert "3 done" in told
    run("edit examples/batch/clips/walk.mp4 --steps 2 --guidance 7 --conv 1 --spatial 1 "
        "--temporal 1 --start 0 --frame examples/batch/frames/van-gogh.png -o by-hand.mp4",
        "--inversion-prompt", "a man walking",
        "--prompt", "a man walking, in the style of van Gogh")  # fmt: skip
    assert latents("out/walk/van-gogh.mp4") == latents("by-hand.mp4")
    run("edit --config out/walk/van-gogh.mp4.json -o again.mp4")
    assert latents("again.mp4") == latents("by-hand.mp4")
