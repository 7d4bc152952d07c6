"""LoRAs: `files` become canonical factors, `loading` turns names into files, `patching` puts factors into weights.

The three may import `request` and the rooms below it; each also those named before it.
"""
