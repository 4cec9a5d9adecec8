"""The layout of the page, and what its parts call."""

from __future__ import annotations

from typing import Any

import gradio as gr

from anyv2v.ui.calls import MASK, OWN, Calls
from anyv2v.ui.studio import EditorOption, Studio

DEVICE: dict[str, Any] = {
    "concurrency_id": "device",
    "concurrency_limit": 1,
    "api_visibility": "private",
}
"""Arguments of events that run networks, which wait for each other."""
PLAN: dict[str, Any] = {
    **DEVICE,
    "concurrency_id": "plan",
    "show_progress": "hidden",
    "trigger_mode": "always_last",
}
"""Arguments of events that tell what an edit will take; no run waits in their queue."""
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Arguments of events that only change the page."""
CACHE = 3600, 24 * 3600
"""Seconds between looks for files that browsers have sent, and their age at which they go; those of
a user whose page is closed go earlier."""
READING = ("start-time", "frames", "size", "sample-fps", "fit", "out-size")
"""Options on which depends what is read of a clip."""


def build(studio: Studio) -> gr.Blocks:
    """Returns the page; it has no address yet."""
    return Page(studio).build()


class Page:
    """The parts of the page, which are made in the order in which they are shown."""

    def __init__(self, studio: Studio):
        self._studio, self._settings = studio, studio.settings
        self._usual = studio.usual({})
        # option of `anyv2v edit`, or (option, name) of one with several values -> what tells it
        self.options: dict[Any, Any] = {}
        self.editor_options: dict[tuple[str, str], Any] = {}

    def build(self) -> gr.Blocks:
        """Lays the page out."""
        shown = ["shown", "pixels"] if self._settings.pixels else ["shown"]
        title = "anyv2v"
        with gr.Blocks(
            title=title, analytics_enabled=False, fill_width=True, delete_cache=CACHE
        ) as page:
            gr.Markdown("# anyv2v\nEdit a video by editing its first frame.", elem_id="title")
            warning = f" Note: {self._settings.warning}." if self._settings.warning else ""
            gr.Markdown(f"Weights: {self._settings.about}.{warning}", elem_classes="note")
            with gr.Row(elem_id="panels"):
                with gr.Column(elem_classes=["panel", *shown]):
                    self._make_clip()
                with gr.Column(elem_classes=["panel", *shown]):
                    self._make_frame()
                with gr.Column(elem_classes="panel"):
                    self._make_edit()
            with gr.Column(visible=False, elem_classes=shown) as self.result:
                self._make_result()
            # of the run that is wanted; the browser sends it with the run
            self.number = gr.Number(0, visible=False, precision=0)
            self._wire(page)
        return page

    def _make_clip(self) -> None:
        width, height = self._settings.size
        gr.Markdown("### 1 · Clip")
        # any file: what cannot be read is refused in one line when it is read
        self.clip = gr.File(label="Video", height=120, elem_id="clip")
        self.example = gr.Button("Use the example", size="sm", elem_id="example")
        self.looked = gr.Markdown(elem_id="looked", elem_classes="note")
        self.preview = gr.Video(
            elem_id="preview",
            label="What is edited",
            interactive=False,
            autoplay=True,
            loop=True,
            buttons=[],
        )
        with gr.Row():
            add = self._add
            add("start-time", gr.Number(label="Start at second", value=0, minimum=0, min_width=80))
            frames = f"{self._settings.frames}"
            add("frames", gr.Textbox(label="Frames, or all", placeholder=frames, min_width=80))
        with gr.Accordion("Size and rate", open=False):
            hint: dict[str, Any] = {
                "placeholder": f"{width}x{height}",
                "info": "WxH, or the shorter side",
            }
            add("size", gr.Textbox(label="Size in pixels", **hint))
            fps = f"{self._settings.fps:g}"
            hint = {"placeholder": fps, "info": "a number, or source for each of the file"}
            add("sample-fps", gr.Textbox(label="Frames per second", **hint))
            fits = [("automatic", OWN), "crop", "stretch", "pad"]
            add("fit", gr.Dropdown(fits, value=OWN, label="Other proportions"))
            forms = [
                ("the edited frames", "edited"),
                ("size, frames and sound of the clip", "source"),
            ]
            add("out-size", gr.Radio(forms, value="edited", label="What is written"))

    def _make_frame(self) -> None:
        gr.Markdown("### 2 · First frame")
        with gr.Tabs():
            with gr.Tab("Upload"):
                text = "Save the frame below, edit it in any program, and give it back here."
                gr.Markdown(text, elem_classes="note")
                self.frame = gr.File(label="Edited first frame", height=120, elem_id="frame")
            with gr.Tab("Edit it here"):
                self._make_editor()
        self.said = gr.Markdown(elem_id="said", elem_classes="note")
        with gr.Row():
            picture: dict[str, Any] = {"interactive": False, "min_width": 120, "type": "filepath"}
            self.first = gr.Image(label="First frame", buttons=["download"], **picture)
            self.chosen = gr.Image(
                label="Edited", elem_id="chosen", buttons=["download"], **picture
            )

    def _make_editor(self) -> None:
        editors = self._settings.editors
        names = [each.name for each in editors]
        self.editor = gr.Dropdown(names, value=names[0], label="Editor", elem_id="editor")
        self.editor_text = gr.Markdown(editors[0].text, elem_classes="note")
        self.instruction = gr.Textbox(label="Instruction", placeholder="red > blue")
        self.reference = gr.File(label="Reference picture", height=90, visible=False)
        self.groups = []
        with gr.Accordion("More of the editor", open=False):
            for each in editors:
                with gr.Group(visible=each is editors[0]) as group:
                    for option in each.options:
                        self.editor_options[each.name, option.name] = _control(option)
                self.groups.append(group)
            self.keep = gr.Checkbox(label="Keep what the editor hardly changes")
            self.editor_seed = gr.Number(label="Seed", value=0, precision=0, minimum=0)
        with gr.Accordion("Only a part of the frame", open=False):
            brush = gr.Brush(default_size="auto", colors=["#00b4a0"], color_mode="fixed")
            self.mask = gr.ImageMask(
                elem_id="mask",
                label="Paint where it may change",
                sources=(),
                brush=brush,
                type="numpy",
                transforms=(),
                layers=False,
                buttons=[],
            )
        with gr.Row():
            self.make = gr.Button("Edit the frame", min_width=120, elem_id="make")
            is_random = "seed" in editors[0].uses
            label = "Four to choose from"
            self.four = gr.Checkbox(label=label, min_width=120, visible=is_random)
        self.gallery = gr.Gallery(
            label="Choose one",
            columns=4,
            height="auto",
            visible=False,
            allow_preview=False,
            buttons=[],
            elem_id="gallery",
        )

    def _make_edit(self) -> None:
        gr.Markdown("### 3 · Edit")
        usual, add = self._usual, self._add
        hint = "what the edited clip shows, such as: a man in a red coat is walking"
        self.prompt = gr.Textbox(label="Prompt", lines=2, placeholder=hint, elem_id="prompt")
        self.options["prompt"] = self.prompt
        kinds = [("any", OWN), *self._settings.presets]
        hint = "sets how much of the clip is injected"
        add("preset", gr.Dropdown(kinds, value=OWN, label="Kind of edit", info=hint))
        protect = [("the whole frame", "off"), ("what the frame changes", "auto"), MASK]
        label = "What may change"
        add("protect", gr.Dropdown(protect, value=usual["protect"], label=label))
        add("steps", gr.Number(usual["steps"], label="Steps", minimum=1, precision=0))
        with gr.Accordion("More of the edit", open=False):
            self._make_more()
        self.plan = gr.Markdown(elem_id="plan", elem_classes="note")
        with gr.Row():
            self.run = gr.Button("Run", variant="primary", min_width=120, elem_id="run")
            self.cancel = gr.Button("Cancel", min_width=100, elem_id="cancel")
        self.status = gr.Markdown(elem_id="status", min_height=90)

    def _make_more(self) -> None:
        usual, add = self._usual, self._add
        text = usual["negative-prompt"]
        add("negative-prompt", gr.Textbox(text, label="Negative prompt", lines=2))
        for name, scale in usual["guidance"].items():
            label = "Guidance" if len(usual["guidance"]) == 1 else f"Guidance: {name}"
            add(("guidance", name), gr.Number(scale, label=label))
        for name, share in usual["inject"].items():
            text = f"Injected steps: {name}"
            add(("inject", name), gr.Slider(0, 1, share, step=0.05, label=text))
        guides = [("the inverted clip", "off"), "auto", "patches"]
        add("guide", gr.Dropdown(guides, value=usual["guide"], label="Where sampling starts"))
        hint = f"{usual['start']}"
        add("start", gr.Number(None, label="First step", placeholder=hint, minimum=0, precision=0))
        hint = "matters only where sampling starts from random noise"
        add("seed", gr.Number(0, label="Seed", info=hint, minimum=0, precision=0))

    def _make_result(self) -> None:
        gr.Markdown("### Result")
        player: dict[str, Any] = {"interactive": False, "autoplay": True, "loop": True}
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self.both = gr.Video(label="Source and edit", elem_id="both", buttons=[], **player)
            with gr.Column(scale=1, min_width=240):
                self.edited = gr.Video(
                    label="Edit", elem_id="edited", buttons=["download"], **player
                )
        self.files = gr.File(
            label="Files", file_count="multiple", interactive=False, elem_id="files"
        )
        self.command = gr.Textbox(
            label="The same from the command line, in the folder of your clip",
            lines=4,
            interactive=False,
            buttons=["copy"],
            elem_id="command",
        )

    def _add(self, option: Any, part: Any) -> None:
        self.options[option] = part

    def _wire(self, page: gr.Blocks) -> None:
        """Connects the parts with what they call."""
        calls = Calls(self._studio, self)
        user = gr.State(delete_callback=calls.end)
        page.load(calls.arrive, None, user, **QUICK)
        page.unload(calls.leave)
        options = {*self.options.values()}
        seen = [self.looked, self.preview, self.first, self.mask]
        plan = {"fn": calls.plan, "inputs": options, "outputs": [self.plan], **PLAN}
        look = {"fn": calls.look, "inputs": options, "outputs": seen, "api_visibility": "private"}

        event = gr.on([self.clip.upload, self.clip.clear], calls.take_clip, self.clip, **QUICK)
        event.then(**look).then(**plan)
        example = [self.clip, self.frame, self.prompt, self.chosen]
        self.example.click(calls.example, None, example, **QUICK).then(**look).then(**plan)
        reading = [self.options[name] for name in READING]
        gr.on([part.change for part in reading], trigger_mode="always_last", **look).then(**plan)
        base = [self.options[name] for name in ("preset", "steps", "guide")]
        others = [part for name, part in self.options.items() if name in calls.following]
        follow = {"fn": calls.follow, "inputs": options, "outputs": others, **QUICK}
        gr.on([part.change for part in base], **follow).then(**plan)
        gr.on([part.change for part in others], **plan)

        taken = {*options, self.frame}
        event = gr.on(
            [self.frame.upload, self.frame.clear],
            calls.take_frame,
            taken,
            [self.chosen, self.said],
            **QUICK,
        )
        text = [self.editor_text, self.instruction, self.reference, self.four, *self.groups]
        self.editor.change(calls.choose_editor, self.editor, text, **QUICK)
        made = {self.editor, self.instruction, self.reference, self.keep, self.editor_seed}
        made |= {
            self.number,
            self.four,
            self.mask,
            self.options["start-time"],
            *self.editor_options.values(),
        }
        shown = [self.gallery, self.chosen, self.said]
        event = self.make.click(calls.begin, None, self.number, **QUICK)
        event.then(calls.make_frame, made, shown, show_progress_on=self.gallery, **DEVICE)
        self.gallery.select(calls.choose, None, self.chosen, **QUICK)

        result = [self.status, self.result, self.both, self.edited, self.files, self.command]
        event = self.run.click(calls.begin_edit, None, [self.status, self.number], **QUICK)
        event = event.then(
            calls.edit,
            {*options, self.mask, self.number},
            result,
            trigger_mode="multiple",
            show_progress="full",
            show_progress_on=self.status,
            **DEVICE,
        )
        event.then(**plan)
        self.cancel.click(calls.cancel, None, None, **QUICK)


def _control(option: EditorOption) -> Any:
    """What tells an option of an editor."""
    label = option.name.replace("_", " ").capitalize()
    if option.kind is None:
        return gr.Dropdown([*option.choices], value=option.default, label=label)
    if option.kind is bool:
        return gr.Checkbox(option.default, label=label)
    precision = 0 if option.kind is int else None
    return gr.Number(option.default, label=label, precision=precision)
