"""What a LoRA does at which step, measured with the server's parts in one process."""
