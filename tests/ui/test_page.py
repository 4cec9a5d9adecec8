"""The page in a browser: what it plays, what it refuses, and that nothing leaves the machine."""

import json
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anyv2v
from anyv2v.cli.main import main
from anyv2v.weights.demo.scenes import draw_edit
from anyv2v.weights.demo.scores import Truth

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="the page needs gradio")
sync = pytest.importorskip("playwright.sync_api", reason="no playwright drives a browser")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
if BROWSER is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)


class Server:
    """`anyv2v ui` in a process of its own, with a folder for its temporary files."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address, self.temporary, self.hosts = f"http://127.0.0.1:{port}", folder, set()
        # with this variable a user who has left is forgotten after a second, not an hour
        environment = os.environ | {"TMPDIR": str(folder), "GRADIO_IS_E2E_TEST": "1"}
        # as many threads as this process has, since sums of other numbers of threads differ
        environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        command = [sys.executable, "-m", "anyv2v", "ui", "--port", str(port), "--device", "cpu"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # what a shell starts in the background may ignore the signal
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(command, env=environment, **pipes)
        signal.signal(signal.SIGINT, before)
        self.said = self.process.stdout.readline()

    @property
    def files(self):
        """The files of all users, but for what the browser has sent."""
        found = [p for p in self.temporary.rglob("*") if p.is_file() and len(p.parent.name) == 32]
        return {p.name for p in found if not p.name.startswith(("preview-", "first-frame-"))}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("temporary"))
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="module")
def browser():
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A folder with example.mp4, a red diamond, and example-frame.png, in which it is pink."""
    folder = tmp_path_factory.mktemp("example")
    truth = Truth.of(draw_edit("colour", "held-out", 10**6), (32, 32), 8)
    clip, frame = (x.repeat(8, axis=1).repeat(8, axis=2) for x in (truth.source, truth.frames[:1]))
    anyv2v.write_video(folder / "example.mp4", clip, 8)
    Image.fromarray(frame[0]).save(folder / "example-frame.png")
    return folder


@contextmanager
def visit(server, browser, width=1280, height=900):
    context = browser.new_context(viewport={"width": width, "height": height})
    context.on("request", lambda request: server.hosts.add(request.url.split("/")[2]))
    page = context.new_page()
    page.on("websocket", lambda each: server.hosts.add(each.url.split("/")[2]))
    page.set_default_timeout(60_000)
    page.goto(server.address)
    page.locator("#run").wait_for()
    yield page
    context.close()


@pytest.fixture
def page(server, browser):
    with visit(server, browser) as page:
        yield page


def upload(page, part, path, shows):
    page.locator(f"{part} input[type=file]").set_input_files(path)
    page.locator(shows).wait_for()


def fill(page, label, text):
    page.get_by_label(label, exact=True).fill(str(text))
    page.get_by_label(label, exact=True).blur()


def prepare(page, example, frame=None, steps=2):
    """Gives the example, as files of one's own."""
    upload(page, "#clip", example / "example.mp4", "#looked >> text=8 frames")
    upload(page, "#frame", frame or example / "example-frame.png", "#chosen img")
    fill(page, "Prompt", "a 'pink' diamond")
    fill(page, "Steps", steps)


def run(page, name):
    page.locator("#run").click()
    page.locator(f"#status >> text=Done: {name}").wait_for()


def played(page, part, folder):
    """The frames of what a player plays."""
    address = page.locator(f"{part} video").evaluate("video => video.currentSrc || video.src")
    answer = page.request.get(address)
    assert answer.ok
    path = folder / f"{part.strip('#')}-{Path(address).name}"
    path.write_bytes(answer.body())
    return anyv2v.read_video(path).frames


WATCH = """() => { window.said = [];
    const status = document.querySelector('#status');
    new MutationObserver(() => said.push(status.innerText)).observe(
        status, {subtree: true, childList: true, characterData: true})}"""


def test_what_is_played_is_what_the_command_makes(page, example, tmp_path, monkeypatch):
    prepare(page, example)
    page.locator("#plan >> text=to invert").wait_for()
    page.evaluate(WATCH)
    run(page, "edit-1.mp4")
    assert any("Inverting" in text for text in page.evaluate("said"))
    frames = played(page, "#edited", tmp_path)
    both = played(page, "#both", tmp_path).astype(int)
    command = page.locator("#command textarea").input_value()
    for name in ("example.mp4", "example-frame.png"):
        shutil.copy(example / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(command.replace("\\\n", " "))
    assert program == "anyv2v" and main([*words, "-q"]) == 0
    assert np.array_equal(frames, anyv2v.read_video("edit-1.mp4").frames)
    source = anyv2v.read_video("example.mp4", (32, 32), 8, 8).frames.astype(int)
    changed = np.abs(frames - source).max(axis=-1) > 48
    assert changed.any(axis=(1, 2)).all() and not changed.all()
    assert np.abs(both[:, :, :32] - source).mean() < 8 > np.abs(both[:, :, 32:] - frames).mean()
    with page.expect_download() as download:
        page.locator("#files a", has_text="KB").nth(1).click()
    sidecar = json.loads(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == "edit-1.mp4.json"
    assert (
        sidecar["latents_sha256"]
        == json.loads(Path("edit-1.mp4.json").read_text())["latents_sha256"]
    )
    # the next edit of the clip inverts nothing
    page.locator("#plan >> text=inverted already").wait_for()
    page.evaluate(WATCH)
    fill(page, "Prompt", "a blue box")
    run(page, "edit-2.mp4")
    said = page.evaluate("said")
    assert any("Editing" in text for text in said) and not any("Inverting" in t for t in said)


def test_a_cancelled_run_leaves_nothing(server, page, example):
    prepare(page, example, steps=999)
    page.locator("#plan >> text=999 to edit").wait_for()
    before = server.files
    page.locator("#run").click()
    page.locator("#status >> text=Inverting").wait_for()
    page.locator("#cancel").click()
    page.locator("#status >> text=Cancelled.").wait_for()
    assert server.files == before
    page.locator("#run").click()
    page.locator("#status >> text=Inverting").wait_for()
    fill(page, "Steps", 2)
    page.locator("#cancel").click()
    # the run that was cancelled does not go on in place of the next one
    run(page, "edit-1.mp4")


def test_two_at_once_do_not_mix(server, browser, page, example, tmp_path):
    green, pink = tmp_path / "green.png", example / "example-frame.png"
    Image.fromarray(anyv2v.edit_frame(pink, "recolour", "green")).save(green)
    with visit(server, browser) as other:
        prepare(page, example)
        prepare(other, example, green)
        for each in (page, other):
            each.locator("#run").click()
        for each, name in ((page, "example-frame.png"), (other, "green.png")):
            each.locator("#status >> text=Done").wait_for()
            assert f"--frame {name}" in each.locator("#command textarea").input_value()
        firsts = [played(each, "#edited", tmp_path)[0].astype(int) for each in (page, other)]
        wanted = [anyv2v.read_image(path)[4::8, 4::8].astype(int) for path in (pink, green)]
        apart = [[np.abs(a - b).mean() for b in wanted] for a in firsts]
        assert apart[0][0] < apart[0][1] and apart[1][1] < apart[1][0]
    # what was kept of the one who left is gone
    deadline = time.monotonic() + 30
    while sum(len(p.name) == 32 for p in server.temporary.glob("*/*")) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def bomb(path):
    """A picture of few bytes and 2.5 billion pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10**6))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_hostile_uploads_get_their_line(page, example, tmp_path):
    playlist = tmp_path / "playlist.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {example / 'example.mp4'}\n")
    upload(page, "#clip", playlist, "#looked >> text=give the video file itself")
    text = page.locator("#looked").inner_text()
    assert text.startswith("playlist.mp4 cannot be read") and "Traceback" not in text
    assert not page.locator("#preview video").count()
    upload(page, "#frame", bomb(tmp_path / "bomb.png"), "#said >> text=bomb.png")
    text = page.locator("#said").inner_text()
    assert "pixels" in text and "\n" not in text.strip()
    page.locator("#run").click()
    page.locator("#status >> text=give an edited first frame").wait_for()


def test_the_example_runs_at_390_pixels(server, browser):
    with visit(server, browser, 390, 844) as page:
        page.locator("#example").click()
        page.locator("#looked >> text=8 frames").wait_for()
        fill(page, "Steps", 2)
        run(page, "edit-1.mp4")
        page.locator("#edited video").wait_for()
        for tab in ("Edit it here", "Upload"):
            page.get_by_role("tab", name=tab).click()
            assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_frame_is_edited_here_and_drawn_on(page, example):
    upload(page, "#clip", example / "example.mp4", "#looked >> text=8 frames")
    page.get_by_role("tab", name="Edit it here").click()
    fill(page, "Instruction", "teal")
    page.get_by_role("button", name="Only a part of the frame").click()
    canvas = page.locator("#mask canvas").first
    canvas.wait_for()
    page.wait_for_timeout(1000)
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 20, y)
    page.mouse.down()
    page.mouse.move(x + 20, y + 10, steps=5)
    page.mouse.up()
    page.locator("#make").click()
    page.locator("#chosen img").wait_for()
    fill(page, "Steps", 2)
    run(page, "edit-1.mp4")
    command = page.locator("#command textarea").input_value()
    assert "edit-frame example.mp4" in command and "--mask mask-1.png" in command


def test_no_other_file_is_served(server, page):
    for path in ("/etc/passwd", f"{os.getcwd()}/x", f"{anyv2v.__file__}", "../../etc/passwd"):
        for route in ("/gradio_api/file=", "/file="):
            assert page.request.get(f"{server.address}{route}{path}").status in (403, 404)


def test_no_file_of_another_host_is_fetched(server, page):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        other.settimeout(1)
        address = f"http://127.0.0.1:{other.getsockname()[1]}/x.png"
        for route in ("/gradio_api/file=", "/file=", "/gradio_api/proxy="):
            assert page.request.get(f"{server.address}{route}{address}").status == 403
        with pytest.raises(TimeoutError):
            other.accept()


def test_nothing_is_asked_of_another_host_and_nothing_stays(server):
    assert server.hosts <= {server.address.removeprefix("http://")}
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 130
    assert server.said == f"anyv2v ui: {server.address} (Ctrl-C ends it)\n"
    assert server.process.stdout.read() == ""
    assert server.process.stderr.read() == "anyv2v: interrupted\n"
    assert not [*server.temporary.glob("anyv2v-*")]
