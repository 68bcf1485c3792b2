"""The training script: files, resumption, kills, processes, bad input."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from examples.tiny_runs import TINY
from safetensors.torch import load_file

from wavemamba import DiMSUM
from wavemamba.training import Checkpoints, DamagedCheckpointWarning, read_log

ROOT = Path(__file__).resolve().parents[2]


def weights(out):
    return (out / "model" / "model.safetensors").read_bytes()


def losses(out):
    return [record["loss"] for record in read_log(out / "log.jsonl") if "loss" in record]


def test_leaves_a_model_a_log_samples_and_checkpoints(train):
    out, status = train(
        "a", "--holdout=0.05", "--eval-every=3", "--sample-every=4", "--save-every=2", "--trackers", "tensorboard"
    )
    assert status == 0
    assert DiMSUM.from_pretrained(out / "model").num_classes == 10
    about = json.loads((out / "model" / "training.json").read_text())
    assert (about["path"], about["prediction"], about["weights"], about["step"]) == ("gvp", "velocity", "ema", 6)
    assert len(losses(out)) == 6
    assert [r["step"] for r in read_log(out / "log.jsonl") if "held_out_loss" in r] == [3, 6]
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["step-00000004.png", "step-00000006.png"]
    assert Checkpoints(out / "checkpoints").steps() == [4, 6]
    assert list((out / "tensorboard").iterdir())
    _, state = Checkpoints(out / "checkpoints").load()
    assert {"model", "ema", "optimizer", "loss_scale", "step", "random", "settings"} <= state.keys()
    assert {"python", "numpy", "torch", "cuda"} == state["random"][0].keys()


@pytest.mark.parametrize("options", [(), ("--accumulate=2", "--schedule=cosine", "--warmup=2", "--workers=1")])
def test_resuming_from_any_checkpoint_gives_the_same_bits(train, options):
    whole, _ = train("whole", "--save-every=2", *options)
    other, _ = train("other", "--save-every=2", *options)
    for step in Checkpoints(other / "checkpoints").steps()[1:]:
        os.truncate(other / "checkpoints" / f"step-{step:08d}" / "state.pt", 1000)
    (other / "model" / "model.safetensors").unlink()
    with pytest.warns(DamagedCheckpointWarning, match="going on from step 4"):
        assert train("other", "--save-every=2", *options)[1] == 0
    assert weights(whole) == weights(other)
    assert losses(whole) == losses(other)


def test_the_same_weights_decide_the_ema(train):
    out, _ = train("a", "--ema=0.5", "--no-ema-warmup", "--save-every=1", "--keep=100", steps=4)
    states = [torch.load(out / f"checkpoints/step-{s:08d}/state.pt", weights_only=True) for s in (1, 2, 3, 4)]
    name = "head.linear.weight"
    expected = states[0]["model"][name]  # timm copies at its first update
    for state in states[1:]:
        expected = 0.5 * expected + 0.5 * state["model"][name]
    torch.testing.assert_close(states[-1]["ema"]["0.5"][name], expected)


def test_a_finished_run_started_again_changes_nothing(train):
    out, _ = train("a")
    before = weights(out)
    assert train("a")[1] == 0
    assert weights(out) == before


def test_other_settings_are_refused_and_can_be_accepted(train, capsys):
    train("a", "--save-every=2")
    assert train("a", "--lr=5", "--clip=1")[1] == 1
    error = capsys.readouterr().err
    assert "clip was 2.0, now 1.0; lr was 0.001, now 5.0" in error
    assert "accept_changes" in error
    out, status = train("a", "--lr=1e-4", "--accept-changes", steps=8)
    assert (status, len(losses(out))) == (0, 8)


def test_a_constant_schedule_may_be_prolonged(train):
    train("a")
    out, status = train("a", steps=8)
    whole, _ = train("whole", steps=8)
    assert status == 0
    assert weights(out) == weights(whole)


def test_nan_stops_with_the_last_good_checkpoint_intact(train, capsys):
    out, _ = train("a", "--save-every=2", steps=4)
    before = Checkpoints(out / "checkpoints").load()[1]["model"]
    assert train("a", "--lr=1e30", "--accept-changes", "--save-every=2", steps=12)[1] == 1
    error = capsys.readouterr().err
    assert "NaN or infinite" in error
    assert "step-00000004" in error
    step, state = Checkpoints(out / "checkpoints").load()
    assert step == 4
    assert all(torch.equal(before[name], state["model"][name]) for name in before)


def test_a_full_disk_stops_with_the_last_good_checkpoint_intact(train, capsys):
    out, _ = train("a", "--save-every=2", steps=4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        assert train("a", "--save-every=2")[1] == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be written" in capsys.readouterr().err
    assert Checkpoints(out / "checkpoints").load()[0] == 4
    assert train("a", "--save-every=2")[1] == 0
    assert weights(out) == weights(train("whole")[0])


def test_a_disk_that_is_still_full_at_the_second_start_is_named(train, capsys):
    out, _ = train("a", "--save-every=2", steps=4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        assert train("a", "--save-every=2")[1] == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert "free some space" in error
    assert "MiB are free there" in error
    assert len(losses(out)) == 4
    assert Checkpoints(out / "checkpoints").load()[0] == 4


def test_a_model_of_another_width_is_named_though_changes_are_accepted(train, capsys):
    train("a", steps=2)
    assert train("a", "--accept-changes", "--set", "dim=32")[1] == 1
    assert "tensors differ" in capsys.readouterr().err


def test_a_folder_whose_name_is_no_text_is_trained_in(train, tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9")
    out, status = train(name, "--no-quiet", steps=1)
    assert status == 0
    assert "caf\\xe9: trained 1 steps" in capsys.readouterr().out
    assert weights(out)


def test_one_class_is_unconditional_and_a_folder_of_images_works(train, tmp_path):
    import numpy as np
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 256, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{i}.png")
    options = [f"--data={tmp_path / 'images'}", "--image-size=8", "--mirror", "--batch-size=8", "--epochs=3"]
    out, status = train("a", *options)
    assert status == 0
    model = DiMSUM.from_pretrained(out / "model")
    assert (model.num_classes, model.config.in_chans, model.config.img_size) == (0, 3, (8, 8))
    assert len(losses(out)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data=/nowhere"], "there is none"),
        (["--set", "depht=3"], "depth"),
        (["--model=dimsum_tinny"], "dimsum_tiny"),
        (["--batch-size=15", "--accumulate=2"], "multiple"),
        (["--recipe=/nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_input_is_a_named_error(train, capsys, options, message):
    out, status = train("a", *options)
    assert status == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_misspelt_flags_are_errors(train, capsys):
    with pytest.raises(SystemExit, match="2"):
        train("a", "--batchsize=3")
    assert "did you mean --batch-size?" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", sorted((ROOT / "examples" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_hold_options_and_model_options_that_exist(recipe):
    from wavemamba import create_model
    from wavemamba.commands.parser import parse_overrides
    from wavemamba.commands.train import build_parser

    args = build_parser().parse(["--recipe", str(recipe), "--data=x", "--out=y"])
    assert (args.model, args.path, args.prediction, args.precision) == ("dimsum_l2", "gvp", "velocity", "bf16")
    assert (args.ema, args.weight_decay, args.schedule, args.warmup) == ([0.9999], 0.0, "constant", 0)
    published = {"celeba256": (225, 1e-4, 2.0), "church256": (395, 5e-5, 2.0), "imagenet256": (510, 1e-4, 1.0)}
    assert (args.epochs, args.lr, args.clip) == published[recipe.stem]
    with torch.device("meta"):
        model = create_model(args.model, img_size=32, in_chans=4, **parse_overrides(args.model_options))
    conditional = recipe.stem == "imagenet256"
    config = model.config
    assert (config.drop_path_rate, config.class_dropout) == (0.1, 0.15 if conditional else config.class_dropout)
    assert model.num_classes == (1000 if conditional else 0)


@pytest.mark.parametrize("recipe", ["celeba256", "church256", "imagenet256"])
def test_recipes_train(recipe, train, latents, autoencoder):
    """Each on latents, with a tiny model of its classes and everything else as it is, but for the size of a batch."""
    small = [*TINY[1:], "num_classes=3"] if recipe == "imagenet256" else TINY[1:]
    out, status = train(
        "a",
        f"--recipe={ROOT / 'examples' / 'recipes' / recipe}.yaml",
        f"--data={latents(classes=3 if recipe == 'imagenet256' else 1)}",
        f"--autoencoder={autoencoder}",
        *("--set", "depth=2", *small),
        *("--epochs=1", "--batch-size=6", "--sample-every=1", "--workers=1"),
    )
    assert status == 0
    assert len(losses(out)) == 2
    about = json.loads((out / "model" / "training.json").read_text())
    assert (about["precision"], about["ema"], about["step"]) == ("bf16", [0.9999], 2)
    assert DiMSUM.from_pretrained(out / "model").num_classes == (3 if recipe == "imagenet256" else 0)
    assert len(list((out / "samples").iterdir())) == 2
    assert list((out / "tensorboard").iterdir())


@pytest.mark.parametrize("options", [("--precision=bf16",), ("--checkpoint-activations",), ("--compile",)])
def test_options_of_speed_and_memory_train(train, options, monkeypatch):
    # Traced, but without the compilers' minutes; that compiled models compute the same is tested with the models.
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend="eager"))
    out, status = train("a", *options, steps=2)
    assert status == 0
    assert all(torch.isfinite(v).all() for v in load_file(out / "model/model.safetensors").values())


def test_recomputing_activations_changes_nothing(train):
    assert weights(train("a", "--checkpoint-activations", steps=3)[0]) == weights(train("b", steps=3)[0])


@pytest.fixture(scope="module")
def kill_resume():
    import importlib.util

    spec = importlib.util.spec_from_file_location("kill_resume", ROOT / "benchmarks" / "kill_resume.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_killed_at_ten_random_moments_it_ends_with_the_same_bits(tmp_path, launch, kill_resume):
    steps, kills, rng = 200, 10, random.Random()
    kill_resume.run_to_the_end(tmp_path / "reference", steps, launch)
    moments = []
    for left in range(kills, 0, -1):
        killed, step = kill_resume.kill_once(tmp_path / "survivor", steps, left, rng, launch, starting=0.5)
        assert killed, f"the run ended before it could be killed; killed before after steps {moments}"
        moments.append(step)
    kill_resume.run_to_the_end(tmp_path / "survivor", steps, launch)
    assert not kill_resume.compare(tmp_path / "reference", tmp_path / "survivor"), f"killed after steps {moments}"


def test_the_comparison_sees_a_single_bit(tmp_path, kill_resume, train):
    shutil.copytree(train("a", steps=2)[0], tmp_path / "b")
    assert kill_resume.compare(tmp_path / "a", tmp_path / "b") == []
    checkpoints = Checkpoints(tmp_path / "b" / "checkpoints")
    _, state = checkpoints.load()
    state["ema"]["0.9999"]["head.linear.bias"].view(torch.int32)[0] ^= 1
    checkpoints.save(2, state)
    assert kill_resume.compare(tmp_path / "a", tmp_path / "b") == ["checkpoint/1/ema/0.9999/head.linear.bias"]


def options_of_a_long_run(out, *more):
    common = ["--batch-size=16", "--log-every=1", "--threads=1", "--sample-steps=1", "--quiet", "--steps=100000"]
    return ["--data=digits", *TINY, *common, f"--out={out}", *more]


def wait_for_a_log(process, out, steps=1):
    end = time.monotonic() + 300
    while len(losses(out)) < steps and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGTERM, 2), (signal.SIGINT, 2)])
def test_a_signal_to_the_process_group_saves_and_exits_with_0(tmp_path, launch, number, workers):
    out, output = tmp_path / "a", tmp_path / "output.txt"
    process = launch(options_of_a_long_run(out, f"--workers={workers}"), output)
    wait_for_a_log(process, out, 3)
    os.killpg(process.pid, number)
    assert process.wait(300) == 0
    step, _ = Checkpoints(out / "checkpoints").load()
    assert step == len(losses(out)) >= 3
    assert f"step {step} is saved" in output.read_text()
    assert DiMSUM.from_pretrained(out / "model").num_classes == 10


def test_a_second_job_in_the_same_folder_is_refused_until_the_first_is_killed(tmp_path, launch, train, capsys):
    # Loader workers outlive their parent for some seconds: they must not hold its folder.
    first = launch(options_of_a_long_run(tmp_path / "a", "--workers=1", "--save-every=1"))
    wait_for_a_log(first, tmp_path / "a")
    before = (tmp_path / "a" / "settings.json").read_bytes()
    second = launch(options_of_a_long_run(tmp_path / "a"), tmp_path / "second.txt")
    assert second.wait(300) == 1
    assert f"process {first.pid} on " in (tmp_path / "second.txt").read_text()
    assert "--out" in (tmp_path / "second.txt").read_text()
    assert (tmp_path / "a" / "settings.json").read_bytes() == before
    assert first.poll() is None
    first.kill()
    first.wait()
    step, _ = Checkpoints(tmp_path / "a" / "checkpoints").load()
    logged = len(losses(tmp_path / "a"))  # the kill may have come between a line and the checkpoint of its step
    third = launch(options_of_a_long_run(tmp_path / "a", "--workers=1", "--save-every=1"))
    wait_for_a_log(third, tmp_path / "a", logged + 1)
    os.kill(third.pid, signal.SIGTERM)
    assert third.wait(300) == 0
    assert Checkpoints(tmp_path / "a" / "checkpoints").load()[0] >= step


def test_two_processes_train_and_judge_as_one(tmp_path, trained):
    import train_dimsum
    from examples.tiny_runs import SmallFeatures, evaluate_options, train_options

    from wavemamba.commands import evaluate
    from wavemamba.data import Digits
    from wavemamba.sampling import to_uint8

    images = tmp_path / "images"
    images.mkdir()
    from PIL import Image

    for i, pixels in enumerate(to_uint8(Digits().images[:40])):
        Image.fromarray(pixels[0].numpy()).save(images / f"{i:02d}.png")
    (tmp_path / "model").symlink_to(trained / "model")
    script = str(Path(__file__).with_name("tiny_runs.py"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", script, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    # Dropout draws in each process: its masks are those of as many micro-batches in one.
    same = train_options(tmp_path / "one", "class_dropout=0.2", "drop_path_rate=0.1")
    assert train_dimsum.main([*same, "--accumulate=2"]) == 0
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 10
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-6)

    options = evaluate_options(tmp_path / "model", images, tmp_path / "one.json")
    assert evaluate.main(options, SmallFeatures()) == 0
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    for name in ("fid", "sfid", "inception_score_mean", "precision", "recall"):
        assert one[name] == pytest.approx(two[name], rel=1e-4, abs=1e-7), name

    # Sharded by FSDP2, saved whole: the same curve and weights, and what two processes saved goes on in one.
    sharded = tmp_path / "sharded"
    for a, b in zip(read_log(tmp_path / "two" / "log.jsonl"), read_log(sharded / "log.jsonl"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    shutil.copytree(sharded, tmp_path / "again")
    for step in Checkpoints(tmp_path / "again" / "checkpoints").steps()[1:]:
        shutil.rmtree(tmp_path / "again" / "checkpoints" / f"step-{step:08d}")
    options = train_options(tmp_path / "again", "class_dropout=0.2", "drop_path_rate=0.1")
    assert train_dimsum.main([*options, "--accumulate=2"]) == 0
    for name in ("two", "again"):
        found = load_file(tmp_path / name / "model" / "model.safetensors")
        for key, value in load_file(sharded / "model" / "model.safetensors").items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)


def test_one_large_batch_is_two_half_batches(train):
    whole, _ = train("whole", "--set", "class_dropout=0", steps=5)
    halves, _ = train("halves", "--set", "class_dropout=0", "--accumulate=2", steps=5)
    assert losses(whole) == pytest.approx(losses(halves), rel=1e-5)
