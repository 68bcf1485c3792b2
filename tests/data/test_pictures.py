"""Pictures of every mode, orientation, shape and kind of damage."""

import math
import struct

import numpy as np
import pytest
import torch
from PIL import Image, features

from wavemamba.data import PictureView
from wavemamba.errors import ConfigError, DataError
from wavemamba.seeds import generator_for

RAMP = np.linspace(0, 1, 16)[None].repeat(16, 0)  # black at the left, white at the right


def read(path, **options):
    return PictureView(**{"size": 16, **options}).read(path, str(path))


def ramp(dtype, top):
    return Image.fromarray((RAMP * top).round().astype(dtype) if dtype != np.float32 else RAMP.astype(dtype) * top)


def of_mode(mode):
    eight = ramp(np.uint8, 255)
    if mode == "LA":
        return Image.merge("LA", [eight, Image.new("L", eight.size, 255)])
    if mode == "CMYK":
        return eight.convert("RGB").convert("CMYK")
    return eight.convert(mode)


CASES = {
    "L png": ("png", of_mode("L")),
    "RGB png": ("png", of_mode("RGB")),
    "RGBA png": ("png", of_mode("RGBA")),
    "LA png": ("png", of_mode("LA")),
    "P png": ("png", of_mode("L").convert("P")),
    "16-bit png": ("png", ramp(np.uint16, 65535)),
    "16-bit tiff": ("tif", ramp(np.uint16, 65535)),
    "16-bit big-endian tiff": ("tif", ramp(np.dtype(">u2"), 65535)),
    "16-bit pgm": ("pgm", ramp(np.uint16, 65535)),
    "32-bit tiff of 8-bit numbers": ("tif", ramp(np.int32, 255)),
    "32-bit tiff of 16-bit numbers": ("tif", ramp(np.int32, 65535)),
    "32-bit tiff": ("tif", ramp(np.int32, 2**31 - 1)),
    "pfm": ("pfm", ramp(np.float32, 1)),
    "float tiff": ("tif", ramp(np.float32, 1)),
    "float tiff of 8-bit numbers": ("tif", ramp(np.float32, 255)),
    "float tiff of large numbers": ("tif", ramp(np.float32, 1e4)),
    "CMYK tiff": ("tif", of_mode("CMYK")),
    "CMYK jpeg": ("jpg", of_mode("CMYK")),
    "YCbCr tiff": ("tif", of_mode("YCbCr")),
    "gif": ("gif", of_mode("L")),
    "webp": ("webp", of_mode("RGB")),
    "bmp": ("bmp", of_mode("RGB")),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_every_mode_is_scaled_by_its_range(tmp_path, case, channels):
    suffix, image = CASES[case]
    path = tmp_path / f"a.{suffix}"
    image.save(path, **({"quality": 95} if suffix == "jpg" else {}))
    if suffix in ("jpg", "webp") and not features.check(suffix):
        pytest.skip(f"Pillow without {suffix}")
    pixels = read(path, channels=channels)
    expected = torch.from_numpy(RAMP * 2 - 1).float().expand(channels, 16, 16)
    loss = {"jpg": 0.06, "webp": 0.06, "gif": 0.03}.get(suffix, 0.01)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, expected, atol=loss, rtol=0)


def test_one_bit_pictures_are_black_and_white(tmp_path):
    Image.fromarray(RAMP > 0.5).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", channels=1).unique().tolist() == [-1, 1]


def test_unsigned_32_bit_numbers_are_not_read_as_signed(tmp_path):
    values = (RAMP * (2**32 - 1)).astype(np.uint32)
    image = Image.fromarray(values.view(np.int32))
    path = tmp_path / "a.tif"
    image.save(path)
    signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, kind, 0) for kind in (2, 1))  # the tag SampleFormat
    assert signed in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(signed, unsigned))
    assert read(tmp_path / "a.tif", channels=1)[0, 0].diff().min() > 0.1


def test_a_range_given_by_the_caller_is_used(tmp_path):
    ramp(np.float32, 0.5).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif", value_range=(0.0, 0.5)).max() == 1
    assert read(tmp_path / "a.tif", value_range=(0.0, 1.0)).max() == 0
    ramp(np.uint16, 4095).save(tmp_path / "a.png")  # 12 bits in a file of 16
    assert read(tmp_path / "a.png", value_range=(0.0, 4095.0)).max() == 1


@pytest.mark.parametrize(("background", "expected"), [("white", 1.0), ("black", -1.0), ("#ff0000", None)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB with a transparent colour", "L with a transparent colour"])
def test_what_is_transparent_shows_the_ground(tmp_path, mode, background, expected):
    path, options = tmp_path / "a.png", {}
    if mode == "RGBA":
        image = Image.new("RGBA", (16, 16), (0, 200, 0, 0))
    elif mode == "LA":
        image = Image.new("LA", (16, 16), (77, 0))
    elif mode == "P":
        image = Image.new("P", (16, 16), 5)
        image.putpalette([9] * 768)
        options = {"transparency": 5}
    else:
        image = Image.new(mode.split()[0], (16, 16), 77 if mode[0] == "L" else (7, 7, 7))
        options = {"transparency": 77 if mode[0] == "L" else (7, 7, 7)}
    image.save(path, **options)
    pixels = read(path, background=background)
    ground = torch.tensor([1.0, -1, -1] if expected is None else [expected] * 3)
    assert torch.equal(pixels, ground[:, None, None].expand(3, 16, 16))


def exif(orientation, more=b"", entries=1):
    """An EXIF block with an orientation, and behind it whatever bytes."""
    head = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", entries)
    return head + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + more + b"\0" * 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [16, 4])
def test_every_orientation_is_turned_upright(tmp_path, orientation, side):
    from PIL import ImageOps

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png", exif=exif(orientation)[6:])
    with Image.open(tmp_path / "a.png") as opened:
        ImageOps.exif_transpose(opened).save(tmp_path / "upright.png", exif=b"")
    turned = read(tmp_path / "a.png", size=side, reduce=math.inf)
    torch.testing.assert_close(turned, read(tmp_path / "upright.png", size=side, reduce=math.inf), atol=0.02, rtol=0)


def test_a_broken_exif_block_leaves_the_picture(tmp_path):
    image = Image.fromarray(np.arange(24 * 16 * 3, dtype=np.uint8).reshape(16, 24, 3))
    text_for_a_number = struct.pack("<HHI4s", 0x011A, 2, 4, b"72\0\0")  # XResolution as text
    image.save(tmp_path / "a.jpg", exif=exif(6, text_for_a_number, entries=2))
    image.save(tmp_path / "b.jpg", exif=b"Exif\0\0garbage" * 3)
    image.save(tmp_path / "c.jpg")
    image.save(tmp_path / "d.jpg", xmp=b"<x:xmpmeta \xa8\xff not UTF-8")
    plain = read(tmp_path / "c.jpg", size=8)
    assert torch.equal(read(tmp_path / "b.jpg", size=8), plain)
    assert torch.equal(read(tmp_path / "d.jpg", size=8), plain)
    torch.testing.assert_close(read(tmp_path / "a.jpg", size=8), plain.rot90(-1, (1, 2)), atol=0.1, rtol=0)


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1), (1, 60000), (2, 50001), (3, 2)])
def test_extreme_shapes_cost_little_memory(tmp_path, size):
    import tracemalloc

    Image.new("RGB", size, (255, 255, 255)).save(tmp_path / "a.png")
    tracemalloc.start()
    pixels = read(tmp_path / "a.png", size=256)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20  # numpy's part; Pillow's is the picture and its crop
    tracemalloc.stop()
    assert torch.equal(pixels, torch.ones(3, 256, 256))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "F", "1"])
def test_what_is_cropped_away_changes_nothing(tmp_path, mode):
    rng = np.random.default_rng(1)
    values = rng.integers(0, 255, (32, 400), dtype=np.uint8)
    if mode in ("I;16", "F"):
        image = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.float32))
    else:
        image = Image.fromarray(values).convert(mode)
    image.save(tmp_path / "long.tif")
    image.crop((150, 0, 250, 32)).save(tmp_path / "short.tif")
    assert torch.equal(read(tmp_path / "long.tif"), read(tmp_path / "short.tif"))


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (33, 50), (16, 16), (7, 9)])
def test_the_crop_is_that_of_scaling_all_of_it(tmp_path, size):
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    scale = 16 / min(size)
    whole = image.resize(tuple(max(16, round(side * scale)) for side in size), Image.Resampling.BICUBIC)
    left, top = (whole.width - 16) // 2, (whole.height - 16) // 2
    expected = np.asarray(whole.crop((left, top, left + 16, top + 16)), dtype=np.float32) / 127.5 - 1
    got = read(tmp_path / "a.png", reduce=math.inf).permute(1, 2, 0).numpy()
    assert np.abs(got - expected).max() <= 1.01 / 127.5


def psnr(a, b):
    return float(-10 * torch.log10(((a - b) / 2).square().mean()))


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize(("size", "scale"), [(64, 1), (100, 1), (128, 1), (256, 2)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_reduced_photographs_are_within_40_db_of_the_bicubic(tmp_path, name, size, scale, suffix):
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image(name))
    path = tmp_path / f"a.{suffix}"
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    image.save(path, **({"quality": 92} if suffix == "jpg" else {"compress_level": 0}))
    assert psnr(read(path, size=size), read(path, size=size, reduce=math.inf)) >= 40


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"no picture",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-60] + b"\0" * 60,
        lambda data: data[:40] + bytes(60) + data[100:],
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "gif", "bmp", "webp", "ppm"])
def test_damaged_files_are_read_or_named(tmp_path, suffix, damage):
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    path.write_bytes(damage(path.read_bytes()))
    try:
        assert read(path).isfinite().all()
    except DataError as error:
        assert f"a.{suffix}" in str(error) and "expected a readable image" in str(error)  # noqa: PT017, PT018


def test_numbers_that_are_not_finite_are_named(tmp_path):
    values = RAMP.astype(np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif.*NaN"):
        read(tmp_path / "a.tif")


def test_mirroring_is_a_draw_from_the_examples_generator(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    plain = read(tmp_path / "a.png")
    view = PictureView(size=16, mirror=True)
    seen = [view.read(tmp_path / "a.png", "a", generator_for(k)) for k in range(40)]
    flipped = [not torch.equal(image, plain) for image in seen]
    assert 8 < sum(flipped) < 32
    assert all(torch.equal(image, plain.flip(-1)) for image, flip in zip(seen, flipped, strict=True) if flip)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "channels: expected 1"),
        ({"size": 0}, "size: expected"),
        ({"size": (8, 8, 8)}, "size: expected"),
        ({"size": 2.5}, "size: expected"),
        ({"background": "whiet"}, "background: expected"),
        ({"value_range": (1.0, 0.0)}, "value_range: expected"),
        ({"reduce": 0.5}, "reduce: expected"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        PictureView(**options)
