"""What the parts of the page call: each call gets what the page holds, and says what it shows."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from anyv2v.errors import InputError
from anyv2v.ui.sessions import Cancelled, Session
from anyv2v.ui.studio import Studio
from anyv2v.ui.texts import error_text, notices_text, progress_text

if TYPE_CHECKING:
    from anyv2v.ui.page import Page

MASK = "the mask drawn in 2"
"""Choice of what may change: the mask that was painted on the first frame."""
OWN = "own"
"""Choice that gives no option."""
PROGRESS = gr.Progress()
"""Default by which gradio knows where to put the progress of a run."""
FOLLOWING = ("guidance", "inject", "start")
"""Options whose usual value depends on others."""
Data = Mapping[Any, Any]
"""Part of the page -> what it holds."""


class Calls:
    """The calls of one page, whoever its users are."""

    def __init__(self, studio: Studio, page: Page):
        self._studio, self._page = studio, page
        self.following = [name for name in page.options if _first(name) in FOLLOWING]
        """The names of the options that `follow` sets."""

    def arrive(self, request: gr.Request) -> str | None:
        """Returns the key of a user whose page was opened."""
        return request.session_hash

    def leave(self, request: gr.Request) -> None:
        """Frees what is kept for a user whose page was closed."""
        self._studio.sessions.leave(str(request.session_hash))

    def end(self, key: str | None) -> None:
        """Removes the files of a user who has been gone for an hour."""
        if key:
            # gradio waits for this call, which waits for a run
            threading.Thread(target=self._studio.sessions.end, args=[key]).start()

    def take_clip(self, path: str | None, request: gr.Request) -> None:
        """Chooses the clip that was uploaded, or none."""
        user = self._user(request)
        user.clip = user.take(path) if path else ""

    def example(self, request: gr.Request) -> list[Any]:
        """Chooses an example."""
        prompt, clip, frame = self._studio.example(self._user(request))
        return [str(clip), str(frame), prompt, str(frame)]

    def look(self, data: Data, request: gr.Request) -> list[Any]:
        """Shows what is read of the clip."""
        user = self._user(request)
        nothing = [None, None, None]
        if not user.clip:
            return ["", *nothing]
        try:
            looked = self._studio.look(user, self._options(data))
        except Exception as error:
            return [self._error(user, error), *nothing]
        text = f"{looked.text}\n\n{notices_text(looked.notices)}"
        ground = {"background": str(looked.first), "layers": [], "composite": None}
        return [text, str(looked.preview), str(looked.first), ground]

    def plan(self, data: Data, request: gr.Request) -> str:
        """Says what an edit will take."""
        user = self._user(request)
        try:
            return self._studio.plan(user, self._options(data))
        except Exception as error:
            return self._error(user, error)

    def follow(self, data: Data) -> list[Any]:
        """Gives settings the values that they have beside the chosen preset, steps and guide."""
        try:
            usual = self._studio.usual(self._options(data))
        except Exception:
            # a run says what is wrong
            return [gr.skip() for _ in self.following]
        start = gr.Number(value=None, placeholder=str(usual["start"]))
        return [start if n == "start" else usual[n[0]].get(n[1]) for n in self.following]

    def take_frame(self, data: Data, request: gr.Request) -> list[Any]:
        """Chooses the edited first frame that was uploaded, or none."""
        user, path = self._user(request), data[self._page.frame]
        user.frame = ""
        if not path:
            return [None, ""]
        try:
            return [str(self._studio.upload_frame(user, path, self._options(data))), ""]
        except Exception as error:
            return [None, self._error(user, error)]

    def choose_editor(self, name: str) -> list[Any]:
        """Shows what an editor can be told."""
        editors = self._studio.settings.editors
        (chosen,) = (each for each in editors if each.name == name)
        groups = [gr.Group(visible=each is chosen) for each in editors]
        asks = gr.Textbox(visible="instruction" in chosen.uses)
        reference = gr.File(visible="reference" in chosen.uses)
        # without random numbers all four would be the same
        return [chosen.text, asks, reference, gr.Checkbox(visible="seed" in chosen.uses), *groups]

    def make_frame(self, data: Data, request: gr.Request) -> list[Any]:
        """Edits the first frame, and chooses the first result."""
        user, page = self._user(request), self._page
        own = {n: data[p] for (e, n), p in page.editor_options.items() if e == data[page.editor]}
        try:
            options = {
                "instruction": data[page.instruction],
                "reference": user.take(data[page.reference]) if data[page.reference] else None,
                "mask": self._studio.draw(user, _alpha(data[page.mask])),
                "keep-unchanged": data[page.keep],
                "start-time": data[page.options["start-time"]] or None,
                "seed": data[page.editor_seed] or None,
            }
            count = 4 if data[page.four] else 1
            found, said = self._studio.candidates(
                user, data[page.editor], options, own, count, int(data[page.number])
            )
            user.candidates = [path.name for path in found]
            chosen = self._studio.choose(user, found[0].name)
        except Cancelled:
            return [gr.skip(), gr.skip(), "Cancelled."]
        except Exception as error:
            return [gr.skip(), gr.skip(), self._error(user, error)]
        several = gr.Gallery(value=[str(path) for path in found], visible=len(found) > 1)
        return [several, str(chosen), notices_text(said)]

    def choose(self, event: gr.SelectData, request: gr.Request) -> str:
        """Chooses a candidate."""
        user = self._user(request)
        return str(self._studio.choose(user, user.candidates[int(str(event.index))]))

    def begin(self, request: gr.Request) -> int:
        """Returns the number of a run that is wanted, before it waits for others."""
        return self._user(request).begin()

    def begin_edit(self, request: gr.Request) -> list[Any]:
        """Does so for an edit; 0 if the one before is not done, as after a double click."""
        user = self._user(request)
        if user.wanted > user.cancelled:
            return [gr.skip(), 0]
        user.wanted = user.begin()
        return ["", user.wanted]

    def cancel(self, request: gr.Request) -> None:
        """Ends the runs, or lets them not begin."""
        self._user(request).cancel()

    def edit(self, data: Data, request: gr.Request, progress: gr.Progress = PROGRESS) -> list[Any]:
        """Runs an edit and shows it."""

        def show(title: str, done: int, total: int, left: str) -> None:
            progress((done, total), desc=progress_text(title, left))

        user, options = self._user(request), self._options(data)
        unchanged, run = [gr.skip() for _ in range(5)], int(data[self._page.number])
        if not run:
            return [gr.skip(), *unchanged]
        try:
            if options["protect"] == MASK:
                options["protect"] = self._drawn(user, data)
            made = self._studio.edit(user, options, show, run)
        except Cancelled:
            return ["Cancelled.", *unchanged]
        except Exception as error:
            return [self._error(user, error), *unchanged]
        finally:
            if user.wanted == run:
                user.wanted = 0
        files = [str(path) for path in made.files]
        text = f"Done: {made.edit.name}. The result is below.\n\n{notices_text(made.notices)}"
        return [text, gr.Column(visible=True), str(made.both), str(made.edit), files, made.command]

    def _user(self, request: gr.Request) -> Session:
        return self._studio.sessions.get(str(request.session_hash))

    def _error(self, user: Session, error: Exception) -> str:
        return error_text(self._studio.explain(user, error))

    def _options(self, data: Data) -> dict[str, Any]:
        """Option of `anyv2v edit` -> its value."""
        options: dict[str, Any] = {}
        for name, part in self._page.options.items():
            if isinstance(name, tuple):
                # what was emptied has its usual value
                given = {} if data[part] is None else {name[1]: data[part]}
                options.setdefault(name[0], {}).update(given)
            else:
                options[name] = None if data[part] == OWN else data[part]
        options["start-time"] = options["start-time"] or None
        return options

    def _drawn(self, user: Session, data: Data) -> str:
        name = self._studio.draw(user, _alpha(data[self._page.mask]))
        if not name:
            raise InputError("paint on the first frame where the clip may change (2)")
        return name


def _first(name: Any) -> str:
    return name[0] if isinstance(name, tuple) else name


def _alpha(drawn: Mapping[str, Any] | None) -> Any:
    """Where something was painted, (h, w); None for nothing."""
    layers = drawn["layers"] if drawn else []
    return layers[0][..., 3] if layers else None
