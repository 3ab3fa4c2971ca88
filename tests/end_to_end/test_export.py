"""What export hands over: a card of this model, an honest precision, a whole folder or none, and the hub."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

import tiny_runs
from unigrpo import build, cli
from unigrpo.files import whole_folder
from unigrpo.models.bagel_files.flux import FluxConfig, original_shapes
from unigrpo.models.bagel_files.probe import probe, round_weights
from unigrpo.recipe import Model
from unigrpo.reports import runlog
from unigrpo.reports.model_card import figures_of, license_of
from unigrpo.tools import tiny_bagel as tiny_module
from unigrpo.tools.tiny_bagel import full_autoencoder_bytes, make_tiny_bagel

SMALL = ["--rollout.image_size", "64", "--rollout.max_think_tokens", "4", "--eval.limit", "2", "--eval.compare_limit",
         "2", "--eval.compare_samples", "1", "--eval.num_points", "4", "--data.prompts_per_iteration", "1",
         "--data.group_size", "2", "--rollout.num_points", "7", "--checkpoint.every", "1"]  # fmt: skip
FAST = ["--optimizer.lr_reasoning", "1e-2", "--optimizer.lr_denoising", "1e-2", "--optimizer.warmup", "0"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny BAGEL with a license, one run of all weights and one of an adapter on it."""
    home = tmp_path_factory.mktemp("export")
    make_tiny_bagel(home / "tiny")
    readme = home / "tiny" / "README.md"
    readme.write_text("---\nlicense: apache-2.0\n---\n" + readme.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unigrpo.runs.training.write_report", lambda run_dir: run_dir / runlog.REPORT)
        for name, lora in (("full", []), ("lora", ["--model.lora", "{rank: 4, alpha: 64}"])):
            words = ["train", "bagel/unigrpo", "--model.path", home / "tiny", "--iterations", "1", *SMALL, *FAST, *lora]
            assert tiny_runs.unigrpo(*words, "--out", home / name) == 0
    return home


def export(*words):
    assert tiny_runs.unigrpo("export", *words) == 0


def front(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)[1])


@pytest.mark.parametrize("kind", ["full", "lora", "adapter"])
def test_the_card_is_of_this_model(home, tmp_path, kind):
    run = home / ("full" if kind == "full" else "lora")
    export(run, tmp_path / "mine", *(["--adapter"] if kind == "adapter" else []))
    card = (tmp_path / "mine" / "README.md").read_text()
    assert card.startswith("---\n") and "# mine\n" in card and "random BAGEL" not in card
    assert front(card)["license"] == "apache-2.0" and front(card)["pipeline_tag"] == "text-to-image"
    for said in ("| base | tiny |", "`bagel/unigrpo`, method `unigrpo`, seed 0", "1 of 1 iteration", "geneval:train",
                 "`image/jpeg-compressibility` (weight 1)", "unigrpo generate"):  # fmt: skip
        assert said in card, said
    assert ("LoRA of rank 4" in card) == (kind != "full") and ("PeftModel" in card) == (kind == "adapter")
    summary = runlog.read_json(run / runlog.SUMMARY)
    assert f"| reward | {summary['before']['reward']:.3f} | {summary['after']['reward']:.3f} |" in card
    for path in (tmp_path / "mine").iterdir():
        assert str(home).encode() not in path.read_bytes() and b"/tmp" not in path.read_bytes(), path


def test_what_a_card_does_not_know_it_does_not_say():
    assert figures_of({}) == [] and figures_of({"before": {"score": 0.1}, "after": {}}) == []
    both = {"before": {"score": 0.5, "follow": None}, "after": {"score": 0.75, "follow": None}}
    assert figures_of(both) == [["score", "0.500", "0.750", "+0.250", "none: not measured in pairs"]]
    few = {"paired": {"score": {"difference": 0.2, "low": None, "high": None, "why": "2 prompts"}}}
    assert figures_of(both | few)[0][-2:] == ["+0.200", "none: 2 prompts"]
    paired = {"paired": {"score": {"difference": 0.25, "low": 0.1, "high": 0.4}}}
    assert figures_of(both | paired)[0][-1] == "+0.100 to +0.400"
    assert license_of("---\ntags: [a]\nlicense: mit\n---\n") == "mit"
    assert license_of("license: mit") is None and license_of("---\na: b\n---\nlicense: mit") is None


def test_an_earlier_checkpoint_has_no_figures_of_a_later_one(home, tmp_path):
    run = Path(shutil.copytree(home / "full", tmp_path / "run"))
    last = run / "checkpoints" / "iteration-000001"
    shutil.copytree(last, run / "checkpoints" / "iteration-000002")
    export(last, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "none here" in card and "| measure |" not in card


def test_a_folder_of_no_run_keeps_its_own_card(home, tmp_path):
    export(home / "tiny", tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_bytes() == (home / "tiny" / "README.md").read_bytes()


def test_the_lines_of_an_adapters_card_work(home, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    shutil.copytree(home / "tiny", tmp_path / "tiny")
    export(home / "lora", tmp_path / "adapter", "--adapter")
    code = re.search(r"```python\n(.*?)```", (tmp_path / "adapter" / "README.md").read_text(), flags=re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "card", "exec"), names)
    plain = build.policy(Model(str(home / "tiny")))
    ours = build.policy(Model("adapter"))  # found beside it, and known by its hash
    answers = [probe(policy).logits for policy in (names["bagel"], ours, plain)]
    assert torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])


def test_an_exported_adapter_does_not_take_another_base_of_its_name(home, tmp_path, capsys, monkeypatch):
    make_tiny_bagel(tmp_path / "tiny", seed=3)
    export(home / "lora", tmp_path / "adapter", "--adapter")
    monkeypatch.chdir(tmp_path)
    assert tiny_runs.unigrpo("generate", "a cup", "--model", "adapter", "--out", tmp_path / "a.png") == 2
    assert "was trained on another model than" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "tiny")
    assert tiny_runs.unigrpo("generate", "a cup", "--model", "adapter", "--out", tmp_path / "a.png") == 2
    assert "needs its base tiny, which is not there" in capsys.readouterr().err


# Precision


def figures(text):
    return [float(number) for number in re.search(r"by ([\d.e-]+) in the logits and ([\d.e-]+) in a", text).groups()]


@pytest.mark.parametrize(("dtype", "kept"), [("source", torch.bfloat16), ("float32", torch.float32)])
def test_a_merged_adapter_says_how_far_it_is_from_the_adapted_model(home, tmp_path, capsys, dtype, kept):
    export(home / "lora", tmp_path / "out", "--dtype", dtype)
    told = capsys.readouterr().out
    written = build.policy(Model(str(tmp_path / "out"), dtype="float32"))
    adapted, _ = build.with_adapter(Model(str(home / "lora"), dtype="float32"), build.model_folder(str(home / "lora")))
    logits, velocity = probe(adapted).distance(probe(written))
    assert figures(told) == pytest.approx([logits, velocity], rel=0.1, abs=1e-6)
    assert (max(logits, velocity) > 1e-3) == (dtype == "source") and (max(logits, velocity) < 1e-5) == (
        dtype != "source"
    )
    assert ("--dtype float32" in told) == (dtype == "source")
    assert figures((tmp_path / "out" / "README.md").read_text()) == figures(told)
    assert {value.dtype for value in load_file(tmp_path / "out" / "ema.safetensors").values()} == {kept}
    assert json.loads((tmp_path / "out" / "llm_config.json").read_text())["torch_dtype"] == str(kept).split(".")[1]


def test_weights_that_were_trained_wider_than_the_source_say_so_too(home, tmp_path, capsys):
    export(home / "full", tmp_path / "a")
    assert "the written model is from the trained one by" in capsys.readouterr().out
    export(home / "full", tmp_path / "b", "--dtype", "float32")
    assert "bit for bit" in capsys.readouterr().out
    held = load_file(home / "full" / "checkpoints" / "iteration-000001" / "ema.safetensors")
    ours = load_file(tmp_path / "b" / "ema.safetensors")
    assert all(torch.equal(ours[name], held[name].float()) for name in held)


def test_our_own_layout_has_the_precision_that_is_asked_for(tmp_path, capsys):
    export(tiny_runs.model_folder(), tmp_path / "out", "--dtype", "bfloat16")
    assert "the written model is from the trained one by" in capsys.readouterr().out
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert build.policy(Model(str(tmp_path / "out"))).model.vae2llm.weight.dtype == torch.float32


def test_the_probe_changes_nothing_and_is_the_same_in_any_precision(home):
    folder = str(home / "tiny")
    wide = build.policy(Model(folder, dtype="float32"))
    low = build.policy(Model(folder, dtype="bfloat16"), trained=lambda name: "layers.1" in name)
    before = {name: (value.data_ptr(), value.clone()) for name, value in low.model.state_dict().items()}
    first, second = probe(wide), probe(low)
    assert torch.equal(first.logits, second.logits) and torch.equal(first.velocity, second.velocity)
    for name, value in low.model.state_dict().items():
        assert value.data_ptr() == before[name][0] and torch.equal(value, before[name][1])
    assert low.compute_dtype == torch.bfloat16 and not round_weights(low.model, lambda name: torch.bfloat16)


# Whole or not at all


class FullDisk:
    """An open that gives files on a disk with room for so many bytes."""

    def __init__(self, room):
        self.room = room

    def write(self, original):
        def limited(path, *arguments, **options):
            file = original(path, *arguments, **options)
            if not set("".join(map(str, arguments))) & {"w", "x"} or "b" not in "".join(map(str, arguments)):
                return file
            plain = file.write

            class Limited:
                def __enter__(self):
                    file.__enter__()
                    return self

                def __exit__(self, *why):
                    return file.__exit__(*why)

                def __getattr__(self, name):
                    return getattr(file, name)

                def write(inner, data):
                    self.room -= len(data)
                    if self.room < 0:
                        raise OSError(28, "No space left on device")
                    return plain(data)

            return Limited()

        return limited


@pytest.mark.parametrize("verb", ["export", "make-tiny-bagel"])
def test_a_full_disk_is_named_and_leaves_nothing_that_blocks_the_retry(home, tmp_path, capsys, monkeypatch, verb):
    out = tmp_path / "new" / "deep" / "out"
    words = [verb, home / "full", out] if verb == "export" else [verb, out]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", FullDisk(100_000).write(Path.open))
        assert tiny_runs.unigrpo(*words) == 2
    message = capsys.readouterr().err
    assert f"cannot write {out} (No space left on device); nothing of it was left" in message
    assert list(tmp_path.iterdir()) == []
    assert tiny_runs.unigrpo(*words) == 0
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_folder_is_whole_or_not_there(tmp_path):
    for fault in (KeyboardInterrupt, ValueError("other")):
        with (
            pytest.raises(type(fault) if isinstance(fault, Exception) else fault),
            whole_folder(tmp_path / "a") as draft,
        ):
            (draft / "half").write_text("x")
            raise fault
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    before = (tmp_path / "empty").stat().st_ino
    with whole_folder(tmp_path / "empty") as draft:  # its own place, which may be a mount, stays
        (draft / "x").write_text("x")
    assert (tmp_path / "empty").stat().st_ino == before and os.listdir(tmp_path / "empty") == ["x"]


def test_a_fault_in_reading_is_not_called_one_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError), whole_folder(tmp_path / "a"):
        Path("/nowhere/at/all").read_bytes()


# The hub


class Hub:
    """A stand-in for huggingface_hub.HfApi that keeps what it was asked."""

    def __init__(self, *, there=None, fails=()):
        self.there, self.fails, self.asked, self.uploaded = there, fails, [], {}

    def _ask(self, what):
        self.asked.append(what)
        if what in self.fails:
            raise RuntimeError(f"403 at {what}\nmore lines")

    def whoami(self):
        self._ask("whoami")

    def repo_exists(self, name):
        return self.there is not None

    def repo_info(self, name):
        return SimpleNamespace(private=self.there == "private")

    def create_repo(self, name, *, private, exist_ok):
        self._ask(("create_repo", name, private))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self._ask("upload_folder")
        self.uploaded = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}


def with_hub(monkeypatch, hub):
    module = ModuleType("huggingface_hub")
    module.HfApi = lambda: hub
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return hub


@pytest.mark.parametrize(("words", "private"), [([], True), (["--public"], False)])
def test_a_finished_export_is_uploaded_whole(home, tmp_path, capsys, monkeypatch, words, private):
    hub = with_hub(monkeypatch, Hub())
    export(home / "lora", tmp_path / "out", "--adapter", "--push-to-hub", "me/mine", *words)
    assert hub.asked == ["whoami", ("create_repo", "me/mine", private), "upload_folder"]
    assert hub.uploaded == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert "# me/mine" in hub.uploaded["README.md"].decode() and not any(name.startswith(".") for name in hub.uploaded)
    assert "https://huggingface.co/me/mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("hub", "name", "said"),
    [
        (Hub(fails=("whoami",)), "me/mine", "the hub said: 403 at whoami; set HF_TOKEN or run `hf auth login`"),
        (Hub(there="public"), "me/mine", "that repository is public; add --public"),
        (Hub(), "mine", "give owner/name"),
        (Hub(), "../mine", "give owner/name"),
    ],
)
def test_what_the_hub_refuses_is_said_before_anything_is_written(home, tmp_path, capsys, monkeypatch, hub, name, said):
    with_hub(monkeypatch, hub)
    assert tiny_runs.unigrpo("export", home / "lora", tmp_path / "out", "--adapter", "--push-to-hub", name) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not hub.uploaded


def test_a_failed_upload_keeps_the_export_and_says_how_to_go_on(home, tmp_path, capsys, monkeypatch):
    with_hub(monkeypatch, Hub(there="private", fails=("upload_folder",)))
    assert tiny_runs.unigrpo("export", home / "lora", tmp_path / "out", "--adapter", "--push-to-hub", "me/mine") == 2
    message = capsys.readouterr().err
    assert "is written, but not uploaded" in message and f"hf upload me/mine {tmp_path / 'out'}" in message
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_the_hub_is_there_by_name_only_where_it_is_asked(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert tiny_runs.unigrpo("export", home / "lora", tmp_path / "a", "--adapter", "--push-to-hub", "me/mine") == 2
    assert "needs the package huggingface_hub" in capsys.readouterr().err
    export(home / "lora", tmp_path / "a", "--adapter")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--adapter", "--dtype", "float32"], "an adapter is kept as it was trained"),
        (["--public"], "add --push-to-hub"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(home, tmp_path, capsys, words, said):
    assert tiny_runs.unigrpo("export", home / "lora", tmp_path / "out", *words) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


# The autoencoder of a tiny BAGEL


def test_a_tiny_bagel_says_what_its_autoencoder_is(tmp_path, home):
    assert "has those of the real autoencoder\nbuilt in" in (home / "tiny" / "README.md").read_text()


def test_the_full_autoencoder_has_the_real_sizes(tmp_path, capsys, monkeypatch):
    written, plain = {}, tiny_module.write_stream

    def note(path, tensors, **options):
        if path.name != "ae.safetensors":
            return plain(path, tensors, **options)
        written.update({name: (tuple(value.shape), value.dtype) for name, value in tensors.items()})
        return path.touch()

    monkeypatch.setattr(tiny_module, "write_stream", note)
    monkeypatch.setattr(tiny_module, "_draw_autoencoder", lambda name, shape, seed: torch.zeros(()).expand(shape))
    assert cli.run(["make-tiny-bagel", str(tmp_path / "tiny"), "--full-autoencoder"]) == 0
    lines = (Path(__file__).parents[1] / "golden" / "tensors_ae.txt").read_text().splitlines()
    real = {line.split("\t")[0]: tuple(map(int, re.findall(r"\d+", line.split("\t")[1]))) for line in lines if line}
    assert {name: shape for name, (shape, _) in written.items()} == real == original_shapes(FluxConfig())
    assert {dtype for _, dtype in written.values()} == {torch.float32}
    assert f"takes {full_autoencoder_bytes() / 1e6:.0f} MB" in capsys.readouterr().out
    assert "small one" not in (tmp_path / "tiny" / "README.md").read_text()


@pytest.mark.slow
def test_a_bagel_with_the_full_autoencoder_draws(tmp_path):
    make_tiny_bagel(tmp_path / "tiny", full_autoencoder=True)
    words = ["--size", "64x64", "--steps", "3", "--max-think-tokens", "4", "--out", tmp_path / "a.png"]
    assert tiny_runs.unigrpo("generate", "a cup", "--model", tmp_path / "tiny", *words) == 0
