"""What holds for every test."""

import torch

torch.set_num_threads(1)  # servers and tests share few cores; OpenMP's spinning barriers would starve both
