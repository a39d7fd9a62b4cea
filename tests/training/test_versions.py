"""The version of training's defaults is part of what runs are resumed by, from 2 on."""

from training.versions import versioned


def test_the_first_version_leaves_every_fingerprint_as_it_is():
    assert versioned({"lr": 1}, 1) == {"lr": 1}


def test_a_later_version_makes_another_fingerprint():
    assert versioned({"lr": 1}, 2) == {"lr": 1, "defaults": 2} != versioned({"lr": 1}, 3)
