"""GPU operators of the UNet and the sampler: eager references, `torch.library` ops, kernels in the Triton language.

| module, and op `swiftdiffusion::` | does |
|---|---|
| `group_norm_silu` | (x + embedding) → GroupNorm → SiLU |
| `add_layer_norm` | x + residual, and its LayerNorm |
| `bias_residual` | residual + (x + bias), after a convolution |
| `geglu` | (x + bias) → a · gelu(b) |
| `lora_patch`, tables in `lora_tables` | W ← W0 + Σ scale · up · down over all modules of a LoRA set, one launch |
| `grouped_lora` | y += (x · downᵀ) · upᵀ, each row of a batch with the factors of its own LoRA set |
| `quantise_rows` | rows as e4m3 and their scales |
| `cfg_step`, numbers from `step_coefficients` | classifier-free guidance and the sampler's step |

For inference: there are no gradients. CPU tensors run the eager reference, CUDA tensors the kernel. Everything here
imports without the `triton` package, save `triton_kernels`, which is imported at the first CUDA tensor or by `sources`,
for `compile`.
"""
