"""The data sets that can be prepared from a local folder, by name, and where what was prepared lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from medvista_ray.data.folder import TASKS_FILE
from medvista_ray.data.public.dicom_folder import DICOM_FOLDER
from medvista_ray.data.public.draft import PublicSet
from medvista_ray.data.public.image_mask_folder import IMAGE_MASK_FOLDER
from medvista_ray.data.public.path_vqa import PATH_VQA
from medvista_ray.data.public.slake import SLAKE
from medvista_ray.data.public.vqa_rad import VQA_RAD
from medvista_ray.downloads.packages import cache_folder

PUBLIC_SETS: Mapping[str, PublicSet] = MappingProxyType(
    {known.name: known for known in (VQA_RAD, SLAKE, PATH_VQA, DICOM_FOLDER, IMAGE_MASK_FOLDER)}
)


def prepared_folder(name: str) -> Path:
    """Return where a data set is prepared to, unless another folder is named."""
    return cache_folder() / "datasets" / name


def is_prepared(name: str) -> bool:
    """Return whether a data set is there."""
    return (prepared_folder(name) / TASKS_FILE).is_file()


def locate_prepared(name: str) -> Path:
    """Return the folder of a prepared data set; `DataError` names its page, its licence and the command."""
    if not is_prepared(name):
        raise PUBLIC_SETS[name].refuse(f"data.source={name} is not prepared")
    return prepared_folder(name)
