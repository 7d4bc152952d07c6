"""Stage 1: the two CLIP text encoders, taught to say what a caption says before the UNet ever reads them.

Linear probes on the hidden states that SDXL uses (the penultimate layer, and the pooled projection of the second
encoder) must name every attribute of the scene:

- the end token and the pooled projection: background, texture, and colour and shape at each of the five positions;
- the k-th token, if it is padding: background, texture, and what stands at position k mod 5, so that the UNet's
  cross-attention finds for each region of the picture tokens that speak of just that region;
- a shape's own token: its colour and shape.

The encoders are frozen afterwards; the probes are thrown away.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .captions import Caption, write_caption
from .checkpoints import Budget, Checkpoint, warmup_cosine
from .scenes import BACKGROUND_COLOURS, POSITIONS, SHAPE_COLOURS, SHAPES, TEXTURES, Scene, sample_scene
from .tokenizer import MAX_TOKENS

log = logging.getLogger(__name__)

HIDDEN_SIZES = (96, 160)
PROJECTION_SIZE = 128
LAYERS = 4
BATCH_SIZE = 48
IGNORE = -100

SLOT_CLASSES = (len(SHAPES) + 1, len(SHAPE_COLOURS) + 1)
"""Classes of a position's shape and colour; the last of each means that nothing stands there."""
SCENE_CLASSES = (len(BACKGROUND_COLOURS), len(TEXTURES))


def build_text_encoders(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Makes both encoders with fresh weights, float32."""
    configs = [
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=size,
            intermediate_size=4 * size,
            projection_dim=PROJECTION_SIZE,
            num_hidden_layers=LAYERS,
            num_attention_heads=size // 32,
            max_position_embeddings=MAX_TOKENS,
            hidden_act=activation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
        for size, activation in zip(HIDDEN_SIZES, ("quick_gelu", "gelu"), strict=True)
    ]
    return CLIPTextModel(configs[0]), CLIPTextModelWithProjection(configs[1])


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids as the SDXL pipeline makes them, int64 [batch, 77]."""
    encoded = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return encoded.input_ids


def encode(encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection], ids: Tensor) -> tuple[Tensor, Tensor]:
    """Encodes token ids as the SDXL pipeline does.

    Args:
        encoders: first and second text encoder.
        ids: int64 [batch, 77].

    Returns:
        Penultimate hidden states side by side, [batch, 77, 256]; pooled projection, [batch, 128].
    """
    first = encoders[0](ids, output_hidden_states=True)
    second = encoders[1](ids, output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


@dataclass(frozen=True)
class Targets:
    """What the probes should say; -100 where a caption leaves it open.

    Attributes:
        scene: int64 [batch, 2], background and texture.
        slots: int64 [batch, 5, 2], shape and colour at each position.
        mentions: int64 [batch, 2, 2], shape and colour of the first and second item mentioned.
    """

    scene: Tensor
    slots: Tensor
    mentions: Tensor

    @classmethod
    def of(cls, scenes: list[Scene], captions: list[Caption]) -> Targets:
        """Builds the targets of a batch."""
        background = torch.full((len(scenes), 2), IGNORE)
        slots = torch.tensor([size - 1 for size in SLOT_CLASSES]).repeat(len(scenes), len(POSITIONS), 1)
        mentions = torch.full((len(scenes), 2, 2), IGNORE)
        for row, (scene, caption) in enumerate(zip(scenes, captions, strict=True)):
            if caption.names_background:
                background[row, 0] = BACKGROUND_COLOURS.index(scene.background)
                background[row, 1] = TEXTURES.index(scene.texture)
            for order, item in enumerate(caption.mentions):
                named = torch.tensor([SHAPES.index(item.shape), SHAPE_COLOURS.index(item.colour)])
                slots[row, POSITIONS.index(item.position)] = named
                mentions[row, order] = named
        return cls(background, slots, mentions)


class Probes(nn.Module):
    """Linear read-outs of one stream of hidden states.

    Args:
        size: features of the stream.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.everything = nn.Linear(size, sum(SCENE_CLASSES) + len(POSITIONS) * sum(SLOT_CLASSES))
        self.register = nn.Linear(size, sum(SCENE_CLASSES) + sum(SLOT_CLASSES))
        self.mention = nn.Linear(size, sum(SLOT_CLASSES))

    def named(self, vector: Tensor, targets: Targets) -> list[tuple[Tensor, Tensor]]:
        """(logits, classes) of every attribute, from one vector [batch, features] per caption."""
        scene, *slots = self.everything(vector).split([sum(SCENE_CLASSES)] + [sum(SLOT_CLASSES)] * len(POSITIONS), -1)
        pairs = _pairs(scene, targets.scene, SCENE_CLASSES)
        for index, slot in enumerate(slots):
            pairs += _pairs(slot, targets.slots[:, index], SLOT_CLASSES)
        return pairs

    def tokens(self, states: Tensor, ids: Tensor, end: int, shape_ids: Tensor, targets: Targets) -> list:
        """(logits, classes) of the end token, the padding tokens and the shapes' own tokens.

        Args:
            states: [batch, 77, features].
            ids: int64 [batch, 77].
            end: id of the end token, also used as padding.
            shape_ids: int64 [shapes], tokens of the shapes' names.
            targets: of the batch.
        """
        rows = torch.arange(len(ids))
        ends = (ids == end).int().argmax(dim=1)
        pairs = self.named(states[rows, ends], targets)
        row, column = torch.nonzero(torch.arange(MAX_TOKENS) > ends[:, None], as_tuple=True)
        scene, slot = self.register(states[row, column]).split([sum(SCENE_CLASSES), sum(SLOT_CLASSES)], -1)
        pairs += _pairs(scene, targets.scene[row], SCENE_CLASSES)
        pairs += _pairs(slot, targets.slots[row, column % len(POSITIONS)], SLOT_CLASSES)
        is_shape = torch.isin(ids, shape_ids)
        row, column = torch.nonzero(is_shape, as_tuple=True)
        order = is_shape.cumsum(dim=1)[row, column] - 1
        return pairs + _pairs(self.mention(states[row, column]), targets.mentions[row, order], SLOT_CLASSES)


def _pairs(logits: Tensor, classes: Tensor, sizes: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    return [(part, classes[..., index]) for index, part in enumerate(logits.split(sizes, dim=-1))]


def train_text_encoders(tokenizer: CLIPTokenizer, folder: Path, budget: Budget, seed: int, device: str = "cpu") -> dict:
    """Trains both encoders and writes them to ``folder/text_encoder`` and ``folder/text_encoder_2``.

    Args:
        tokenizer: of both encoders.
        folder: where the encoders and the stage's checkpoint go.
        budget: steps and minutes.
        seed: of weights and captions.
        device: where to train.

    Returns:
        Steps and seconds used, and the probes' accuracy on held-out scenes.
    """
    torch.manual_seed(seed)
    encoders = build_text_encoders(tokenizer)
    probes = [Probes(HIDDEN_SIZES[0]), Probes(HIDDEN_SIZES[1]), Probes(PROJECTION_SIZE)]
    modules = nn.ModuleList([*(encoder.to(device) for encoder in encoders), nn.ModuleList(probes)]).train()
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-3, weight_decay=0.01)
    shape_ids = torch.tensor(tokenizer.convert_tokens_to_ids([f"{shape}</w>" for shape in SHAPES]))
    checkpoint, step = Checkpoint(folder / "text.checkpoint.pt"), 0
    if state := checkpoint.load():
        modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        step, budget.spent = state["step"], state["seconds"]

    def read_out(batch_seed: int, held_out: bool) -> list[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng([seed, int(held_out), batch_seed])
        scenes = [sample_scene(rng, held_out) for _ in range(BATCH_SIZE)]
        captions = [write_caption(scene, rng) for scene in scenes]
        targets = Targets.of(scenes, captions)
        ids = tokenize(tokenizer, [caption.text for caption in captions])
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            states, pooled = encode(encoders, ids.to(device))
        streams = states.float().cpu().split(HIDDEN_SIZES, dim=-1)
        pairs = []
        for probe, stream in zip(probes, streams, strict=False):
            pairs += probe.tokens(stream, ids, tokenizer.eos_token_id, shape_ids, targets)
        return pairs + probes[2].named(pooled.float().cpu(), targets)

    bar = tqdm(total=budget.steps, initial=step, desc="text encoders", mininterval=5)
    while budget.progress(step) < 1:
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(budget.progress(step), 1e-3)
        pairs = read_out(step, held_out=False)
        loss = torch.stack([F.cross_entropy(a, b, ignore_index=IGNORE) for a, b in pairs if (b != IGNORE).any()]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if step % 500 == 0:
            checkpoint.save(
                modules=modules.state_dict(), optimizer=optimizer.state_dict(), step=step, seconds=budget.seconds()
            )
    bar.close()
    modules.eval()
    with torch.no_grad():
        accuracy = _accuracy([pair for batch in range(8) for pair in read_out(batch, held_out=True)])
    for name, encoder in zip(("text_encoder", "text_encoder_2"), encoders, strict=True):
        encoder.cpu().save_pretrained(folder / name)
    return {"steps": step, "seconds": round(budget.seconds()), "held_out_probe_accuracy": round(accuracy, 4)}


def _accuracy(pairs: list[tuple[Tensor, Tensor]]) -> float:
    right = sum(int((logits.argmax(-1) == classes).sum()) for logits, classes in pairs)
    return right / sum(int((classes != IGNORE).sum()) for _, classes in pairs)
