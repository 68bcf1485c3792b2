"""A saved model comes back whole, or the error says why; a save that fails, or is killed, loses nothing."""

import errno
import fcntl
import json
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support import golden_model

import wavemamba.models.saving
from wavemamba import CheckpointError, ConfigError, DiMSUM, create_model
from wavemamba.files import write_atomically
from wavemamba.models import TrainedFor, load_pretrained
from wavemamba.models.checkpoints import from_released
from wavemamba.models.loading import load_into
from wavemamba.models.weights import read_weights


def tiny(**options):
    return create_model("dimsum_tiny", **{"img_size": 8, "depth": 1, "dim": 32, "num_classes": 3, **options})


@pytest.fixture
def saved(tmp_path):
    model = tiny().eval()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def edit(folder, **changes):
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**record, **changes}))


def test_the_record_says_what_the_model_is(saved):
    model, folder = saved
    model.trained_for = TrainedFor({"path": "linear", "prediction": "velocity"}, "some/vae", ("cat", "dog", "owl"))
    model.save_pretrained(folder)
    record = json.loads((folder / "config.json").read_text())
    assert record["family"] == "dimsum"
    assert record["wavemamba"]
    assert record["config"]["dim"] == 32
    loaded = load_pretrained(folder)
    assert type(loaded) is DiMSUM
    assert not loaded.training
    assert loaded.trained_for == model.trained_for
    assert loaded.config == model.config
    assert same(loaded, model)


def test_the_file_is_one_that_safetensors_reads(saved):
    model, folder = saved
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert {name: file.get_tensor(name).shape for name in file.keys()} == {  # noqa: SIM118  # not a dict
            name: value.shape for name, value in model.state_dict().items()
        }
    values = {"b": torch.tensor(2.0, dtype=torch.bfloat16), "i": torch.arange(3), "e": torch.zeros(0, 3)}
    save_file(values, folder / "other.safetensors")
    read = read_weights(folder / "other.safetensors")
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in values.items())


def test_what_is_read_outlives_the_file(saved):
    model, folder = saved
    loaded = load_pretrained(folder)
    os.truncate(folder / "model.safetensors", 10)
    assert same(loaded, model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_are_kept_or_chosen(dtype, tmp_path):
    tiny().to(dtype).save_pretrained(tmp_path)
    assert {p.dtype for p in DiMSUM.from_pretrained(tmp_path).parameters()} == {dtype}
    assert {p.dtype for p in load_pretrained(tmp_path, dtype=torch.float32).parameters()} == {torch.float32}
    with torch.device("meta"):
        assert not any(p.is_meta for p in load_pretrained(tmp_path, device="cpu").parameters())


@pytest.mark.parametrize("dtype", ["float16", torch.int8, 3])
def test_dtypes_that_no_model_has_are_named(saved, dtype):
    with pytest.raises(ConfigError, match="dtype: expected a floating"):
        load_pretrained(saved[1], dtype=dtype)


def test_a_revision_of_the_hub(saved, monkeypatch):
    model, folder = saved
    asked = []

    def download(repository, name, **options):
        asked.append((repository, name, options["revision"]))
        return str(folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert same(DiMSUM.from_pretrained("me/mine", revision="3f9c1a7"), model)
    assert asked == [("me/mine", name, "3f9c1a7") for name in ("model.safetensors", "config.json")]


def test_tied_and_strided_weights(tmp_path):
    model = tiny(depth=2, attention_every=0)
    model.blocks[1].mlp.fc2.weight = model.blocks[0].mlp.fc2.weight
    model.head.linear.weight = torch.nn.Parameter(torch.randn(32, 16).t())
    model.save_pretrained(tmp_path)
    assert same(load_pretrained(tmp_path), model)


class TestLoadingAllOrNothing:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x: x.to_sparse(), "wrong layout: pos_embed"),
            (lambda x: x.to("meta"), "wrong device: pos_embed"),
            pytest.param(
                lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
                "wrong layout: pos_embed.*quantized",
                marks=[
                    pytest.mark.skipif(not hasattr(torch, "quantize_per_tensor"), reason="PyTorch has dropped it"),
                    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
                ],
            ),
            pytest.param(
                lambda x: torch.nested.nested_tensor([x, x]),
                "wrong layout: pos_embed.*nested",
                marks=pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
            ),
            (lambda x: x.long(), "wrong dtype: pos_embed"),
            (lambda x: x.to(torch.complex64), "wrong dtype: pos_embed"),
            (lambda x: x[:, 1:], "wrong shape: pos_embed"),
        ],
    )
    def test_one_bad_tensor_changes_none(self, change, message):
        model, other = tiny(), tiny()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        state = {name: value + 1 for name, value in other.state_dict().items()}
        state["pos_embed"] = change(state["pos_embed"])
        with pytest.raises(CheckpointError, match=message):
            load_into(model, state)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_no_numbers_are_named(self, value, tmp_path):
        model = tiny()
        with torch.no_grad():
            model.pos_embed[0, 1, 2] = value
        model.save_pretrained(tmp_path)
        with pytest.warns(UserWarning, match="NaN or infinite: pos_embed$"):
            load_pretrained(tmp_path)
        large = {**tiny().state_dict(), "pos_embed": torch.full_like(tiny().pos_embed, 3e38)}
        assert not any("NaN" in str(w.message) for w in _warnings(lambda: load_into(tiny(), large)))

    @pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
    def test_wrappers_are_stripped_and_doubles_refused(self, wrapper, tmp_path):
        model, other = tiny(), tiny()
        state = {wrapper + name: value + 1 for name, value in other.state_dict().items()}
        torch.save(state, tmp_path / "model.pt")
        load_into(model, tmp_path / "model.pt")
        assert torch.equal(model.pos_embed, other.pos_embed + 1)
        save_file({**state, "pos_embed": torch.zeros(1, 4, 4, 32)}, tmp_path / "both.safetensors")
        with pytest.raises(CheckpointError, match=r"one tensor a name, got .*pos_embed"):
            load_into(model, tmp_path / "both.safetensors")

    @pytest.mark.parametrize(
        "keys",
        [
            *[("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema"), ("module", "module_ema")],
            *[
                ("model_state_dict", "ema_model_state_dict"),
                ("model", "EMA"),
                ("model", "averaged"),
                ("net", "ema_net"),
            ],
        ],
    )
    def test_the_average_is_taken(self, keys, tmp_path):
        raw, average = keys
        torch.save({raw: {"w": torch.zeros(1)}, average: {"w": torch.ones(1)}, "epoch": 3}, tmp_path / "model.pt")
        assert read_weights(tmp_path / "model.pt")["w"] == 1
        if raw != "net":
            assert read_weights(tmp_path / "model.pt", "model")["w"] == 0

    def test_what_only_sounds_like_an_average_is_passed_over(self, tmp_path):
        others = {"ema_options": {"decay": 0.9}, "scheme": {"w": torch.ones(1)}, "ema_decay": 0.9}
        torch.save({"model": {"w": torch.zeros(1)}, **others}, tmp_path / "model.pt")
        assert read_weights(tmp_path / "model.pt")["w"] == 0

    def test_blocks_that_are_compiled_are_saved_and_read_under_their_own_names(self, tmp_path):
        model, plain = tiny(), tiny()
        model.load_state_dict(plain.state_dict())
        model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
        model.save_pretrained(tmp_path)
        assert same(load_pretrained(tmp_path), plain)
        assert "blocks.0._orig_mod.norm.weight" in model.state_dict()
        other = tiny()
        load_into(other, model.state_dict())
        assert same(other, plain)

    def test_an_averaged_model_of_torch(self, tmp_path):
        network = torch.nn.Linear(2, 2)
        average = torch.optim.swa_utils.AveragedModel(network)
        torch.save({"ema": average.state_dict()}, tmp_path / "model.pt")
        assert read_weights(tmp_path / "model.pt").keys() == network.state_dict().keys()


def _warnings(call):
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return caught


class TestASaveThatFails:
    """The folder loads as it did before, whatever failed and when."""

    def broken(self, monkeypatch, fails):
        calls = []
        replace = os.replace

        def sometimes(source, target):
            calls.append(target)
            if fails(len(calls)):
                raise OSError(errno.ENOSPC, "No space left on device")
            replace(source, target)

        monkeypatch.setattr(os, "replace", sometimes)

    @pytest.mark.parametrize("first_failure", [1, 2])
    @pytest.mark.parametrize("lasting", [True, False])
    def test_a_rename_that_fails(self, saved, monkeypatch, first_failure, lasting):
        model, folder = saved
        other = tiny(layout="mosaic", scan_path="jpeg")
        self.broken(monkeypatch, lambda n: n >= first_failure if lasting else n == first_failure)
        with pytest.raises(CheckpointError, match=r"No space left .* as it was"):
            other.save_pretrained(folder)
        monkeypatch.undo()
        loaded = load_pretrained(folder)
        assert loaded.config == model.config
        assert same(loaded, model)
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]

    def test_a_first_save_leaves_nothing(self, tmp_path, monkeypatch):
        self.broken(monkeypatch, lambda n: n == 2)
        with pytest.raises(CheckpointError, match="No space"):
            tiny().save_pretrained(tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("writer", ["wavemamba.models.saving.write_tensors", "wavemamba.files.os.fsync"])
    def test_a_full_disk(self, saved, monkeypatch, writer):
        _, folder = saved
        before = {path.name: path.read_bytes() for path in folder.iterdir()}

        def full(*_args):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(writer, full)
        with pytest.raises(CheckpointError, match="No space"):
            tiny(layout="mosaic").save_pretrained(folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_killed_between_its_renames(self, saved):
        """The configuration is the new one, the weights the old ones: the weights know their own."""
        model, folder = saved
        other = tiny(layout="mosaic")
        other.save_pretrained(folder / "new")
        (folder / "new" / "config.json").replace(folder / "config.json")
        loaded = load_pretrained(folder)
        assert loaded.config == model.config
        assert same(loaded, model)
        (folder / "config.json").unlink()
        assert load_pretrained(folder).config == model.config

    def test_two_writers_end_as_one_of_them(self, saved):
        first, folder = saved
        second = tiny(layout="mosaic", fusion="swap_k")
        second.save_pretrained(folder / "second")
        for kept, name in ((first, "config.json"), (second, "model.safetensors")):
            first.save_pretrained(folder)
            (folder / name).write_bytes((folder / "second" / name).read_bytes())
            assert load_pretrained(folder).config == kept.config

    def test_what_is_read_is_of_one_save(self, saved, monkeypatch):
        """Another save replaces both files between the look at the weights' header and the reading of their values."""
        first, folder = saved
        second = tiny(layout="mosaic")
        read_record = wavemamba.models.saving.read_record

        def slowly(*args):
            result = read_record(*args)
            second.save_pretrained(folder)
            return result

        monkeypatch.setattr("wavemamba.models.saving.read_record", slowly)
        loaded = load_pretrained(folder)
        assert loaded.config == first.config
        assert same(loaded, first)
        assert load_pretrained(folder).config == second.config

    def test_an_edited_configuration_holds(self, saved):
        _, folder = saved
        edit(folder, class_names=["a", "b", "c"])
        assert load_pretrained(folder).trained_for.class_names == ("a", "b", "c")

    def test_leftovers_of_dead_writers_are_swept_and_those_of_living_ones_kept(self, saved):
        model, folder = saved
        (folder / ".writing-dead").write_bytes(b"half")
        with (folder / ".writing-living").open("wb") as living:
            fcntl.flock(living, fcntl.LOCK_EX)
            model.save_pretrained(folder)
            names = {path.name for path in folder.iterdir()}
        assert names == {".writing-living", "config.json", "model.safetensors"}

    @pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
    def test_the_umask_gives_the_rights(self, tmp_path, umask):
        model, before = tiny(), os.umask(umask)
        try:
            model.save_pretrained(tmp_path / "model")
        finally:
            os.umask(before)
        assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()} == {0o666 & ~umask}

    @pytest.mark.parametrize("folder", [None, 3, b"x"])
    def test_what_is_no_path(self, folder):
        for use in (tiny().save_pretrained, load_pretrained):
            with pytest.raises(CheckpointError, match="expected a path"):
                use(folder)

    @pytest.mark.parametrize("name", ["x" * 300, "nul\0"])
    def test_names_that_no_system_takes(self, tmp_path, name):
        model = tiny()
        with pytest.raises(CheckpointError, match="expected"):
            model.save_pretrained(str(tmp_path / name))
        for read in (load_pretrained, read_weights, lambda path: create_model("dimsum_tiny", checkpoint_path=path)):
            with pytest.raises(CheckpointError, match="expected"):
                read(str(tmp_path / name))

    def test_under_the_rules_of_windows(self, saved, monkeypatch):
        """No folder is opened, no file that is open for reading alone is flushed, nothing open is renamed."""
        _, folder = saved
        fsync, opened, closed = os.fsync, os.open, os.close
        held = set()

        def flush(descriptor):
            if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise OSError(errno.EBADF, "Bad file descriptor")
            fsync(descriptor)

        def open_no_folder(path, flags, mode=0o777, **options):
            if os.path.isdir(path):
                raise PermissionError(errno.EACCES, "Permission denied")
            descriptor = opened(path, flags, mode, **options)
            held.add(descriptor)
            return descriptor

        def close(descriptor):
            held.discard(descriptor)
            closed(descriptor)

        def replace(source, target, rename=os.replace):
            assert not held
            rename(source, target)

        for name, fake in (("fsync", flush), ("open", open_no_folder), ("close", close)):
            monkeypatch.setattr(f"wavemamba.files.os.{name}", fake)
        monkeypatch.setattr("wavemamba.files._WINDOWS", True)
        write_atomically(folder / "note.txt", b"written")
        assert (folder / "note.txt").read_bytes() == b"written"


class TestHostileFolders:
    @pytest.mark.parametrize(
        "change",
        [
            {"depth": 10**12},
            {"depth": 4000},
            {"dim": 10**7},
            {"dim": 2**20},
            {"img_size": [10**12, 10**12]},
            {"img_size": [2**20, 2**20]},
            {"num_classes": 10**12},
            {"d_state": 2**20},
            {"mlp_ratio": 1e300},
            {"mlp_ratio": 1e12},
            {"levels": 10**6},
            {"in_chans": 2**20, "patch_size": 2**20, "img_size": [2**20, 2**20]},
            {"attention_every": 1, "attention_sharing": "independent", "depth": 4096},
        ],
    )
    @pytest.mark.parametrize("parts", [False, True])
    def test_sizes_beyond_the_weights(self, saved, change, parts):
        from wavemamba.models import make_block

        _, folder = saved
        record = json.loads((folder / "config.json").read_text())
        edit(folder, config={**record["config"], **change})
        with pytest.raises(CheckpointError):
            load_pretrained(folder, **({"make_block": make_block} if parts else {}))

    @pytest.mark.parametrize(
        "text",
        [
            "[" * 100_000,
            '{"a":' * 100_000,
            '{"family": "dimsum", "config": ' + "9" * 5000 + "}",
            "[]",
            '"x"',
            "\xff",
            '{"family": "dimsum"}',
            '{"family": ["dimsum"], "config": {}}',
            '{"family": "dimsum", "config": []}',
        ],
    )
    def test_configurations_that_are_none(self, saved, text):
        _, folder = saved
        (folder / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(CheckpointError, match="expected"):
            load_pretrained(folder)

    @pytest.mark.parametrize(
        "change", [{"objective": 3}, {"autoencoder": []}, {"class_names": [1]}, {"class_names": 3}, {"needs": []}]
    )
    def test_records_of_other_types(self, saved, change):
        _, folder = saved
        edit(folder, **change)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_pretrained(folder)

    def test_tensors_that_claim_more_than_the_file_holds(self, tmp_path):
        torch.save({"x_embedder.proj.weight": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match="bytes can hold"):
            read_weights(tmp_path / "model.pt")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("blocks.999999999.norm.weight", torch.zeros(1)),
            ("blocks.4000.norm.weight", torch.zeros(1)),
            (f"blocks.{'9' * 5000}.norm.weight", torch.zeros(1)),
            ("x_embedder.proj.weight", torch.zeros(1).expand(2**19, 4, 2, 2)),
            ("x_embedder.proj.weight", torch.zeros(32, 4, 0, 0)),
            ("y_embedder.embedding_table.weight", torch.zeros(1).expand(10**9, 32)),
        ],
    )
    def test_released_names_and_shapes_that_lie(self, name, value):
        _, state, _ = golden_model("dimsum")
        with pytest.raises(CheckpointError):
            from_released({**state, name: value})

    def test_no_state_at_all(self):
        with pytest.raises(CheckpointError, match="named tensors"):
            load_into(tiny(), {"pos_embed": 3})

    @pytest.mark.parametrize(
        "header",
        [
            {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
            {"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
            {"w": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}},
            {"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
            {"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
            {"w": {"dtype": "F32", "shape": [1]}},
            {"w": 3, "__metadata__": 3},
            {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"},
        ],
    )
    def test_headers_that_lie(self, tmp_path, header):
        text = json.dumps(header).encode()
        (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        with pytest.raises(CheckpointError, match="whole safetensors file"):
            read_weights(tmp_path / "model.safetensors")

    def test_bytes_behind_the_last_tensor(self, saved):
        _, folder = saved
        with (folder / "model.safetensors").open("ab") as file:
            file.write(b"more")
        with pytest.raises(CheckpointError, match="whole safetensors file"):
            load_pretrained(folder)

    @pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/x.safetensors", "a/../../x", "..\\x", "..", "", 3])
    def test_shards_outside_the_folder(self, tmp_path, shard):
        (tmp_path / "inside").mkdir()
        save_file({"w": torch.zeros(1)}, tmp_path / "x.safetensors")
        index = tmp_path / "inside" / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"w": shard}}))
        with pytest.raises(CheckpointError, match="lie beside it"):
            read_weights(index)

    def test_shards_beside_their_index(self, tmp_path):
        save_file({"a": torch.zeros(1)}, tmp_path / "1.safetensors")
        save_file({"b": torch.ones(1)}, tmp_path / "2.safetensors")
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
        assert read_weights(index) == {"a": torch.zeros(1), "b": torch.ones(1)}
