"""Pictures come out as open_clip would bring them to size, whatever form they come in."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from skimage import data

from everlens.errors import ImageError
from everlens.model.runtime import import_torchvision
from everlens.pixels import PixelSpec
from service.decoder.protocol import PictureLimits
from service.images import Picture
from tests.unit.service import bombs
from tests.unit.service.api import LIMITS, read_picture

SPEC = PixelSpec(size=64)


def encoded(picture: Image.Image | np.ndarray, form: str = "PNG", **options) -> bytes:
    whole = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    whole.save(buffer, form, **options)
    return buffer.getvalue()


def read(content: bytes, spec: PixelSpec = SPEC, limits: PictureLimits = LIMITS) -> np.ndarray:
    return read_picture(content, spec, limits).astype(int)


def as_open_clip(picture: Image.Image, spec: PixelSpec) -> np.ndarray:
    """The transforms of open_clip, on Pillow pictures."""
    import_torchvision()
    from open_clip.transform import CenterCropOrPad, ResizeKeepRatio
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    mode = InterpolationMode(spec.interpolation)
    steps = {
        "shortest": [Resize(spec.size, mode), CenterCrop(spec.size)],
        "squash": [Resize((spec.size, spec.size), mode)],
        "longest": [
            ResizeKeepRatio(spec.size, interpolation=mode, longest=1),
            CenterCropOrPad(spec.size, fill=0),
        ],
    }[spec.resize]
    for step in steps:
        picture = step(picture)
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [64, 224, 225])
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_photograph_is_within_one_level_of_open_clip(name, size, resize, interpolation):
    """Each way to bring a photograph to size stays within one level of open_clip's transforms."""
    picture = Image.fromarray(getattr(data, name)())
    spec = PixelSpec(size=size, resize=resize, interpolation=interpolation)
    found, expected = read(encoded(picture), spec), as_open_clip(picture, spec)
    assert found.shape == (size, size, 3)
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("shape", [(65, 97), (97, 65), (64, 127), (63, 64), (30, 41), (1, 1)])
def test_odd_shapes_are_cropped_as_torchvision_crops_them(shape):
    """The crop's rounding is torchvision's for odd and even borders, and for small pictures."""
    picture = Image.fromarray(data.coffee()).crop((100, 100, 100 + shape[1], 100 + shape[0]))
    assert np.abs(read(encoded(picture)) - as_open_clip(picture, SPEC)).max() <= 1


@pytest.mark.parametrize("quality", [75, 95])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_decoded_as_pillow_decodes_it(quality, subsampling, progressive):
    """A JPEG of any kind stays within one level of Pillow's decoder and open_clip's resize."""
    content = encoded(
        data.chelsea(), "JPEG", quality=quality, subsampling=subsampling, progressive=progressive
    )
    expected = as_open_clip(Image.open(io.BytesIO(content)).convert("RGB"), SPEC)
    spec = PixelSpec(size=224)
    assert np.abs(read(content) - expected).max() <= 1
    whole = as_open_clip(Image.open(io.BytesIO(content)).convert("RGB"), spec)
    assert np.abs(read(content, spec) - whole).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_jpeg_is_read_without_pillow(mode, monkeypatch):
    """A photograph with nothing to be told about it is decoded at once, to the same pixels."""
    photo = Image.fromarray(data.coffee()).convert(mode)
    plain = encoded(photo, "JPEG", quality=90)
    noted = plain[:2] + b"\xff\xe1\x00\x08Exif\0\0" + plain[2:]
    expected = read(noted)
    monkeypatch.setattr(Image, "open", None)
    assert np.array_equal(read(plain), expected)
    with pytest.raises(ImageError):
        read(noted)


@pytest.mark.parametrize("options", [{"progressive": True}, {"exif": b"Exif\0\0MM\0*"}, {}])
def test_other_jpeg_is_read_with_pillow(options, monkeypatch):
    """What has many scans, a camera's notes or four colours is opened by Pillow."""
    photo = Image.fromarray(data.coffee()).convert("RGB" if options else "CMYK")
    content = encoded(photo, "JPEG", quality=90, **options)
    monkeypatch.setattr(Image, "open", None)
    assert "damaged" in str(refusal(content))


def test_large_jpeg_is_close_to_its_full_decode():
    """A JPEG of many times the model's size, decoded at a fraction, shows the same picture."""
    large = Image.fromarray(data.astronaut()).resize((2048, 2048), Image.Resampling.BICUBIC)
    content = encoded(large, "JPEG", quality=90)
    difference = np.abs(read(content) - as_open_clip(large, SPEC))
    assert difference.mean() < 1
    assert difference.max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_orientation_of_the_camera_is_applied(orientation, form):
    """A picture is seen upright, whichever way the camera was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = Image.fromarray(data.coffee())
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "JPEG" else {}
    content = encoded(lying, form, exif=exif, **options)
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert np.abs(read(content) - as_open_clip(upright, SPEC)).max() <= 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_camera_notes_do_not_refuse_a_picture():
    """A JPEG whose EXIF block is garbage is read as if it had none."""
    plain = encoded(data.coffee(), "JPEG", quality=95)
    broken = encoded(data.coffee(), "JPEG", quality=95, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert np.array_equal(read(broken), read(plain))


def test_grey_pictures_have_three_equal_channels():
    """An 8-bit grey JPEG and PNG become RGB."""
    for form in ("JPEG", "PNG"):
        found = read(encoded(data.camera(), form))
        assert np.array_equal(found[..., 0], found[..., 1])
        assert np.array_equal(found[..., 0], found[..., 2])
        assert np.abs(found[..., 0] - as_open_clip(Image.fromarray(data.camera()), SPEC)).max() <= 3


def test_sixteen_bit_grey_keeps_its_contrast():
    """A 16-bit PNG is brought to 8 bits by its high byte, not cut off at 255."""
    grey = data.camera()
    found = read(encoded(grey.astype(np.uint16) * 257))
    assert np.array_equal(found, read(encoded(grey)))


def test_sixteen_bit_colour_is_read():
    """A 16-bit RGB PNG is the same picture as its 8-bit twin."""
    pixels = data.coffee()[:64, :64]
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in pixels)

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(read(b"\x89PNG\r\n\x1a\n" + chunks) - pixels.astype(int)).max() <= 1


def test_cmyk_is_converted():
    """A CMYK JPEG shows the picture's colours, as Pillow converts them."""
    content = encoded(Image.fromarray(data.coffee()).convert("CMYK"), "JPEG", quality=95)
    expected = as_open_clip(Image.open(io.BytesIO(content)).convert("RGB"), SPEC)
    assert np.abs(read(content) - expected).max() <= 1


def test_palette_and_bilevel_are_converted():
    """Palette and black-and-white PNGs become RGB."""
    for mode in ("P", "1"):
        small = Image.fromarray(data.coffee()).convert(mode)
        assert np.abs(read(encoded(small)) - as_open_clip(small.convert("RGB"), SPEC)).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparency_is_laid_on_white(form):
    """What is transparent is white, whatever colour hides under it."""
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    clear = Image.new("RGBA", (80, 80), (255, 0, 0, 0))
    assert read(encoded(clear, form, **options)).min() == 255
    half = Image.new("RGBA", (80, 80), (0, 0, 0, 128))
    assert np.abs(read(encoded(half, form, **options)) - 127).max() <= 1


def test_other_transparencies_are_laid_on_white():
    """Grey with alpha, and a palette's or a colour's transparent entry, are white where clear."""
    assert read(encoded(Image.new("LA", (80, 80), (0, 0)))).min() == 255
    palette = Image.new("P", (80, 80), 3)
    palette.putpalette([0] * 768)
    assert read(encoded(palette, transparency=3)).min() == 255
    assert read(encoded(Image.new("RGB", (80, 80), (1, 2, 3)), transparency=(1, 2, 3))).min() == 255


def test_webp_is_read():
    """A lossless WebP is the very picture."""
    picture = Image.fromarray(data.chelsea())
    found = read(encoded(picture, "WEBP", lossless=True))
    assert np.abs(found - as_open_clip(picture, SPEC)).max() <= 1


def test_longest_leaves_black_bars():
    """A wide picture keeps its whole width, with black above and below."""
    white = Image.new("RGB", (200, 100), (255, 255, 255))
    found = read(encoded(white), PixelSpec(size=64, resize="longest"))
    assert found[:16].max() == 0
    assert found[16:48].min() == 255
    assert found[48:].max() == 0


def refusal(content: bytes, limits: PictureLimits = LIMITS) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_picture(content, SPEC, limits)
    return caught.value


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"GIF89a" + bytes(100),
        b"II*\0" + bytes(100),
        b"BM" + bytes(100),
        b"RIFF\0\0\0\0WAVE" + bytes(100),
        b"%PDF-1.7",
    ],
)
def test_other_formats_are_not_taken(content):
    """What is not JPEG, PNG or WebP by its first bytes is a 415."""
    assert refusal(content).status == 415


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_cut_off_pictures_are_refused(form, share):
    """A file that ends early is a 422, wherever it was cut."""
    content = encoded(data.coffee(), form)
    assert refusal(content[: int(share * len(content))]).status == 422


@pytest.mark.parametrize("magic", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"])
def test_garbage_behind_a_good_start_is_refused(magic):
    """Random bytes behind the first bytes of a picture are a 422."""
    rng = np.random.default_rng(0)
    for length in (0, 10, 1000, 100_000):
        assert refusal(magic + rng.bytes(length)).status == 422


def test_bits_that_rot_never_raise_anything_else():
    """However a file is damaged, it is read or refused, and nothing else happens."""
    rng = np.random.default_rng(1)
    for form in ("JPEG", "PNG", "WEBP"):
        whole = np.frombuffer(encoded(data.coffee()[:200, :200], form), np.uint8)
        for _ in range(60):
            rotten = whole.copy()
            places = rng.integers(0, len(rotten), 5)
            rotten[places] = rng.integers(0, 256, 5)
            try:
                assert read_picture(rotten.tobytes(), SPEC, LIMITS).shape == (64, 64, 3)
            except ImageError as error:
                assert error.status in {415, 422}


def test_many_pixels_are_refused_by_the_header():
    """A small file that announces a huge picture is refused before it is decoded."""
    bomb = encoded(Image.new("1", (12_000, 12_000)))
    assert len(bomb) < 100_000
    assert refusal(bomb).status == 422
    larger = encoded(Image.new("1", (15_000, 15_000)))
    assert refusal(larger).status == 422
    ordinary = encoded(Image.new("RGB", (100, 100)))
    assert "9999 pixels" in str(refusal(ordinary, replace(LIMITS, pixels_max=9_999)))


def test_nothing_is_decoded_before_the_header_is_judged():
    """A header is judged alone, also where Pillow would look behind the pixels for the camera."""
    cut = encoded(data.coffee())[:5000]
    picture = Picture(cut, 256, LIMITS)
    assert picture.pixels == 600 * 400
    with pytest.raises(ImageError, match="damaged"):
        picture.decode(memoryview(bytearray(3 * picture.pixels)))


def test_photograph_of_fifty_megapixels_is_read():
    """What the best phones take comes down while it is decoded; as PNG it is too much."""
    content = bombs.flat_jpeg(8160, 6144)
    picture = Picture(content, 896, LIMITS)
    assert picture.pixels < 4_000_000
    assert not picture.large
    assert np.abs(read(content, PixelSpec(size=224)) - 128).max() <= 1
    assert "or a JPEG" in str(refusal(bombs.flat_png(8160, 6144)))


def test_a_stripe_that_cannot_come_down_is_refused():
    """A JPEG whose short side leaves no fraction is held to the limit of what is decoded."""
    with pytest.raises(ImageError, match="to decode"):
        Picture(bombs.flat_jpeg(20_000, 900), 896, LIMITS)


def test_scans_without_end_are_refused():
    """A progressive picture of a few scans is read, some more make it large, hundreds too much."""
    few, some, hundreds = (bombs.many_scans(1000, count) for count in (0, 60, 200))
    assert not Picture(few, 256, LIMITS).large
    assert Picture(some, 256, LIMITS).large
    assert np.array_equal(read(few), read(some))
    assert "scans" in str(refusal(hundreds))


def test_announced_webp_is_refused_by_the_header():
    """A WebP of a few bytes that announces the format's largest picture is not decoded."""
    assert "64000000 pixels" in str(refusal(bombs.lying_webp()))


def test_long_sides_and_stripes_are_refused():
    """A side beyond the limit, or a stripe that would be huge at the model's size, is a 422."""
    assert refusal(encoded(Image.new("L", (20_001, 300)))).status == 422
    assert refusal(encoded(Image.new("L", (10, 1_001)))).status == 422


def test_large_files_are_refused():
    """A file over the limit of bytes is a 422 that names the limit."""
    assert "at most 1000" in str(
        refusal(encoded(data.coffee(), "JPEG"), replace(LIMITS, bytes_max=1000))
    )


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_moving_pictures_are_refused(form):
    """An animation is a 422: which frame was labelled would be a guess."""
    frames = [Image.new("RGB", (80, 80), (shade, 0, 0)) for shade in (0, 100, 200)]
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    assert "moves" in str(refusal(content))


def test_text_bomb_in_a_png_is_refused():
    """Compressed comments that unfold to megabytes are refused, not unfolded."""
    from PIL.PngImagePlugin import PngInfo

    comment = PngInfo()
    comment.add_text("Comment", "0" * 100_000_000, zip=True)
    assert refusal(encoded(Image.new("RGB", (80, 80)), pnginfo=comment)).status == 422
    assert refusal(bombs.text_swarm(64)).status == 422
