"""Drawn characters: what the backbone may see, what the suite teaches, and that they never meet."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import torch

from clbench import glyphs


@pytest.fixture(scope="module")
def seen() -> tuple[str, ...]:
    return glyphs.pretraining_characters()


def test_there_are_twelve_faces_and_each_has_every_downstream_letter() -> None:
    assert len(glyphs.FACES) == 12 == len(set(glyphs.FACES))
    for letter in "".join(glyphs.DOWNSTREAM.values()):
        assert glyphs.faces_of(letter) == glyphs.FACES


def test_downstream_tasks_are_ten_distinct_letters_of_one_script() -> None:
    letters = "".join(glyphs.DOWNSTREAM.values())
    assert len(letters) == 100 == len(set(letters))
    for name, ten in glyphs.DOWNSTREAM.items():
        script = name.partition("-")[0].upper()
        assert len(ten) == 10
        assert all(unicodedata.name(letter).startswith(script) for letter in ten)


def test_pretraining_shares_no_script_with_the_suite(seen: tuple[str, ...]) -> None:
    assert 1200 <= len(seen) == len(set(seen))
    for character in seen:
        for part in (character, *unicodedata.normalize("NFKD", character)):
            words = unicodedata.name(part).split()
            assert not {"GREEK", "COPTIC", "CYRILLIC", "ARMENIAN", "GEORGIAN"} & set(words), character


def test_pretraining_holds_no_form_of_a_digit(seen: tuple[str, ...]) -> None:
    for character in seen:
        for part in (character, *unicodedata.normalize("NFKD", character)):
            assert unicodedata.category(part)[0] != "N", character
            assert unicodedata.numeric(part, None) is None, character
        name = unicodedata.name(character)
        assert not any(sign.isdigit() for sign in name), name
        assert "DIGIT" not in name, name


def test_nothing_seen_looks_like_a_downstream_letter_or_a_digit_in_any_face(seen: tuple[str, ...]) -> None:
    held_out = [*glyphs.DIGITS, *"".join(glyphs.DOWNSTREAM.values())]
    assert not glyphs.looks_like(seen, held_out).any()


def test_near_duplicates_are_recognised() -> None:
    assert glyphs.looks_like(["Α", "A", "x"], ["A"]).tolist() == [True, True, False]  # the first one is a Greek alpha
    alike = glyphs.fingerprints(["o", "O", "W"])
    assert alike[0] @ alike[1] > 0.95 > 0.5 > alike[0] @ alike[2]
    np.testing.assert_allclose(np.linalg.norm(alike, axis=1), 1, rtol=1e-5)


def test_a_plate_is_centred_and_fills_its_frame() -> None:
    drawn = glyphs.plate("Ж", "DejaVuSans")
    assert drawn.shape == (48, 48)
    rows, columns = np.nonzero(drawn > 32)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (33, 34)
    assert abs(rows.mean() - 23.5) < 2
    assert abs(columns.mean() - 23.5) < 2
    assert not glyphs.plate(" ", "DejaVuSans").any()


def test_jitter_is_deterministic_and_without_strength_only_resamples() -> None:
    drawn = torch.from_numpy(glyphs.plates("ЖД", ["DejaVuSans"])).flatten(0, 1)
    strong = glyphs.Jitter(rotation_rad=0.3, scale=(0.7, 1.2), shear=0.2, shift=0.1, noise=0.1, inversion=0.5)
    first, again = (strong(drawn, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.shape == (2, 1, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, strong(drawn, torch.Generator().manual_seed(4)))
    still = glyphs.Jitter()(drawn, torch.Generator())
    expected = torch.nn.functional.interpolate(drawn[:, None].float(), size=(32, 32), mode="bilinear")
    assert (still.float() - expected).abs().max() <= 1


def test_inversion_swaps_ink_and_ground() -> None:
    drawn = torch.from_numpy(glyphs.plates("Ж", ["DejaVuSans"])).flatten(0, 1)
    plain = glyphs.Jitter()(drawn, torch.Generator().manual_seed(0))
    dark = glyphs.Jitter(inversion=1.0)(drawn, torch.Generator().manual_seed(0))
    assert (plain.int() + dark.int() - 255).abs().max() <= 1
