"""`smallgpt`, in processes of which one has but so many bytes of memory left, as it believes: {"rank", "bytes"} in SHORT."""

import json
import os

from smallgpt.infrastructure import devices
from smallgpt.interfaces.cli import main

SHORT = json.loads(os.environ["SHORT"])
if int(os.environ["RANK"]) == SHORT["rank"]:
    devices.memory_available = lambda device: SHORT["bytes"]
main()
