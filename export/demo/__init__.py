"""The demo family: a small SDXL trained from nothing on procedurally drawn, captioned pictures."""
