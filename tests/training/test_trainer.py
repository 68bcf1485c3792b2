"""The Trainer: its seams, its callbacks, averages, precision, what a resumed run finds."""

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from wavemamba import DiMSUM
from wavemamba.data import Digits
from wavemamba.diffusion import Objective
from wavemamba.errors import BackendUnavailable, CheckpointError, ConfigError, ShapeError, WavemambaError
from wavemamba.training import Callback, Checkpoints, ProgressBar, Trackers, Trainer, read_log
from wavemamba.training.loss_scale import LossScale


def weights(out, folder="model"):
    return (out / folder / "model.safetensors").read_bytes()


class Recorder(Callback):
    """Every event with the step of its time."""

    def __init__(self):
        self.events = []

    def on_start(self, trainer):
        self.events.append(("start", trainer.step))

    def on_step(self, trainer):
        self.events.append(("step", trainer.step))

    def on_log(self, trainer, values):
        self.events.append(("log", trainer.step))
        assert {"loss", "lr", "gradient_norm", "epoch"} == values.keys()

    def on_evaluate(self, trainer, values):
        self.events.append(("evaluate", trainer.step))

    def on_save(self, trainer, folder):
        self.events.append(("save", trainer.step))
        assert (folder / "manifest.json").exists()
        assert (trainer.out / "model" / "config.json").exists()

    def on_end(self, trainer, outcome):
        self.events.append((outcome, trainer.step))


def test_callbacks_are_told_in_order(config):
    recorder = Recorder()
    run = config(steps=2, save_every=1, log_every=2, holdout=0.01, eval_every=2)
    assert Trainer(run, callbacks=[recorder]).train() == "finished"
    events = [("start", 0), ("step", 1), ("save", 1), ("step", 2), ("log", 2), ("evaluate", 2), ("save", 2)]
    assert recorder.events == [*events, ("finished", 2)]


def test_a_callback_that_fails_ends_the_run_and_all_are_told(config):
    class Failing(Callback):
        def on_step(self, trainer):
            raise RuntimeError("mine")

        def on_end(self, trainer, outcome):
            raise ValueError("also at the end")

    recorder = Recorder()
    with pytest.raises(RuntimeError, match="mine"):
        Trainer(config(), callbacks=[Failing(), recorder]).train()
    assert recorder.events[-1] == ("failed", 1)


def test_every_seam_can_be_overridden(config, tmp_path):
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x, t, y=None):
            return self.layer(x)

    class Mine(Trainer):
        def build_data(self):
            return Digits()

        def build_model(self):
            return Tiny()

        def build_optimizer(self, model):
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def loss(self, model, batch):
            return (model(batch.x, batch.t, batch.y) - batch.x).abs().flatten(1).mean(1)

        def evaluate(self):
            return {"weight": self.averaged_model.layer.weight.sum().item()}

        def export(self, model, folder):
            folder.mkdir(exist_ok=True)
            torch.save(model.state_dict(), folder / "mine.pt")

    def run(name, steps):
        mine = dataclasses.replace(config(name), data="", steps=steps, eval_every=1, sample_every=0)
        trainer = Mine(mine)
        trainer.train()
        return torch.load(trainer.out / "model" / "mine.pt"), read_log(trainer.out / "log.jsonl")

    whole, log = run("whole", 6)
    run("parts", 3)
    parts, resumed = run("parts", 6)
    assert log == resumed
    assert all("weight" in record for record in log[1::2])
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert log[-2]["loss"] < log[0]["loss"]


def test_data_are_an_injected_part_or_named(config):
    class Two(Digits):
        def __init__(self):
            super().__init__()
            self.classes = ("even", "odd")
            self.labels = self.labels % 2

    trainer = Trainer(dataclasses.replace(config(), data=""), data=Two())
    trainer.train()
    assert DiMSUM.from_pretrained(trainer.out / "model").num_classes == 2
    with pytest.raises(ConfigError, match="data: expected a name or a folder"):
        Trainer(dataclasses.replace(config(), data="")).prepare()


def test_data_that_changed_are_named_and_refused_unless_accepted(config):
    class Repainted(Digits):
        def __init__(self):
            super().__init__()
            self.images = self.images.clone()
            self.images[5, 0, 3, 3] += 0.5

    Trainer(config()).train()
    with pytest.raises(ConfigError, match=r"fingerprint of the data was .*, now "):
        Trainer(config(steps=6), data=Repainted()).train()
    assert Trainer(config(steps=6, accept_changes=True), data=Repainted()).train() == "finished"


def test_several_decays_are_exported_and_resumed(config):
    whole, parts = config("whole", ema=(0.5, 0.9), ema_warmup=False), config("parts", ema=(0.5, 0.9), ema_warmup=False)
    first = Trainer(whole)
    first.train()
    Trainer(dataclasses.replace(parts, steps=2)).train()
    second = Trainer(parts)
    second.train()
    alone = Trainer(config("alone", ema=(0.9,), ema_warmup=False))
    alone.train()
    for folder in ("model", "model-ema-0.9"):
        assert weights(first.out, folder) == weights(second.out, folder)
    assert weights(first.out, "model-ema-0.9") == weights(alone.out)
    assert weights(first.out) != weights(alone.out)


def test_the_log_is_the_same_after_a_resumption_between_two_lines(config):
    for name, ends in (("whole", (9,)), ("parts", (2, 4, 5, 9))):
        for end in ends:
            Trainer(config(name, steps=end, log_every=3, accumulate=2)).train()
    texts = [Path(config(name).out, "log.jsonl").read_text() for name in ("whole", "parts")]
    assert texts[0] == texts[1]
    assert texts[0].count("\n") == 3


def test_a_foreign_model_is_refused_by_name_and_nothing_is_lost(config):
    run = config()
    Trainer(run).train()
    before = Checkpoints(f"{run.out}/checkpoints").load()[1]["model"]
    other = config(accept_changes=True, model_options={"dim": 32})
    with pytest.raises(CheckpointError, match=r"\d+ tensors differ .*expected \(.*got \("):
        Trainer(other).train()
    after = Checkpoints(f"{run.out}/checkpoints").load()[1]["model"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_folders_of_others_among_the_checkpoints_are_left_alone(config, tmp_path):
    run = config(steps=2)
    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("step-9", "step-00000009", "step-x", "notes"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "theirs.txt").write_text("keep")
    (checkpoints / "step-00000007").mkdir()
    (checkpoints / "step-00000007" / "manifest.json").write_text('{"format": "somebody else"}')
    assert Trainer(run).train() == "finished"
    assert Checkpoints(checkpoints).steps() == [2]
    assert len(list(checkpoints.glob("*/theirs.txt"))) == 4
    with pytest.raises(CheckpointError, match=r"step-*.*in the way"):
        Trainer(config(steps=9, save_every=0)).train()
    assert (checkpoints / "step-00000009" / "theirs.txt").read_text() == "keep"


def test_a_checkpoint_of_another_program_is_named(config, tmp_path):
    Checkpoints(tmp_path / "run" / "checkpoints").save(3, {"weights": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"expected step, model, .* is missing"):
        Trainer(config(accept_changes=True)).train()


def test_a_parameter_without_gradients_does_not_stop_a_resumption(config):
    class Spare(Trainer):
        def build_model(self):
            model = super().build_model()
            model.spare = nn.Linear(2, 2)
            model.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
            return model

        def export(self, model, folder):
            """Nothing: a saved model has no such parts."""

    Spare(config("parts", steps=2)).train()
    Spare(config("parts")).train()
    Spare(config("whole")).train()
    found = [Checkpoints(f"{config(name).out}/checkpoints").load()[1]["model"] for name in ("whole", "parts")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_half_precision_scales_the_loss_and_resumes(config):
    whole, parts = config("whole", precision="fp16"), config("parts", precision="fp16")
    Trainer(whole).train()
    Trainer(dataclasses.replace(parts, steps=2)).train()
    Trainer(parts).train()
    logs = [read_log(f"{run.out}/log.jsonl") for run in (whole, parts)]
    assert logs[0] == logs[1]
    assert logs[0][-1]["loss_scale"] > 1
    exact = config("exact")
    Trainer(exact).train()
    for half, full in zip(logs[0], read_log(f"{exact.out}/log.jsonl"), strict=True):
        assert half["loss"] == pytest.approx(full["loss"], rel=1e-2)


def test_steps_of_an_infinite_gradient_are_skipped(config):
    class Overflowing(Trainer):
        def loss(self, model, batch):
            loss = super().loss(model, batch)
            return loss * (float("inf") if self.step == 1 else 1.0)

    run = config(precision="fp16", ema=(0.0,), save_every=1, keep=9)
    assert Overflowing(run).train() == "finished"
    log = read_log(f"{run.out}/log.jsonl")
    assert [record["skipped_steps"] for record in log] == [0, 1, 1, 1]
    assert [record["loss_scale"] for record in log] == [2.0**16, *[2.0**15] * 3]
    assert "loss" not in log[1]
    states = [torch.load(f"{run.out}/checkpoints/step-{s:08d}/state.pt", weights_only=True) for s in (1, 2, 3)]
    name = "head.linear.weight"
    assert torch.equal(states[0]["model"][name], states[1]["model"][name])
    assert not torch.equal(states[1]["model"][name], states[2]["model"][name])


def test_a_loss_that_is_never_finite_ends_the_run(config):
    class Broken(Trainer):
        def loss(self, model, batch):
            return super().loss(model, batch) * float("nan")

    with pytest.raises(WavemambaError, match="NaN or infinite by step 27"):
        Broken(config(precision="fp16", steps=100, log_every=0)).train()
    with pytest.raises(WavemambaError, match="NaN or infinite by step 1"):
        Broken(config(steps=100)).train()


def test_the_scale_follows_the_rule_of_torch():
    ours = LossScale(enabled=True, initial=8.0, growth_interval=2)
    theirs = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for factor in (1.0, 1.0, float("inf"), 1.0, float("nan"), 1.0, 1.0, 1.0):
        theirs.scale((weight * factor).sum()).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        assert ours.accepts(torch.tensor(factor)) == (factor == 1.0)
        assert ours.value == theirs.get_scale()


def test_fine_tuning_starts_from_saved_weights(config):
    Trainer(config("first", ema=(0.0,))).train()
    start = f"{config('first').out}/model/model.safetensors"
    second = Trainer(config("second", init_from=start, steps=1, lr=0.0, ema=(0.0,)))
    second.train()
    assert weights(second.out) == weights(Trainer(config("first")).out)
    with pytest.raises(ConfigError, match="init_from was"):
        Trainer(config("second", steps=2)).train()


def test_fine_tuning_adapts_to_the_data_and_a_resumed_run_reads_its_checkpoint(config):
    class Two(Digits):
        def __init__(self):
            super().__init__()
            self.classes, self.labels = ("even", "odd"), self.labels % 2

    Trainer(config("first", steps=1)).train()
    start = f"{config('first').out}/model"
    second = config("second", init_from=start, steps=1)
    with pytest.warns(UserWarning, match="2 fresh classes in place of 10"):
        Trainer(second, data=Two()).train()
    shutil.rmtree(start)
    trainer = Trainer(dataclasses.replace(second, steps=2), data=Two())
    assert trainer.train() == "finished"
    assert trainer.model.training
    assert DiMSUM.from_pretrained(trainer.out / "model").trained_for.class_names == ("even", "odd")


def test_what_a_model_was_trained_for_is_saved_with_it(config):
    run = config(steps=1, path="linear", prediction="noise")
    Trainer(run).train()
    said = DiMSUM.from_pretrained(f"{run.out}/model").trained_for
    objective = Objective.from_dict(said.objective)
    assert (objective.path.name, objective.prediction) == ("linear", "noise")
    assert said.class_names == tuple("0123456789")


def test_trackers_get_values_and_pictures(config, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in (2, 4):
        Trainer(config(trackers=("tensorboard",), steps=steps, holdout=0.01, eval_every=2)).train()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("held_out_loss")] == [2, 4]
    assert events.Tags()["images"] == ["samples/0"] or events.Tags()["images"] == ["samples"]
    assert events.Scalars("images_per_second")[-1].value > 0


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    with pytest.raises(BackendUnavailable, match="pip install tensorboard"):
        Trackers(["tensorboard"])


def test_the_start_says_what_is_trained_and_where_it_goes_on(config):
    lines = []
    Trainer(config(steps=2), callbacks=[ProgressBar(lines.append)]).train()
    assert "1,797 examples of 10 classes" in lines[0]
    assert "1 x 8 x 8" in lines[0]
    assert "dimsum_tiny, " in lines[1]
    assert "cpu" in lines[2]
    assert "starting, 2 steps of 8 examples" in lines[3]
    del lines[:]
    Trainer(config(steps=14, precision="bf16", accept_changes=True), callbacks=[ProgressBar(lines.append)]).train()
    assert "resuming from step 2" in lines[3]
    assert "bf16 on a CPU is often slower" in lines[4]
    assert "s a step: " in lines[5]


def test_a_run_that_is_done_exports_what_a_kill_kept_back(config):
    run = config(steps=2)
    trainer = Trainer(run)
    trainer.train()
    before = weights(trainer.out)
    (trainer.out / "model" / "model.safetensors").unlink()
    Trainer(run).train()
    assert weights(trainer.out) == before
    assert json.loads((trainer.out / "model" / "training.json").read_text())["step"] == 2


def test_what_would_be_ignored_or_fail_late_is_named_at_once(config, monkeypatch):
    for name in ("x" * 300, "nul\0"):
        with pytest.raises(CheckpointError, match="expected a path"):
            Trainer(dataclasses.replace(config(), out=name))
    with pytest.raises(ConfigError, match="eval_every: expected 0 without held-out data"):
        Trainer(config(eval_every=2)).train()
    with pytest.raises(ConfigError, match=r"callbacks: .* lacks on_start, .*inherit from"):
        Trainer(config(), callbacks=[object()])
    with pytest.raises(ConfigError, match=r"TrainConfig\.from_dict"):
        Trainer({"out": "x"})

    class Scalar(Trainer):
        def loss(self, model, batch):
            return super().loss(model, batch).mean()

    with pytest.raises(ShapeError, match=r"loss: expected one number an example, \(8,\), got \(\)"):
        Scalar(config()).train()

    class Four:
        latent_channels = 4

    monkeypatch.setattr("wavemamba.diffusion.Autoencoder.from_pretrained", lambda *args, **options: Four())
    with pytest.raises(ConfigError, match="autoencoder: expected one of latents with 1 channels"):
        Trainer(config("latents", autoencoder="x")).train()


def test_an_accelerator_of_other_options_is_named(config):
    from accelerate import Accelerator

    Accelerator(mixed_precision="bf16", cpu=True)
    with pytest.raises(ConfigError, match="expected no other Accelerator"):
        Trainer(config())


def test_it_runs_outside_the_main_thread(config):
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(Trainer(config(steps=1)).train()))
    thread.start()
    thread.join()
    assert outcomes == ["finished"]
