"""`python -m cachefs.daemon`."""

import sys

from cachefs.daemon.main import main

sys.exit(main())
