"""Flux pipelines of a few thousand random weights, made by diffusers itself, for tests that run real code.

All are float32 on the CPU and the same for the same seed. The VAE shrinks 8 times and the transformer packs 2 x 2, as
real ones do, so a 64 x 64 picture is 16 image tokens.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    Flux3DistilledModularPipeline,
    Flux3ModularPipeline,
    Flux3Transformer2DModel,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxPipeline,
    FluxPriorReduxPipeline,
    FluxTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

BUNDLED = Path(__file__).parents[1] / "h2gen" / "models" / "tiny"
LATENTS = 4  # latent channels; packed 2 x 2 they are the transformer's 16 input channels
HIDDEN = 32  # the width of the text encoders
SIZE = 64  # pixels

# Real checkpoints pick three layers far apart in a deep text encoder, so a small one has to be deep as well.
KLEIN_LAYERS = 28
MISTRAL_LAYERS = 31
ENCODER2_WIDTH = 16

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fix torch's random numbers inside, and leave the caller's as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


LIVELY = ("norm1", "norm.linear", "modulation", "_mod.", "scale_shift_table", "proj_out.")


def enliven(model: torch.nn.Module, gain: float = 3.0) -> torch.nn.Module:
    """Make a random transformer's gates and output large enough for each block to matter, as a trained one's are."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in LIVELY):
                parameter.mul_(gain)
    return model.eval()


def flux_transformer(
    seed: int = 0, layers: int = 3, single_layers: int = 4, guidance_embeds: bool = True, **overrides: Any
) -> FluxTransformer2DModel:
    config = {
        "in_channels": 4 * LATENTS,
        "num_layers": layers,
        "num_single_layers": single_layers,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": HIDDEN,
        "pooled_projection_dim": HIDDEN,
        "guidance_embeds": guidance_embeds,
        "axes_dims_rope": (4, 6, 6),
        **overrides,
    }
    with seeded(seed):
        return enliven(FluxTransformer2DModel(**config))


def flux2_transformer(
    seed: int = 0, layers: int = 3, single_layers: int = 4, guidance_embeds: bool = True, **overrides: Any
) -> Flux2Transformer2DModel:
    config = {
        "in_channels": 4 * LATENTS,
        "num_layers": layers,
        "num_single_layers": single_layers,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 3 * ENCODER2_WIDTH,
        "timestep_guidance_channels": 32,
        "guidance_embeds": guidance_embeds,
        "axes_dims_rope": (4, 4, 4, 4),
        **overrides,
    }
    with seeded(seed):
        return enliven(Flux2Transformer2DModel(**config))


def flux3_transformer(
    seed: int = 0, layers: int = 2, single_layers: int = 6, flow_map: bool = False, **overrides: Any
) -> Flux3Transformer2DModel:
    config = {
        "in_channels": 4 * LATENTS,
        "cond_in_channels": 4 * LATENTS,
        "num_layers": layers,
        "num_single_layers": single_layers,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 8 * ENCODER2_WIDTH,
        "timestep_channels": 32,
        "axes_dims_rope": (4, 4, 4, 4),
        "flow_map": flow_map,
        **overrides,
    }
    with seeded(seed):
        return enliven(Flux3Transformer2DModel(**config))


@contextmanager
def no_warning_of_diffusers_own_import() -> Iterator[None]:
    """diffusers warns about a name that its own modules import from where it is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*FluxPosEmbed", category=FutureWarning)
        yield


def chroma_transformer(
    seed: int = 0, layers: int = 3, single_layers: int = 4, **overrides: Any
) -> ChromaTransformer2DModel:
    config = {
        "in_channels": 4 * LATENTS,
        "num_layers": layers,
        "num_single_layers": single_layers,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": HIDDEN,
        "axes_dims_rope": (4, 6, 6),
        "approximator_num_channels": 32,
        "approximator_hidden_dim": 32,
        "approximator_layers": 2,
        **overrides,
    }
    with seeded(seed), no_warning_of_diffusers_own_import():
        model = ChromaTransformer2DModel(**config)
    model.register_to_config(guidance_embeds=False)  # published ones have it, and inpainting reads it
    return enliven(model)


def qwen_image_transformer(seed: int = 0, layers: int = 6, **overrides: Any) -> QwenImageTransformer2DModel:
    config = {
        "in_channels": 4 * LATENTS,
        "out_channels": LATENTS,
        "num_layers": layers,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": ENCODER2_WIDTH,
        "axes_dims_rope": (4, 6, 6),
        **overrides,
    }
    with seeded(seed):
        return enliven(QwenImageTransformer2DModel(**config))


def z_image_transformer(seed: int = 0, layers: int = 6, **overrides: Any) -> ZImageTransformer2DModel:
    config = {
        "in_channels": LATENTS,
        "dim": 32,
        "n_layers": layers,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": ENCODER2_WIDTH,
        "axes_dims": [4, 6, 6],
        **overrides,
    }
    with seeded(seed):
        return enliven(ZImageTransformer2DModel(**config))


def controlnet(seed: int = 0, layers: int = 2, single_layers: int = 2, **overrides: Any) -> FluxControlNetModel:
    """A ControlNet: a union of ``num_mode`` kinds, or XLabs' with ``conditioning_embedding_channels``."""
    config = {
        "in_channels": 4 * LATENTS,
        "num_layers": layers,
        "num_single_layers": single_layers,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": HIDDEN,
        "pooled_projection_dim": HIDDEN,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 6, 6),
        **overrides,
    }
    with seeded(seed), no_warning_of_diffusers_own_import():
        net = FluxControlNetModel(**config)
        # A fresh ControlNet adds nothing: its output layers start at zero.
        for layer in [*net.controlnet_blocks, *net.controlnet_single_blocks, net.controlnet_x_embedder]:
            torch.nn.init.normal_(layer.weight, std=0.1)
    return net.eval()


UNION = {"num_mode": 7}
XLABS = {"in_channels": 64, "single_layers": 0, "patch_size": 2, "conditioning_embedding_channels": 16}
"""XLabs' ControlNets read the picture's pixels through a few convolutions of 16 channels, and no latents."""


def redux_prior(seed: int = 0) -> FluxPriorReduxPipeline:
    """Redux's own small model: 4 x 4 patches of a picture become 16 text tokens."""
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    with seeded(seed):
        return quiet(
            FluxPriorReduxPipeline(
                image_encoder=SiglipVisionModel(vision).eval(),
                feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
                image_embedder=ReduxImageEncoder(redux_dim=16, txt_in_features=HIDDEN).eval(),
            )
        )


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def flux_vae(seed: int = 0, latent_channels: int = LATENTS) -> AutoencoderKL:
    with seeded(seed):
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 4, 8, 8),
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=2,
            sample_size=SIZE,
            scaling_factor=1.0,
            shift_factor=0.0,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval()


def flux2_vae(seed: int = 0) -> AutoencoderKLFlux2:
    with seeded(seed):
        return AutoencoderKLFlux2(
            block_out_channels=(4, 4, 8, 8),
            layers_per_block=1,
            latent_channels=LATENTS,
            norm_num_groups=2,
            sample_size=SIZE,
        ).eval()


def qwen_image_vae(seed: int = 0) -> AutoencoderKLQwenImage:
    with seeded(seed):
        return AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=LATENTS,
            num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 2.0, 2.5, 1.0],
        ).eval()


def flux_text_encoders(seed: int = 0, clip_length: int = 32) -> dict[str, Any]:
    """Small CLIP and T5 encoders with the bundled checkpoint's tokenizers; a shorter text is faster."""
    clip_tokens = CLIPTokenizer.from_pretrained(BUNDLED / "tokenizer", model_max_length=clip_length)
    t5_tokens = T5TokenizerFast.from_pretrained(BUNDLED / "tokenizer_2")
    clip = CLIPTextConfig(
        vocab_size=len(clip_tokens),
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=HIDDEN,
        max_position_embeddings=clip_tokens.model_max_length,
        bos_token_id=clip_tokens.bos_token_id,
        eos_token_id=clip_tokens.eos_token_id,
        pad_token_id=clip_tokens.pad_token_id,
    )
    t5 = T5Config(vocab_size=len(t5_tokens), d_model=HIDDEN, d_kv=16, d_ff=HIDDEN, num_layers=2, num_heads=2)
    with seeded(seed):
        return {
            "text_encoder": CLIPTextModel(clip).eval(),
            "tokenizer": clip_tokens,
            "text_encoder_2": T5EncoderModel(t5).eval(),
            "tokenizer_2": t5_tokens,
        }


def flux_pipeline(
    cls: type = FluxPipeline, *, seed: int = 0, transformer: FluxTransformer2DModel | None = None, **overrides: Any
) -> Any:
    """Any pipeline class of FLUX.1. ``overrides`` go to ``flux_transformer`` if none is given."""
    latent = 4 * LATENTS
    if cls is FluxFillPipeline:  # picture, masked picture, and the mask at full resolution
        overrides = {"in_channels": 2 * latent + 4 * 64, "out_channels": latent, **overrides}
    if cls is FluxControlPipeline:
        overrides = {"in_channels": 2 * latent, "out_channels": latent, **overrides}
    parts = {
        "transformer": flux_transformer(seed, **overrides) if transformer is None else transformer,
        "vae": flux_vae(seed),
        "scheduler": scheduler(),
        **flux_text_encoders(seed),
    }
    if cls is FluxControlNetPipeline:
        parts["controlnet"] = controlnet(seed)
    return quiet(cls(**parts))


def chroma_pipeline(
    *, seed: int = 0, transformer: ChromaTransformer2DModel | None = None, **overrides: Any
) -> ChromaPipeline:
    encoders = flux_text_encoders(seed)
    return quiet(
        ChromaPipeline(
            transformer=chroma_transformer(seed, **overrides) if transformer is None else transformer,
            vae=flux_vae(seed),
            scheduler=scheduler(),
            text_encoder=encoders["text_encoder_2"],
            tokenizer=encoders["tokenizer_2"],
        )
    )


def byte_tokenizer() -> Qwen2TokenizerFast:
    """One token per byte, with the chat marks that FLUX.2's prompts are wrapped in."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokens = Qwen2TokenizerFast(vocab=vocab, merges=[], additional_special_tokens=special[1:])
    tokens.chat_template = CHAT_TEMPLATE
    return tokens


def qwen3(tokens: Any, layers: int, seed: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokens),
        hidden_size=ENCODER2_WIDTH,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokens.pad_token_id,
        eos_token_id=tokens.eos_token_id,
    )
    with seeded(seed):
        return Qwen3ForCausalLM(config).eval()  # type: ignore[no-any-return]


def flux2_klein_pipeline(
    *, seed: int = 0, transformer: Flux2Transformer2DModel | None = None, is_distilled: bool = True, **overrides: Any
) -> Flux2KleinPipeline:
    tokens = byte_tokenizer()
    encoder = qwen3(tokens, KLEIN_LAYERS, seed)
    overrides.setdefault("guidance_embeds", False)
    return quiet(
        Flux2KleinPipeline(
            transformer=flux2_transformer(seed, **overrides) if transformer is None else transformer,
            vae=flux2_vae(seed),
            scheduler=scheduler(),
            text_encoder=encoder,
            tokenizer=tokens,
            is_distilled=is_distilled,
        )
    )


def flux2_pipeline(
    *, seed: int = 0, transformer: Flux2Transformer2DModel | None = None, **overrides: Any
) -> Flux2Pipeline:
    """A FLUX.2 [dev] pipeline; a tokenizer stands in for its processor, which only text needs."""
    tokens = byte_tokenizer()
    text = MistralConfig(
        vocab_size=len(tokens),
        hidden_size=ENCODER2_WIDTH,
        intermediate_size=32,
        num_hidden_layers=MISTRAL_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=512,
        pad_token_id=tokens.pad_token_id,
        eos_token_id=tokens.eos_token_id,
    )
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    with seeded(seed):
        encoder = Mistral3ForConditionalGeneration(
            Mistral3Config(text_config=text, vision_config=vision, image_token_index=1)
        ).eval()
    return quiet(
        Flux2Pipeline(
            transformer=flux2_transformer(seed, **overrides) if transformer is None else transformer,
            vae=flux2_vae(seed),
            scheduler=scheduler(),
            text_encoder=encoder,
            tokenizer=tokens,
        )
    )


def qwen_image_pipeline(
    *, seed: int = 0, transformer: QwenImageTransformer2DModel | None = None, **overrides: Any
) -> QwenImagePipeline:
    tokens = byte_tokenizer()
    text = {
        "vocab_size": len(tokens),
        "hidden_size": ENCODER2_WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        "pad_token_id": tokens.pad_token_id,
    }
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": ENCODER2_WIDTH,
    }  # fmt: skip
    with seeded(seed):
        encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()
    return quiet(
        QwenImagePipeline(
            transformer=qwen_image_transformer(seed, **overrides) if transformer is None else transformer,
            vae=qwen_image_vae(seed),
            scheduler=scheduler(),
            text_encoder=encoder,
            tokenizer=tokens,
        )
    )


def z_image_pipeline(
    *, seed: int = 0, transformer: ZImageTransformer2DModel | None = None, shift: float = 6.0, **overrides: Any
) -> ZImagePipeline:
    """Z-Image; Z-Image-Turbo has a shift of 3."""
    tokens = byte_tokenizer()
    encoder = qwen3(tokens, 3, seed)
    return quiet(
        ZImagePipeline(
            transformer=z_image_transformer(seed, **overrides) if transformer is None else transformer,
            vae=flux_vae(seed),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
            text_encoder=encoder,
            tokenizer=tokens,
        )
    )


class Processor:
    """Stands in for FLUX.3's processor of text and pictures, which needs torchvision; only text goes through it."""

    def __init__(self) -> None:
        self.tokenizer = byte_tokenizer()

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer.apply_chat_template(*args, **kwargs)

    def save_pretrained(self, folder: str) -> None:
        self.tokenizer.save_pretrained(folder)


def flux3_text_encoder(seed: int = 0) -> Qwen3VLForConditionalGeneration:
    tokens = byte_tokenizer()
    text = {
        "vocab_size": len(tokens),
        "hidden_size": ENCODER2_WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        "pad_token_id": tokens.pad_token_id,
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": ENCODER2_WIDTH,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    with seeded(seed):
        return Qwen3VLForConditionalGeneration(config).eval()


def flux3_pipeline(
    *, seed: int = 0, transformer: Flux3Transformer2DModel | None = None, flow_map: bool = False, **overrides: Any
) -> Any:
    """A modular pipeline of FLUX.3, as diffusers makes it, without the further model that rewrites prompts."""
    cls = Flux3DistilledModularPipeline if flow_map else Flux3ModularPipeline
    with no_warnings_of_diffusers():
        blocks = cls().blocks
        blocks.sub_blocks.pop("prompt_upsampler")
        pipe = cls(blocks=blocks)
        pipe.update_components(
            transformer=flux3_transformer(seed, flow_map=flow_map, **overrides) if transformer is None else transformer,
            vae=flux2_vae(seed),
            scheduler=scheduler(),
            text_encoder=flux3_text_encoder(seed),
            tokenizer=Processor(),
        )
    return pipe


@contextmanager
def no_warnings_of_diffusers() -> Iterator[None]:
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)


def save_flux3(pipe: Any, folder: Path) -> Path:
    """Save a modular pipeline as diffusers does, in a folder that names its parts like a repository on the hub."""
    repo, index = "black-forest-labs/flux-3-image-klein-base", {}
    for name in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler"):
        part = getattr(pipe, name)
        part.save_pretrained(str(folder / name))
        library = "transformers" if name in ("text_encoder", "tokenizer") else "diffusers"
        kind = "Qwen3VLProcessor" if name == "tokenizer" else type(part).__name__
        spec = {"pretrained_model_name_or_path": repo, "subfolder": name, "variant": None, "revision": None}
        index[name] = [library, kind, {"type_hint": [library, kind], **spec}]
    # Of another model, which rewrites prompts.
    index["prompt_upsampler"] = [None, None, {**spec, "type_hint": ["transformers", "Qwen3_5ForConditionalGeneration"]}]
    names = {"_class_name": type(pipe).__name__, "_blocks_class_name": type(pipe.blocks).__name__}
    (folder / "modular_model_index.json").write_text(json.dumps({**names, "_diffusers_version": "0.42.1", **index}))
    return folder


FRAMES = 9
"""Of a small video: three of its latents."""


def hunyuan_video_transformer(
    seed: int = 0, layers: int = 3, single_layers: int = 4, guidance_embeds: bool = True, **overrides: Any
) -> HunyuanVideoTransformer3DModel:
    config = {
        "in_channels": LATENTS,
        "out_channels": LATENTS,
        "num_layers": layers,
        "num_single_layers": single_layers,
        "num_refiner_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "text_embed_dim": HIDDEN,
        "pooled_projection_dim": HIDDEN,
        "guidance_embeds": guidance_embeds,
        "rope_axes_dim": (4, 6, 6),
        **overrides,
    }
    with seeded(seed):
        return enliven(HunyuanVideoTransformer3DModel(**config))


def hunyuan_video_vae(seed: int = 0) -> AutoencoderKLHunyuanVideo:
    """Shrinks 8 times in rows and columns and 4 times in time, as the published one does."""
    with seeded(seed):
        return AutoencoderKLHunyuanVideo(
            block_out_channels=(4, 4, 8, 8), layers_per_block=1, latent_channels=LATENTS, norm_num_groups=2
        ).eval()


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Like Llama 3's. It is trained on HunyuanVideo's template, which then is 95 tokens, as for the real one."""
    marks = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<pad>",
        "\n\n",
    ]
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=marks, initial_alphabet=letters, show_progress=False)
    tokens.train_from_iterator([DEFAULT_PROMPT_TEMPLATE["template"]] * 8, trainer)
    start = tokens.token_to_id(marks[0])
    tokens.post_processor = processors.TemplateProcessing(f"{marks[0]} $A", special_tokens=[(marks[0], start)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token=marks[0], eos_token=marks[1], pad_token=marks[5], padding_side="right"
    )


def hunyuan_video_pipeline(
    *, seed: int = 0, transformer: HunyuanVideoTransformer3DModel | None = None, **overrides: Any
) -> HunyuanVideoPipeline:
    tokens = llama_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_hidden_layers=3,  # the embeddings are those of the last layer but two
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokens.pad_token_id,
    )
    with seeded(seed):
        encoder = LlamaModel(config).eval()
    clip = flux_text_encoders(seed, clip_length=77)
    return quiet(
        HunyuanVideoPipeline(
            transformer=hunyuan_video_transformer(seed, **overrides) if transformer is None else transformer,
            vae=hunyuan_video_vae(seed),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
            text_encoder=encoder,
            tokenizer=tokens,
            text_encoder_2=clip["text_encoder"],
            tokenizer_2=clip["tokenizer"],
        )
    )


def wan_transformer(seed: int = 0, layers: int = 6, **overrides: Any) -> WanTransformer3DModel:
    config = {
        "in_channels": LATENTS,
        "out_channels": LATENTS,
        "num_layers": layers,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "text_dim": HIDDEN,
        "freq_dim": 32,
        "ffn_dim": 4 * HIDDEN,
        **overrides,
    }
    with seeded(seed):
        return enliven(WanTransformer3DModel(**config))


def wan_vae(seed: int = 0) -> AutoencoderKLWan:
    """Shrinks 8 times in rows and columns and 4 times in time, as the published one does."""
    with seeded(seed):
        return AutoencoderKLWan(
            base_dim=4, z_dim=LATENTS, num_res_blocks=1, latents_mean=[0.1] * LATENTS, latents_std=[1.5] * LATENTS
        ).eval()


def wan_pipeline(*, seed: int = 0, transformer: WanTransformer3DModel | None = None, **overrides: Any) -> WanPipeline:
    tokens = T5TokenizerFast.from_pretrained(BUNDLED / "tokenizer_2")
    text = UMT5Config(vocab_size=len(tokens), d_model=HIDDEN, d_kv=16, d_ff=HIDDEN, num_layers=2, num_heads=2)
    with seeded(seed):
        encoder = UMT5EncoderModel(text).eval()
    return quiet(
        WanPipeline(
            transformer=wan_transformer(seed, **overrides) if transformer is None else transformer,
            vae=wan_vae(seed),
            scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
            text_encoder=encoder,
            tokenizer=tokens,
        )
    )


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(shade: int = 60) -> Image.Image:
    """A smooth gradient: something that is not noise and not flat."""
    image = Image.new("RGB", (SIZE, SIZE))
    image.putdata([(4 * x % 256, 4 * y % 256, shade) for y in range(SIZE) for x in range(SIZE)])
    return image


def mask() -> Image.Image:
    image = Image.new("L", (SIZE, SIZE), 0)
    image.paste(255, (0, 0, SIZE // 2, SIZE))
    return image


LENGTHS = {"Flux2": 64, "ZImage": 64, "QwenImage": 256}
"""Tokens that include a chat template, of which the byte tokenizer makes one per byte."""


def run_kwargs(pipe: Any, *, steps: int = 6, seed: int = 7, prompt: str | list[str] = "a cat") -> dict[str, Any]:
    """What to call a pipeline of this module with: ``pipe(**run_kwargs(pipe)).images``. A fresh generator each time."""
    name = type(pipe).__name__
    kwargs: dict[str, Any] = {
        "prompt": prompt,
        "height": SIZE,
        "width": SIZE,
        "num_inference_steps": steps,
        "max_sequence_length": next((most for begin, most in LENGTHS.items() if name.startswith(begin)), 16),
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "np",
    }
    if "Img2Img" in name or "Inpaint" in name:
        kwargs |= {"image": picture(), "strength": 1.0}
    if "Fill" in name or "Kontext" in name:
        kwargs["image"] = picture()
    if "Inpaint" in name or "Fill" in name:
        kwargs["mask_image"] = mask()
    if "Kontext" in name:
        kwargs |= {"max_area": SIZE * SIZE, "_auto_resize": False}
    if "Klein" in name and pipe.config.get("is_distilled"):
        kwargs["guidance_scale"] = 1.0  # any other is ignored, with a warning
    if "Chroma" in name:
        kwargs["guidance_scale"] = 1.0  # true guidance only on request
    if "Video" in name or "Wan" in name:
        kwargs["num_frames"] = FRAMES
    if "Wan" in name:
        kwargs["guidance_scale"] = 1.0  # true guidance only on request
    if name.startswith("QwenImage"):
        kwargs["true_cfg_scale"] = 1.0
    if name.startswith("ZImage"):
        kwargs["guidance_scale"] = 0.0
    if "Control" in name:
        kwargs["control_image"] = picture()
    return kwargs
