"""Sizes, resizing, ranges and reading of pictures: cases worked by hand, and rules that hold for all."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tolerances import rounding
from unigrpo.models.bagel.transforms import (
    VAE_LIMITS,
    VIT_LIMITS,
    Limits,
    resize,
    target_size,
    to_signed,
)
from unigrpo.pictures import read_picture

sides = st.integers(1, 5000)
either = st.sampled_from([VAE_LIMITS, VIT_LIMITS])


def noise(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def picture(height=5, width=7, seed=0, mode="RGB"):
    return Image.fromarray(noise(height, width, seed).permute(1, 2, 0).numpy()).convert(mode)


def stored(tmp_path, image, name="picture.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_the_limits_are_those_of_the_original():
    assert Limits(1024, 512, 16, 1806336) == VAE_LIMITS
    assert Limits(980, 224, 14, 1806336) == VIT_LIMITS


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 1024), (1024, 1024)),
        ((512, 512), (512, 512)),
        ((4000, 3000), (1024, 768)),  # long 4000: x 0.256
        ((100, 100), (512, 512)),  # short 100: x 5.12
        ((640, 480), (688, 512)),  # x 512/480: 683 x 512; 683/16 = 42.7 -> 43
        ((480, 640), (512, 688)),
        ((2000, 1000), (1024, 512)),
        ((3000, 1000), (1024, 336)),  # min side wins: 1536 x 512; then x 2/3: 341/16 = 21.3 -> 21
        ((2037, 50), (1024, 16)),  # 20864 x 512; x 1806336/10682368: 3520 x 80; x 1024/3520: 1024 x 23 -> 16
        ((2259, 262), (1024, 128)),  # 4416 x 512; x 0.799: 3520 x 416; x 0.2909: 121/16 = 7.6 -> 8 (else 112)
        ((552, 568), (544, 576)),  # ties go to even: 34.5 -> 34, 35.5 -> 36
    ],
)
def test_sizes_for_the_autoencoder(size, expected):
    assert target_size(*size, VAE_LIMITS) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 1024), (980, 980)),
        ((1024, 576), (980, 546)),  # x 0.957: 551/14 = 39.4 -> 39
        ((512, 512), (518, 518)),  # no scaling: 512/14 = 36.6 -> 37
        ((688, 512), (686, 518)),
        ((100, 50), (448, 224)),
        ((231, 245), (224, 252)),  # ties go to even: 16.5 -> 16, 17.5 -> 18
        ((1, 1000), (14, 980)),  # 224 x 224000; x 0.036: 14 x 8064; x 0.1215: 2 -> 0 -> one stride
    ],
)
def test_sizes_for_the_vision_tower(size, expected):
    assert target_size(*size, VIT_LIMITS) == expected


def test_the_area_scales_the_sides_by_its_ratio_and_not_by_the_root():
    assert target_size(200, 100, Limits(1000, 10, 10, max_pixels=10_000)) == (100, 50)  # the root: 140 x 70


def test_sides_are_rounded_to_pixels_before_strides():
    # x 0.16: 11.52 -> 12 pixels -> 1.5 strides -> 2; without the first rounding 1.44 strides -> 1
    assert target_size(100, 72, Limits(16, 1, 8)) == (16, 16)


@given(width=sides, height=sides, limits=either)
@settings(deadline=None)
def test_sides_are_strides_and_never_too_long(width, height, limits):
    size = target_size(width, height, limits)
    assert all(side % limits.stride == 0 and limits.stride <= side <= limits.max_side for side in size)
    assert size[0] * size[1] <= limits.max_pixels
    assert target_size(height, width, limits) == size[::-1]


@given(width=sides, height=sides, limits=either)
@settings(deadline=None)
def test_a_size_that_fits_stays(width, height, limits):
    size = target_size(width, height, limits)
    if min(size) >= limits.min_side:
        assert target_size(*size, limits) == size


@given(width=sides, height=sides, limits=either)
@settings(deadline=None)
def test_shapes_are_kept_where_both_limits_can_be(width, height, limits):
    if max(width, height) * limits.min_side <= min(width, height) * limits.max_side:
        size = target_size(width, height, limits)
        assert min(size) >= limits.min_side
        scale = max(min(limits.max_side / max(width, height), 1), limits.min_side / min(width, height))
        for side, old in zip(size, (width, height), strict=True):
            assert abs(side - old * scale) <= limits.stride / 2 + 0.5


@given(
    width=sides,
    height=sides,
    stride=st.integers(1, 32),
    most=st.integers(1, 64),
    least=st.floats(0, 1),
    room=st.integers(1, 4096),
)
@settings(deadline=None)
def test_other_limits_keep_the_long_side_too(width, height, stride, most, least, room):
    limits = Limits(most * stride, max(1, int(least * most * stride)), stride, room * stride**2)
    size = target_size(width, height, limits)
    assert all(side % stride == 0 and stride <= side <= limits.max_side for side in size)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((1000, 512, 16), "max_side 1000 must be a multiple of stride 16"),
        ((16, 16, 0), "stride 0"),
        ((64, 80, 16), "min_side 80 must lie between 1 and max_side 64"),
        ((64, 0, 16), "min_side 0"),
        ((64, 16, 16, 255), "max_pixels 255"),
    ],
)
def test_limits_that_cannot_hold_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Limits(*values)
    with pytest.raises(ValueError, match="0 x 5 pixels has no area"):
        target_size(0, 5, VAE_LIMITS)


def bicubic(source, target):
    """Weights [target, source] of a bicubic filter (a = -1/2) that is stretched when it shrinks (antialias)."""

    def kernel(x):
        x = abs(x)
        near = 1.5 * x**3 - 2.5 * x**2 + 1
        far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        return near if x < 1 else far if x < 2 else 0.0

    step = source / target
    stretch = max(step, 1.0)
    rows = [[kernel((j + 0.5 - (i + 0.5) * step) / stretch) for j in range(source)] for i in range(target)]
    weights = torch.tensor(rows, dtype=torch.float64)
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("size", [(40, 60), (9, 7), (16, 32), (23, 64)])
def test_resizing_is_bicubic_with_antialias(size):
    limits = Limits(32, 16, 8)
    image = noise(*size)
    out = resize(image, limits)
    width, height = target_size(size[1], size[0], limits)
    assert out.dtype == torch.uint8 and out.shape == (3, height, width) and out.is_contiguous()
    wide = image.double() @ bicubic(size[1], width).T
    expected = torch.einsum("th,chw->ctw", bicubic(size[0], height), wide.round().clamp(0, 255))
    assert (out.double() - expected.clamp(0, 255)).abs().max() <= 1.0


def test_a_picture_of_the_right_size_is_left_alone():
    image = noise(16, 32)
    assert torch.equal(resize(image, Limits(32, 16, 8)), image)


@pytest.mark.parametrize("wrong", [torch.zeros(3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)])
def test_only_uint8_pictures_are_taken(wrong):
    for use in (to_signed, lambda image: resize(image, VAE_LIMITS)):
        with pytest.raises(ValueError, match=r"uint8 \[3, H, W\], not"):
            use(wrong)


def test_ranges():
    levels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    signed = to_signed(levels)
    assert signed.dtype == torch.float32
    assert signed[0, 0, [0, 51, 255]].tolist() == pytest.approx([-1.0, -0.6, 1.0], abs=rounding(1.0, terms=3))
    x = levels.numpy().astype(np.float32) / np.float32(255)
    assert torch.equal(signed, torch.from_numpy((x - np.float32(0.5)) / np.float32(0.5)))


def test_a_plain_picture_is_read_as_it_is(tmp_path):
    image = picture()
    assert torch.equal(read_picture(stored(tmp_path, image)), torch.from_numpy(np.array(image)).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("L", "a.png"),
        ("1", "a.png"),
        ("P", "a.gif"),
        ("CMYK", "a.jpg"),
        ("RGB", "a.webp"),
        ("RGB", "a.bmp"),
        ("L", "a.tif"),
    ],
)
def test_all_common_kinds_become_rgb(tmp_path, mode, name):
    path = stored(tmp_path, picture(mode=mode), name)
    with Image.open(path) as again:
        expected = torch.from_numpy(np.array(again.convert("RGB"))).permute(2, 0, 1)
    assert expected.shape == (3, 5, 7) and torch.equal(read_picture(path), expected)


def test_transparency_is_laid_onto_white(tmp_path):
    image = Image.new("RGBA", (3, 1))
    image.putdata([(10, 20, 30, 0), (10, 20, 30, 255), (100, 0, 200, 51)])
    columns = read_picture(stored(tmp_path, image))[:, 0].T.tolist()
    assert columns == [[255, 255, 255], [10, 20, 30], [224, 204, 244]]  # 255 + (c - 255) * 51/255


@pytest.mark.parametrize("mode", ["LA", "P", "L", "RGB"])
def test_every_kind_of_transparency_counts(tmp_path, mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255)).convert("P" if mode == "P" else mode)
    options = {}
    if mode == "LA":
        image.putpixel((0, 0), (0, 0))
    elif mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
        image.putdata([1, 0])
        options = {"transparency": 1}
    else:
        image.putpixel((0, 0), 5 if mode == "L" else (5, 5, 5))
        options = {"transparency": 5 if mode == "L" else (5, 5, 5)}
    assert read_picture(stored(tmp_path, image, **options))[:, 0].T.tolist() == [[255, 255, 255], [0, 0, 0]]


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [(1, None), (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270), (8, Image.Transpose.ROTATE_90)],
)
def test_pictures_stand_upright(tmp_path, orientation, undo):
    image = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = image if undo is None else image.transpose(undo)
    read = read_picture(stored(tmp_path, image, exif=exif))
    assert torch.equal(read, torch.from_numpy(np.array(expected)).permute(2, 0, 1))


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_an_animation_is_refused_and_a_single_frame_is_not(tmp_path, name):
    frames = [picture(seed=i) for i in range(3)]
    path = stored(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="holds several pictures") as caught:
        read_picture(path)
    assert str(path) in str(caught.value)
    assert read_picture(stored(tmp_path, frames[0], f"one-{name}")).shape == (3, 5, 7)


def test_a_phones_photo_with_a_second_picture_behind_it_is_read(tmp_path):
    first, second = picture(16, 16), picture(16, 16, seed=1)
    path = stored(tmp_path, first, "photo.jpg", format="MPO", save_all=True, append_images=[second], quality=95)
    with Image.open(path) as again:
        assert again.format == "MPO" and again.n_frames == 2
        expected = torch.from_numpy(np.array(again.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(read_picture(path), expected)


def test_deep_grey_is_refused_rather_than_clipped(tmp_path):
    path = stored(tmp_path, Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)))
    with pytest.raises(ValueError, match="more than 8 bits of grey"):
        read_picture(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "No such file"),
        ("empty.png", b"", "it is damaged, or none of JPEG, PNG"),
        ("text.png", b"not a picture", "it is damaged, or none of JPEG, PNG"),
        ("figure.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is damaged, or none of JPEG, PNG"),
    ],
)
def test_what_is_not_a_picture_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_picture(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_named(tmp_path):
    with pytest.raises(ValueError) as caught:
        read_picture(tmp_path)
    assert str(caught.value) == f"{tmp_path} cannot be read as a picture: Is a directory"


def encoded(kind):
    file = io.BytesIO()
    picture(24, 24).save(file, kind)
    return file.getvalue()


FILES = {kind: encoded(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")}


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(kind=st.sampled_from(sorted(FILES)), data=st.data())
@settings(deadline=None, max_examples=150)
def test_a_damaged_file_is_a_picture_or_one_sentence(tmp_path_factory, kind, data):
    content = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        image = read_picture(path)
    except ValueError as error:
        assert str(error).startswith(f"{path} cannot be read as a picture: ") and not str(error).endswith(": ")
    else:
        assert image.dtype == torch.uint8 and image.shape[0] == 3
