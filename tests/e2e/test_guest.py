"""A guest runs from a mounted image, as a hypervisor's guests do."""

from pathlib import Path

import pytest

from tests.e2e.conftest import Mounted
from tests.e2e.guest import MARKER, boot, create_overlay
from tests.e2e.kernel import Kernel, guest_kernel

pytestmark = [pytest.mark.e2e, pytest.mark.mount, pytest.mark.slow]


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    return guest_kernel()


def test_guest_finds_every_byte_and_writes_to_its_overlay(
    mounted: Mounted, kernel: Kernel, tmp_path: Path
) -> None:
    overlay = create_overlay(mounted["guest"], tmp_path / "overlay.qcow2")

    console = boot(kernel, overlay)

    assert MARKER in console, console
    # What the guest wrote went to the overlay; the image is as it was.
    assert overlay.stat().st_blocks * 512 > 2 * 1024 * 1024
    assert mounted["guest"].read_bytes() == mounted.sources["guest"].read_bytes()


def test_second_boot_of_an_overlay_sees_what_the_first_wrote(
    mounted: Mounted, kernel: Kernel, tmp_path: Path
) -> None:
    overlay = create_overlay(mounted["guest"], tmp_path / "overlay.qcow2")
    boot(kernel, overlay)

    # The first run has appended a line to SHA256SUMS that is no sum: the check fails now.
    console = boot(kernel, overlay)

    assert "guest: up" in console, console
    assert MARKER not in console
