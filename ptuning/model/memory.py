"""Recognises torch's errors of a device that is out of memory, and gives cached memory back to the device.

Knows nothing of rows or batches.
"""

import gc

import torch

# torch has a class for the CUDA allocator's error only; other allocators and CUDA's libraries raise RuntimeError.
_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has too little memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error).lower() for each in _MESSAGES)


def release_cached_memory() -> None:
    """Gives the memory that torch keeps for later tensors back to the accelerator, if there is one."""
    gc.collect()  # an error's traceback may hold tensors in circles
    if torch.accelerator.is_available():
        torch.accelerator.memory.empty_cache()
