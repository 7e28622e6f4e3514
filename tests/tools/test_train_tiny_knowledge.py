"""What h2gen tells of the bundled models is what they were trained with."""

from __future__ import annotations

import json

from h2gen.models.catalogue import BUNDLED
from h2gen.models.vocabulary import KNOWS
from tools.train_tiny import video_ship
from tools.train_tiny.knowledge import knowledge


def test_what_is_told_is_what_was_taught() -> None:
    told = json.loads((BUNDLED / KNOWS).read_text(encoding="utf-8"))
    assert told == knowledge(len(told["things"]))
    of_videos = BUNDLED.with_name("tiny-video") / KNOWS
    assert json.loads(of_videos.read_text(encoding="utf-8")) == video_ship.knowledge()


def test_its_card_lists_the_same_things() -> None:
    told = json.loads((BUNDLED / KNOWS).read_text(encoding="utf-8"))
    card = " ".join((BUNDLED / "MODEL_CARD.md").read_text(encoding="utf-8").split())
    assert ", ".join(names[0] for names in told["things"]) + "." in card
