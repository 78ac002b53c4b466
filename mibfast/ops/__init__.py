"""Operations, one file each: checks, choice of the backend, autograd and the `torch.library` boundary."""
