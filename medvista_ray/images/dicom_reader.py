"""Parse chosen elements of a DICOM file, so that nothing else of it reaches a text: error, warning or log line.

pydicom quotes values in what it says: a name among them, where a file holds one in an element of another kind.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from medvista_ray.errors import ImageError
from medvista_ray.images.codec import DAMAGE

R = TypeVar("R")
MAX_FILE_BYTES = 2**30
_DEFLATED = "1.2.840.10008.1.2.1.99"
_PYDICOM = "pydicom"
_one_reader = threading.Lock()  # filters of warnings belong to the process
_is_reading: ContextVar[bool] = ContextVar("is_reading", default=False)


def read_elements(
    path: Path, keywords: Sequence[str], read: Callable[[Any], R], *, stop_before_pixels: bool = True
) -> R:
    """Return what `read` makes of the pydicom dataset of these elements; `ImageError` says what is wrong."""
    import pydicom
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ImageError(f"{path.name} has more than the cap of {MAX_FILE_BYTES} bytes")
        with _quiet():
            _check_transfer_syntax(path)
            return read(pydicom.dcmread(path, specific_tags=list(keywords), stop_before_pixels=stop_before_pixels))
    except InvalidDicomError:  # its text proposes an option of pydicom
        why = "it has no DICOM file meta information (DICM at byte 128)"
    except (OSError, RuntimeError) as error:  # not there, or no decoder for it
        why = str(error).split("\n")[0][:160]
    except (*DAMAGE, BytesLengthException, AttributeError, ArithmeticError) as error:
        why = type(error).__name__  # its text may quote bytes of any element, a name among them
    raise ImageError(f"{path.name} is not a DICOM image that can be decoded: {why}")


def _check_transfer_syntax(path: Path) -> None:
    """Refuse a coding that the standard does not name, since its text may be anything; and a deflated one."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import UID

    syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    if not syntax:
        return
    if not isinstance(syntax, UID) or not syntax.is_transfer_syntax:
        raise ImageError(f"{path.name}: its TransferSyntaxUID is not one that is known")
    if syntax == _DEFLATED:  # pydicom inflates the whole file before anything of it can be checked
        raise ImageError(f"{path.name}: deflated DICOM is not read; store it in another transfer syntax")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what pydicom says in this thread from warnings and logs; what is wrong with a file, our errors say."""
    for name in [_PYDICOM, *logging.root.manager.loggerDict]:
        if name == _PYDICOM or name.startswith(f"{_PYDICOM}."):
            logging.getLogger(name).addFilter(_is_not_read_here)  # the same one is added once
    reading = _is_reading.set(True)
    try:
        with _one_reader, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=rf"{_PYDICOM}(\.|$)")
            yield
    finally:
        _is_reading.reset(reading)


def _is_not_read_here(record: logging.LogRecord) -> bool:
    return not _is_reading.get()
