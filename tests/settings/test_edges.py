"""Canny's edges of control pictures."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from PIL import Image

from h2gen.errors import SettingError
from h2gen.settings.edges import canny, check_opencv


def test_edges_are_white_lines_where_the_picture_changes() -> None:
    image = Image.new("RGB", (64, 48), "black")
    image.paste((200, 30, 30), (16, 0, 64, 48))
    edges = canny(image)
    assert edges.size == image.size and edges.mode == "RGB"
    columns = np.asarray(edges)[:, :, 0].max(axis=0)
    assert {*np.flatnonzero(columns)} <= {15, 16} and columns.max() == 255


def test_without_opencv_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cv2" else find(name))
    with pytest.raises(SettingError, match="install the extra 'canny'"):
        check_opencv()
