"""The protocols of the board (mount_helper/board.h), explored in all interleavings."""
