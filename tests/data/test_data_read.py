"""Every kind of image file becomes RGB by the one rule of read.py; what is no picture says so in one line."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from real_data import real

from patchloom.data.read import UnreadableImage, read_image

WHITE = (255, 255, 255)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(mode="RGB"):
    return Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3).convert(mode)


def test_rgb_is_unchanged(tmp_path):
    gradient().save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(gradient()))


def test_grey_is_repeated():
    pixels = np.asarray(read_image(saved(gradient("L"), "PNG")))
    assert np.array_equal(pixels, np.asarray(gradient("L"))[..., None].repeat(3, 2))


def test_one_bit():
    assert np.asarray(read_image(saved(gradient("1"), "PNG"))).max() == 255


def test_alpha_lies_over_white():
    image = Image.new("RGBA", (3, 1), (200, 0, 100, 255))
    image.putpixel((1, 0), (200, 0, 100, 0))
    image.putpixel((2, 0), (200, 0, 100, 128))
    a, b, c = np.asarray(read_image(saved(image, "PNG")))[0].tolist()
    assert tuple(a) == (200, 0, 100)
    assert tuple(b) == WHITE
    assert np.allclose(c, np.array([200, 0, 100]) * 128 / 255 + 255 * 127 / 255, atol=1)


def test_grey_with_alpha_lies_over_white():
    image = Image.merge("LA", (Image.new("L", (2, 2), 10), Image.new("L", (2, 2), 0)))
    assert (np.asarray(read_image(saved(image, "PNG"))) == 255).all()


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert np.asarray(read_image(saved(image, "PNG"))).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert np.asarray(read_image(saved(image, "PNG", transparency=0))).tolist() == [[[255, 255, 255], [0, 0, 255]]]
    partly = read_image(saved(image, "PNG", transparency=b"\x80\xff"))
    assert np.allclose(np.asarray(partly)[0, 0], [255, 127, 127], atol=1)


def test_a_transparent_colour_of_an_rgb_file():
    image = Image.new("RGB", (2, 1), (0, 200, 0))
    image.putpixel((1, 0), (9, 9, 9))
    pixels = np.asarray(read_image(saved(image, "PNG", transparency=(0, 200, 0))))
    assert pixels.tolist() == [[[255, 255, 255], [9, 9, 9]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_black_and_white(kind):
    values = np.array([[0, 128, 257, 32896, 65535]], np.uint16)
    pixels = np.asarray(read_image(saved(Image.fromarray(values), kind)))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert (pixels == pixels[..., :1]).all()


def test_cmyk_jpeg():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixel = np.asarray(read_image(saved(red, "JPEG", quality=95)))[4, 4]
    assert pixel[0] > 240
    assert pixel[1:].max() < 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """A picture stored turned or mirrored, with the tag that says so, reads like the upright one."""
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :8] = (250, 10, 10)  # red in the upper left corner
    stored_as = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # EXIF tag: the transposition that a camera left undone
    image = Image.fromarray(upright)
    stored = image if orientation == 1 else image.transpose(Image.Transpose(stored_as[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = np.asarray(read_image(saved(stored, "PNG", exif=exif.tobytes())))
    assert np.array_equal(got, upright)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), c) for c in ((255, 0, 0), (0, 255, 0))]
    pixels = np.asarray(read_image(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert pixels[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["BMP", "WEBP", "TIFF", "PPM", "TGA"])
def test_other_kinds(kind):
    assert read_image(saved(gradient(), kind)).size == (6, 4)


def bomb():
    """A PNG header that announces 60000 x 60000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


BAD = {
    "empty.jpg": (b"", "the file is empty"),
    "program.png": (b"MZ\x90\0" + b"\0" * 200, "not an image that Pillow knows"),
    "text.jpg": (b"hello, this is no picture", "not an image that Pillow knows"),
    "bomb.png": (bomb(), "too large"),
}


@pytest.mark.parametrize("name", BAD)
def test_unreadable(tmp_path, name):
    data, reason = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnreadableImage, match=reason) as error:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_truncated(kind):
    whole = saved(Image.effect_noise((64, 64), 90).convert("RGB"), kind)
    with pytest.raises(UnreadableImage, match=r"cut\.x: .*(damaged|not an image)"):
        read_image(whole[: len(whole) * 6 // 10], name="cut.x")


@pytest.mark.filterwarnings("ignore:.*tag:UserWarning")
def test_flipped_bytes_never_raise_anything_else():
    """Whatever a damaged file does to Pillow, it is a picture or UnreadableImage."""
    r = np.random.default_rng(0)
    refused = 0
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        whole = np.frombuffer(saved(gradient().resize((40, 30)), kind), np.uint8)
        for _ in range(60):
            data = whole.copy()
            data[r.integers(len(data), size=4)] = r.integers(256, size=4)
            try:
                assert read_image(data.tobytes()).mode == "RGB"
            except UnreadableImage:
                refused += 1
    assert refused > 50


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_large_pictures_up_to_pillows_own_limit(monkeypatch):
    data = saved(gradient(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 23)
    with pytest.raises(UnreadableImage, match="6 x 4 pixels"):
        read_image(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24)
    assert read_image(data).size == (6, 4)


def test_float_pixels_are_refused():
    with pytest.raises(UnreadableImage, match="no stated range"):
        read_image(saved(Image.new("F", (4, 4), 0.5), "TIFF"))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UnreadableImage, match="no such file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(UnreadableImage, match="is a directory"):
        read_image(tmp_path)


def test_the_error_crosses_processes():
    again = pickle.loads(pickle.dumps(UnreadableImage("a.png", "bad")))
    assert (again.file, again.reason, str(again)) == ("a.png", "bad", "unreadable image a.png: bad")


def test_real_photographs():
    for file in sorted((real("imagenet_1k_mini") / "val").rglob("*.JPEG"))[:40]:
        assert read_image(file).mode == "RGB"
