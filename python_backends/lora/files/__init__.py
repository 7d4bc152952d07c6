"""A LoRA file becomes canonical factors; which modules there are, and which LoRAs make a set.

May import `request` and the rooms below it.
"""
