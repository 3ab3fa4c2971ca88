"""Ctrl-C, a scheduler's SIGTERM and a closed terminal's SIGHUP: saved, said, and gone on with, bit for bit."""

import errno
import shlex
import signal
import threading

import pytest

import tiny_runs
import unigrpo.recipe as recipe_of
from unigrpo import build, cli
from unigrpo.runs import signals
from unigrpo.runs import training as train_command
from unigrpo.training import checkpoint, saving
from unigrpo.training.trainer import Stop

WORDS = ("train", tiny_runs.UNIGRPO, *tiny_runs.overrides(checkpoint__every=25))


def sends(*numbers, at=1):
    """A progress that gets signals while an iteration is shown."""

    def update(self, line):
        if line["iteration"] == at:
            for number in numbers:
                signal.raise_signal(number)

    return update


@pytest.fixture
def handlers():
    """The handlers of this process, to be found unchanged; nothing is ignored in them, as SIGHUP is under nohup
    and SIGINT in the background."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    outside = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before
    signal.signal(signal.SIGHUP, outside)
    signal.signal(signal.SIGINT, interrupt)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_scheduler_or_a_closed_terminal_saves_and_ends_well(tmp_path, quick, monkeypatch, capsys, handlers, number):
    """Both may come more than once for one cause: only Ctrl-C again stops at once."""
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train_command.Progress, "update", sends(number, number, signal.SIGTERM))
        assert tiny_runs.unigrpo(*WORDS, "--out", run_dir) == 0
    out = capsys.readouterr().out
    assert out.count("stopping as soon as") == 1 and f"{number.name}: stopping as soon as the step under way" in out
    assert [folder.name for folder in checkpoint.complete(run_dir)] == ["iteration-000002"]
    (said,) = [line for line in out.splitlines() if line.startswith("saved after 2 iterations; to go on: ")]
    if number == signal.SIGHUP:  # once is enough for what follows
        return
    assert tiny_runs.unigrpo(*shlex.split(said.partition("to go on: ")[2])[1:]) == 0
    tiny_runs.assert_same_run(run_dir, tiny_runs.finished_run())


def sends_first(number, plain):
    """``plain`` after a signal."""

    def called(*arguments, **options):
        signal.raise_signal(number)
        return plain(*arguments, **options)

    return called


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)], ids=lambda n: str(n)
)
@pytest.mark.parametrize("where", ["import", "load"])
def test_a_signal_before_training_ends_well_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, handlers, number, code, where
):
    """While the command is imported, and while the model loads: the folder and its lock are gone again."""
    place, name = {"import": (cli, "import_module"), "load": (build, "parts")}[where]
    monkeypatch.setattr(place, name, sends_first(number, getattr(place, name)))
    assert tiny_runs.unigrpo(*WORDS, "--out", tmp_path / "run") == code
    shown = capsys.readouterr()
    if code == 0:
        assert f"stopped by {number.name} while nothing was being trained: nothing is half-written" in shown.out
        assert not shown.err
    assert tiny_runs.listed(tmp_path) == []


def test_a_signal_while_a_run_to_go_on_with_loads_changes_nothing(tmp_path, monkeypatch, handlers):
    run_dir = tiny_runs.copied_run(tmp_path / "run")
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    monkeypatch.setattr(build, "parts", sends_first(signal.SIGTERM, build.parts))
    words = ("train", tiny_runs.UNIGRPO, "--out", run_dir, "--resume", "--iterations", 5)
    assert tiny_runs.unigrpo(*words) == 0
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_what_a_stop_would_lose(tmp_path):
    trainer = tiny_runs.trainer_of(tmp_path)
    assert trainer.unsaved() == ""
    trainer.under_way = "what is done of iteration 1"
    assert trainer.unsaved() == "what is done of iteration 1"
    trainer.done, trainer.saver.saved, trainer.under_way = 5, 4, "what is done of iteration 6"
    assert trainer.unsaved() == "1 finished iteration since the last checkpoint and what is done of iteration 6"


def test_nohup_holds(tmp_path, quick, monkeypatch, capsys):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(train_command.Progress, "update", sends(signal.SIGHUP, at=0))
        words = tiny_runs.overrides(iterations=2)
        assert tiny_runs.unigrpo("train", tiny_runs.UNIGRPO, *words, "--out", tmp_path / "run") == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "finished in" in capsys.readouterr().out and checkpoint.finished(tmp_path / "run") == 2


def test_a_thread_can_train(tmp_path, quick, handlers):
    """Only the main thread may have handlers; in another one a run goes on without."""
    codes = []
    words = ("train", tiny_runs.UNIGRPO, "--out", tmp_path / "run", *tiny_runs.overrides(iterations=1))
    thread = threading.Thread(target=lambda: codes.append(tiny_runs.unigrpo(*words)))
    thread.start()
    thread.join()
    assert codes == [0] and checkpoint.finished(tmp_path / "run") == 1


def test_a_terminal_that_is_gone_costs_nothing(monkeypatch, handlers):
    """Whatever is printed after the terminal was closed would be an error, and the run with it."""
    moved = []
    monkeypatch.setattr(signals.os, "dup2", lambda _, stream: moved.append(stream))

    class Gone(tiny_runs.Silent):
        def note(self, text):
            raise OSError(errno.EIO, "Input/output error")

    class Nothing:
        stop = Stop()

        def unsaved(self):
            return ""

    with signals.stoppable(Nothing(), Gone()):
        signal.raise_signal(signal.SIGHUP)
    assert Nothing.stop.requested and moved == [1, 2] and signals.exit_code(Nothing.stop) == 0


# ---------------------------------------------------------------- checkpoints by the clock


def test_minutes_save_between_and_change_no_number(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    trainer = tiny_runs.trainer_of(tmp_path, checkpoint__every=3, checkpoint__minutes=2.5, checkpoint__keep=9)

    def after(line):  # iterations take 100 s: 150 s are over after the 2nd, and again (saved after the 3rd) never
        now[0] += 100

    assert tiny_runs.train(trainer, after)
    saved = [int(folder.name[-1]) for folder in checkpoint.complete(tmp_path)]
    assert saved == [2, 3, 4]
    tiny_runs.assert_same_run(tmp_path, tiny_runs.finished_run())


@pytest.mark.parametrize("name", ["unigrpo", "textgrpo", "flowgrpo", "unigrpo-lora-1gpu", "sft"])
def test_recipes_of_large_models_save_by_the_clock(name):
    assert recipe_of.load_recipe(f"bagel/{name}").checkpoint.minutes == 30
    assert recipe_of.load_recipe(tiny_runs.UNIGRPO).checkpoint.minutes is None


def test_minutes_are_read_and_written(tmp_path):
    recipe = tiny_runs.tiny_recipe(checkpoint__minutes=0.5)
    assert recipe_of.from_yaml(recipe_of.to_yaml(recipe)) == recipe
    with pytest.raises(ValueError, match=r"checkpoint\.minutes = 0\.0 is out of range: it must be above 0"):
        tiny_runs.tiny_recipe(checkpoint__minutes=0)
