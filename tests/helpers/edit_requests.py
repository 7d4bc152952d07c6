"""What the gateway's tests of edits without a server have in common."""

from __future__ import annotations

import io

from PIL import Image

from swiftdiffusion.clients.client.pipelines import PipelineDescription

PIPELINE = PipelineDescription(
    height=128,
    width=192,
    size_multiple=8,
    max_size=256,
    steps=20,
    max_steps=100,
    guidance_scale=5.0,
    max_guidance_scale=30.0,
    max_prompt_characters=1000,
    scheduler="EulerDiscreteScheduler",
    schedulers=(),
    img2img_strength=0.3,
    inpaint_strength=0.5,
    max_loras=8,
    loras=(),
    max_controlnets=2,
    controlnets=(),
)


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()
