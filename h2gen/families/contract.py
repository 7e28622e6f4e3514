"""The interface of a family: everything about one transformer architecture that the rest of h2gen needs.

The first part is what the cache needs to know about a transformer, the second what loading and generating need to know
about its pipelines, the third what the evaluation needs. Torch and diffusers are imported inside methods only, so that
the catalogue can be read without loading them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from h2gen.errors import SettingError
from h2gen.families.defaults import ModelDefaults
from h2gen.families.given import SAMPLES, PassInputs, PictureInputs
from h2gen.families.prompt_end import PromptEnd
from h2gen.families.single_file import Kind, block_counts, input_channels, takes_guidance, traits
from h2gen.families.tasks import Limits
from h2gen.families.token_grid import grid_of, unpacked
from h2gen.families.unused import Unused

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

__all__ = ["SAMPLES", "Family", "PassInputs", "PictureInputs"]


class Family(ABC):
    """One transformer architecture and the pipelines that use it. Stateless; there is one instance per family."""

    title: ClassVar[str]
    """Display name, such as ``FLUX.1``."""
    transformer: ClassVar[str]
    """The transformer's class in diffusers, such as ``FluxTransformer2DModel``."""
    tasks: ClassVar[Mapping[str, Mapping[str, str]]]
    """What checkpoints of this family make pictures from, and the pipeline in diffusers that does it.

    By the pipeline that a checkpoint's ``model_index.json`` names, such as ``FluxPipeline``, then by task: ``text``
    (only a prompt), ``image`` (image-to-image), ``inpaint``, ``edit`` (reference pictures), ``fill`` (a model made for
    inpainting), ``control`` (a model made for control pictures) and ``controlnet``, both also followed by ``image`` or
    ``inpaint``. All pipelines of one checkpoint are built from the same parts."""

    with_control_lora: ClassVar[Mapping[str, str]] = {}
    """The pipeline that a Control LoRA makes of another one: by it, their tasks are found in ``tasks``."""
    limits: ClassVar[Mapping[str, Limits]] = {}
    """Of pipelines that take more than one input picture, or not every size; by their names."""
    held_per_token: ClassVar[float] = 26.0
    """Values that a forward pass holds at most besides the weights, per token and channel of its streams: counted on
    torch's meta device at 1024x1024, for attention that does not keep its scores."""
    pads_text: ClassVar[bool] = True
    """Whether ``encode`` pads all texts to one length, so that different prompts fit into one batch."""
    marks: ClassVar[tuple[str, ...]]
    """Parts of tensor names: a single file holds this transformer if any of its tensors has one of them in its name."""
    told_by_name: ClassVar[tuple[Kind, ...]] = ()
    """What a file with such tensors holds instead if it is named so."""
    with_pictures: ClassVar[Mapping[int, tuple[str, str]]] = {}
    """Models of this transformer that take a picture besides the text: by input channels, the model's name and its
    pipeline in diffusers."""
    makes_video: ClassVar[bool] = False
    """Whether its pipelines make videos: then ``defaults`` has ``frames`` and ``fps``."""
    frame_step: ClassVar[int] = 1
    """The numbers of frames that a video can have: 1, and any multiple of this more, such as 5, 9, 13 for 4."""
    guides_in_one_pass: ClassVar[bool] = False
    """Whether its pipelines run both passes of true guidance as one batch (see ``passes_at_once``)."""
    splits_tokens: ClassVar[bool] = False
    """Whether diffusers can split its text and image tokens among several devices (``_cp_plan``)."""
    lora_layers: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """By list of blocks, the layers of a block that LoRAs train, all under their original names. Only for families
    whose LoRA loader in diffusers does not read the names that other programs use."""
    lora_words: ClassVar[Mapping[str, str]] = {}
    """Parts of layer names as other programs write them, with the original spelling of each."""
    redux: ClassVar[str | None] = None
    """The pipeline in diffusers that turns a picture into text tokens, if there is one."""
    diffusers_caches: ClassVar[frozenset[str]] = frozenset()
    """Which of diffusers' own caches work on this transformer, by config class, such as ``MagCacheConfig``."""

    # What the cache needs. A stage is called "structure" or "detail". Streams are the tokens that go from block to
    # block: ``(text, image)``, each ``(B, N, D)``, or one concatenated stream with the text first. A block must return
    # the kind of streams that the next one takes, of the same shapes. Defaults are those of diffusers' Flux models.

    per_picture: ClassVar[frozenset[str]] = frozenset({"hidden_states", "encoder_hidden_states", "temb"})
    """The block arguments that have one row per picture. All others, such as rotary embeddings, serve the whole batch.
    An argument named here may still have a single row for all pictures."""
    text_last: ClassVar[bool] = False
    """Whether the text comes last in a concatenated stream."""
    shifts_by_size: ClassVar[bool] = True
    """Whether the pipelines give the picture's size to a scheduler that shifts its schedule by it."""
    scheduler: ClassVar[Mapping[str, Any]] = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    """The configuration of its published checkpoints' scheduler, as far as the choice of solvers depends on it."""
    unsplittable: ClassVar[tuple[str, ...]] = SAMPLES
    """The forward-pass arguments that cannot be divided among the pictures of a batch. With one of them given, the
    batch gets one decision instead of one per picture."""

    def block_lists(self, transformer: nn.Module) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        """The blocks of the structure stage and of the detail stage, in the order in which the model calls them."""
        return list(transformer.transformer_blocks), list(transformer.single_transformer_blocks)  # type: ignore[arg-type]

    def own_blocks(self, transformer: nn.Module) -> Mapping[str, Sequence[nn.Module]]:
        """Blocks before the stages that see tokens of one kind only: by kind, ``text``, ``image`` or ``references``.

        They belong to no stage. A block takes the tokens, ``(B, N, D)``, as its first argument and returns them.
        """
        return {}

    def constants(self, arguments: Mapping[str, Any]) -> Mapping[str, tuple[Any, ...]]:
        """What alone decides the result of the own blocks of a kind, tensors and other values.

        Only for kinds whose result is the same at every step as long as these values are. Own blocks of other kinds
        depend on the timestep.

        Args:
            arguments: of the transformer's forward pass.
        """
        return {}

    def mean_velocity(self, transformer_config: Mapping[str, Any]) -> bool:
        """Whether a transformer returns the mean velocity on the way to a target time, not the one at its own time.

        Such outputs cannot be forecast from those of other steps, which were on the way to other times.
        """
        return False

    def pass_inputs(self, arguments: Mapping[str, Any]) -> PassInputs:
        """What the cache reads of a forward pass's arguments, by their names in the transformer's ``forward``."""
        return PassInputs(
            arguments["hidden_states"],
            arguments["encoder_hidden_states"],
            arguments["timestep"],
            arguments.get("img_ids"),
            arguments.get("txt_ids"),
        )

    def passes_at_once(self, arguments: Mapping[str, Any], callers: Callable[[], Iterable[Any]]) -> int:
        """The passes of true guidance that a forward pass runs at once, one after the other in its batch.

        Args:
            arguments: of the transformer's forward pass.
            callers: finds what of diffusers the calling functions know: pipelines, schedulers and models.
        """
        return 1

    def can_split(self, arguments: Mapping[str, Any]) -> bool:
        """Whether blocks can run for only some pictures of a batch in a forward pass with these arguments."""
        attention = {*(arguments.get("joint_attention_kwargs") or ())}
        return attention <= {"scale"} and all(arguments.get(name) is None for name in self.unsplittable)

    def block_streams(self, stage: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        """The streams that a block of a stage was called with."""
        image = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        beside = args[1] if len(args) > 1 else None
        text = kwargs.get("encoder_hidden_states", beside)
        return (image,) if text is None else (text, image)

    def output_streams(self, stage: str, output: Any) -> tuple[torch.Tensor, ...]:
        """The streams in what a block of a stage returned, in the order of ``block_streams``."""
        return output if isinstance(output, tuple) else (output,)

    def block_output(self, stage: str, streams: tuple[torch.Tensor, ...]) -> Any:
        """The streams as a block of a stage returns them: the inverse of ``output_streams``."""
        return streams if len(streams) > 1 else streams[0]

    def check_streams(self, stage: str, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> None:  # noqa: B027
        """Raise a ``CacheError`` if a stage's first block does not return what it takes."""

    @abstractmethod
    def added_between(self, stage: str, blocks: int, arguments: Mapping[str, Any]) -> Sequence[torch.Tensor]:
        """What the model itself adds to the image tokens between a stage's first and last block (ControlNet).

        It is an input of the step, not part of a kept residual. A tensor may be shorter than the last stream: it then
        belongs to that stream's last tokens. If the model adds in place, the tensor kept as the first block's output
        already holds the first addition, which must then be left out here.

        Args:
            blocks: number of blocks in the stage.
            arguments: of the transformer's forward pass.
        """

    def token_grid(self, image_ids: torch.Tensor | None, image_tokens: int) -> tuple[int, int] | None:
        """The rows and columns of the picture's tokens, where ``PassInputs`` has no grid; None if unknown.

        May wait for the device.
        """
        return grid_of(image_ids, image_tokens)

    def velocity(self, output: Any) -> torch.Tensor:
        """The velocity, in the shape of the latents, in what the transformer returned."""
        return output[0]  # type: ignore[no-any-return]

    def with_velocity(self, output: Any, velocity: torch.Tensor) -> Any:
        """The same kind of output with another velocity."""
        return (velocity, *output[1:]) if isinstance(output, tuple) else replace(output, sample=velocity)

    def only_velocity(self, output: Any) -> bool:
        """Whether the velocity is all that the transformer returned, so that it can be returned without running it."""
        return len(output) == 1

    # What loading and generating need.

    def prefix(self, tensors: Collection[str]) -> str | None:
        """The prefix of this transformer's names in a single file with these names, such as ``model.diffusion_model.``.

        None if the file does not hold this transformer.
        """
        found = (name[: name.index(mark)] for name in tensors for mark in self.marks if mark in name)
        return next(found, None)

    def file_traits(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """What a single file must have in common with its base, such as ``has 19 + 38 blocks``.

        diffusers builds the transformer from the config of the base.

        Args:
            shapes: of the file's tensors, by name.
        """
        return traits(*block_counts(shapes), takes_guidance(shapes), input_channels(shapes))

    def config_traits(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """The same traits, in the same words, of a transformer with this ``config.json``."""
        keys = ("num_layers", "num_single_layers", "guidance_embeds", "in_channels")
        return traits(*(config.get(key) for key in keys))

    def completed(self, model_index: Mapping[str, Any], scheduler_config: Mapping[str, Any]) -> Mapping[str, Any]:
        """A local checkpoint's ``model_index.json``, with what only its scheduler tells, such as ``is_distilled``."""
        return model_index

    @abstractmethod
    def defaults(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> ModelDefaults:
        """The defaults of a local checkpoint without a ``defaults.toml``.

        Args:
            transformer_config: of its ``transformer/config.json``; empty if that cannot be read.
            model_index: of its ``model_index.json``; empty if that cannot be read.
        """

    def stages(self, transformer_config: Mapping[str, Any]) -> tuple[int, int] | None:
        """The numbers of blocks of the structure stage and of the detail stage; None if the config does not say."""
        counts = [transformer_config.get(key) for key in ("num_layers", "num_single_layers")]
        return (counts[0], counts[1]) if all(isinstance(count, int) for count in counts) else None  # type: ignore[return-value]

    def unused(
        self, pipeline: str, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]
    ) -> Mapping[str, Unused]:
        """The settings that a model of this family does not use, by name; it uses all others.

        Args:
            pipeline: of the task, such as ``FluxPipeline``.
            transformer_config, model_index: as in ``defaults``.
        """
        return {}

    def check_cfg(self, pipe: Any, cfg: float) -> None:
        """Check that a loaded pipeline takes a scale of true guidance.

        Raises:
            SettingError: it does not.
        """
        name, index = type(pipe).__name__, getattr(pipe, "config", {})
        unused = self.unused(name, pipe.transformer.config, index).get("cfg")
        if cfg > 1 and unused is not None:
            raise SettingError(f"cfg is {cfg:g}, but this model {unused.why}.")

    @abstractmethod
    def encode(self, pipe: Any, prompt: str, max_sequence_length: int) -> dict[str, torch.Tensor]:
        """A prompt as arguments of the pipeline, such as ``prompt_embeds`` of shape ``(1, tokens, width)``.

        The values are those that the pipeline would compute itself. With ``negative_`` in front, the same names take
        a negative prompt.
        """

    def text_arguments(self, encoded: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """What ``encode`` returned for a batch, one row per picture, as the pipeline takes it."""
        return dict(encoded)

    @abstractmethod
    def unread(self, pipe: Any, prompt: str, max_sequence_length: int) -> PromptEnd:
        """The end of a prompt that ``encode`` leaves out, because the text encoder takes no more tokens."""

    @abstractmethod
    def guidance_arguments(self, pipe: Any, guidance: float, cfg: float) -> dict[str, Any]:
        """The pipeline's arguments for distilled guidance and for true classifier-free guidance."""

    def picture_arguments(self, pipe: Any, task: str, given: PictureInputs) -> dict[str, Any]:
        """The pipeline's arguments for the size of its pictures, and for what they are made from besides the prompt.

        Args:
            pipe: the pipeline of the task.
            task: one of the checkpoint's ``tasks``.
            given: what the pictures are made from.
        """
        arguments: dict[str, Any] = {"width": given.size[0], "height": given.size[1]}
        if given.frames:
            arguments["num_frames"] = given.frames
        if given.pictures:
            # One for each picture of the batch: the autoencoder's sample is drawn from each one's own seed.
            arguments["image"] = [given.pictures[0]] * given.together
        if given.mask is not None:
            arguments["mask_image"] = [given.mask] * given.together
        if given.strength is not None:
            arguments["strength"] = given.strength
        return arguments

    def control_arguments(
        self,
        task: str,
        pictures: Sequence[Image.Image],
        nets: Sequence[tuple[float, int | None]] = (),
    ) -> dict[str, Any]:
        """The pipeline's arguments for control pictures; only for families with such a task.

        Args:
            task: ``control`` or ``controlnet``, alone or followed by what else the picture is made from.
            pictures: in RGB, of the picture's size; one per ControlNet.
            nets: the scale of each ControlNet, and its mode if it is a union; empty for ``control``.
        """
        raise NotImplementedError

    def with_redux(self, encoded: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """What ``encode`` returned, with Redux's tokens, ``(1, tokens, width)``; only for families with ``redux``."""
        raise NotImplementedError

    def first_frame(self, latents: torch.Tensor) -> torch.Tensor:
        """The part of the latents that a preview shows: the first frame of a video, all of a picture."""
        return latents

    def decoder_latents(
        self, tokens: torch.Tensor, grid: tuple[int, int], autoencoder: Any, decoder: Any
    ) -> torch.Tensor:
        """A picture's tokens as an autoencoder decodes them: ``(B, C, 2 * rows, 2 * columns)``, in the tokens' dtype.

        Args:
            tokens: of the finished picture, ``(B, rows * columns, 4 * C)``.
            grid: rows and columns.
            autoencoder: the pipeline's own.
            decoder: what will decode them: the same, or one that stands in for it.
        """
        config = decoder.config
        latents: torch.Tensor = unpacked(tokens, grid) / config.scaling_factor + (config.shift_factor or 0.0)
        return latents

    def published(self, transformer_config: Mapping[str, Any], model_index: Mapping[str, Any]) -> str:
        """The model, such as ``FLUX.1-dev``, that this is, or was made from; "" if nobody published plans for it."""
        return ""

    # What the evaluation needs.

    def example_inputs(self, transformer: Any, image_tokens: int, text_tokens: int) -> dict[str, Any]:
        """Random arguments for one forward pass, all but ``timestep``, on the transformer's device and in its dtype.

        These are common to all families; a family adds its own.
        """
        import torch

        config, weight = transformer.config, transformer.proj_out.weight
        generator = torch.Generator("cpu").manual_seed(0)
        side = max(1, int(image_tokens**0.5))
        ids = torch.zeros(text_tokens + image_tokens, len(config.axes_dims_rope))
        ids[text_tokens:, 1] = torch.arange(image_tokens) // side
        ids[text_tokens:, 2] = torch.arange(image_tokens) % side
        shapes = {
            "hidden_states": (1, image_tokens, config.in_channels),
            "encoder_hidden_states": (1, text_tokens, config.joint_attention_dim),
        }
        noise = {name: torch.randn(shape, generator=generator).to(weight) for name, shape in shapes.items()}
        ids = ids.to(weight.device)
        return {**noise, "txt_ids": ids[:text_tokens], "img_ids": ids[text_tokens:], "return_dict": False}

    def at(self, inputs: Mapping[str, Any], timestep: torch.Tensor) -> dict[str, Any]:
        """The arguments of one step: ``example_inputs``, of which the latents are another object at each step.

        Args:
            timestep: ``(1,)``, from 1 to 0.
        """
        return {**inputs, "hidden_states": inputs["hidden_states"].detach(), "timestep": timestep}

    def head(self, transformer: Any) -> tuple[nn.Module, nn.Module | None]:
        """The layer that takes the tokens of the last block as its first argument, and the one that makes the velocity
        of what this returns; None if the first layer does both."""
        return transformer.norm_out, transformer.proj_out

    def guidance_weight(self, cfg: float) -> float:
        """What the difference between both passes of true guidance is multiplied by, at a scale of ``cfg``."""
        return cfg

    @abstractmethod
    def modulated_input(self, block: Any, arguments: Mapping[str, Any]) -> torch.Tensor:
        """The image tokens as the attention of the first block sees them: normalised, and modulated by the timestep.

        Args:
            block: the first block of the structure stage.
            arguments: of its forward pass, by name.
        """

    def teacache_polynomial(self, transformer: Any) -> tuple[float, ...]:
        """TeaCache's published rescaling polynomial, highest power first; the identity if none was published."""
        return (1.0, 0.0)
