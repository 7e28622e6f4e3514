"""The training of the bundled model, on a smaller one and a few squares: it learns, resumes, and diffusers loads it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

import h2gen
from h2gen.models.catalogue import resolve
from h2gen.models.content_hash import check_bundled
from h2gen.models.defaults import read_defaults
from tests.tools.sprites import few_sprites
from tools.train_tiny import autoencoder, classifier, evaluate, model, runs, ship, text, train
from tools.train_tiny.runs import DECAY, Progress, Run
from tools.train_tiny.scenes import SHAPES, Stage, Variety

pytestmark = [pytest.mark.slow, pytest.mark.no_cover]

CPU = torch.device("cpu")
FEW, MORE = 0.2, 0.5
"""Minutes in which a step takes two or three seconds."""


class Clock:
    """A fake clock, which also advances a little at each reading, so that a budget is a number of steps."""

    def __init__(self, patch: pytest.MonkeyPatch, tick: float = 0.0) -> None:
        self.now, self._tick = 0.0, tick
        patch.setattr(runs.time, "monotonic", self.look)

    def look(self) -> float:
        self.now += self._tick
        return self.now


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part made once, each as quickly as possible."""
    folder = tmp_path_factory.mktemp("tiny")
    found = few_sprites()
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        Clock(patch, 1.0)
        text.build_tokenizers(Stage(found), folder)
        autoencoder.train(found, folder / "autoencoder", FEW, CPU)
        train.train(found, folder, folder / "model", FEW, CPU, distil=False, compiled=False)
        classifier.train(found, folder / "judge", FEW, CPU)
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    Clock(monkeypatch, 1.0)


def shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(runs, "_WARM", 5)
    patch.setattr(autoencoder, "_BATCH", 4)
    patch.setattr(classifier, "_BATCH", 16)
    patch.setattr(model, "_DOUBLE", 2)
    patch.setattr(model, "_SINGLE", 4)
    patch.setattr(model, "SHALLOW", 2)
    patch.setattr(text, "_CAPTIONS", 500)
    pace = train.Pace(
        width=64,
        batch=4,
        rate=1e-3,
        workers=0,
        shares=(1.0, *[0.0] * (len(SHAPES) - 1)),
        ema_decay=0.9,
        shallow=0.4,
        uses=2,
        bf16=False,
        variety=Variety(),
    )
    patch.setitem(train.PACES, "cpu", pace)


class Counter:
    """Something to train: it counts its steps."""

    def __init__(self) -> None:
        self.steps = 0

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def restore(self, saved: dict[str, Any]) -> None:
        self.steps = saved["steps"]


def steps_of(run: Run, counter: Counter, clock: Clock, most: int = 10**6) -> int:
    """Steps of ten seconds each."""
    done = 0
    for _ in run:
        counter.steps += 1
        clock.now += 10
        done += 1
        if done == most:
            break
    return done


def test_a_run_that_is_killed_goes_on_from_its_last_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, counter = Clock(monkeypatch), Counter()
    run = Run(tmp_path, 10, counter.state, counter.restore, every=1)
    assert steps_of(run, counter, clock, most=20) == 20
    again = Counter()
    run = Run(tmp_path, 10, again.state, again.restore, every=1)
    assert 12 <= again.steps < 20 and run.progress.steps == again.steps
    steps_of(run, again, clock)
    assert again.steps == 60


def test_a_longer_budget_goes_on_from_before_the_rate_fell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, counter = Clock(monkeypatch), Counter()
    assert steps_of(Run(tmp_path, 10, counter.state, counter.restore), counter, clock) == 60
    again = Counter()
    same = Run(tmp_path, 10, again.state, again.restore)
    assert again.steps == 60 and steps_of(same, again, clock) == 0
    longer = Counter()
    Run(tmp_path, 20, longer.state, longer.restore)
    assert longer.steps == pytest.approx(60 * (1 - DECAY), abs=1)


def test_the_rate_rises_stays_and_falls() -> None:
    def rate(seconds: float, steps: int) -> float:
        return Progress(100, seconds, steps).rate

    assert rate(0, 0) == 0.01 and rate(30, 1000) == 1 and rate(69, 1000) == 1
    assert rate(85, 1000) == pytest.approx(0.5) and rate(100, 1000) == 0.02


def test_a_restored_optimizer_knows_its_learning_rate() -> None:
    """The initial one, not the decayed one."""
    weight = torch.nn.Parameter(torch.zeros(1))
    first, again = (torch.optim.AdamW([weight], lr=0.1) for _ in range(2))
    runs.set_rate(first, 0.25)
    again.load_state_dict(first.state_dict())
    assert again.param_groups[0]["lr"] == 0.025
    runs.set_rate(again, 1.0)
    assert again.param_groups[0]["lr"] == 0.1


def test_the_autoencoder_learns(tmp_path: Path, small: None) -> None:
    found = few_sprites()
    autoencoder.train(found, tmp_path, 0.8, CPU)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["samples"] == 4 * log[-1]["steps"]
    assert log[-1]["loss"] < log[0]["loss"]
    quality = autoencoder.quality(autoencoder.load(tmp_path, CPU), found, CPU)
    assert quality["pictures"] == 1 and np.isfinite(quality["psnr"])


def test_what_was_trained_is_a_pipeline_of_diffusers_own(made: Path) -> None:
    pipe = FluxPipeline.from_pretrained(made / "model" / "pipeline", dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is FluxPipeline and not pipe.transformer.config.guidance_embeds
    for length in (16, 512):
        image = pipe("a cat", num_inference_steps=2, height=96, width=144, max_sequence_length=length).images[0]
        assert image.size == (144, 96)


def test_tokenizers_fold_case_and_keep_known_words_whole(made: Path) -> None:
    words = text.Text(made)
    ids = [words.ids([caption], 16) for caption in ("A Cat Beside a Dog", "a cat beside a dog")]
    assert all(torch.equal(one, two) for one, two in zip(*ids, strict=True))
    assert words.lengths(["a cat beside a dog", "a cat"]) == [6, 3]
    assert words.lengths(["xylograph 猫"])[0] > 6
    assert words.clip.eos_token_id != 2


def test_new_encoders_tell_what_stands_first(made: Path) -> None:
    torch.manual_seed(0)
    words = text.Text(made)
    _, encoder = text.build_encoders(words)
    first, second = (
        encoder(words.ids([caption], 16)[1])[0][0] for caption in ("a cat beside a dog", "a dog beside a cat")
    )
    for here, there in ((1, 4), (4, 1)):
        assert (first[here] - second[there]).norm() > 0.3 * first[here].norm()


def test_training_goes_on_and_distils(made: Path, tmp_path: Path, small: None) -> None:
    folder = tmp_path / "model"
    found = few_sprites()
    train.train(found, made, folder, FEW, CPU, distil=False, compiled=False)
    first = torch.load(folder / "snapshot.pt", weights_only=True)["progress"]["steps"]
    train.train(found, made, folder, MORE, CPU, distil=False, compiled=False)
    progress = torch.load(folder / "snapshot.pt", weights_only=True)["progress"]
    shallow = torch.load(folder / "shallow" / "snapshot.pt", weights_only=True)["progress"]
    assert progress["steps"] > first
    assert progress["budget"] + shallow["seconds"] == pytest.approx(60 * MORE)
    before = {path: path.read_bytes() for path in (folder / "pipeline" / "transformer").glob("*.safetensors")}
    train.train(found, made, folder, FEW, CPU, distil=True, compiled=False)
    assert all(path.read_bytes() != old for path, old in before.items())
    assert (folder / "distilled" / "log.jsonl").exists()
    assert evaluate.load(folder / "pipeline", CPU).transformer.config.guidance_embeds
    train.train(found, made, folder, MORE, CPU, distil=False, compiled=False)
    assert all(path.read_bytes() == old for path, old in before.items())
    assert not (folder / "distilled").exists()


def inputs_of_a_transformer() -> dict[str, Any]:
    """Two pictures, without guidance."""
    return {
        "hidden_states": torch.randn(2, 16, 4 * autoencoder.LATENT_CHANNELS),
        "encoder_hidden_states": torch.randn(2, 5, text.WIDTH),
        "pooled_projections": torch.randn(2, text.WIDTH),
        "timestep": torch.tensor([0.2, 0.9]),
        "img_ids": model.position_ids(8, 8, CPU),
        "txt_ids": torch.zeros(5, 3),
        "return_dict": False,
    }


def test_a_deepened_transformer_does_what_the_shallow_one_does() -> None:
    torch.manual_seed(0)
    shallow = model.build_transformer(64, shallow=True)
    for block in (*shallow.transformer_blocks, *shallow.single_transformer_blocks):
        for name, parameter in block.named_parameters():
            if name.endswith("linear.weight"):
                torch.nn.init.normal_(parameter, std=0.02)
    torch.nn.init.normal_(shallow.proj_out.weight)
    deep = model.build_transformer(64)
    before = {name: value.clone() for name, value in shallow.state_dict().items()}
    deep.load_state_dict(model.deepened(shallow.state_dict()))
    assert all(torch.equal(value, before[name]) for name, value in shallow.state_dict().items())
    assert len(deep.transformer_blocks) == model.SHALLOW * len(shallow.transformer_blocks)
    call = inputs_of_a_transformer() | {"guidance": torch.ones(2)}
    with torch.no_grad():
        ours, theirs = deep(**call)[0], shallow(**call)[0]
        for block in (*shallow.transformer_blocks, *shallow.single_transformer_blocks):
            (block.norm1 if hasattr(block, "norm1") else block.norm).linear.weight.zero_()
        nothing = shallow(**call)[0]
    assert torch.allclose(ours, theirs, atol=1e-5) and not torch.allclose(theirs, nothing, atol=1e-2)


def test_guidance_that_was_always_one_can_be_left_out() -> None:
    torch.manual_seed(0)
    transformer = model.build_transformer(64)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    call = inputs_of_a_transformer()
    with torch.no_grad():
        at_one, at_two = (transformer(guidance=torch.full((2,), scale), **call)[0] for scale in (1.0, 2.0))
        without = model.without_guidance(transformer)(**call)[0]
    assert torch.allclose(without, at_one, atol=1e-5) and not torch.allclose(without, at_two, atol=1e-4)


def test_the_shares_of_all_shapes_are_a_whole() -> None:
    for pace in train.PACES.values():
        assert len(pace.shares) == len(SHAPES) and sum(pace.shares) == pytest.approx(1)
        assert sum(pace.variety.styles) == pytest.approx(1)


def test_the_velocity_of_a_trained_model_is_nearer_than_that_of_a_new_one(made: Path, small: None) -> None:
    found = few_sprites()
    torch.manual_seed(0)
    stage, words = Stage(found), text.Text(made)
    learner = train.new_model(words, 64)
    vae = autoencoder.load(made / "autoencoder", CPU)
    render = train.Renderer(found, CPU)
    batches = iter(train.Batches(stage, words, train.PACES["cpu"], 0))
    optimizers = train.optimizers_of(learner, 2e-3)
    losses = []
    for _ in range(30):
        batch = next(batches)
        loss = train.loss_of(learner, None, batch, train.encode(vae, render, batch))
        losses.append(loss.item())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])


def test_the_judge_learns_what_it_sees(tmp_path: Path, small: None) -> None:
    found = few_sprites()
    judge = classifier.train(found, tmp_path, 3.0, CPU)
    assert classifier.accuracy(judge, found, CPU, ["3d"])["top1"] > 0.5
    loaded = classifier.load(tmp_path, CPU)
    assert classifier.accuracy(loaded, found, CPU, ["3d"]) == classifier.accuracy(judge, found, CPU, ["3d"])


def test_questions_are_fixed_and_ask_what_they_check() -> None:
    asked = evaluate.questions(100)
    assert asked == evaluate.questions(100) and len(asked) == 300
    assert len({question.seed for question in asked}) == 300
    assert asked[0].prompt == "a cat" and {len(question.concepts) for question in asked} == {1, 2}
    assert all(str(question.background) in question.prompt for question in asked[200:])
    assert sum(question.above for question in asked) == sum(" above " in question.prompt for question in asked) == 50
    assert max(question.concepts[0] for question in evaluate.questions(400)) == 399


def test_perfect_pictures_get_a_perfect_report() -> None:
    """Squares drawn by hand in place of the model's: the judge that knows them finds both, and the ground."""
    found = few_sprites()
    stage = Stage(found)
    colours = {i: torch.tensor(found.pictures[3 * i, 0, 0, :3] / 127.5 - 1) for i in range(6)}

    class Knows(classifier.Classifier):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            middle = pictures.mean((2, 3))
            logits = torch.zeros(len(pictures), len(stage.concepts))  # of those that were not drawn
            for i, colour in colours.items():
                logits[:, i] = torch.where((middle - colour).abs().sum(1) < 0.05, 1.0, -1.0)
            return logits

    asked = [
        evaluate.Question("", 0, (0, 1), "blue"),
        evaluate.Question("", 0, (2, 3), "green"),
        evaluate.Question("", 0, (4, 5), "pink", above=True),
    ]
    pictures = torch.empty(3, 3, 64, 64)
    for picture, question in zip(pictures, asked, strict=True):
        picture[:] = torch.tensor(evaluate.BACKGROUNDS[str(question.background)]).view(3, 1, 1) / 127.5 - 1
        for place, concept in enumerate(question.concepts):
            seen = picture.mT if question.above else picture
            seen[:, 16:48, 32 * place : 32 * place + 32] = colours[concept].view(3, 1, 1)
    perfect = dict.fromkeys(("each_top1", "each_top5", "both_top1", "both_top5", "background"), 1.0)
    assert evaluate._composed(Knows(1), pictures, asked) == perfect | {"of": 3}
    swapped = [replace(question, concepts=question.concepts[::-1]) for question in asked]
    turned = [replace(question, above=not question.above) for question in asked]
    for wrong in (swapped, turned):
        found_there = evaluate._composed(Knows(1), pictures, wrong)
        assert found_there["each_top5"] == 0 and found_there["background"] == 1
    other_ground = [replace(asked[0], background="red"), *asked[1:]]
    assert evaluate._composed(Knows(1), pictures, other_ground)["background"] == pytest.approx(2 / 3)


def test_the_middle_of_a_picture_is_a_square() -> None:
    wide = torch.arange(6.0).expand(1, 3, 2, 6)
    assert torch.equal(evaluate._middle(wide), wide[..., 2:4])
    assert torch.equal(evaluate._middle(wide.mT), wide.mT[..., 2:4, :])


@pytest.mark.posix
def test_only_what_was_evaluated_is_shipped(made: Path, tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "model").symlink_to(made / "model")
    (tmp_path / "evaluation" / "report.json").write_text('{"content_hash": "another"}')
    with pytest.raises(RuntimeError, match="evaluate it first"):
        ship.ship(tmp_path, "a test", into=tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()


def test_what_is_shipped_says_how_it_is_called_and_what_it_is_made_of(made: Path, tmp_path: Path) -> None:
    pipe = evaluate.load(made / "model" / "pipeline", CPU)
    judge = classifier.load(made / "judge", CPU)
    calling = evaluate.Calling(width=96, height=96, steps=2, cfg=1.0)
    asked, elsewhere = evaluate.questions(6, singles=4, pairs=2), evaluate.questions(6, singles=1, pairs=0)
    unseen = {"flat": judge}
    report = evaluate.evaluate(pipe, judge, few_sprites(), asked, calling, made / "evaluation", elsewhere, unseen)
    assert report["unseen_styles"]["flat"]["of"] == 6
    assert report["sizes"].keys() == {f"{width}x{height}" for height, width in SHAPES[1:]}
    with Image.open(made / "evaluation" / "sheet-96x144.png") as seen:
        assert seen.size == (20 * 96, 144)
    assert report["pictures"] == 6 and report["changes"][28]["structure"]["median"] > 0
    assert (made / "evaluation" / "sheet.png").stat().st_size
    ship.ship(made, "a test", "It began anew once.", tmp_path / "tiny")
    defaults = read_defaults(tmp_path / "tiny" / "defaults.toml")
    assert (defaults.width, defaults.steps, defaults.cfg) == (96, 2, 1.0)
    card = (tmp_path / "tiny" / "MODEL_CARD.md").read_text()
    assert "on a test" in card and "Apache-2.0" in card and "{" not in card
    assert "|\n\nIt began anew once.\n\n## Data" in card
    shipped = replace(resolve("tiny"), location=tmp_path / "tiny")
    check_bundled(shipped)
    session = h2gen.load(str(tmp_path / "tiny"))
    assert session.generate("a cat", seed=1).image.size == (96, 96)
    call: dict[str, Any] = {"num_inference_steps": 2, "width": 96, "height": 96, "max_sequence_length": 24}
    stock, as_trained = (
        loaded("a cat", generator=torch.Generator().manual_seed(0), guidance_scale=scale, output_type="np", **call)
        for loaded, scale in ((FluxPipeline.from_pretrained(tmp_path / "tiny"), 3.5), (pipe, 1.0))
    )
    np.testing.assert_allclose(stock.images, as_trained.images, atol=0.02)  # except for half precision
    assert np.ptp(stock.images) > 0.01
    assert str(made) not in "".join(path.read_text() for path in (tmp_path / "tiny").rglob("*.json"))
