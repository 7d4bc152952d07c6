"""The ground: errors, sentences, the directory of a running server. Needs nothing of ours, and no torch."""
