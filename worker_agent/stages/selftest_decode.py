"""Self-test of the decoder: a clip of six frames whose pixels are known. Stdlib only.

H.264 decoding is exact by its standard (ITU-T H.264, 8), so that every version of ffmpeg must give
the same bytes. The clip is ffmpeg's testsrc2 at 64 x 48, with predicted frames of both kinds.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess

_CLIP = base64.b64decode(
    "AAAAAWdkAAqs2UR7ARAAAAMAEAAAAwFA8SJZYAAAAAFo6+CEsiwAAAFliIQA39vllbEjicljXFve0PJRxVjv7U7z"
    "3+1Knp2+KwcW51wyOZc4kp0d6AiLYTVuXlyd2LC7TnkEyJYebl+FO6HfusUssNmvCoJmiQf/kzlGVs/Gw7oJPOp/"
    "45/hamfq1INvwsL6k6VrOR1yd2wlk3bBsvhrWQJacnl0fXOChEcn3582d9ydOHJ1DCuMAY2aATykFR4iRjM59sd2"
    "C2KNIcpfZXZU1CxZ64CF6exea6eRXcyZvIgtE4f+6kvn1gRK+cI6bPCNDyZQ1rve2EFXR5LGFLZlSxG+mFAYOBfd"
    "aJ8k0M5CytdQMn90OnOjri+uIvzRw48YDF9gO2roPostww2cUJlGaUNkJv+tAZuXzvJgLhtQHRxOkZy3Qh353fWJ"
    "z8TwojP8hDNS1/HC7fY/F03NfWJDKbRWfW1KPLE+lhnYetVnnzPQ0a2XjTHW2QleuFP7X6iKtIIH7L3VmaKkmAYa"
    "ticIx/gDJHirbXykC2BEp21KZPaGHcJ471dcxp0VD4q1OZzY3WEe3K+74qylstk2nLg2s0ZAQd0MgNKcwM+8fqmO"
    "NukJZUP2Y8Dmy/psIbUQcdlZ9hA6Uf33/i5hOD2GiBcKZMuus1YlETtF2nRDJjbJRY81+C07vIMV6FwmTZO6/yuQ"
    "1m8tEhQNROokVnzsZYzdGkF7YpIheHxAv0jjFTKAl3Gyai4C3IrvanzAZQZvBg1i1Ls8L48QNv0Rz4FZ8UIcVATs"
    "6yyNCuZ/onKaa3JHQKy3zbD5AAAAAUGaI2xEf96lDZ6e1WCIBNC3F+0RJ2Fqpl4d1Zqn4AAAAAFBnkF4hD/+5O9l"
    "RRk4kDJkKr8KkWEAAAABAZ5iakIf9Y4K/gAAAAFBmmVJqEFomUwU8IfnCAVvAAAAAQGehGpCH6CB"
)
_FRAME_BYTES = 64 * 48 * 3 // 2
_FRAMES = 6
_SHA256 = "78543ab0c33cdbbae3f6845eaeac3626417d46bf2db8d6f85dd4ef31baec6b1c"
_COMMAND = (
    *("ffmpeg", "-v", "error", "-nostdin", "-f", "h264", "-i", "pipe:0"),
    *("-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "yuv420p", "pipe:1"),
)


def check() -> str:
    """What is wrong, in one line; "" when every byte is right."""
    try:
        answer = subprocess.run(_COMMAND, input=_CLIP, capture_output=True, check=False)
    except OSError as error:
        return f"ffmpeg cannot be run: {error.strerror}"
    if answer.returncode != 0:
        said = " ".join(answer.stderr.decode(errors="replace").split())
        return f"ffmpeg failed with exit code {answer.returncode}: {said[:300]}"
    if len(answer.stdout) != _FRAMES * _FRAME_BYTES:
        return f"{len(answer.stdout) / _FRAME_BYTES:g} frames came out of {_FRAMES}"
    if hashlib.sha256(answer.stdout).hexdigest() != _SHA256:
        return "the pixels of the decoded frames are wrong: check memory and processor"
    return ""
