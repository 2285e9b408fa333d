"""Text reaches a stream whatever that can take."""

from __future__ import annotations

import io
import os

import pytest

from ray_mono.common.output import utf8, write_text
from tests.tee import Tee


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_does_not_have_is_escaped(encoding: str) -> None:
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, encoding=encoding, errors="strict", newline="")
    write_text(stream, "na\u00efve \u2713 \udc80\n")
    shown = data.getvalue().decode(encoding)
    assert (
        shown
        == {
            "ascii": "na\\xefve \\u2713 \\udc80\n",
            "latin-1": "na\u00efve \\u2713 \\udc80\n",
            "utf-8": "na\u00efve \u2713 \\udc80\n",
        }[encoding]
    )


def test_a_stream_without_a_reader_or_that_is_closed_is_ignored() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as stream:
        write_text(stream, "nobody reads this\n")
        # What stays in its buffer could not be written at its end either.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
    write_text(stream, "closed\n")
    write_text(None, "there is none\n")


class Refusing(Tee):
    def write(self, text: str) -> int:
        raise RuntimeError(text)


def test_a_stand_in_of_the_programs_that_has_no_flush_or_fails_is_written_to_without_an_error() -> None:
    tee = Tee()
    write_text(tee, "shown\n")  # type: ignore[arg-type]
    assert tee.written == ["shown\n"]
    write_text(Refusing(), "lost\n")  # type: ignore[arg-type]


def test_a_text_that_utf8_does_not_have_can_be_sent() -> None:
    assert utf8("na\u00efve \u2713 a\udcff") == "na\u00efve \u2713 a\\udcff"
