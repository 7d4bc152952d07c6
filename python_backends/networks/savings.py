"""What a GPU's networks leave out or do together, compared with diffusers' modules: each can be left off."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Savings:
    """All by default; `benchmarks/gpu.py --parts ideas` measures what each one saves.

    Without `divisions` there are no `qkv` and `zero_prompts`, without `norms` no `shared_layers`.

    Attributes:
        divisions: Attention does not divide by 1. The same bits.
        qkv: Self-attention's q, k and v are one product, over the weights where they lie. To roundings.
        norms: A transformer block's additions are one pass with the norms after them. To roundings.
        biases: Biases of a residual block's convolutions are added in passes that there are anyway. To roundings.
        zero_prompts: Rows whose prompt's embeddings are zeros, as SDXL's empty negative prompt's are, get
            cross-attention's bias, which is all that it gives them. The same, but for what a smaller batch rounds.
        shared_layers: Where halves of guidance differ by their prompts alone, as SD 1.5's do, what comes before the
            first cross-attention is computed for one of them. The same, but for what a smaller batch rounds.
        times: The projections of the time embedding are a product for each width. To roundings.
        tuned_convolutions: cuDNN times its algorithms when a model loads and takes the fastest. To roundings.
    """

    divisions: bool = True
    qkv: bool = True
    norms: bool = True
    biases: bool = True
    zero_prompts: bool = True
    shared_layers: bool = True
    times: bool = True
    tuned_convolutions: bool = True


ALL = Savings()
NONE = Savings(**{each.name: False for each in fields(Savings)})
EXACT = replace(NONE, divisions=True)
"""Those that keep diffusers' bits on a CPU too."""
