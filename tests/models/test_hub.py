"""Downloading with the hub's own client from a stand-in for huggingface.co on this machine.

The client reads its settings when it is imported, so each story runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import h2gen
from tests import checkpoints, small
from tests.models.hub import serve

pytestmark = pytest.mark.slow

STORY = """
import json, sys, warnings
from h2gen.errors import ModelError
from h2gen.models import CATALOGUE, is_downloaded, load_pipeline, local_path, resolve

def attempt(name, base=None):
    try:
        return type(load_pipeline(resolve(name, base), device="cpu")).__name__
    except ModelError as error:
        return str(error)

print(json.dumps([attempt(*words) for words in json.loads(sys.argv[1])] + [
    [is_downloaded(CATALOGUE[name]) for name in ("tiny", "dev", "schnell")],
    local_path(CATALOGUE["dev"]) is not None,
]))
"""


RELATIVE = """
import json, sys
from h2gen.errors import ModelError
from h2gen.models import resolve
from h2gen.settings.profiles.published import published_model

def attempt(name):
    try:
        return bool(published_model(resolve(name)))
    except ModelError as error:
        return str(error)

print(json.dumps([attempt(name) for name in json.loads(sys.argv[1])]))
"""


def tell(home: Path, attempts: list, story: str = STORY, **environment: str) -> list:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings = {
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(h2gen.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", story, json.dumps(attempts)],
        capture_output=True, text=True, timeout=600, env=kept | settings | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Retrying" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def told(flux_folder, tmp_path_factory):
    """Every request that the stand-in can answer, in one process; then the same again without a network."""
    root = tmp_path_factory.mktemp("hub")
    (root / "empty").mkdir()
    (root / "empty" / "README.md").write_text("nothing here")
    mixed = Path(shutil.copytree(flux_folder, root / "mixed"))
    (mixed / "flux1-dev.safetensors").write_bytes(b"large")
    (mixed / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"large")
    (mixed / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"large")
    file = checkpoints.save_single(small.flux_transformer(), root / "flux.safetensors")
    repos = {
        "black-forest-labs/FLUX.1-dev": mixed,
        "black-forest-labs/FLUX.1-schnell": 403,
        "someone/base": flux_folder,
        "someone/empty": root / "empty",
        "someone/ill": 400,
    }
    attempts = [["dev"], ["schnell"], ["no/such"], ["someone/empty"], ["someone/ill"], [str(file), "someone/base"]]
    attempts += [[str(file), "schnell"], ["dev"]]
    names = ["dev", "schnell", "missing", "empty", "ill", "file", "gated base", "dev again", "downloaded", "local"]
    with serve(repos) as (address, asked):
        online = dict(zip(names, tell(root / "home", attempts, HF_ENDPOINT=address), strict=True))
    offline = tell(root / "home", [["dev"], ["krea"]], HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
    return {"online": online, "asked": asked, "offline": offline}


def test_every_message_is_one_printable_line(told):
    texts = [text for text in (*told["online"].values(), *told["offline"]) if isinstance(text, str)]
    assert all(text.isprintable() and len(text) < 500 for text in texts)


def test_a_model_is_fetched_and_loaded(told):
    assert told["online"]["dev"] == "FluxPipeline"


def test_only_what_the_pipeline_needs_is_fetched(told):
    fetched = {path.split("/resolve/")[1].split("/", 1)[1] for path in told["asked"] if "FLUX.1-dev/resolve" in path}
    assert "vae/diffusion_pytorch_model.safetensors" in fetched and "tokenizer/tokenizer.json" in fetched
    assert not fetched & {
        "flux1-dev.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.bin",
    }


def test_a_single_file_does_not_fetch_the_transformer_of_its_base(told):
    assert told["online"]["file"] == "FluxPipeline"
    fetched = [path for path in told["asked"] if "someone/base/resolve" in path]
    assert any(path.endswith("transformer/config.json") for path in fetched)
    assert not any("transformer/diffusion" in path for path in fetched)


@pytest.mark.parametrize("name", ["schnell", "gated base"])
def test_a_gated_model_is_told_where_to_accept_its_licence(told, name):
    message = told["online"][name]
    assert "https://huggingface.co/black-forest-labs/FLUX.1-schnell" in message
    assert "hf auth login" in message and "HF_TOKEN" in message


def test_a_repository_that_is_not_there_is_named(told):
    assert "no repository 'no/such'" in told["online"]["missing"]


def test_a_repository_without_a_pipeline_is_named(told):
    assert "'someone/empty'" in told["online"]["empty"] and "model_index.json" in told["online"]["empty"]


def test_a_hub_that_is_out_of_order_is_not_the_models_fault(told):
    assert "someone/ill" in told["online"]["ill"] and "damaged" not in told["online"]["ill"]


def test_what_was_fetched_is_taken_without_asking_again(told):
    assert told["online"]["dev again"] == "FluxPipeline"
    assert told["asked"].count("black-forest-labs/FLUX.1-dev/resolve/main/model_index.json") <= 3  # two HEADs and a GET


def test_without_a_network_what_was_fetched_still_loads(told):
    assert told["offline"][0] == "FluxPipeline"


def test_without_a_network_what_was_not_fetched_says_so(told):
    assert "not on this machine and huggingface.co cannot be reached" in told["offline"][1]


def test_without_a_network_one_attempt_and_one_line_are_enough(tmp_path):
    message, *_ = tell(tmp_path, [["dev"]], HF_ENDPOINT="http://127.0.0.1:9", NO_PROXY="*")
    assert message == (
        "'dev' is not on this machine and huggingface.co cannot be reached; go online to download it (33.7 GB); "
        "HF_HUB_OFFLINE must not be set."
    )


def test_what_lies_on_this_machine_is_known_without_a_network(told):
    assert told["offline"][-2:] == [[True, True, False], True]


def test_only_the_configuration_is_fetched_to_see_whether_a_repository_is_a_relative_of_dev(tmp_path):
    for name, blocks in (("tuned", 19), ("other", 8)):
        (tmp_path / name / "transformer").mkdir(parents=True)
        config = {"_class_name": "FluxTransformer2DModel", "num_layers": blocks, "num_single_layers": 38}
        (tmp_path / name / "transformer" / "config.json").write_text(json.dumps(config | {"guidance_embeds": True}))
        (tmp_path / name / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"large")
    names = ["someone/tuned", "someone/other", "no/such"]
    repos = {f"someone/{name}": tmp_path / name for name in ("tuned", "other")}
    with serve(repos) as (address, asked):
        tuned, other, missing = tell(tmp_path / "home", names, RELATIVE, HF_ENDPOINT=address)
    offline = tell(tmp_path / "home", ["someone/tuned", "no/such"], RELATIVE, HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
    assert (tuned, other) == (True, False) and "no repository 'no/such'" in missing
    assert offline[0] is True and "go online" in offline[1]
    assert {path.split("/resolve/main/")[-1] for path in asked if path.startswith("someone")} == {
        "transformer/config.json"
    }


def test_the_token_goes_with_the_configuration_of_a_gated_base_too(flux_folder, tmp_path):
    file = checkpoints.save_single(small.flux_transformer(), tmp_path / "flux.safetensors")
    with serve({"someone/gated": flux_folder}, token="hf_secret") as (address, asked):
        attempts = [[str(file), "someone/gated"]]
        told = tell(tmp_path / "home", attempts, HF_ENDPOINT=address, HF_TOKEN="hf_secret")
        refused = tell(tmp_path / "other", attempts, HF_ENDPOINT=address)
        first = len(asked)
        again = tell(tmp_path / "home", attempts, HF_ENDPOINT=address)
    assert told[0] == again[0] == "FluxPipeline"
    assert "'someone/gated' is gated" in refused[0] and "hf auth login" in refused[0]
    assert len(asked) == first  # what is on the disk is not asked for


def test_a_repository_that_has_only_variants_is_fetched(tmp_path):
    small.flux_pipeline().save_pretrained(tmp_path / "half", variant="fp16")
    with serve({"someone/half": tmp_path / "half"}) as (address, _):
        assert tell(tmp_path / "home", [["someone/half"]], HF_ENDPOINT=address)[0] == "FluxPipeline"


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nowhere.invalid"], ids=["refused", "no address"])
def test_what_is_incomplete_without_a_network_is_told_what_is_missing(flux_folder, tmp_path, endpoint):
    with serve({"someone/flux": flux_folder}) as (address, _):
        tell(tmp_path, [["someone/flux"]], HF_ENDPOINT=address)
    next(tmp_path.glob("hub/models--*/snapshots/*/vae/*.safetensors")).unlink()
    message = tell(tmp_path, [["someone/flux"]], HF_ENDPOINT=endpoint, NO_PROXY="*")[0]
    assert "'someone/flux' is not complete on this machine, and huggingface.co cannot be reached" in message
    assert "vae' has no weights" in message and "run `hf download someone/flux --include 'vae/*'`" in message
