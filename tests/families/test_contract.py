"""Every family fulfils the interface: what it says about a transformer matches diffusers' transformer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import pytest
import torch

from h2gen.errors import CacheError
from h2gen.families import FAMILIES, PIPELINES, family_of, recognize
from tests import checkpoints, small
from tests.matrix.drive import attention_of

TRANSFORMERS: dict[str, Callable[..., Any]] = {
    "FluxTransformer2DModel": small.flux_transformer,
    "Flux2Transformer2DModel": small.flux2_transformer,
    "ChromaTransformer2DModel": small.chroma_transformer,
    "Flux3Transformer2DModel": small.flux3_transformer,
    "HunyuanVideoTransformer3DModel": small.hunyuan_video_transformer,
    "WanTransformer3DModel": small.wan_transformer,
    "QwenImageTransformer2DModel": small.qwen_image_transformer,
    "ZImageTransformer2DModel": small.z_image_transformer,
}


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def named(module: torch.nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **given}


every_family = pytest.mark.parametrize("name", FAMILIES)


def test_this_module_tests_all_families() -> None:
    assert TRANSFORMERS.keys() == FAMILIES.keys()


def test_what_a_family_names_exists_in_diffusers() -> None:
    assert all(hasattr(diffusers, name) for name in (*FAMILIES, *PIPELINES))
    assert all(family.title for family in FAMILIES.values())
    configs = {name for family in FAMILIES.values() for name in family.diffusers_caches}
    assert all(hasattr(diffusers, name) or hasattr(diffusers.hooks, name) for name in configs)


@every_family
def test_a_transformer_is_of_its_family_by_its_class_a_derived_one_and_compiled(name: str) -> None:
    transformer = TRANSFORMERS[name]()
    assert family_of(transformer) is FAMILIES[name]
    assert family_of(torch.compile(transformer, backend="eager")) is FAMILIES[name]
    transformer.__class__ = type("Derived", (type(transformer),), {})
    assert family_of(transformer) is FAMILIES[name]


def test_a_model_of_no_family_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(CacheError) as caught:
        family_of(torch.nn.Linear(1, 1))
    assert all(name in str(caught.value) for name in (*FAMILIES, "Linear has"))


@every_family
def test_a_single_file_is_recognised_and_fits_its_own_config(name: str) -> None:
    transformer, family = TRANSFORMERS[name](), FAMILIES[name]
    for tensors in (transformer.state_dict(), checkpoints.original_names(transformer)):
        assert recognize(tensors.keys()) is family
        assert family.file_traits(shapes(tensors)) == family.config_traits(transformer.config)
    other = TRANSFORMERS[name](layers=1)
    assert family.file_traits(shapes(other.state_dict())) != family.config_traits(transformer.config)


def test_a_single_file_of_no_family_is_not_recognised() -> None:
    assert recognize(["conv.weight"]) is None
    assert recognize([]) is None


@every_family
@torch.no_grad()
def test_example_inputs_run_and_the_modulated_input_is_what_attention_sees(name: str) -> None:
    transformer, family = TRANSFORMERS[name](), FAMILIES[name]
    first = family.block_lists(transformer)[0][0]
    expected: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []
    handles = [
        first.register_forward_pre_hook(
            lambda block, args, given: expected.append(family.modulated_input(block, named(block, args, given))),
            with_kwargs=True,
        ),
        attention_of(first).register_forward_pre_hook(
            lambda _module, args, given: seen.append(given["hidden_states"] if "hidden_states" in given else args[0]),
            with_kwargs=True,
        ),
    ]
    inputs = family.at(family.example_inputs(transformer, image_tokens=16, text_tokens=5), torch.tensor([0.5]))
    output = family.velocity(transformer(**inputs))
    for handle in handles:
        handle.remove()
    assert output.shape == family.pass_inputs(inputs).latents.shape
    assert family.pass_inputs(inputs).timestep == 0.5
    assert family.pass_inputs(inputs).image_tokens == (32 if name == "ZImageTransformer2DModel" else 16)
    if name == "Flux3Transformer2DModel":  # its blocks join text and image before
        seen[0] = seen[0][:, -16:]
    assert torch.equal(expected[0], seen[0])


def test_a_single_file_of_flux3_tells_the_base_model_from_the_distilled_one() -> None:
    family = FAMILIES["Flux3Transformer2DModel"]
    for flow_map, word in ((False, "is not distilled"), (True, "is distilled")):
        transformer = small.flux3_transformer(flow_map=flow_map)
        for tensors in (transformer.state_dict(), checkpoints.original_names(transformer)):
            assert family.file_traits(shapes(tensors)) == ("has 2 + 6 blocks", word)
            assert family.config_traits(transformer.config) == ("has 2 + 6 blocks", word)


@pytest.mark.parametrize("name", ["QwenImageTransformer2DModel", "ZImageTransformer2DModel"])
def test_a_single_list_of_blocks_is_cut_at_a_third(name: str) -> None:
    family = FAMILIES[name]
    for layers, structure in ((6, 2), (5, 2), (3, 1)):
        transformer = TRANSFORMERS[name](layers=layers)
        first, second = family.block_lists(transformer)
        blocks = transformer.layers if hasattr(transformer, "layers") else transformer.transformer_blocks
        assert [*first, *second] == list(blocks) and len(first) == structure
        assert family.stages(transformer.config) == (structure, layers - structure)


def test_the_stages_of_flux3_are_a_third_and_the_rest_of_its_joint_blocks() -> None:
    family = FAMILIES["Flux3Transformer2DModel"]
    for joint, structure in ((28, 9), (6, 2), (3, 1)):
        transformer = small.flux3_transformer(single_layers=joint, num_attention_heads=1)
        first, second = family.block_lists(transformer)
        assert [*first, *second] == list(transformer.single_transformer_blocks) and len(first) == structure
        assert {kind: len(blocks) for kind, blocks in family.own_blocks(transformer).items()} == {
            "text": 2, "image": 2, "references": 2
        }  # fmt: skip
