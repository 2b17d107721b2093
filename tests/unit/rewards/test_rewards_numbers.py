import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvista_ray.rewards.numbers import is_readable_number, is_right_number
from medvista_ray.types.messages import Reference, Task
from medvista_ray.types.quantity import UNITS, convert, normalize_unit, parse_number


def grade(answer, expected, *, unit="", tolerance=0.05, absolute=None, aliases=(), kind="number"):
    task = Task(task_id="t", family="f", question="q", images=(), answer_kind=kind, unit=unit)
    reference = Reference(
        task_id="t", answer=expected, tolerance=tolerance, absolute_tolerance=absolute, aliases=aliases
    )
    return is_right_number(answer, task=task, reference=reference)


@pytest.mark.parametrize(("kind", "unit"), [("number", "mm"), (None, "")])
@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [("12.3", "12.3", True), ("12.3 mm", "12.3", True), ("12.9", "12.3", True), ("12.92", "12.3", False),
     ("-12.3", "12.3", False), ("12.3 cm", "12.3", False), ("12.3 or 99", "12.3", False), ("about 12.3", "12.3", False),
     ("nan", "12.3", False), ("inf", "12.3", False), ("1e999", "12.3", False), ("1.23e1", "12.3", True),
     ("12.3 CM", "12.3 cm", True), ("12.3 mm", "12.3 cm", False), ("0", "0", True), ("0.001", "0", False),
     ("12,3", "12.3", False), ("", "12.3", False), ("9" * 5000, "12.3", False), ("\u0661\u0662", "12", False),
     ("1.23 cm", "12.3", True), ("12.3 mm.", "12.3", True), ("12.3mm", "12.3 millimetres", True),
     ("12.3毫米", "12.3", True)],
)  # fmt: skip
def test_numbers_are_right_within_the_relative_tolerance(answer, expected, right, kind, unit):
    assert grade(answer, expected, kind=kind, unit=unit) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [("12", True), ("12.0", True), ("12 nuclei", True), ("12 Lesions.", True), ("12个", True), ("13", False),
     ("13 nuclei", False), ("12 mm", False), ("1.2 cm", False), ("12 millimetres", False), ("12%", False),
     ("12 HU", False), ("12 seconds", False), ("12 kVp", False), ("12 kg", False), ("12 million", False),
     ("12 dozens", False), ("12 thousand", False), ("12万个", False), ("12 or 13", False), ("12 nuclei, 13", False)],
)  # fmt: skip
def test_a_count_is_a_bare_number_or_has_a_word_behind_it_that_is_no_unit_of_measure(answer, right):
    assert grade(answer, "12", tolerance=None) is right


@pytest.mark.parametrize(
    ("answer", "unit", "right"),
    [("8", "bits", True), ("8 bits", "bits", True), ("8 Bits", "bits", True), ("8 bit", "bits", True),
     ("8 frames", "frame", True), ("8 bytes", "bits", False), ("8 mm", "bits", False), ("8 ms", "frames", False),
     ("8 hundred", "frames", False)],
)  # fmt: skip
def test_a_unit_that_is_not_known_has_to_be_the_word_itself(answer, unit, right):
    assert grade(answer, "8", unit=unit, tolerance=None) is right
    assert grade(answer, f"8 {unit}", tolerance=None) is right
    assert is_readable_number(answer, unit=unit) is right


@pytest.mark.parametrize("expected", ["1e999", "-1e999", "inf", "nan"])
def test_a_reference_that_is_not_finite_is_never_met(expected):
    for answer in ("0", "12", "1e308", "inf", "nan", "1e999"):
        assert not grade(answer, expected, unit="mm")


@pytest.mark.parametrize(
    ("answer", "expected", "unit", "right"),
    [("123 mm", "12.3", "cm", True), ("12.3", "12.3", "cm", True), ("12.3", "123 mm", "cm", True),
     ("123", "123 mm", "cm", False),
     ("1.5 cm2", "150", "mm2", True), ("1.5 cm^2", "150", "mm²", True), ("1.5 cm", "150", "mm2", False),
     ("2 ml", "2", "cm3", True), ("2000 mm3", "2", "ml", True), ("2 cc", "2", "mL", True), ("2 l", "2", "ml", False),
     ("45°", "45", "degrees", True), ("45 deg", "45", "°", True), ("-60 HU", "-60", "HU", True),
     ("-60", "-60", "HU", True),
     ("-60 mm", "-60", "HU", False), ("50%", "50", "%", True), ("50", "50", "%", True), ("0.5", "50", "%", False),
     ("50 percent", "50", "%", True), ("1500 um", "1.5", "mm", True), ("1500 µm", "1.5", "mm", True),
     ("\u221260 HU", "-60", "HU", True), ("\uff0d60", "-60", "HU", True), ("\u221260 HU", "60", "HU", False),
     ("-60", "\u221260", "HU", True), ("-60 Hounsfield units", "-60", "HU", True),
     ("-60 hounsfield unit", "-60", "HU", True), ("-60 HU", "-60", "Hounsfield units", True),
     ("-60 hounsfield units wide", "-60", "HU", False),
     ("1.5 s", "1500", "ms", True), ("1500 ms", "1.5", "seconds", True), ("1.5 s", "1500", "mm", False),
     ("0.12 s", "120", "ms", True), ("2 min", "120", "s", True), ("120 kVp", "120", "kV", True),
     ("120000 V", "120", "kV", True), ("120 mA", "120", "kV", False), ("0.2 A", "200", "mA", True),
     ("200 mAs", "200", "mA", False), ("200 mAs", "200", "mAs", True), ("1.5 tesla", "1.5", "T", True),
     ("1500 mT", "1.5", "T", True), ("1.5 T", "1.5", "m", False),
     ("7 nuclei", "7", "nuclei", True), ("7 cells", "7", "nuclei", False)],
)  # fmt: skip
def test_units_that_measure_the_same_are_converted(answer, expected, unit, right):
    assert grade(answer, expected, unit=unit, tolerance=0.01) is right


def test_the_wider_tolerance_holds_and_none_means_equal():
    assert grade("11.5", "10", tolerance=0.1, absolute=2.0)
    assert not grade("11.5", "10", tolerance=0.1, absolute=1.0)
    assert grade("119", "100", tolerance=0.2, absolute=1.0)
    assert grade("0.4", "0", tolerance=None, absolute=0.5)
    assert grade("1.2 cm", "12", unit="mm", tolerance=None)
    assert grade("1.1 mm", "0.11 cm", tolerance=None)  # 1.1 / 10 is not 0.11 in binary
    assert not grade("12.01", "12", tolerance=None)
    assert grade("1.15 cm", "10", unit="mm", tolerance=None, absolute=2.0)  # in the unit of the reference


def test_an_alias_of_a_number_is_as_right():
    assert grade("3.3 cm", "1", aliases=("33",), unit="mm")


def test_what_can_be_read_depends_on_the_unit_that_is_asked():
    assert is_readable_number("3", unit="")
    assert is_readable_number("3 apples", unit="")
    assert is_readable_number("3 cm", unit="mm")
    assert not is_readable_number("3 apples", unit="mm")
    assert not is_readable_number("1e999", unit="")
    assert not is_readable_number("x", unit="")


def test_parse_number_reads_the_whole_text_or_nothing():
    assert parse_number(" +3. mm ") == (3.0, "mm")
    assert parse_number(".5") == (0.5, "")
    assert parse_number("3 mm wide") is None
    assert parse_number("--3") is None
    assert parse_number("\u22123 HU") == (-3.0, "hu")
    assert parse_number("3 cm²") == (3.0, "cm²")
    assert parse_number("1²") != (12.0, "")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(UNITS)), st.sampled_from(sorted(UNITS)), st.floats(-1e6, 1e6))
def test_converting_there_and_back_changes_nothing(unit, other, value):
    there = convert(value, unit, to=other)
    assert (there is None) == (UNITS[unit][0] != UNITS[other][0])
    if there is not None:
        back = convert(there, other, to=unit)
        assert back is not None
        assert math.isclose(back, value, rel_tol=1e-12, abs_tol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=10))
def test_a_normalised_unit_stays_as_it_is(unit):
    assert normalize_unit(normalize_unit(unit)) == normalize_unit(unit)
