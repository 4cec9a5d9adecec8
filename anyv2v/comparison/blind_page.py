"""The page of the blind comparison: HTML with its style and its script, in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

POLICY = (
    "default-src 'none'; media-src 'self' file:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
)
"""The content security policy: nothing is loaded but the clips beside the page."""

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 24px auto; max-width: 1100px; padding: 0 16px;
  color: #1f2328; background: #fff }
#clips { display: flex; flex-wrap: wrap; gap: 16px; margin: 12px 0 }
figure { margin: 0; flex: 1 1 256px }
video { width: 100%; image-rendering: pixelated; background: #eee }
figcaption { font-weight: 600; text-align: center }
fieldset { border: 1px solid #d0d7de; margin: 8px 0; padding: 8px 12px }
label { margin-right: 24px }
button { font: inherit; padding: 6px 16px; margin-right: 8px }
#prompt { font-size: 20px }
"""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const store = "anyv2v-blind-" + data.page;
const get = (id) => document.getElementById(id);
let votes = {}, at = 0, shownSince = Date.now();
try { votes = JSON.parse(localStorage.getItem(store)) || {}; } catch (error) { votes = {}; }

function save() {
  // a browser may keep nothing for files: the votes then live as long as the page is open
  try { localStorage.setItem(store, JSON.stringify(votes)); } catch (error) { }
}

function answered(trial) {
  const vote = votes[trial.trial] || {};
  return Object.keys(data.questions).every((name) => vote[name]);
}

function play() {
  for (const video of document.querySelectorAll("video")) {
    video.currentTime = 0;
    const begun = video.play();
    if (begun) begun.catch(() => {});
  }
}

function update() {
  const done = data.trials.filter(answered).length;
  get("progress").textContent =
    "Pair " + (at + 1) + " of " + data.trials.length + ", " + done + " answered";
  get("back").disabled = at === 0;
  get("next").disabled = !answered(data.trials[at]) || at === data.trials.length - 1;
  get("left").textContent = done === data.trials.length ? "All pairs are answered: download." : "";
}

function vote(name, value) {
  const trial = data.trials[at].trial;
  const seconds = Math.round((Date.now() - shownSince) / 100) / 10;
  votes[trial] = Object.assign({}, votes[trial], { [name]: value, seconds: seconds });
  save();
  update();
}

function show() {
  const trial = data.trials[at], chosen = votes[trial.trial] || {};
  shownSince = Date.now();
  get("prompt").textContent = trial.prompt;
  for (const name of ["source", "a", "b"]) get(name).src = trial[name];
  for (const input of document.querySelectorAll("input[type=radio]"))
    input.checked = chosen[input.name] === input.value;
  update();
  play();
}

function rows() {
  return data.trials.filter((trial) => votes[trial.trial]).map((trial) =>
    Object.assign({ trial: trial.trial }, votes[trial.trial]));
}

function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: type }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

function asJson() {
  const answers = { page: data.page, rater: get("rater").value, answers: rows() };
  return JSON.stringify(answers, null, 1) + "\\n";
}

function asCsv() {
  const names = Object.keys(data.questions);
  const quoted = (text) => '"' + String(text === undefined ? "" : text).replace(/"/g, '""') + '"';
  const lines = [["page", "rater", "trial", ...names, "seconds"]];
  for (const row of rows()) {
    const values = names.map((name) => row[name]);
    lines.push([data.page, get("rater").value, row.trial, ...values, row.seconds]);
  }
  return lines.map((line) => line.map(quoted).join(",")).join("\\n") + "\\n";
}

for (const [name, question] of Object.entries(data.questions)) {
  const field = document.createElement("fieldset"), legend = document.createElement("legend");
  legend.textContent = question;
  field.append(legend);
  for (const value of ["A", "B", "equal"]) {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "radio", name: name, value: value });
    input.addEventListener("change", () => vote(name, value));
    label.append(input, " " + (value === "equal" ? "no difference" : value));
    field.append(label);
  }
  get("questions").append(field);
}
get("back").addEventListener("click", () => { at -= 1; show(); });
get("next").addEventListener("click", () => { at += 1; show(); });
get("again").addEventListener("click", play);
get("json").addEventListener("click", () =>
  download("answers-" + data.page + ".json", "application/json", asJson()));
get("csv").addEventListener("click", () =>
  download("answers-" + data.page + ".csv", "text/csv", asCsv()));
// all clips begin again together
get("a").addEventListener("ended", play);
show();
"""

BODY = """
<h1>Which edit is better?</h1>
<p>Each page shows a clip and two edits of it, A and B. The description says what the edited clip
should show. Your answers stay on this computer until you download them.</p>
<p><label>Your name, if you like: <input id="rater"></label> <span id="progress"></span></p>
<p id="prompt"></p>
<div id="clips">
<figure><video id="source" muted playsinline></video><figcaption>before</figcaption></figure>
<figure><video id="a" muted playsinline></video><figcaption>A</figcaption></figure>
<figure><video id="b" muted playsinline></video><figcaption>B</figcaption></figure>
</div>
<div id="questions"></div>
<p><button id="back">Back</button><button id="next">Next</button>
<button id="again">Play again</button></p>
<p><button id="json">Download answers (JSON)</button>
<button id="csv">Download answers (CSV)</button>
<span id="left"></span></p>
"""


def page(identity: str, questions: Mapping[str, str], trials: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page, to be written as UTF-8 beside its clips.

    identity: what its answers are marked with. questions: name -> text. trials: for each the number
    "trial", the text "prompt", and the paths "source", "a" and "b" of its clips, from the page on.
    """
    data = {"page": identity, "questions": dict(questions), "trials": [dict(x) for x in trials]}
    # a text may hold </script>
    text = json.dumps(data).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Which edit is better?</title><style>{STYLE}</style></head><body>{BODY}"
        f'<script type="application/json" id="data">{text}</script>'
        f"<script>{SCRIPT}</script></body></html>\n"
    )
