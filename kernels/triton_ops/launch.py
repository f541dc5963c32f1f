"""What launches of several kernels have in common."""

PROGRAMS = 512
"""About how many programs a sum over tokens is split into: some for each processor of a large GPU."""

REGISTERS = 255
"""That a thread may have. Left alone, the assembler stops at 48, 96 or 128, for more blocks at a time, and spills."""
