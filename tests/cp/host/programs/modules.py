"""Which modules a nucleus has."""

import json
import sys
from typing import Any


def main(args: dict[str, Any]) -> int:
    import retinue.cp.host.nucleus

    assert retinue.cp.host.nucleus
    print(json.dumps(sorted(sys.modules)))
    return 0
