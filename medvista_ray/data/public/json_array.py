"""Read the objects of a JSON array one by one, so that a file of any length takes the same memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from medvista_ray.errors import DataError

_CHUNK_CHARS = 1 << 16
_MAX_OBJECT_CHARS = 1 << 20  # one question with its answer; more is another kind of file
_BLANKS = re.compile(r"[ \t\r\n]*")


def read_json_array(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (index, object) of a UTF-8 file; `DataError` names the file and the item that is not right."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from enumerate(_ArrayReader(file, path).read())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error


class _ArrayReader:
    """Holds a window of the text, and where in it the next thing begins."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._text = ""
        self._start = 0
        self._decoder = json.JSONDecoder()

    def read(self) -> Iterator[dict[str, Any]]:
        if not self._take("["):
            raise DataError(f"{self._path}: not a JSON array of objects")
        index = 0
        while not self._take("]"):
            where = f"{self._path} item {index}"
            if index and not self._take(","):
                raise DataError(f"{where}: expected a comma or the end of the array")
            self._skip_blanks()
            yield self._decode(where)
            index += 1

    def _take(self, mark: str) -> bool:
        """Step over a mark if it comes next."""
        self._skip_blanks()
        is_next = self._text.startswith(mark, self._start)
        self._start += is_next
        return is_next

    def _skip_blanks(self) -> None:
        while True:
            blanks = _BLANKS.match(self._text, self._start)
            assert blanks is not None, "the pattern matches nothing at all too"
            self._start = blanks.end()
            if self._start < len(self._text) or not self._read_on():
                return

    def _read_on(self) -> bool:
        """Drop what is done with and read more; return whether there was more."""
        more = self._file.read(_CHUNK_CHARS)
        self._text, self._start = self._text[self._start :] + more, 0
        return bool(more)

    def _decode(self, where: str) -> dict[str, Any]:
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text, self._start)
            except (ValueError, RecursionError) as error:  # the window may end inside of the object
                if len(self._text) - self._start > _MAX_OBJECT_CHARS or not self._read_on():
                    raise DataError(f"{where}: {error}") from error
                continue
            if not isinstance(found, dict):
                raise DataError(f"{where}: expected an object, got {type(found).__name__}")
            self._start = end
            return found
