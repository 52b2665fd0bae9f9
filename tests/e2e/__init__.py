"""Whole systems on a mount: qemu guests, qemu's tools, fio."""
