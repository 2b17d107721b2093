"""Small files in the schemas of the public data sets, with noise for images; and folders of one's own."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CASES = 12  # patients, or images where a data set names no patient


def make_jpeg(seed: int, size_px: tuple[int, int] = (24, 16)) -> bytes:
    """Return a JPEG of noise, (width, height) pixels; the same seed gives the same bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size_px[1], size_px[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_vqa_rad(folder: Path, *, leaks: bool = False) -> Path:
    """Write VQA-RAD: two images a case, two questions an image; with `leaks`, images in both published halves."""
    images = folder / "VQA_RAD Image Folder"
    images.mkdir(parents=True)
    items: list[dict[str, Any]] = []
    for number in range(2 * CASES):
        name = f"synpic{10_000 + number}.jpg"
        (images / name).write_bytes(make_jpeg(number))
        for question in range(2):
            is_test = number >= 2 * CASES - 6 or (leaks and question == 1)
            items.append(
                {
                    "qid": str(len(items)),
                    "phrase_type": ("test_freeform" if question else "test_para") if is_test else "freeform",
                    "qid_linked_id": f"03f451ca-{number:04d}",
                    "image_case_url": f"https://medpix.nlm.nih.gov/case?id=case-{number // 2}",
                    "image_name": name,
                    "image_organ": "CHEST",
                    "evaluation": "not evaluated",
                    "question": ["Is there  evidence of an aortic aneurysm?", "How many ribs are seen?"][question],
                    "question_rephrase": "NULL",
                    "question_relation": "NULL",
                    "question_frame": "NULL",
                    "question_type": ["ABN", "COUNT"][question],
                    "answer": [["Yes", "No"][number % 2], 7][question],
                    "answer_type": ["CLOSED ", "OPEN"][question],
                }
            )
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(items, indent=4))
    return folder


def make_slake_item(qid: int, image: int, question: str, answer: str, *, is_closed: bool, lang: str) -> dict[str, Any]:
    """Return one item of SLAKE."""
    return {
        "img_id": image,
        "img_name": f"xmlab{image}/source.jpg",
        "question": question,
        "answer": answer,
        "q_lang": lang,
        "location": "Abdomen",
        "modality": "MRI",
        "answer_type": "CLOSED" if is_closed else "OPEN",
        "base_type": "vqa",
        "content_type": "Organ",
        "triple": ["vhead", "_", "_"],
        "qid": qid,
    }


def write_slake(folder: Path, *, same_image: bool = False) -> Path:
    """Write SLAKE: English and Chinese questions; with `same_image`, one picture under two names in two halves."""
    qid = 0
    for half, images in (("train", range(0, 8)), ("validate", range(8, 10)), ("test", range(10, CASES))):
        items = []
        for image in images:
            place = folder / "imgs" / f"xmlab{image}"
            place.mkdir(parents=True)
            (place / "source.jpg").write_bytes(make_jpeg(0 if same_image and image == CASES - 1 else image))
            boxes = [{"Liver": [1.0, 2.0, 10.0, 8.0]}, {"Left Lung": [0, 0, 4, 4]}, {"Left Lung": [8, 8, 4, 4]}]
            (place / "detection.json").write_text(json.dumps(boxes if image % 2 == 0 else []))
            for question, answer, is_closed, lang in (
                ("Does the picture contain liver?", "Yes", True, "en"),
                ("What is the main organ in the image?", "Liver, Heart", False, "en"),
                ("Which is bigger in this image, lung or heart?", "Lung", True, "en"),
                ("图片中包含肝脏吗?", "包含", True, "zh"),
                ("这张图像是关于头部吗?", "不是", True, "zh"),
                ("图像里包含的区域属于身体哪个部分?", "腹部", False, "zh"),
            ):
                items.append(make_slake_item(qid, image, question, answer, is_closed=is_closed, lang=lang))
                qid += 1
        (folder / f"{half}.json").write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    return folder


def write_path_vqa(folder: Path) -> Path:
    """Write PathVQA as Parquet, in two shards of training rows."""
    import pyarrow
    from pyarrow import parquet

    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", image), ("question", pyarrow.string()), ("answer", pyarrow.string())])
    (folder / "data").mkdir(parents=True)
    shards = {
        "train-00000-of-00002-0a1b.parquet": range(0, 4),
        "train-00001-of-00002-2c3d.parquet": range(4, 8),
        "validation-00000-of-00001-4e5f.parquet": range(8, 10),
        "test-00000-of-00001-6a7b.parquet": range(10, CASES),
    }
    for name, images in shards.items():
        rows = [
            {"image": {"bytes": make_jpeg(number), "path": None}, "question": question, "answer": answer}
            for number in images
            for question, answer in (
                ("is the wall thick?", "yes"),
                ("where are liver stem cells located?", "in the canals"),
            )
        ]
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), folder / "data" / name)
    return folder


def write_dicom_folder(folder: Path, *, patients: Sequence[str] = ()) -> Path:
    """Write real DICOM files under made-up patients, and questions about them."""
    import pydicom
    from pydicom.data import get_testdata_file

    folder.mkdir(parents=True)
    lines = ["file,question,answer,choices,unit,tolerance,family"]
    for number, patient in enumerate(patients or [f"DOE^PATIENT{number}" for number in range(CASES)]):
        name = f"{patient.lower().replace('^', '_')}_{number}.dcm"
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        dataset.PatientID = dataset.PatientName = patient
        dataset.pixel_array[:] += number
        dataset.PixelData = dataset.pixel_array.tobytes()
        dataset.save_as(folder / name)
        lines.append(f"{name},Is this a CT?,yes,yes|no,,,modality")
        lines.append(f'{name},"How thick is a slice, in mm?",5,,mm,0.01,header')
    (folder / "questions.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_image_mask_folder(folder: Path) -> Path:
    """Write images of six patients with label masks, a named mask, and the names of the labels."""
    for number in range(CASES):
        patient = f"patient{number // 2}"
        for top in ("images", "masks"):
            (folder / top / patient).mkdir(parents=True, exist_ok=True)
        (folder / "images" / patient / f"scan{number}.jpg").write_bytes(make_jpeg(number))
        mask = np.zeros((16, 24), dtype=np.uint8)
        mask[2:6, 3:9], mask[8:12, 10:20] = 1, 2 * (number % 2)
        Image.fromarray(mask).save(folder / "masks" / patient / f"scan{number}.png")
    (folder / "labels.json").write_text(json.dumps({"1": "liver", "2": "left kidney"}))
    return folder


WRITERS = {
    "vqa_rad": write_vqa_rad,
    "slake": write_slake,
    "path_vqa": write_path_vqa,
    "dicom_folder": write_dicom_folder,
    "image_mask_folder": write_image_mask_folder,
}


def rewrite(folder: Path, name: str) -> Path:
    """Write a miniature in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    return WRITERS[name](folder)
