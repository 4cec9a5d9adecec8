"""What is kept of the users of the page, apart from each other, and what goes with them."""

import threading
from types import SimpleNamespace

import pytest

from anyv2v.cli.ui_kept import KeptSources
from anyv2v.injection.fractions import Injection
from anyv2v.ui.progress import ShownProgress
from anyv2v.ui.sessions import Cancelled, Sessions
from anyv2v.ui.streams import divided_streams, heard


@pytest.fixture
def sessions(tmp_path):
    (tmp_path / "users").mkdir()
    return Sessions(tmp_path / "users")


def upload(folder, content):
    """A file as a browser sends it: the same content has the same path."""
    folder = folder / content
    folder.mkdir(exist_ok=True)
    (folder / "clip.mp4").write_text(content)
    return folder / "clip.mp4"


def test_files_of_a_user_go_with_the_user(sessions, tmp_path):
    one, other = sessions.get("one"), sessions.get("other")
    both, alone = upload(tmp_path, "both"), upload(tmp_path, "alone")
    assert [one.take(both), one.take(alone), one.take(both)] == [
        "clip.mp4",
        "clip-1.mp4",
        "clip.mp4",
    ]
    other.take(both)
    sessions.end("one")
    assert not one.folder.exists() and not alone.exists()
    assert both.exists() and (other.folder / "clip.mp4").read_text() == "both"
    sessions.end("other")
    assert not both.exists() and not [*(tmp_path / "users").iterdir()]
    sessions.end("nobody")


def test_a_user_who_leaves_ends_the_run(sessions):
    user, other = sessions.get("one"), sessions.get("other")
    run, others = user.begin(), other.begin()
    step = ShownProgress(lambda *_: None, lambda: user.check(run))("edit", 4)
    step()
    sessions.leave("one")
    with pytest.raises(Cancelled):
        step()
    other.check(others)
    sessions.cancel()
    with pytest.raises(Cancelled):
        other.check(others)


def test_progress_tells_each_step_and_the_time_left():
    told = []
    with ShownProgress(lambda *told_: told.append(told_), lambda: None) as progress:
        step = progress("edit", 2)
        step()
        step()
    assert [each[:3] for each in told] == [("edit", 0, 2), ("edit", 1, 2), ("edit", 2, 2)]
    assert [each[3] for each in told] == ["", "00:00", "00:00"]


def test_what_two_runs_say_is_heard_apart(capsys):
    said, ready = {}, threading.Barrier(2)

    def run(name):
        import sys

        with heard() as lines:
            ready.wait()
            print(f"anyv2v: {name}", file=sys.stderr)
            print("dropped")
            ready.wait()
        said[name] = lines

    with divided_streams():
        threads = [threading.Thread(target=run, args=[name]) for name in "ab"]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print("to all")
    assert said == {"a": ["a"], "b": ["b"]}
    assert capsys.readouterr() == ("to all\n", "")


def keep(kept, user, key, made, **fractions):
    args = SimpleNamespace(injection=Injection(**fractions))
    kept.prepare(user, key, args)
    return kept.source(lambda _: made.append((user, key)) or object())


def test_sources_are_few_and_the_oldest_goes_first():
    kept, made = KeptSources(2, 3), []
    first = keep(kept, "one", "a", made)
    keep(kept, "one", "b", made)
    assert keep(kept, "one", "a", made) is first
    keep(kept, "one", "c", made)
    assert [kept.has("one", key, Injection()) for key in "abc"] == [True, False, True]
    keep(kept, "other", "a", made)
    keep(kept, "other", "b", made)
    assert [kept.has("one", key, Injection()) for key in "abc"] == [False, False, True]
    assert made == [("one", x) for x in "abc"] + [("other", x) for x in "ab"]
    kept.forget("other")
    assert not kept.has("other", "a", Injection()) and kept.has("one", "c", Injection())


def test_a_source_without_the_features_is_made_again_for_all_edits():
    kept, made = KeptSources(2, 3), []
    keep(kept, "one", "a", made, conv=0.2, spatial=0.5)
    keep(kept, "one", "a", made, conv=0.1)
    assert len(made) == 1
    keep(kept, "one", "a", made, conv=0.4)
    assert len(made) == 2
    assert [args.injection.fractions for args in kept.alike] == [
        {"conv": 0.4},
        {"conv": 0.4, "spatial": 0.5},
    ]
    keep(kept, "one", "a", made, conv=0.3, spatial=0.5)
    assert len(made) == 2


def test_a_source_that_could_not_be_made_is_not_kept():
    kept = KeptSources(2, 3)
    kept.prepare("one", "a", SimpleNamespace(injection=Injection()))
    with pytest.raises(Cancelled):
        kept.source(lambda _: (_ for _ in ()).throw(Cancelled))
    assert not kept.has("one", "a", Injection())
