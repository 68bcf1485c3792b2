"""Sampling, encoding and evaluation scripts."""

import json
import shutil

import numpy as np
import pytest
import torch
from examples.tiny_runs import SmallFeatures
from PIL import Image

from wavemamba.data import Digits, LatentShards
from wavemamba.sampling import to_uint8


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i, pixels in enumerate(to_uint8(Digits().images[:60])):
        (folder / str(i % 3)).mkdir(exist_ok=True)
        Image.fromarray(pixels[0].numpy()).resize((16, 16)).save(folder / str(i % 3) / f"{i:02d}.png")
    return folder


def test_images_are_encoded_once_and_trained_on(images, autoencoder, tmp_path, capsys, train):
    import encode_latents

    from wavemamba import Sampler

    out = tmp_path / "latents"
    options = [f"--data={images}", f"--out={out}", f"--autoencoder={autoencoder}", "--image-size=16", "--mirror"]
    options += ["--shard-size=25", "--batch-size=10"]
    assert encode_latents.main(options) == 0
    assert "60 images of 3 classes, 3 shards encoded now" in capsys.readouterr().out
    shards = LatentShards(out, mirror=True)
    assert (len(shards), shards.shape, shards.classes) == (60, (4, 8, 8), ("0", "1", "2"))
    (out / "latents-00001.json").unlink()
    assert encode_latents.main(options) == 0
    assert "1 shards encoded now" in capsys.readouterr().out

    from wavemamba.data import ImageFolder, PictureView
    from wavemamba.diffusion import Autoencoder

    mean = (
        Autoencoder.from_pretrained(autoencoder)
        .posterior(ImageFolder(images, PictureView(size=16)).example(59)[0][None])
        .mean[0]
    )
    torch.testing.assert_close(shards.example(59)[0], mean, rtol=1e-4, atol=1e-5)

    run, status = train("a", f"--data={out}", "--mirror", "--verify-data=all", f"--autoencoder={autoencoder}", steps=2)
    assert status == 0
    pictures = Sampler.from_pretrained(run / "model")([0, 1], [1, 2], solver="euler", steps=2)
    assert pictures.images.shape == (2, 3, 16, 16)
    assert pictures.record["autoencoder"] == str(autoencoder)


def test_all_unreadable_images_are_listed_before_they_are_encoded_or_judged(images, autoencoder, tmp_path, capsys):
    import encode_latents

    folder = shutil.copytree(images, tmp_path / "images")
    for name in ("0/00.png", "2/35.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    options = [f"--data={folder}", f"--out={tmp_path / 'latents'}", f"--autoencoder={autoencoder}", "--image-size=16"]
    assert encode_latents.main(options) == 1
    error = capsys.readouterr().err
    assert all(words in error for words in ("60 readable examples, 2 of them are not", "0/00.png", "2/35.png"))
    assert not (tmp_path / "latents").exists()
    assert encode_latents.main([*options, "--skip-unreadable"]) == 0
    assert "58 images of 3 classes" in capsys.readouterr().out
    assert evaluate(tmp_path, f"--samples={images}", f"--reference={folder}") == (1, None)
    error = capsys.readouterr().err
    assert "0/00.png" in error
    assert "2/35.png" in error


def test_latents_are_not_judged_as_images(latents, images, train, autoencoder, tmp_path, capsys):
    run, _ = train("a", f"--data={latents(classes=1)}", steps=1)
    options = [f"--model={run / 'model'}", f"--reference={images}", "--count=10", "--solver=euler", "--steps=1"]
    assert evaluate(tmp_path, *options) == (1, None)
    assert "--autoencoder" in capsys.readouterr().err
    status, scores = evaluate(tmp_path, *options, f"--autoencoder={autoencoder}")
    assert (status, scores["samples"]["autoencoder"]) == (0, str(autoencoder))


def evaluate(tmp_path, *options):
    from wavemamba.commands import evaluate as script

    out = tmp_path / "scores.json"
    size = [] if any(option.startswith("--model") for option in options) else ["--image-size=16"]
    status = script.main([f"--out={out}", *size, *options], SmallFeatures())
    return status, json.loads(out.read_text()) if out.exists() else None


def test_a_folder_judged_by_itself_is_perfect(images, tmp_path):
    status, scores = evaluate(tmp_path, f"--samples={images}", f"--reference={images}")
    assert status == 0
    assert abs(scores["fid"]) < 1e-6
    assert abs(scores["sfid"]) < 1e-6
    assert scores["precision"] == scores["recall"] == 1
    assert scores["inception_score_mean"] >= 1
    assert scores["reference"]["count"] == scores["samples"]["count"] == 60
    assert "bicubic" in scores["samples"]["resize"]


def test_inverted_images_are_worse_and_statistics_files_give_the_same(images, tmp_path):
    inverted = tmp_path / "inverted"
    inverted.mkdir()
    for path in images.rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(inverted / path.name)
    saved = tmp_path / "reference.npz"
    status, scores = evaluate(tmp_path, f"--samples={inverted}", f"--reference={images}", f"--save-reference={saved}")
    assert status == 0
    assert scores["fid"] > 0.01
    assert scores["precision"] < 0.5
    _, again = evaluate(tmp_path, f"--samples={inverted}", f"--reference={saved}")
    for name in ("fid", "sfid", "precision", "recall"):
        assert again[name] == pytest.approx(scores[name], rel=1e-6)
    assert again["reference"] == {"statistics": str(saved), "features": 60}


def test_a_live_model_is_judged_with_everything_that_moves_the_score(trained, images, tmp_path):
    options = ["--count=20", "--solver=euler", "--steps=3", "--guidance=2", "--seed=4"]
    status, scores = evaluate(tmp_path, f"--model={trained / 'model'}", f"--reference={images}", *options)
    assert status == 0
    expected = {"nfe": 3, "dtype": "float32", "seed": 4, "count": 20, "autoencoder": None, "resize": "none"}
    assert {key: scores["samples"][key] for key in expected} == expected
    settings, objective = scores["samples"]["settings"], scores["samples"]["objective"]
    assert (settings["solver"], settings["steps"], settings["guidance"]) == ("euler", 3, 2.0)
    assert (objective["path"]["name"], objective["prediction"]) == ("gvp", "velocity")
    assert "crop to 8 x 8" in scores["reference"]["resize"]
    assert scores["features"] == "fixed random convolutions"


def test_both_sides_have_the_size_that_the_model_makes(trained, tmp_path, capsys):
    from wavemamba.commands.evaluate import Evaluation, build_parser

    def evaluation(*options):
        args = build_parser().parse(["--reference=x", "--out=y", *options])
        return Evaluation(args, SmallFeatures())

    model = f"--model={trained / 'model'}"
    assert evaluation(model).size == (8, 8)
    assert evaluation("--samples=x").size == (256, 256)
    assert evaluation("--samples=x", "--image-size=32").size == (32, 32)
    status, _ = evaluate(tmp_path, model, "--reference=x", "--image-size=256")
    assert status == 1
    assert "expected 8 x 8, what the model makes, got 256" in capsys.readouterr().err


def test_fewer_images_than_features_are_said(images, tmp_path, capsys, monkeypatch):
    _, scores = evaluate(tmp_path, f"--samples={images}", f"--reference={images}")
    assert scores["warnings"] == []
    forward = SmallFeatures.forward
    repeated = lambda self, x: {**forward(self, x), "pool": forward(self, x)["pool"].repeat(1, 10)}  # noqa: E731
    monkeypatch.setattr(SmallFeatures, "forward", repeated)
    _, scores = evaluate(tmp_path, f"--samples={images}", f"--reference={images}", "--count=24")
    assert len(scores["warnings"]) == 2
    error = capsys.readouterr().err
    assert "warning: fid: expected more than 60 images a side, as many as it has features, got 24 samples" in error
    assert "got 60 reference images" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reference=x"], "either --samples FOLDER or --model FOLDER"),
        (["--samples={images}", "--reference=/nowhere"], "nowhere"),
        (["--samples={images}", "--reference=/nowhere.npz"], "expected mu, sigma"),
        (["--samples={images}", "--reference={bad}.npz"], "expected mu, sigma"),
        (["--samples={images}", "--reference={small}.npz"], "expected mu of shape (6,)"),
        (["--samples={images}/0/..", "--reference={few}"], "at least 10 images, got 3"),
        (["--samples={images}", "--reference={images}", "--count=1000"], "at least 1000 images"),
    ],
)
def test_evaluation_names_what_is_wrong(images, tmp_path, capsys, options, message):
    named = {"images": images, **{name: tmp_path / name for name in ("bad", "small", "few")}}
    (tmp_path / "bad.npz").write_bytes(b"PK no archive")
    np.savez(tmp_path / "small.npz", mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(3), sigma_s=np.eye(3))
    named["few"].mkdir()
    for path in sorted(images.rglob("*.png"))[:3]:
        (named["few"] / path.name).symlink_to(path)
    status, scores = evaluate(tmp_path, *(option.format(**named) for option in options))
    assert (status, scores) == (1, None)
    assert message in capsys.readouterr().err


def test_inception_weights_come_from_a_file_that_cannot_run_code(tmp_path):
    import pickle

    pytest.importorskip("torch_fidelity")
    from wavemamba import CheckpointError
    from wavemamba.commands.inception import Inception

    class Bomb:
        def __reduce__(self):
            return (print, ("ran",))

    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=r"bad\.pth"):
        Inception(str(tmp_path / "bad.pth"))


def test_inception_features_are_those_of_the_published_scores(tmp_path):
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    from wavemamba.commands.inception import Inception

    torch.manual_seed(0)

    class Untrained(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            return super().load_state_dict(state_dict) if state_dict else None

    torch.save({}, tmp_path / "empty.pth")
    names = ["2048", "logits_unbiased"]
    made = Untrained("inception-v3-compat", names, feature_extractor_weights_path=str(tmp_path / "empty.pth"))
    torch.save(made.state_dict(), tmp_path / "weights.pth")
    inception, maps = Inception(str(tmp_path / "weights.pth")), []
    inception.net.Mixed_6d.register_forward_hook(lambda module, inputs, output: maps.append(output))
    features = inception(torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8))
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        "pool": (2, 2048), "spatial": (2, 7 * 17 * 17), "logits": (2, 1008)
    }  # fmt: skip
    # Statistics files of other evaluations hold sFID's features row by row, the channels of a place side by side.
    assert maps[0].shape == (2, 768, 17, 17)
    for row, column, channel in ((0, 0, 3), (5, 16, 0), (16, 2, 6)):
        place = (row * 17 + column) * 7 + channel
        assert torch.equal(features["spatial"][:, place], maps[0][:, channel, row, column])


def frechet(a, b):
    """The distance of two sets of features as published: with the square root of a matrix."""
    from scipy.linalg import sqrtm

    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)


def test_distances_are_the_published_formula_on_their_features(images, tmp_path):
    features = []
    for i, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        paths = sorted(images.rglob("*.png"))[i::2]
        for path in paths:
            (tmp_path / name / path.name).symlink_to(path)
        pixels = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths]))
        features.append(SmallFeatures()(pixels[:, None].expand(-1, 3, -1, -1)))
    _, scores = evaluate(tmp_path, f"--samples={tmp_path / 'a'}", f"--reference={tmp_path / 'b'}")
    for score, name in (("fid", "pool"), ("sfid", "spatial")):
        assert scores[score] == pytest.approx(frechet(*(f[name].double().numpy() for f in features)), rel=1e-4)


def test_collapsed_samples_are_precise_and_recall_little(images, tmp_path):
    collapsed = tmp_path / "collapsed"
    collapsed.mkdir()
    some = sorted(images.rglob("*.png"))[:5]
    for i in range(20):
        (collapsed / f"{i:02d}.png").symlink_to(some[i % 5])
    _, scores = evaluate(tmp_path, f"--samples={collapsed}", f"--reference={images}")
    assert scores["precision"] == 1
    assert scores["recall"] < 0.3
