"""Fixtures of the image and of containers made of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.image import Containers, Image, Missing, open_image
from tests.databases.fixtures import lacking


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """The image. Where it cannot be had, tests that want it are skipped, and fail where `CI` is set."""
    try:
        with open_image() as image:
            yield image
    except Missing as error:
        lacking(str(error))


@pytest.fixture
def containers(image: Image, tmp_path: Path) -> Containers:
    """Containers on a folder of this test, as empty as a new volume."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    user, _, group = image.config["User"].partition(":")
    os.chown(data, int(user), int(group))
    return Containers(image, data)
