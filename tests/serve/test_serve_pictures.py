from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from egobench.errors import InvalidInput
from egobench.serve.pictures import KEPT_PX, MAX_UPLOAD_BYTES, checked_picture, uploaded_path


def picture(path: Path, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Path:
    Image.new(mode, size).save(path)
    return path


def refused(source: Path, into: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        checked_picture(source, into)
    assert not into.exists()
    return str(caught.value)


def test_any_picture_becomes_an_upright_rgb_png_of_bounded_size(tmp_path: Path) -> None:
    wide = Image.new("RGB", (3000, 1500), "red")
    exif = Image.Exif()
    exif[274] = 6  # the camera was held on its side
    wide.save(tmp_path / "a.jpg", exif=exif)
    with Image.open(checked_picture(tmp_path / "a.jpg", tmp_path / "out.png")) as made:
        assert (made.format, made.mode, made.size) == ("PNG", "RGB", (KEPT_PX // 2, KEPT_PX))
    grey = picture(tmp_path / "grey.png", mode="LA")
    with Image.open(checked_picture(grey, tmp_path / "out.png")) as made:
        assert (made.mode, made.size) == ("RGB", (40, 30))


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    small_file = picture(tmp_path / "bomb.png", (8000, 8000), "1")
    assert small_file.stat().st_size < 100_000
    assert "8000 x 8000 pixels; allowed: at most 50 megapixels" in refused(small_file, tmp_path / "out.png")
    huge = picture(tmp_path / "huge.png", (20000, 20000), "1")  # Pillow's own limit
    assert "allowed: at most 50 megapixels" in refused(huge, tmp_path / "out.png")


def test_what_is_no_picture_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    assert "cannot be read: it is no PNG, JPEG" in refused(tmp_path / "a.png", tmp_path / "out.png")
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert "it is no PNG" in refused(tmp_path / "a.eps", tmp_path / "out.png")
    stream = io.BytesIO()
    Image.effect_noise((200, 200), 50).save(stream, "PNG")
    (tmp_path / "cut.png").write_bytes(stream.getvalue()[:5000])
    assert "picture: cannot be read" in refused(tmp_path / "cut.png", tmp_path / "out.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(MAX_UPLOAD_BYTES + 1)
    assert "larger than 20 MiB" in refused(tmp_path / "large.png", tmp_path / "out.png")


def test_only_uploads_are_read(tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    inside, outside = picture(uploads / "a.png"), picture(tmp_path / "b.png")
    assert uploaded_path({"path": str(inside)}, uploads) == inside.resolve()
    (uploads / "link.png").symlink_to(outside)
    for payload in ({"path": str(outside)}, {"path": f"{uploads}/../b.png"}, {"path": str(uploads / "link.png")}):
        with pytest.raises(InvalidInput, match="does not lie where uploads do"):
            uploaded_path(payload, uploads)
    for empty in (None, {}, {"path": None}):
        with pytest.raises(InvalidInput, match="there is none"):
            uploaded_path(empty, uploads)
