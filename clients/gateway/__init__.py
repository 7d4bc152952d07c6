"""The gateway: pictures over the OpenAI images API, A1111's web UI API and a page, in front of Triton servers."""
