"""Tokenizers and text encoders: CLIP's pooled output and T5's sequence, as FLUX.1 takes them, very small."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tools.train_tiny.scenes import Stage

WIDTH = 128
_VOCABULARY = 3000
_CLIP_LENGTH, _T5_LENGTH = 77, 512
_PIECE = 10.0
"""Log-probability of a piece of a word, relative to a word."""
_ASIDE = 5.0
"""Initial bias of a T5 head against words on its other side, as a logarithm."""
_CAPTIONS = 40_000
"""Captions to learn the vocabulary from."""


def build_tokenizers(stage: Stage, folder: Path) -> None:
    """Learn both vocabularies from captions and save them as ``tokenizer`` and ``tokenizer_2``, unless they exist.

    A model works only with its own vocabularies, and they are not reproducible: ties are broken at random.
    """
    if (folder / "tokenizer_2").exists():
        return
    rng = np.random.default_rng(0)
    captions = [stage.scene(rng).caption for _ in range(_CAPTIONS)]
    captions += [name for concept in stage.concepts for name in concept.names] * 5
    _clip(captions).save_pretrained(folder / "tokenizer")
    _t5(captions).save_pretrained(folder / "tokenizer_2")


class Text:
    """Both tokenizers, loaded."""

    def __init__(self, folder: Path) -> None:
        self.clip: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.t5: T5TokenizerFast = T5TokenizerFast.from_pretrained(folder / "tokenizer_2")

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Number of T5 tokens of each caption."""
        return [len(ids) for ids in self.t5(list(captions)).input_ids]

    def ids(self, captions: Sequence[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids: CLIP's ``(B, longest)``, where padding is ignored, and T5's ``(B, length)``, where it is not."""
        clip = self.clip(list(captions), padding="longest", truncation=True, return_tensors="pt").input_ids
        t5 = self.t5(
            list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return clip, t5


def build_encoders(text: Text) -> tuple[CLIPTextModel, T5EncoderModel]:
    """New text encoders, of two layers each."""
    clip = CLIPTextConfig(
        vocab_size=len(text.clip),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_CLIP_LENGTH,
        bos_token_id=text.clip.bos_token_id,
        eos_token_id=text.clip.eos_token_id,
        pad_token_id=text.clip.pad_token_id,
    )
    t5 = T5Config(
        vocab_size=-(-len(text.t5) // 8) * 8,
        d_model=WIDTH,
        d_kv=32,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    encoder = T5EncoderModel(t5)
    _look_both_ways(encoder)
    return CLIPTextModel(clip), encoder


@torch.no_grad()
def _look_both_ways(encoder: T5EncoderModel) -> None:
    """Make every other head look back, the rest ahead, and half of each no further than three words.

    transformers initializes heads that attend everywhere alike. A caption is then a bag of words, and training does not
    discover that word order matters.
    """
    bias = encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # buckets, heads
    ahead = len(bias) // 2  # the first bucket of following words; each of the first few is one distance
    bias.zero_()
    bias[ahead:, 0::2] -= _ASIDE
    bias[:ahead, 1::2] -= _ASIDE
    bias[4:ahead, 2:] -= _ASIDE
    bias[ahead + 4 :, 2:] -= _ASIDE


def _clip(captions: Sequence[str]) -> CLIPTokenizer:
    """Byte pairs. The end-of-text token must not have id 2, which transformers treats specially."""
    prototype = CLIPTokenizer()._tokenizer
    tokenizer = Tokenizer(
        models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>", continuing_subword_prefix="")
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = prototype.normalizer, prototype.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["<|pad|>", "<|startoftext|>", "<|unused|>", "<|endoftext|>"],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    model = _model(tokenizer)
    vocabulary: dict[str, int] = model["vocab"]
    for byte in alphabet:  # so that any text can be encoded
        vocabulary.setdefault(f"{byte}</w>", len(vocabulary))
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in model["merges"]],
        model_max_length=_CLIP_LENGTH,
        pad_token="<|pad|>",
    )


def _t5(captions: Sequence[str]) -> T5TokenizerFast:
    """Whole words of the captions, and pieces for all others: text tokens cost as much as image tokens."""
    prototype = T5TokenizerFast(extra_ids=0)._tokenizer
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = prototype.pre_tokenizer
    trainer = trainers.UnigramTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"-:;()&/"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    pieces: dict[str, float] = dict(_model(tokenizer)["vocab"])
    words = Counter(word.strip(",") for caption in captions for word in caption.lower().split())
    whole = {f"▁{word}": math.log(count / words.total()) for word, count in sorted(words.items())}
    vocabulary = [
        (piece, score if score == 0 else score - _PIECE) for piece, score in pieces.items() if piece not in whole
    ]
    vocabulary += list(whole.items())
    # A normalizer set later is lost when the tokenizer is loaded again, so use sentencepiece's own.
    return T5TokenizerFast(
        vocab=vocabulary, extra_ids=0, model_max_length=_T5_LENGTH, _spm_precompiled_charsmap=_case_folding()
    )


def _model(tokenizer: Tokenizer) -> dict[str, Any]:
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def _case_folding() -> bytes:
    """Sentencepiece's map ``nmt_nfkc_cf``, which makes "A Cat" and "a cat" one."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat"] * 10),
        model_writer=written,
        vocab_size=10,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc_cf",
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(written.getvalue())
    charsmap: bytes = model.normalizer_spec.precompiled_charsmap
    return charsmap
