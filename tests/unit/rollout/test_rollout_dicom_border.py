"""From a DICOM file to the bytes of a trajectory: who the patient is stays in the file."""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings

import numpy as np
import pydicom
import pytest
import rollout_parts
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from rollout_parts import CONFIG, run_one

from medvista_ray.config.schema import EnvConfig
from medvista_ray.data.folder import FolderTaskSource
from medvista_ray.envs.canary import find_leaks
from medvista_ray.envs.medical_vqa import MedicalVQAEnv
from medvista_ray.images.store import MemoryBlobCache
from medvista_ray.types.trajectories import StopReason, TrajectoryGroup
from medvista_ray.types.wire import encode_group, encode_trajectory

NAME, PATIENT_ID, PRIVATE, OVERLAY = "Canary^Quilla", "canary-id-5512", "canary private", "canary overlay"
OTHERS = {
    "PatientBirthDate": "19020304",
    "InstitutionName": "Canary Infirmary",
    "StudyDescription": "canary study",
    "AccessionNumber": "canary-acc",
    "StudyInstanceUID": "1.2.3.666.999",
    "SOPInstanceUID": "1.2.3.666.998",
    "OperatorsName": "Canary^Operator",
    "DeviceSerialNumber": "canary-serial",
    "ProtocolName": "canary protocol",
    "ContentDate": "19020305",
}
OVERLAY_BITS = bytes(range(7, 71))  # a plane of 16 x 32 points with a pattern of its own
NEEDLES = [
    text.encode() for text in (NAME, PATIENT_ID, PRIVATE, OVERLAY, *OTHERS.values(), "canary", "Canary", "CANARY")
]
NEEDLES += [OVERLAY_BITS[8:24], b"quilla"]
TOOLS = ("dicom_info", "zoom", "window_level", "measure")
ACTIONS = (
    '<think>x</think><tool_call>{"name":"dicom_info","arguments":{}}</tool_call>',
    '<think>x</think><tool_call>{"name":"zoom","arguments":{"bbox":[0,0,500,500]}}</tool_call>',
    '<think>x</think><tool_call>{"name":"window_level","arguments":{"percentiles":[1,99]}}</tool_call>',
    '<think>x</think><tool_call>{"name":"measure","arguments":{"kind":"intensity","bbox":[0,0,900,900]}}</tool_call>',
    '<think>x</think><tool_call>{"name":"zoom","arguments":{"bbox":[0,0,0,0]}}</tool_call>',
    "<think>x</think><answer>yes</answer>",
)


def make_dataset(**elements):
    """A CT of 32 x 40 pixels with an identifier wherever one can stand, and text drawn into its pixels."""
    pixels = np.random.default_rng(0).integers(0, 2000, (32, 40)).astype(np.uint16)
    pixels[4:9, 4:30:2] = 4095  # burned-in strokes
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.666.998"
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelData = pixels.tobytes()
    dataset.Modality, dataset.PixelSpacing, dataset.SliceThickness = "CT", [0.5, 0.5], "2.5"
    dataset.PatientName, dataset.PatientID = NAME, PATIENT_ID
    for keyword, value in {**OTHERS, **elements}.items():
        setattr(dataset, keyword, value)
    block = dataset.private_block(0x0011, "CANARY MAKER", create=True)
    block.add_new(0x01, "LO", PRIVATE)
    dataset.add_new(0x60000010, "US", 16)
    dataset.add_new(0x60000011, "US", 32)
    dataset.add_new(0x60000022, "LO", OVERLAY)
    dataset.add_new(0x60000100, "US", 1)
    dataset.add_new(0x60003000, "OW", OVERLAY_BITS)
    return dataset


def write_folder(folder, dataset):
    """A folder whose file name names the patient too."""
    dataset.save_as(folder / "Canary_Quilla.dcm", enforce_file_format=True)
    row = {"task_id": "t0", "split": "train", "question": "Is it?", "images": ["Canary_Quilla.dcm"], "answer": "yes"}
    (folder / "tasks.jsonl").write_text(json.dumps(row))
    return folder


def play(folder):
    """Run an episode; return its task, the text of its observations, and all that was made on the way."""
    source = FolderTaskSource(folder, "train")
    record = source[0]
    blobs, said = MemoryBlobCache(), [repr(record.task), repr(record), *record.blobs.values()]
    config = EnvConfig(view_size_px=30, max_turns=9, tools=TOOLS)
    env = MedicalVQAEnv(tasks=source, config=config, blobs=blobs)
    observation, info = env.reset(options={"task_index": 0})
    messages, shown = [observation["messages"]], list(env.observe())
    for action in ACTIONS:
        said += [json.dumps({key: str(value) for key, value in info.items()}), repr(info), repr(env.observe())]
        said += [image.tobytes() for image in observation["images"]]
        observation, reward, terminated, _, info = env.step(action)
        messages.append(observation["messages"])
        if not terminated:
            shown += env.observe()
        said.append(repr(reward))
    env.close()
    images = [part.digest for message in shown for part in message.images]
    said += [*messages, *(blobs.get(digest) for digest in images), repr(info)]
    return record, "\n".join(messages), said


async def roll_out(renderer, record):
    """Run the same episode as a rollout does; return the bytes of its records."""
    config = dataclasses.replace(CONFIG, view_size_px=30, max_turns=9, tools=TOOLS)
    client = rollout_parts.play(renderer, *ACTIONS)
    trajectory = await run_one(
        renderer, record, client, config=config, max_context_tokens=20_000, max_action_tokens=400
    )
    assert trajectory.error is None
    assert trajectory.stop_reason is StopReason.ANSWERED
    assert any("slice_thickness_mm" in message.text for turn in trajectory.turns for message in turn.messages)
    group = TrajectoryGroup(
        group_id="0/0/0", attempt=0, incarnation=0, task=record.task, trajectories=(trajectory, trajectory)
    )
    return [encode_trajectory(trajectory), encode_group(group), repr(group), repr(trajectory.turns)]


def as_bytes(pieces):
    return [piece.encode() if isinstance(piece, str) else piece for piece in pieces]


async def test_no_identifier_comes_through(renderer, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        dataset = make_dataset()
        folder = write_folder(tmp_path, dataset)
        warned.clear()
        caplog.clear()
        record, messages, said = play(folder)
        said += await roll_out(renderer, record)
    said += [caplog.text, *(str(warning.message) for warning in warned)]
    raw = (folder / "Canary_Quilla.dcm").read_bytes()
    assert find_leaks([raw], [needle for needle in NEEDLES if needle in (NAME.encode(), OVERLAY_BITS[8:24])])
    assert find_leaks(as_bytes(said), NEEDLES) == []
    assert "slice_thickness_mm: 2.5" in messages
    assert "(HU)" in messages
    assert record.task.headers[record.task.images[0].digest]["modality"] == "CT"


def test_the_walk_would_find_a_leak(tmp_path):
    folder = write_folder(tmp_path, make_dataset())
    rows = json.loads((folder / "tasks.jsonl").read_text())
    (folder / "tasks.jsonl").write_text(json.dumps({**rows, "question": f"Is {NAME} ill?"}))
    _, _, said = play(folder)
    assert find_leaks(as_bytes(said), NEEDLES)


@pytest.mark.parametrize(
    ("elements", "flag"),
    [
        ({}, "unknown"),
        ({"BurnedInAnnotation": "YES"}, "yes"),
        ({"BurnedInAnnotation": "NO"}, "no"),
        ({"Modality": "US"}, "yes"),
    ],
)
def test_burned_in_text_is_flagged_and_left_where_it_is(tmp_path, elements, flag):
    record, messages, _ = play(write_folder(tmp_path, make_dataset(**elements)))
    task = record.task
    assert task.headers[task.images[0].digest]["burned_in_annotation"] == flag
    assert f"burned_in_annotation: {flag}" in messages
    stored = pydicom.dcmread(tmp_path / "Canary_Quilla.dcm").pixel_array
    values = np.frombuffer(record.blobs[task.images[0].digest][-4 * stored.size :], "<f4").reshape(stored.shape)
    strokes = stored == 4095
    assert values[strokes].min() >= values[~strokes].max()
