"""The forwards of HunyuanVideo and Wan for the straight-line reference of the cache, with their blocks as loops."""

from __future__ import annotations

import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel

from tests.cache.reference import FORWARD, Block, Decision, Kept, Pair, Rules, two_stages


def hunyuan_video_forward(
    model: HunyuanVideoTransformer3DModel,
    kept: Kept,
    rules: Rules,
    guarded: bool,
    letter: str | None,
    *,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
    pooled_projections: torch.Tensor,
    guidance: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Decision]:
    """One pass of HunyuanVideo's transformer: its blocks take and return the video first. Text that only fills up the
    sequence is masked."""
    rope = model.rope(hidden_states)
    temb, _ = model.time_text_embed(timestep, pooled_projections, guidance)
    h = model.x_embedder(hidden_states)
    e = model.context_embedder(encoder_hidden_states, timestep, encoder_attention_mask)
    length = h.shape[1] + encoder_attention_mask.sum(dim=1, dtype=torch.int)
    mask = (torch.arange(h.shape[1] + e.shape[1])[None] < length[:, None])[:, None, None]

    def run(block: torch.nn.Module) -> Block:
        def both(e: torch.Tensor, h: torch.Tensor) -> Pair:
            h, e = block(h, e, temb, mask, rope)
            return e, h

        return both

    doubles, singles = ([run(each) for each in getattr(model, name)] for name in
                        ("transformer_blocks", "single_transformer_blocks"))  # fmt: skip
    _, h, decision = two_stages(
        e, h, doubles, singles, kept, rules, guarded, kept["pass"][-1][0], letter,
        [0.0] * len(doubles), [0.0] * len(singles),
    )  # fmt: skip
    h = model.proj_out(model.norm_out(h, temb))
    return in_rows(h, hidden_states).permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4), decision


def wan_forward(
    model: WanTransformer3DModel,
    kept: Kept,
    rules: Rules,
    guarded: bool,
    letter: str | None,
    *,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
) -> tuple[torch.Tensor, Decision]:
    """One pass of Wan's transformer: there are no text tokens, and a third of its blocks are the structure."""
    rope = model.rope(hidden_states)
    h = model.patch_embedding(hidden_states).flatten(2).transpose(1, 2)
    temb, modulation, text, _ = model.condition_embedder(timestep, encoder_hidden_states, None)
    modulation = modulation.unflatten(1, (6, -1))

    def run(block: torch.nn.Module) -> Block:
        return lambda e, h: (e, block(h, text, modulation, rope))

    blocks = [run(block) for block in model.blocks]
    first = round(len(blocks) / 3)
    _, h, decision = two_stages(
        h[:, :0], h, blocks[:first], blocks[first:], kept, rules, guarded, kept["pass"][-1][0], letter,
        [0.0] * first, [0.0] * (len(blocks) - first),
    )  # fmt: skip
    shift, scale = (model.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
    h = model.proj_out((model.norm_out(h.float()) * (1 + scale) + shift).type_as(h))
    # Of a token, the channels are inside, unlike HunyuanVideo's.
    h = in_rows(h, hidden_states, inside=True)
    return h.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4), decision


def in_rows(h: torch.Tensor, latents: torch.Tensor, *, inside: bool = False) -> torch.Tensor:
    """Tokens in frames, rows and columns, each as ``(C, 2, 2)``, or with ``inside`` as ``(2, 2, C)``."""
    frames, height, width = latents.shape[2:]
    parts = (2, 2, -1) if inside else (-1, 2, 2)
    return h.unflatten(1, (frames, height // 2, width // 2)).unflatten(-1, parts)


FORWARD |= {HunyuanVideoTransformer3DModel: hunyuan_video_forward, WanTransformer3DModel: wan_forward}
