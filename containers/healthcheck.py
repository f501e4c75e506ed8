"""Asks a running edgead whether parts are judged, for a container's HEALTHCHECK: exit code 0, or 1 and a line why not.

`$EDGEAD_HEALTH` is what is asked: by default the live page of ``edgead run --serve 127.0.0.1:8080``; for ``edgead
serve`` its ``/v2/health/ready``. `$EDGEAD_SERVE_TOKEN` is the token, where one is needed. It needs Python alone.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

PAGE = "http://127.0.0.1:8080/api/state"
TIMEOUT_S = 4.0


def main() -> int:
    address = os.environ.get("EDGEAD_HEALTH") or PAGE
    if not address.startswith(("http://", "https://")):
        return unhealthy(f"EDGEAD_HEALTH must be an http address, not {address!r}")
    token = os.environ.get("EDGEAD_SERVE_TOKEN")
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"} if token else {})
    # A proxy of the environment knows nothing of this container's loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            state = json.load(answer)
    except urllib.error.HTTPError as error:
        return unhealthy(f"{address} answers {error.code}")
    except (OSError, ValueError) as error:
        return unhealthy(f"no answer from {address}: {error}")
    why = problems(state) if isinstance(state, dict) else ["the answer is no state of edgead"]
    return unhealthy("; ".join(why)) if why else 0


def problems(state: dict[str, Any]) -> list[str]:
    """Return why parts are not judged; a line that stands still, or a pause that a person asked for, is no fault."""
    if "ready" in state:
        return [] if state["ready"] is True else ["not ready: the self-test has not passed"]
    if state.get("schema") != "edgead.page/1":
        return ["the answer is no state of edgead"]
    found = []
    if state.get("state") not in ("running", "paused"):
        found.append(f"the run is {state.get('state', 'not begun')}")
    if state.get("error"):
        found.append(str(state["error"]))
    for camera in state.get("cameras", []):
        # Before the first part of the day a source waits, and nothing is wrong with it.
        well = camera.get("state") == "running" or (camera.get("state") == "waiting" and not camera.get("last_loss"))
        if camera.get("error") or not well:
            found.append(f"camera {camera.get('name')} is {camera.get('error') or camera.get('state')}")
        elif "self-test" in str(camera.get("reason")):
            found.append(f"nothing is inspected: {camera['reason']}")
    return found


def unhealthy(why: str) -> int:
    print(f"unhealthy: {why}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
