"""What other programs call our settings: ``meant("num_inference_steps")`` is ``"steps"``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from h2gen.settings.table import BY_NAME

_FOREIGN = {
    # The names are those of diffusers, AUTOMATIC1111 and Forge, sd-scripts, ComfyUI, mflux, InvokeAI and the API of
    # FLUX's makers. Case, dashes, blanks and underscores do not count.
    "prompt": "positive_prompt positive text caption description prompt_text input_prompt",
    "seed": "random_seed rng_seed noise_seed manual_seed initial_seed image_seed all_seeds seeds generator",
    "count": "num_images num_images_per_prompt number_of_images images images_per_prompt images_per_repeat n_images "
    "n_iter n_samples num_samples num_outputs number batch_count repeat repeats iterations n",
    "size": "resolution res dimensions dims image_size img_size image_dimensions aspect_ratio aspect ar ratio shape",
    "width": "image_width img_width output_width target_width w",
    "height": "image_height img_height output_height target_height h",
    "frames": "num_frames n_frames number_of_frames frame_count video_length",
    "fps": "frame_rate frames_per_second",
    "steps": "num_inference_steps inference_steps num_steps number_of_steps sample_steps sampling_steps n_steps "
    "denoise_steps denoising_steps infer_steps ddim_steps num_timesteps",
    "solver": "sampler sampler_name sampling_method sample_sampler sampler_index scheduler scheduler_name "
    "noise_schedule method",
    "guidance": "guidance_scale guidance_strength distilled_guidance distilled_guidance_scale distilled_cfg "
    "distilled_cfg_scale embedded_guidance embedded_guidance_scale emb_guidance_scale flux_guidance gs g",
    "cfg": "cfg_scale true_cfg true_cfg_scale real_cfg classifier_free_guidance classifier_free_guidance_scale "
    "unconditional_guidance_scale true_guidance true_guidance_scale scale",
    "negative": "negative_prompt neg neg_prompt negativ uncond unconditional_prompt uc n_prompt",
    "max_sequence_length": "max_tokens max_length max_seq_len max_seq_length max_token_length max_prompt_tokens "
    "sequence_length token_limit t5_max_length t5xxl_max_token_length text_length",
    "lora": "loras lora_path lora_paths lora_name lora_file lora_files lora_model lora_model_name lora_weights "
    "network_weights adapter adapters adapter_path",
    "image": "init_image input_image init_img reference reference_image ref_image img2img i2i",
    "mask": "mask_image inpaint_mask mask_img",
    "control": "control_image control_images control_picture conditioning_image guide_image",
    "controlnet": "controlnets controlnet_model controlnet_path controlnet_name",
    "redux": "redux_image redux_images style_image image_prompt",
    "redux_model": "redux_path redux_folder",
    "preset": "profile",
    "tolerance": "rel_l1_thresh l1_thresh residual_diff_threshold rdt error_threshold cache_threshold tol",
    "tau1": "tau threshold structure_threshold",
    "tau2": "detail_threshold",
    "warmup_steps": "warmup max_warmup_steps skip_first_steps",
    "final_steps": "cooldown cooldown_steps last_steps",
    "max_consecutive": "max_continuous_cached_steps max_cached_steps max_skip_steps max_consecutive_cache_hits",
    "no_cache": "disable_cache uncached cache_off without_cache",
    "speedup": "speed faster acceleration",
    "fidelity": "ssim min_ssim similarity",
    "name": "filename_pattern filename_template name_template file_pattern naming filename_prefix",
    "model": "model_id model_name model_path model_name_or_path pretrained_model_name_or_path checkpoint ckpt "
    "ckpt_name ckpt_path checkpoint_path sd_model sd_model_checkpoint unet unet_name transformer repo repo_id "
    "model_version diffusion_model gguf",
    "base": "base_model base_model_id base_repo components",
    "vae": "vae_path vae_file vae_model autoencoder ae",
    "text_encoder": "text_encoder_2 text_encoders te1 te2 clip clip_l clip_name clip_path t5 t5xxl t5xxl_path",
    "device": "cuda gpu cpu device_map gpu_id torch_device",
    "dtype": "torch_dtype precision data_type half fp16 bf16 fp32 bfloat16 float16 float32",
    "offload": "cpu_offload enable_model_cpu_offload enable_sequential_cpu_offload model_cpu_offload low_ram "
    "low_vram medvram sequential_offload offloading",
    "memory": "max_memory gpu_memory memory_limit vram vram_limit max_vram",
    "quantize": "quantization quantization_config quant load_in_4bit load_in_8bit weights_dtype fp8 nf4 int8 "
    "int4 4bit 8bit",
    "quantize_text": "quantize_text_encoder quantize_text_encoders quantize_t5 t5_quantize quantize_encoder",
    "attention": "attention_backend attn attn_backend attn_mode attention_type sdp sdpa xformers flash_attention",
    "compile": "torch_compile compiled compile_transformer compile_blocks",
    "out": "output output_dir output_path output_folder output_file output_directory out_dir out_path "
    "outfile outputs outpath_samples save_path save_dir save_to destination dest folder dir directory",
    "format": "output_format image_format file_format file_type extension ext samples_format",
    "no_metadata": "disable_metadata strip_metadata without_metadata metadata",
    "sidecar": "save_metadata export_metadata metadata_file",
    "batch_size": "batch pictures_per_batch images_per_batch",
    "as_json": "json_output output_json",
    "quiet": "silent",
    "verbose": "debug",
    "dry_run": "simulate no_run check print_config",
    "trace": "log log_file trace_file",
}
"""Names of other programs for each row of the table, separated by blanks."""


def _plain(name: str) -> str:
    """``--num-inference-steps``, ``numInferenceSteps`` and ``Num inference steps`` as one word."""
    return re.sub(r"[\W_]+", "", name).casefold()


_OURS = {_plain(name): name for name in BY_NAME}
_MEANT = {_plain(word): name for name, words in _FOREIGN.items() for word in words.split()}


def meant(name: str, known: Collection[str] = BY_NAME) -> str | None:
    """Our name for a setting that another program calls ``name``.

    Args:
        name: an option or a key, in any spelling: ``--num-inference-steps``, ``numInferenceSteps``, ``Seed``.
        known: our names that can be given where it was; ``size`` stands for ``width`` and ``height``.

    Returns:
        One of ``known``, or None if the name is unknown, or means something that cannot be given there.

    >>> meant("num_inference_steps")
    'steps'
    >>> meant("--image-width", ("size", "steps"))
    'size'
    """
    plain = _plain(name)
    ours = _OURS.get(plain) or _MEANT.get(plain)
    if ours in ("width", "height") and ours not in known:
        ours = "size"
    return ours if ours in known else None


def option_in(text: str, known: Collection[str] = BY_NAME) -> tuple[str, str, str] | None:
    """An option inside a prompt, as other programs read it there.

    Returns:
        The option as it stands, our name and the value; None if there is none that means something here.

    >>> option_in("a dog --ar 16:9")
    ('--ar', 'size', '16:9')
    """
    for option, value in re.findall(r"(?:^|\s)(--[A-Za-z][\w-]*)[ =]?((?!--)\S*)", text):
        name = meant(option, known)
        if name is not None:
            return option, name, value
    return None


def meant_or_close(name: str, known: Collection[str] = BY_NAME, cutoff: float = 0.6) -> str | None:
    """As ``meant``, or else our name with the most similar spelling; ``cutoff`` as ``difflib`` has it."""
    found = meant(name, known)
    if found is None:
        found = next(iter(difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=cutoff)), None)
    return found


def suggestion(name: str, known: Collection[str]) -> str:
    """``; did you mean 'steps'?`` with the name of ours that is meant, or a full stop if none is."""
    ours = meant_or_close(name, known)
    return f"; did you mean {ours!r}?" if ours else "."
