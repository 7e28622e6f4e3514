"""The small video model: HunyuanVideo's architecture, begun with the bundled FLUX.1 picture model's weights.

The blocks of both have the same parts under the same names. Only motion and the words for it are new.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from h2gen.models.catalogue import BUNDLED
from tools.train_tiny.colours import BACKGROUNDS
from tools.train_tiny.video_clips import THINGS, all_captions, caption

_PAD, _BEGIN, _END, _UNKNOWN = "<|pad|>", "<|begin_of_text|>", "<|eot_id|>", "<|unknown|>"
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>")
_SPREAD = 0.5
"""Spread of the first embeddings of new words, of the known words' spread: they must be told apart."""


def base() -> FluxPipeline:
    """The bundled picture model, in float32."""
    pipe: FluxPipeline = FluxPipeline.from_pretrained(BUNDLED, dtype=torch.float32, local_files_only=True)
    return pipe


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of the captions. What the pipeline puts before a prompt has the number of tokens that it cuts off."""
    words = sorted({word for said in all_captions() for word in said.split()})
    special = [_PAD, _BEGIN, _END, _UNKNOWN, *_HEADERS]
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s|<>-]"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    template, cut = DEFAULT_PROMPT_TEMPLATE["template"], DEFAULT_PROMPT_TEMPLATE["crop_start"]
    before = len(tokenizer.encode(template[: template.index("{}")]).ids)
    begin = cut - before
    if begin < 1:
        raise RuntimeError(f"The pipeline's template has {before} words; it cuts off {cut}.")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([_BEGIN] * begin + ["$A"]), special_tokens=[(_BEGIN, vocabulary[_BEGIN])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        bos_token=_BEGIN,
        eos_token=_END,
        unk_token=_UNKNOWN,
        padding_side="right",
        model_max_length=1024,
    )


class Words:
    """Both tokenizers."""

    def __init__(self, llama: PreTrainedTokenizerFast, clip: CLIPTokenizer) -> None:
        self.llama, self.clip = llama, clip

    def ids(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The words' ids and mask, ``(B, longest)``, without what the pipeline puts before them, and CLIP's ids."""
        found = self.llama([f"{said}{_END}" for said in captions], padding="longest", return_tensors="pt")
        begin = int((found.input_ids[0] == self.llama.bos_token_id).sum())
        clip = self.clip(list(captions), padding="longest", truncation=True, return_tensors="pt").input_ids
        return found.input_ids[:, begin:], found.attention_mask[:, begin:], clip


class Model(nn.Module):
    """What is trained: the words' embeddings, CLIP and the transformer. Predicts the velocity.

    The pipeline takes Llama's third hidden states from the end: of its two layers, the embeddings.
    """

    def __init__(self, llama: LlamaModel, clip: CLIPTextModel, transformer: HunyuanVideoTransformer3DModel) -> None:
        super().__init__()
        self.llama, self.clip, self.transformer = llama, clip, transformer
        llama.layers.requires_grad_(False)
        llama.norm.requires_grad_(False)

    def forward(
        self, noisy: torch.Tensor, sigma: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, clip: torch.Tensor
    ) -> torch.Tensor:
        """``noisy`` is ``(B, C, F, h, w)``, ``sigma`` is ``(B,)``; the rest is what ``Words.ids`` gives."""
        velocity: torch.Tensor = self.transformer(
            hidden_states=noisy,
            timestep=sigma * 1000,
            encoder_hidden_states=self.llama.embed_tokens(ids),
            encoder_attention_mask=mask,
            pooled_projections=self.clip(clip).pooler_output,
            return_dict=False,
        )[0]
        return velocity


def new_model(words: Words, pipe: FluxPipeline) -> Model:
    """The video model before training: it draws what the picture model knows."""
    return Model(_llama(words, pipe), pipe.text_encoder, _transformer(pipe))


def _transformer(pipe: FluxPipeline) -> HunyuanVideoTransformer3DModel:
    flux = pipe.transformer.config
    channels, width = pipe.vae.config.latent_channels, flux.num_attention_heads * flux.attention_head_dim
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=channels,
        out_channels=channels,
        num_attention_heads=flux.num_attention_heads,
        attention_head_dim=flux.attention_head_dim,
        num_layers=flux.num_layers,
        num_single_layers=flux.num_single_layers,
        num_refiner_layers=1,
        patch_size=2,
        guidance_embeds=False,
        text_embed_dim=width,
        pooled_projection_dim=flux.pooled_projection_dim,
        rope_theta=10000.0,
        rope_axes_dim=tuple(flux.axes_dims_rope),
    )
    known = dict(pipe.transformer.state_dict())
    for name in ("context_embedder.weight", "context_embedder.bias"):
        del known[name]
    weight = known.pop("x_embedder.weight")
    known |= {
        "x_embedder.proj.weight": weight.view(width, channels, 1, 2, 2),
        "x_embedder.proj.bias": known.pop("x_embedder.bias"),
    }
    missing, unexpected = transformer.load_state_dict(known, strict=False)
    if unexpected or not all(name.startswith("context_embedder.") for name in missing):
        raise RuntimeError(f"FLUX.1's and HunyuanVideo's blocks differ: {[*unexpected, *missing]}")
    refiner = transformer.context_embedder
    with torch.no_grad():
        nn.init.eye_(refiner.proj_in.weight)
        nn.init.zeros_(refiner.proj_in.bias)
        for block in refiner.token_refiner.refiner_blocks:  # closed gates: it refines nothing yet
            nn.init.zeros_(block.norm_out.linear.weight)
            nn.init.zeros_(block.norm_out.linear.bias)
    return transformer


@torch.no_grad()
def _llama(words: Words, pipe: FluxPipeline) -> LlamaModel:
    """Embeddings of words: what the picture model's T5 makes of them in captions, in the mean."""
    width = pipe.transformer.config.num_attention_heads * pipe.transformer.config.attention_head_dim
    size = len(words.llama)
    llama = LlamaModel(
        LlamaConfig(
            vocab_size=size,
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=1024,
            pad_token_id=words.llama.pad_token_id,
            bos_token_id=words.llama.bos_token_id,
            eos_token_id=words.llama.eos_token_id,
            use_cache=False,
        )
    )
    found = defaultdict(list)
    backgrounds: list[str | None] = [None, *BACKGROUNDS]
    for background in backgrounds:
        said = [caption(thing, "still", background) for thing in range(len(THINGS))]
        tokens = pipe.tokenizer_2(said, padding="max_length", max_length=16, return_tensors="pt").input_ids
        made = pipe.transformer.context_embedder(pipe.text_encoder_2(tokens)[0])
        for row, vectors in zip(tokens, made, strict=True):
            for token, vector in zip(pipe.tokenizer_2.convert_ids_to_tokens(row), vectors, strict=True):
                found[_END if token == "</s>" else token.removeprefix("▁")].append(vector)
    means = {word: torch.stack(vectors).mean(0) for word, vectors in found.items()}
    known = torch.stack(list(means.values()))
    generator = torch.Generator().manual_seed(0)
    for word, number in words.llama.get_vocab().items():
        new = means["a"] + _SPREAD * known.std(0) * torch.randn(width, generator=generator)
        llama.embed_tokens.weight[number] = means.get(word, new)
    return llama


def assemble(model: Model, words: Words, vae: AutoencoderKLHunyuanVideo) -> HunyuanVideoPipeline:
    """The pipeline, as diffusers will load it."""
    return HunyuanVideoPipeline(
        text_encoder=model.llama,
        tokenizer=words.llama,
        transformer=model.transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False),
        text_encoder_2=model.clip,
        tokenizer_2=words.clip,
    )
