"""The counter-based generator against its published answers."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convnet.kernels.rng import normal, philox, uniform

ONES = 0xFFFFFFFF
# counter, key (low word, high word), result; published with Random123 (Salmon et al., SC 2011)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((ONES,) * 4, (ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    seed = key[0] | key[1] << 32
    expected = [int(word, 16) for word in words.split()]
    assert philox(*counter, seed).tolist() == expected
    assert reference.philox_block(counter, seed) == expected


def test_arrays_of_counters_give_the_words_of_each():
    c0, c1 = np.arange(5)[:, None], np.arange(3)
    words = philox(c0, c1, 7, 1, 12345678901234567890)
    assert words.shape == (4, 5, 3)
    assert words.dtype == np.uint32
    for i in range(5):
        for j in range(3):
            assert words[:, i, j].tolist() == reference.philox_block((i, j, 7, 1), 12345678901234567890)


def test_uniform_and_normal_numbers():
    words = philox(np.arange(50_000), 0, 0, 0, 1)
    assert (uniform(np.array([0, ONES], np.uint32)) * 2**33 == [1, 2**33 - 1]).all()
    u, z = uniform(words), normal(words)
    assert u.shape == z.shape == (4, 50_000)
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(z.mean()) < 0.01
    assert abs(z.std() - 1) < 0.01
    assert abs((z**4).mean() - 3) < 0.1
    assert np.isfinite(normal(np.array([[0], [0], [ONES], [ONES]], np.uint32))).all()
