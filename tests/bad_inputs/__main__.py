"""Writes the troubleshooting page anew."""

from __future__ import annotations

import os
import tempfile

from pact_plugins.storage import files
from tests.bad_inputs.page import PAGE, errors_page

with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)  # where some of them leave files
    page = errors_page()
files.write_text(PAGE, page)
