"""``unigrpo reproduce``: cells are ordinary runs; what is there is skipped, what was cut goes on, bad input is told."""

import fcntl
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import tiny_runs
from unigrpo.files import write_json_atomic
from unigrpo.recipe import load_recipe
from unigrpo.reports import runlog
from unigrpo.tools.paper import cells
from unigrpo.tools.paper.cells import ROWS, TABLE1, Row, cells_of
from unigrpo.tools.paper.results import read_cell
from unigrpo.tools.paper.running import Runner

SOME = ("sft-yes", "refl-no", "refl-yes", "unigrpo")


def run(work, *arguments):
    return tiny_runs.unigrpo(
        "reproduce", *arguments, "--work", work, "--results", work / "results", "--scale", "quick", "--jobs", "2"
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Four rows of table 1 by the command line: an evaluation, two runs, and an evaluation of a run."""
    work = tmp_path_factory.mktemp("reproduce")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ROWS, "table1", tuple(row for row in TABLE1 if row.id in SOME))
        assert run(work, "table1") == 0
    return work


def results_of(work, name="table1-quick"):
    return json.loads((work / "results" / f"{name}.json").read_text())


@pytest.mark.slow
def test_results_say_how_they_were_made(made):
    results = results_of(made)
    found = {cell["row"]: cell for cell in results["cells"]}
    assert set(found) == set(SOME) and all(cell["status"] == "done" for cell in found.values())
    assert results["command"] == "unigrpo reproduce table1 --scale quick" and results["seeds"] == [0]
    one = found["unigrpo"]
    assert one["command"].startswith("unigrpo train paper/unigrpo --seed 0") and one["rollouts"] == 4 * 4 * 3
    assert [point["iteration"] for point in one["curve"]] == [0, 1, 2, 3, 4] and one["n"] == 24  # 0: before training
    assert all(one["curve"][place]["validation"]["score"] is not None for place in (0, 2))
    assert found["refl-no"]["think"] is False and found["refl-no"]["plan_right"] is None
    assert found["refl-yes"]["plan_right"] is not None and str(made) not in json.dumps(found["unigrpo"])
    assert "/refl-no-seed0 --seed 0" in found["refl-yes"]["command"]
    text = (made / "results" / "table1-quick.md").read_text()
    assert "proves the machinery" in text and "not run" in text
    assert (made / "results" / "table1-quick.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_second_time_nothing_is_run_and_the_numbers_are_the_same(made, capsys, monkeypatch):
    monkeypatch.setitem(ROWS, "table1", tuple(row for row in TABLE1 if row.id in SOME))
    monkeypatch.setattr(Runner, "_run", lambda *a: pytest.fail("a finished cell was run again"))
    before = results_of(made)["cells"]
    assert run(made, "table1") == 0
    assert "4 there, 0 to make" in capsys.readouterr().out and results_of(made)["cells"] == before


@pytest.mark.slow
def test_the_same_cells_serve_other_targets(made, monkeypatch):
    monkeypatch.setattr(Runner, "_run", lambda *a: pytest.fail("a finished cell was run again"))
    assert run(made, "fig3") == 0 and run(made, "traces") == 0
    assert (made / "results" / "fig3-quick.png").is_file()
    assert "UniGRPO" in (made / "results" / "traces-quick.md").read_text()


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_and_ends_the_same(made, tmp_path, monkeypatch):
    """Cut after its first checkpoint would be: the folder of the run stays, its result is gone."""
    monkeypatch.setitem(ROWS, "table1", tuple(row for row in TABLE1 if row.id == "unigrpo"))
    work = tmp_path / "work"
    shutil.copytree(made / "quick", work / "quick")
    name = work / "quick" / "table1-preference" / "unigrpo-seed0"
    before = json.loads(name.with_suffix(".json").read_text())
    name.with_suffix(".json").unlink()
    summary = json.loads((name / runlog.SUMMARY).read_text())
    (name / runlog.SUMMARY).write_text(json.dumps({"before": summary["before"]}))
    assert run(work, "table1") == 0
    after = json.loads(name.with_suffix(".json").read_text())
    for key in ("score", "exam_score", "reward", "by_category", "curve"):
        assert after[key] == before[key], key


@pytest.mark.slow
def test_a_folder_of_another_recipe_is_refused(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ROWS, "table1", (Row("unigrpo", "paper/unigrpo", overrides=("--method.lambda_flow", "2")),))
    work = tmp_path / "work"
    shutil.copytree(made / "quick", work / "quick")
    assert run(work, "table1") == 2
    assert "was made by another recipe" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cell_that_fails_is_named_and_the_others_are_made(tmp_path, monkeypatch, capsys):
    bad = Row("unigrpo", "paper/unigrpo", overrides=("--model.path", str(tmp_path / "nowhere")))
    good = Row("sft-yes", model=cells.SFT)
    monkeypatch.setitem(ROWS, "table1", (bad, good))
    assert run(tmp_path, "table1") == 1
    out = capsys.readouterr().out
    assert "FAILED" in out and "nowhere" in out and "1 cells failed" in out
    status = {cell["row"]: cell["status"] for cell in results_of(tmp_path)["cells"]}
    assert status == {"unigrpo": "failed", "sft-yes": "done"}


@pytest.mark.parametrize(
    ("words", "says"), [(("table1", "--seeds", "0"), "from 1 to"), (("table1", "--jobs", "0"), "from 1 to")]
)
def test_bad_input(words, says, tmp_path, capsys):
    assert tiny_runs.unigrpo("reproduce", *words, "--work", tmp_path / "w", "--results", tmp_path / "r") == 2
    assert says in capsys.readouterr().err


class TestCells:
    def test_every_row_of_the_paper_with_every_seed(self, tmp_path):
        found = cells_of("table1", (0, 1, 2), "full", "preference", tmp_path)
        assert len(found) == 45 and len({cell.name for cell in found}) == 45
        last = [cell for cell in found if cell.row.of]
        assert found[-len(last) :] == last  # evaluations of runs come after the runs

    def test_all_trained_rows_have_as_many_rollouts(self, tmp_path):
        trained = [c for c in cells_of("table1", (0,), "full", "preference", tmp_path) if c.trains]
        assert len(trained) == 10 and len({cell.rollouts for cell in trained}) == 1

    def test_rows_that_need_gradients_have_no_verifier(self, tmp_path):
        found = cells_of("table1", (0,), "full", "verifier", tmp_path)
        missing = {cell.row.id for cell in found if cell.missing}
        assert missing == {"refl-no", "refl-yes", "refl-thinking", "refl-textgrpo"}
        (one,) = [cell for cell in found if cell.row.id == "unigrpo"]
        recipe = load_recipe("paper/unigrpo", one.arguments[2:])
        assert [scorer.name for scorer in recipe.reward.train] == ["shapes/verifier"]

    def test_the_hash_knows_everything_that_decides_the_numbers(self, tmp_path):
        def one(seed, scale, judge, row="unigrpo"):
            return {c.fingerprint for c in cells_of("table1", (seed,), scale, judge, tmp_path) if c.row.id == row}

        several = [one(0, "full", "preference"), one(1, "full", "preference"), one(0, "quick", "preference")]
        assert len(set.union(*several, one(0, "full", "verifier"))) == 4
        assert one(0, "full", "preference") == one(0, "full", "preference")

    def test_an_evaluation_of_a_run_is_as_old_as_the_run(self, tmp_path, monkeypatch):
        """Another recipe for refl-no, or other shipped weights, make refl-yes another cell too."""

        def fingerprints():
            found = cells_of("table1", (0,), "full", "preference", tmp_path)
            return [c.fingerprint for c in found if c.row.id in ("refl-no", "refl-yes", "sft-yes")]

        before = fingerprints()
        changed = tuple(
            replace(r, overrides=(*r.overrides, "--iterations", "7")) if r.id == "refl-no" else r for r in TABLE1
        )
        monkeypatch.setitem(ROWS, "table1", changed)
        after = fingerprints()
        assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, False]
        monkeypatch.setattr(cells, "weights_digest", lambda: "other")
        assert not set(fingerprints()) & set(after)

    @pytest.mark.parametrize("target", ROWS)
    @pytest.mark.parametrize("scale", ["quick", "full"])
    def test_every_target_resolves(self, target, scale, tmp_path):
        found = cells_of(target, (0, 1), scale, "preference", tmp_path)
        assert len(found) == 2 * len(ROWS[target]) and len({c.fingerprint for c in found}) == len(found)


class TestRunner:
    """Two rows, one an evaluation of the other; the command lines are pretended."""

    ROWS = (Row("refl-no", "paper/refl", think=False), Row("refl-yes", of="refl-no"))

    def runner(self, tmp_path, monkeypatch, codes):
        monkeypatch.setitem(ROWS, "table1", self.ROWS)
        said, calls = [], []
        runner = Runner(tmp_path, 1, said.append)

        def pretend(self, cell, folder, resumes, lock):
            calls.append((cell.row.id, resumes))
            folder.mkdir(parents=True, exist_ok=True)
            self.file(cell, ".log").write_text("unigrpo: error: no space left\n")
            if codes[cell.row.id] == 0 and cell.trains:
                runlog.append_metrics(folder, line(0))
                figures = {"score": 0.5, "exam_score": 0.5, "reward": 0.1, "by_category": {}, "n": 4}
                write_json_atomic(folder / runlog.SUMMARY, {"before": figures, "after": figures})
            elif codes[cell.row.id] == 0:
                figures = {"correct": {"value": 0.5}, "exam": {"value": 0.6}}
                result = {"figures": figures, "categories": {}, "pictures": 4}
                write_json_atomic(folder / "result.json", result)
            else:
                (folder / "half").touch()
            return codes[cell.row.id]

        monkeypatch.setattr(Runner, "_run", pretend)
        return runner, cells_of("table1", (0,), "full", "preference", tmp_path), said, calls

    def test_an_evaluation_waits_for_its_run(self, tmp_path, monkeypatch):
        runner, some, said, calls = self.runner(tmp_path, monkeypatch, {"refl-no": 2, "refl-yes": 0})
        assert [r["status"] for r in runner.make(some)] == ["failed", "failed"]
        assert calls == [("refl-no", False)] and "the run of refl-no is not finished" in said[-1]

    def test_half_an_evaluation_is_made_anew(self, tmp_path, monkeypatch):
        codes = {"refl-no": 0, "refl-yes": 2}
        runner, some, _, calls = self.runner(tmp_path, monkeypatch, codes)
        runner.make(some)
        codes["refl-yes"] = 0
        assert [r["status"] for r in runner.make(some)] == ["done", "done"]
        assert calls == [("refl-no", False), ("refl-yes", False), ("refl-yes", False)]
        assert not (runner.folder(some[1]) / "half").exists()

    def test_one_process_at_a_time_works_on_a_cell(self, tmp_path, monkeypatch):
        runner, some, said, calls = self.runner(tmp_path, monkeypatch, {"refl-no": 0, "refl-yes": 0})
        lock = runner.file(some[0], ".lock")
        lock.parent.mkdir(parents=True)
        with open(lock, "a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            runner.make(some)
        assert not calls and "another process is making it" in said[1]

    def test_an_exception_is_this_cell_s_alone(self, tmp_path, monkeypatch):
        runner, some, said, _ = self.runner(tmp_path, monkeypatch, {"refl-no": 0, "refl-yes": 0})
        monkeypatch.setattr(Runner, "_run", lambda *a: (_ for _ in ()).throw(OSError("disk")))
        assert [r["status"] for r in runner.make(some)] == ["failed", "failed"] and "OSError: disk" in said[1]


def test_results_of_more_seeds_are_kept(tmp_path, monkeypatch, capsys):
    write_json_atomic(tmp_path / "results" / "table1-quick.json", {"seeds": [0, 1, 2]})
    assert run(tmp_path, "table1", "--seeds", "2") == 2
    assert "replace them by fewer" in capsys.readouterr().err


def line(number, reward=0.5):
    return {"iteration": number, "reward_mean": reward, "seconds": {"total": 1.0}}


class TestCollapse:
    def cell(self, tmp_path):
        return next(c for c in cells_of("table1", (0,), "full", "preference", tmp_path) if c.row.id == "unifpo")

    def test_a_run_that_went_off_into_nowhere_is_a_collapse(self, tmp_path):
        folder = tmp_path / "run"
        folder.mkdir()
        runlog.append_metrics(folder, line(0))
        folder.with_suffix(".log").write_text("unigrpo: error: the image loss is nan; nothing was updated\n")
        found = read_cell(self.cell(tmp_path), folder, 2)
        assert found is not None and found["status"] == "collapsed" and found["score"] is None
        assert "nan" in found["reason"]

    def test_any_other_error_is_a_failure(self, tmp_path):
        folder = tmp_path / "run"
        folder.mkdir()
        runlog.append_metrics(folder, line(0))
        for words in ("disk full", "the first update's text ratios must be 1 ... (nothing was updated)"):
            folder.with_suffix(".log").write_text(f"the image loss is nan\n+ again\nunigrpo: error: {words}\n")
            assert read_cell(self.cell(tmp_path), folder, 2) is None
        folder.with_suffix(".log").write_text("the image loss is nan\n")
        assert read_cell(self.cell(tmp_path), folder, -9) is None

    @pytest.mark.parametrize(("after", "status"), [(0.3, "done"), (0.2, "collapsed")])
    def test_a_score_below_half_of_the_start_is_a_collapse(self, tmp_path, after, status):
        folder = tmp_path / "run"
        folder.mkdir()
        runlog.append_metrics(folder, line(0))
        figures = {"exam_score": 0.5, "reward": 0.1, "by_category": {}, "n": 4}
        summary = {"before": {"score": 0.5, **figures}, "after": {"score": after, **figures}}
        write_json_atomic(folder / runlog.SUMMARY, summary)
        found = read_cell(self.cell(tmp_path), folder, 0)
        assert found is not None and found["status"] == status


@pytest.mark.slow
def test_quick_table1_whole(tmp_path):
    assert run(tmp_path, "table1") == 0
    assert {cell["status"] for cell in results_of(tmp_path)["cells"]} == {"done"}


def test_evaluations_of_before_the_option_was_called_limit_count_still(tmp_path):
    """What decides an evaluation's numbers has not changed, so its hash must not: else finished ones were refused."""
    results = Path(__file__).parents[2] / "docs" / "results" / "table1.json"
    hashes = {(c["row"], c["seed"]): c["recipe_hash"] for c in json.loads(results.read_text())["cells"]}
    cells = [cell for cell in cells_of("table1", [0, 1], "full", "preference", tmp_path) if cell.row.model is not None]
    assert len(cells) == 8 and all("--limit" in cell.arguments for cell in cells)
    assert [cell.fingerprint for cell in cells] == [hashes[cell.row.id, cell.seed] for cell in cells]
