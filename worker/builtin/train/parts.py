"""The doodle's parts, fresh or from a folder: a UNet that sees the mask, a text encoder, a tiny autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from worker.builtin.train.growing import grown
from worker.builtin.train.recipe import LATENT_CHANNELS, Recipe
from worker.builtin.train.words import MAX_TOKENS, carried_over, load_tokenizer, read_vocabulary

UNET_INPUT_CHANNELS = 2 * LATENT_CHANNELS + 1  # noisy latents, mask, masked picture
CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
_TEXT_STD = 0.1


@dataclass(frozen=True, eq=False)
class Painter:
    """What is trained together, and the tokenizer that belongs to it."""

    unet: Any
    text_encoder: Any
    tokenizer: Any

    def parameters(self) -> dict[str, nn.Parameter]:
        parts = {"unet": self.unet, "text_encoder": self.text_encoder}
        return {
            f"{part}.{name}": weight for part, module in parts.items() for name, weight in module.named_parameters()
        }

    def set_training(self, is_training: bool) -> None:
        self.unet.train(is_training)
        self.text_encoder.train(is_training)


def fresh_painter(recipe: Recipe, tokenizer_folder: Path) -> Painter:
    """With random weights, which depend on the recipe's seed."""
    torch.manual_seed(recipe.seed)
    size = len(read_vocabulary(tokenizer_folder))
    return Painter(fresh_unet(recipe), _fresh_text_encoder(recipe, size), load_tokenizer(tokenizer_folder))


def painter_from(start: Path, recipe: Recipe, tokenizer_folder: Path) -> Painter:
    """With the weights of a model in diffusers' layout, whose tokenizer may know fewer words."""
    torch.manual_seed(recipe.seed)
    old_text = CLIPTextModel.from_pretrained(start / "text_encoder", dtype=torch.float32, local_files_only=True)
    old_words, words = read_vocabulary(start / "tokenizer"), read_vocabulary(tokenizer_folder)
    text = _fresh_text_encoder(recipe, len(words))
    state, name = old_text.state_dict(), "embeddings.token_embedding.weight"
    [key] = [key for key in state if key.endswith(name)]
    state[key] = carried_over(state[key], old_words, words, text.state_dict()[key])
    text.load_state_dict(state)
    unet = UNet2DConditionModel.from_pretrained(start / "unet", torch_dtype=torch.float32, local_files_only=True)
    return Painter(grown(unet, fresh_unet(recipe)), text, load_tokenizer(tokenizer_folder))


def fresh_autoencoder(recipe: Recipe) -> Any:
    """Eight pixels to a latent, no normalisation layers: fast on processors without a GPU."""
    torch.manual_seed(recipe.seed)
    channels = (recipe.vae_channels,) * 4
    return AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=(0, 1, 1, 2),
        num_decoder_blocks=(2, 1, 1, 0),
    )


def autoencoder_from(folder: Path) -> Any:
    return AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)


def fresh_unet(recipe: Recipe) -> Any:
    plain_levels = len(recipe.unet_channels) - recipe.text_levels
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=UNET_INPUT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=recipe.unet_channels,
        layers_per_block=1,
        down_block_types=(PLAIN[0],) * plain_levels + (CROSS[0],) * recipe.text_levels,
        up_block_types=(CROSS[1],) * recipe.text_levels + (PLAIN[1],) * plain_levels,
        cross_attention_dim=recipe.text_width,
        attention_head_dim=recipe.heads,
        norm_num_groups=recipe.unet_groups,
    )


def _fresh_text_encoder(recipe: Recipe, vocabulary_size: int) -> Any:
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=recipe.text_width,
            intermediate_size=2 * recipe.text_width,
            num_hidden_layers=recipe.text_layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=recipe.text_width,
            bos_token_id=vocabulary_size - 2,
            eos_token_id=vocabulary_size - 1,
            pad_token_id=vocabulary_size - 1,
            initializer_factor=1.0,
        )
    )
    for name, weight in encoder.named_parameters():
        if "embedding" in name:
            nn.init.normal_(weight, std=_TEXT_STD if "token" in name else _TEXT_STD / 2)
    return encoder
